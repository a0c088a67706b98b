"""Images of any kind become one batch in [-1, 1]."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.data.images.inputs import as_output, load_images
from vqgan.data.source import DataError

LEVELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def of_every_kind(folder: Path) -> dict[str, object]:
    image, tensor = Image.fromarray(LEVELS), torch.from_numpy(LEVELS).permute(2, 0, 1)
    image.save(folder / "a.png")
    return {
        "PIL": image,
        "path": folder / "a.png",
        "text": str(folder / "a.png"),
        "array": LEVELS,
        "array of several": LEVELS[None],
        "float array": LEVELS.astype(np.float64) / 127.5 - 1,
        "uint8": tensor,
        "uint8 of several": tensor[None],
        "float": tensor.float() / 127.5 - 1,
        "bfloat16": torch.full((1, 3, 8, 8), 1.0, dtype=torch.bfloat16),
        "list": [image],
        "tuple of paths": (folder / "a.png",),
    }


def test_every_kind_gives_the_same_batch(tmp_path: Path) -> None:
    expected = (torch.from_numpy(LEVELS).permute(2, 0, 1).float() / 127.5 - 1)[None]
    for name, images in of_every_kind(tmp_path).items():
        batch = load_images(images)
        assert batch.dtype == torch.float32, name
        assert batch.shape == (1, 3, 8, 8), name
        if name != "bfloat16":
            torch.testing.assert_close(batch, expected, msg=name)


def test_a_list_may_mix_kinds_and_keeps_its_order(tmp_path: Path) -> None:
    kinds = of_every_kind(tmp_path)
    black = torch.full((3, 8, 8), -1.0)
    batch = load_images([kinds["PIL"], black, kinds["path"]])
    assert len(batch) == 3
    torch.testing.assert_close(batch[1], black)
    torch.testing.assert_close(batch[0], batch[2])


def test_files_and_pil_images_become_squares_and_tensors_keep_their_size() -> None:
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    assert load_images(wide, 16).shape == (1, 3, 16, 16)
    assert load_images(wide).shape == (1, 3, 20, 40)
    assert load_images(torch.zeros(3, 20, 40), 16).shape == (1, 3, 20, 40)


def test_transparency_lies_on_white_and_gray_becomes_rgb() -> None:
    assert load_images(Image.new("RGBA", (4, 4), (0, 0, 0, 0))).eq(1).all()
    assert load_images(Image.new("L", (4, 4), 0)).eq(-1).all()


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.full((3, 8, 8), 255.0), r"\[-1, 1\], received 255 to 255; pass levels"),
        (np.full((8, 8, 3), -1.5), "received -1.5"),
        (torch.full((3, 8, 8), float("nan")), "received nan"),
        ([torch.full((3, 8, 8), 2.0)], "received 2 to 2"),
        (torch.zeros(8, 8, 3), r"tensor \(3, H, W\).*received shape \(8, 8, 3\)"),
        (np.zeros((3, 8, 8)), r"array \(H, W, 3\).*received shape \(3, 8, 8\)"),
        (torch.zeros(8, 8), "received shape"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "received torch.int64"),
        ([], "an empty list"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], "received 4x4, 4x5"),
        ([3], "received int"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_what_is_no_batch_is_one_clear_error(images: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_images(images)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("hello")
    for path in (tmp_path / "note.png", tmp_path / "missing.png"):
        with pytest.raises(DataError, match=path.name):
            load_images(path)


def test_the_range_is_not_checked_where_the_caller_knows_it() -> None:
    assert load_images(torch.full((3, 8, 8), 255.0), check_range=False).eq(255).all()


@pytest.mark.usefixtures("shapes_unchecked")
def test_output_types() -> None:
    images = torch.zeros(2, 3, 4, 4)
    assert as_output(images, "pt") is images
    assert [image.size for image in as_output(images, "pil")] == [(4, 4), (4, 4)]
    with pytest.raises(ValueError, match="'pt' or 'pil', received 'np'"):
        as_output(images, "np")  # type: ignore[arg-type]
