"""Images find their captions, splits stay put, and nothing outside of the folder is read."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vqgan.data.source import DataError, Split, UnusableSample
from vqgan.data.sources.folder import Folder, FolderConfig


def draw(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def names(root: Path, split: Split, **options: float) -> list[str]:
    source = Folder(FolderConfig.model_validate({"path": str(root), **options}), split)
    return [source[index].name for index in range(len(source))]


def both(root: Path, *, require_captions: bool = False) -> dict[str, str | None]:
    """Name -> caption of both splits."""
    found = {}
    for split in ("train", "val"):
        source = Folder(FolderConfig(path=str(root)), split, require_captions=require_captions)
        assert all(source.captions(index) == source[index].captions for index in range(len(source)))
        found |= {sample.name: sample.caption for sample in map(source.__getitem__, range(len(source)))}
    return found


def test_captions_in_text_files(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "deep" / "b.JPG")
    draw(tmp_path / "blank.webp")
    draw(tmp_path / "bare.gif")
    draw(tmp_path / ".hidden.png")
    draw(tmp_path / ".thumbnails" / "a.png")
    write(tmp_path / "notes.md", "not an image")
    write(tmp_path / "a.txt", "\ufeff a cat\n on  a mat\n")
    write(tmp_path / "deep" / "b.txt", "ein Bär")
    write(tmp_path / "blank.txt", " \n")
    assert both(tmp_path) == {"a.png": "a cat on a mat", "deep/b.JPG": "ein Bär", "blank.webp": None, "bare.gif": None}


def test_single_missing_captions_are_unusable_where_captions_are_needed(tmp_path: Path) -> None:
    for name in "abc":
        draw(tmp_path / "train" / f"{name}.png")
    draw(tmp_path / "val" / "d.png")
    write(tmp_path / "train" / "a.txt", "a cat")
    write(tmp_path / "train" / "b.txt", "  ")
    (tmp_path / "train" / "c.txt").write_bytes(b"\xff\xfe\xff")
    source = Folder(FolderConfig(path=str(tmp_path)), "train", require_captions=True)
    assert source[0].caption == "a cat"
    with pytest.raises(UnusableSample, match=r"b\.png: no caption"):
        source[1]
    with pytest.raises(UnusableSample, match=r"c\.png: its caption file c\.txt is not UTF-8"):
        source[2]
    with pytest.raises(DataError, match="has a caption, and this run needs captions"):
        Folder(FolderConfig(path=str(tmp_path)), "val", require_captions=True)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_in_metadata(tmp_path: Path, kind: str) -> None:
    for name in ("a.png", "sub/b.png", "unlisted.png"):
        draw(tmp_path / name)
    rows = {"a.png": "a cat, sitting", "sub/b.png": "", "gone.png": "nothing there"}
    if kind == "csv":
        lines = ["\ufefffile_name,text", *(f'{name},"{text}"' for name, text in rows.items())]
    else:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows.items()] + [""]
    write(tmp_path / f"metadata.{kind}", "\n".join(lines))
    found: dict[str, str | None] = {}
    causes = {}
    for split in ("train", "val"):
        source = Folder(FolderConfig(path=str(tmp_path)), split)
        for index in range(len(source)):
            try:
                sample = source[index]
                found[sample.name] = sample.caption
            except UnusableSample as unusable:
                causes[unusable.name] = unusable.cause
    assert found == {"a.png": "a cat, sitting", "sub/b.png": None}
    assert causes == {"gone.png": "the file is missing"}


def test_metadata_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    metadata = tmp_path / "metadata.csv"
    config = FolderConfig(path=str(tmp_path))
    write(metadata, "file_name,caption,license\na.png,a cat,CC0\nb.png,a dog,CC0\n")
    assert both(tmp_path) == {"a.png": None, "b.png": None}, "captions are not needed here"
    with pytest.raises(DataError, match="no column 'text', it has: file_name, caption, license"):
        Folder(config, "train", require_captions=True)
    write(metadata, "image,text\na.png,a cat\n")
    with pytest.raises(DataError, match="no column 'file_name', it has: image, text"):
        Folder(config, "train")
    write(metadata, "file_name,text\n")
    with pytest.raises(DataError, match=r"metadata\.csv lists no images"):
        Folder(config, "train")
    write(metadata, "file_name,text\na.png,\nb.png, \n")
    with pytest.raises(DataError, match="has a caption, and this run needs captions"):
        Folder(config, "train", require_captions=True)
    metadata.write_bytes(b"file_name,text\na.png,\xff\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        Folder(config, "train")
    metadata.unlink()
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.png"}\n{oops\n')
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        Folder(config, "train")
    write(tmp_path / "metadata.jsonl", '["a.png"]\n')
    with pytest.raises(DataError, match="line 1 is not an object"):
        Folder(config, "train")


def test_odd_rows_cost_only_themselves(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a.png")
    draw(tmp_path / "test" / "a.png")
    rows = [
        {"file_name": "a.png", "text": "a cat"},
        {"file_name": "a.png", "text": {"en": "a"}},
        {"file_name": None, "text": "x"},
        {"file_name": "x" * 5000, "text": "x"},
        {"file_name": "nul\0.png", "text": "x"},
        {"file_name": ".", "text": "x"},
    ]
    write(tmp_path / "train" / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    source = Folder(FolderConfig(path=str(tmp_path)), "train")
    assert source[0].caption == "a cat"
    for index, cause in enumerate(["not text", "no file_name", "not a usable", "not a usable", "not a regular"], 1):
        with pytest.raises(UnusableSample, match=cause):
            source[index]


def outcomes(source: Folder) -> dict[str, str | None]:
    """Name -> caption, or why the item cannot be used."""
    found: dict[str, str | None] = {}
    for index in range(len(source)):
        try:
            sample = source[index]
            assert sample.captions == source.captions(index)
            found[sample.name] = sample.caption
        except UnusableSample as unusable:
            found[unusable.name] = unusable.cause
    return found


def test_what_a_row_names_outside_of_its_folder_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "secret.png")
    root = tmp_path / "data"
    draw(root / "val" / "a.png")
    draw(root / "train" / "fine.png")
    climbing = ["../../secret.png", str(tmp_path / "secret.png"), "../val/a.png", "x/../../../secret.png", ".."]
    climbing += ["..\\..\\secret.png", "C:\\secret.png", "\\\\host\\secret.png", "C:secret.png"]
    rows = [{"file_name": name, "text": "x"} for name in [*climbing, "fine.png", "x/../fine.png"]]
    write(root / "train" / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    found = outcomes(Folder(FolderConfig(path=str(root)), "train"))
    assert found == {"fine.png": "x"} | dict.fromkeys(climbing, "refused: it leads out of the data set's folder")


@pytest.mark.parametrize("folder", ["heldout", "validation", "val", "test"])
def test_split_folders(tmp_path: Path, folder: str) -> None:
    draw(tmp_path / "train" / "a.png")
    draw(tmp_path / folder / "b.png")
    assert names(tmp_path, "train") == ["a.png"]
    assert names(tmp_path, "val") == ["b.png"]
    # One metadata file for all splits, at the top.
    write(tmp_path / "metadata.csv", f"file_name,text\ntrain/a.png,one\n{folder}/b.png,two\n")
    assert both(tmp_path) == {"train/a.png": "one", f"{folder}/b.png": "two"}


def test_the_split_by_name_is_whole_disjoint_and_stays_when_files_are_added(tmp_path: Path) -> None:
    for number in range(60):
        draw(tmp_path / f"{number}.png")
    train, val = (set(names(tmp_path, split, val_fraction=0.2)) for split in ("train", "val"))
    assert train | val == {f"{number}.png" for number in range(60)}
    assert not train & val
    assert 4 <= len(val) <= 20
    for number in range(60, 90):
        draw(tmp_path / f"{number}.png")
    assert train <= set(names(tmp_path, "train", val_fraction=0.2))
    assert val <= set(names(tmp_path, "val", val_fraction=0.2))


def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    def opening(path: Path, split: Split = "train") -> str:
        with pytest.raises(DataError) as caught:
            Folder(FolderConfig(path=str(path)), split)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist" in opening(tmp_path / "nowhere")
    assert "no images in" in opening(tmp_path)
    write(tmp_path / "file", "")
    assert "is not a folder" in opening(tmp_path / "file")
    draw(tmp_path / "only.png")
    assert names(tmp_path, "train") == ["only.png"]
    assert "a single image" in opening(tmp_path, "val")


def test_broken_images_and_backgrounds(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.png", "this is text")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "train" / "b.png")
    draw(tmp_path / "test" / "c.png")
    source = Folder(FolderConfig(path=str(tmp_path), background="#0000ff"), "train")
    with pytest.raises(UnusableSample, match=r"a\.png: not an image"):
        source[0]
    assert source[1].image.getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(ValueError, match="not an opaque color: 'reddish'"):
        FolderConfig(path=str(tmp_path), background="reddish")
