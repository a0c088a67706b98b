"""Several captions an image: what each choice shows, the same on every run, and the first one in evaluation."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from vqgan.data.captions import MAX_CAPTION_BYTES, CaptionChoice, all_captions, choose_caption, read_captions
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.source import Sample, UnusableSample
from vqgan.data.sources.folder import FolderConfig
from vqgan.data.sources.huggingface import DatasetConfig

IMAGE = Image.new("RGB", (4, 4))
LINES = " a cat \n\n on  a mat\n"
LIST = [None, " ", "a cat", "on a\nmat"]


@pytest.mark.parametrize(
    ("choice", "value", "captions"),
    [
        ("auto", LINES, ["a cat on a mat"]),
        ("auto", LIST, ["a cat"]),
        ("first", LINES, ["a cat"]),
        ("first", LIST, ["a cat"]),
        ("random", LINES, ["a cat", "on a mat"]),
        ("random", LIST, ["a cat", "on a mat"]),
        ("joined", LINES, ["a cat on a mat"]),
        ("joined", LIST, ["a cat on a mat"]),
        *((choice, value, []) for choice in ("auto", "first", "random", "joined") for value in (None, "", " \n", [])),
    ],
)
def test_what_each_choice_makes_of_lines_and_lists(choice: CaptionChoice, value: Any, captions: list[str]) -> None:
    assert read_captions(value, choice, "x", required=False) == tuple(captions)


def test_lines_end_where_an_editor_ends_them_alone() -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    assert read_captions(odd, "random", "x", required=True) == (" ".join(odd.split()),)
    assert read_captions(f"{odd}\none\r\ntwo\rthree\n\rfour", "random", "x", required=True)[1:] == (
        *("one", "two", "three", "four"),
    )


def test_a_caption_of_megabytes_costs_the_item() -> None:
    assert read_captions("x" * MAX_CAPTION_BYTES, "auto", "x", required=True)
    for value in ("x" * (MAX_CAPTION_BYTES + 1), ["x" * 1000] * 1001):
        with pytest.raises(UnusableSample, match="x: its caption has more than 1,000,000 characters"):
            read_captions(value, "auto", "x", required=True)


@pytest.mark.parametrize("value", [3, {"en": "a cat"}, b"a cat"])
def test_what_is_not_text_or_missing_costs_the_item(value: Any) -> None:
    with pytest.raises(UnusableSample, match=r"x: its caption is .* not text"):
        read_captions(value, "random", "x", required=False)
    with pytest.raises(UnusableSample, match="x: no caption"):
        read_captions([" "], "random", "x", required=True)


def test_one_caption_draws_no_random_number_so_that_crops_stay_what_they_were() -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    for sample in (Sample(IMAGE, "a", "x"), Sample(IMAGE, "a", "x", ("a",)), Sample(IMAGE, None, "x")):
        assert choose_caption(sample, rng) == sample.caption
    assert rng.bit_generator.state == before
    assert all_captions(Sample(IMAGE, "a", "x")) == ("a",)
    assert all_captions(Sample(IMAGE, None, "x")) == ()


def folder(root: Path) -> FolderConfig:
    (root / "train").mkdir(parents=True)
    (root / "val").mkdir()
    for number in range(6):
        for split in ("train", "val"):
            IMAGE.save(root / split / f"{number}.png")
            text = "\n".join(f"{number} {word}" for word in ("one", "two", "three"))
            (root / split / f"{number}.txt").write_text(text)
    return FolderConfig(path=str(root), captions="random")


def dataset(root: Path) -> DatasetConfig:
    root.mkdir()
    Image.new("RGB", (4, 4)).save(root / "a.png")
    encoded = {"bytes": (root / "a.png").read_bytes(), "path": None}
    texts = [[f"{number} {word}" for word in ("one", "two", "three")] for number in range(6)]
    rows = datasets.Dataset.from_dict({"image": [encoded] * 6, "text": texts})
    rows.cast_column("image", datasets.Image(decode=False)).save_to_disk(str(root / "rows"))
    return DatasetConfig(name=str(root / "rows"), captions="random", val_fraction=0.4)


@pytest.mark.parametrize("source", [folder, dataset])
def test_random_captions_are_a_function_of_seed_and_position(source: Any, tmp_path: Path) -> None:
    config = DataConfig(source=source(tmp_path / "data"), transform=TransformConfig(image_size=4), batch_size=2)
    data = DataPipeline(config, seed=0, require_captions=True)

    def texts(first: int = 0, share: BatchShard = BatchShard(), seed: int = 0) -> list[list[str | None]]:  # noqa: B008
        pipeline = DataPipeline(config, seed=seed)
        return [
            [text for batch in step for text in batch.captions] for step in pipeline.training_batches(first, 30, share)
        ]

    whole = texts()
    shown = {text for step in whole for text in step if text and text.startswith("0")}
    assert shown == {"0 one", "0 two", "0 three"}
    assert texts(first=17) == whole[17:]
    parts = zip(texts(share=BatchShard(0, 2)), texts(share=BatchShard(1, 2)), strict=True)
    assert [one + other for one, other in parts] == whole
    assert texts(seed=1) != whole
    # Evaluation and previews show the first; a vocabulary is learned from all.
    assert all(str(text).endswith("one") for batch in data.val_batches() for text in batch.captions)
    assert all(str(text).endswith("one") for text in data.preview_batch(2).captions)
    assert len(list(data.captions(2))) == 6


def test_lists_in_the_metadata_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        IMAGE.save(tmp_path / f"{name}.png")
    rows = [{"file_name": f"{name}.png", "text": [f"{name} one", f"{name} two"]} for name in ("a", "b", "c")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for choice, count in (("auto", 1), ("joined", 1), ("random", 2)):
        source = FolderConfig.model_validate({"path": str(tmp_path), "captions": choice})
        config = DataConfig(source=source, transform=TransformConfig(image_size=4), batch_size=1)
        found = list(DataPipeline(config, seed=0, require_captions=True).captions(1))
        assert len(found) == count
        assert found[0].count(" one") == 1
        assert (" two" in found[0]) == (choice == "joined")
