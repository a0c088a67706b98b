"""A folder's own splits are found by the names that data sets give them, and what is in neither is told."""

from pathlib import Path

import pytest

from tests.vqgan.data.image_folders import draw, outcomes, told, write
from vqgan.data.folders.split_folders import SplitFolders, split_folders


@pytest.mark.parametrize(
    ("train", "val"),
    [
        *(("train", name) for name in ("valid", "dev", "eval", "evaluation", "holdout", "held-out", "test", "testing")),
        *[("Train", "Val"), ("TRAIN", "VALID"), ("training", "validation"), ("train2017", "val2017")],
        *[("train_images", "test_images"), ("train-512", "dev-512")],
    ],
)
def test_names_of_splits(tmp_path: Path, train: str, val: str) -> None:
    draw(tmp_path / train / "a.png")
    draw(tmp_path / val / "deep" / "b.png")
    assert outcomes(tmp_path, "train") == {"a.png": None}
    assert outcomes(tmp_path, "val") == {"deep/b.png": None}
    assert told(tmp_path) == {}


def test_of_several_the_likeliest_name_wins() -> None:
    assert split_folders(["test", "train", "valid", "val"]) == SplitFolders("train", "valid")
    assert split_folders(["train2014", "train", "val2014", "dev"]) == SplitFolders("train", "dev")
    assert split_folders(["Test", "train"]) == SplitFolders("train", "Test")
    assert split_folders(["trains", "value", "devices", "tester", "evaluate"]) is None
    assert split_folders(["train"]) is None
    assert split_folders(["valid", "cats"]) is None


def test_what_lies_in_neither_split_is_told(tmp_path: Path) -> None:
    for name in ("train/a.png", "valid/b.png", "test/c.png", "extra/d.png", "extra/e.png", "f.png"):
        draw(tmp_path / name)
    assert outcomes(tmp_path) == {"a.png": None, "b.png": None}
    assert told(tmp_path) == {
        "images in extra/ beside train/ and valid/, which alone are used": (2, True),
        "images that lie beside train/ and valid/, which alone are used": (1, True),
        "images in test/": (1, False),
    }


def test_splits_that_are_not_where_they_are_looked_for_are_told(tmp_path: Path) -> None:
    for name in ("images/train/a.png", "images/val/b.png", "more/c.png"):
        draw(tmp_path / name)
    assert len(outcomes(tmp_path)) == 3
    assert told(tmp_path) == {"folders that are split, below the data set's own": (1, True)}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["train/a.png", "unlabeled/b.png"], "folders beside train/ whose names say no split"),
        (["cats/a.png", "val/b.png"], "validation folder without a train/ beside it"),
        (["a.png", "valid/b.png"], "validation folder without a train/ beside it"),
        (["a.png", "validation/b.png"], "validation folder without a train/ beside it"),
    ],
)
def test_half_a_split_is_told(tmp_path: Path, names: list[str], what: str) -> None:
    for name in names:
        draw(tmp_path / name)
    assert set(outcomes(tmp_path)) == set(names)
    assert told(tmp_path) == {what: (1, False)}


def test_classes_whose_names_are_like_splits_are_classes(tmp_path: Path) -> None:
    for name in ("valid/a.png", "invalid/b.png", "test/c.png"):
        draw(tmp_path / name)
    assert len(outcomes(tmp_path)) == 3
    assert told(tmp_path) == {}


def test_one_list_for_both_splits_is_divided_by_folder(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "valid/c.png", "trainers/d.png"):
        draw(tmp_path / name)
    rows = ["train/a.png,one", "train\\b.png,two", "valid/c.png,three", "trainers/d.png,four", "e.png,five"]
    write(tmp_path / "metadata.csv", "\n".join(["file_name,text", *rows]))
    assert outcomes(tmp_path, "train") == {"train/a.png": "one", "train/b.png": "two"}
    assert outcomes(tmp_path, "val") == {"valid/c.png": "three"}
    kinds = told(tmp_path)
    assert kinds.pop("images in trainers/ beside train/ and valid/, which alone are used") == (1, True)
    assert kinds == {"rows of metadata that name nothing in train/ or valid/": (2, True)}
