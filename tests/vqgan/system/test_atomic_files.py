"""Files and folders that change whole or not at all; what the system says of a failed write is one line."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vqgan.system import atomic_files as durable
from vqgan.system.atomic_files import (
    CannotWriteError,
    check_space,
    put_in_place,
    recover_folder,
    remove_folder,
    replaced_folder,
    write_file,
    writing,
)


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchanging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of putting a folder in another's place."""
    if not request.param:
        monkeypatch.setattr(durable, "_exchange", lambda *_: False)
    return bool(request.param)


def test_a_folder_takes_the_place_of_another(exchanging: bool, tmp_path: Path) -> None:
    for content in ("first", "second", "third"):
        with replaced_folder(tmp_path / "model") as fresh:
            (fresh / "file").write_text(content)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert (tmp_path / "model" / "file").read_text() == content
    assert isinstance(exchanging, bool)


def test_with_the_exchange_of_names_the_folder_is_there_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        renamed.append(path.name)
        return rename(path, target)

    put_in_place(folder(tmp_path / "one", "1"), tmp_path / "model")
    if not durable._exchange(folder(tmp_path / "two", "2"), folder(tmp_path / "three", "3")):
        pytest.skip("this file system cannot exchange two names")
    monkeypatch.setattr(Path, "rename", watched)
    put_in_place(tmp_path / "two", tmp_path / "model")
    assert renamed == []
    assert (tmp_path / "model" / "file").read_text() == "3"


def test_a_kill_between_two_renames_is_put_right(tmp_path: Path) -> None:
    folder(tmp_path / ".old-model", "old")
    folder(tmp_path / ".new-model", "new, and perhaps not whole")
    recover_folder(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "file").read_text() == "old"
    folder(tmp_path / ".old-model", "older")
    recover_folder(tmp_path / "model")
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_loses_its_name_before_anything_in_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "step", "whole")
    monkeypatch.setattr(durable.shutil, "rmtree", lambda *_, **__: None)  # killed before
    remove_folder(path)
    assert [left.name for left in tmp_path.iterdir()] == [".removed-step"]


def test_what_is_renamed_is_on_the_disk_before_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut: kill -9 alone would not show a missing flush."""
    happened: list[str] = []
    replace = Path.replace

    def flushed(descriptor: int) -> None:
        happened.append("flush " + Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def replaced(path: Path, target: Path) -> Path:
        happened.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", replaced)
    write_file(tmp_path / "file", b"content")
    assert happened == ["flush .new-file", "rename", f"flush {tmp_path.name}"]
    happened.clear()
    with replaced_folder(tmp_path / "model") as fresh:
        (fresh / "weights").write_text("1")
    assert happened == ["flush weights", "flush .new-model", f"flush {tmp_path.name}"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "make the folder writable, or choose another run_dir"),
        (errno.ENOTDIR, "a file is where a folder belongs: move it away or choose another folder"),
        (errno.ENOENT, "mend that"),
    ],
)
def test_a_failed_write_is_one_line_with_the_remedy(number: int, remedy: str) -> None:
    with pytest.raises(CannotWriteError) as caught, writing(Path("runs/model")):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == (
        f"cannot write runs/model: {os.strerror(number)}; {remedy}, then run the same command again: "
        "it goes on from the last checkpoint, if there is one"
    )


def test_what_is_no_run_has_its_own_way_on(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with (
        pytest.raises(CannotWriteError, match=r"a file is where a folder belongs: .*, then start again$"),
        writing(tmp_path / "cache", "start again"),
    ):
        (tmp_path / "cache").mkdir(exist_ok=True)


def test_libraries_in_rust_are_understood(tmp_path: Path) -> None:
    with pytest.raises(CannotWriteError, match="No such file or directory"), writing(tmp_path):
        save_file({"w": torch.zeros(3)}, tmp_path / "missing" / "model.safetensors")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        _ = 1 / 0


def test_space_is_looked_for_before(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(CannotWriteError, match=r"1000000000000\.0 MB are needed and .* MB are free; free some space"):
        check_space(tmp_path, 10**18)


def test_the_old_folder_stays_until_the_new_name_is_on_the_disk(
    exchanging: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could leave neither."""
    happened: list[str] = []
    removed = durable.shutil.rmtree

    def removing(path: Path, **options: bool) -> None:
        if path.exists():
            happened.append(f"removed {(path / 'file').read_text()}")
        removed(path, **options)

    folder(tmp_path / "model", "old")
    fresh = folder(tmp_path / "fresh", "new")
    monkeypatch.setattr(durable.shutil, "rmtree", removing)
    monkeypatch.setattr(durable, "sync_folder", lambda path: happened.append(f"flushed {path.name}"))
    put_in_place(fresh, tmp_path / "model")
    assert happened == [f"flushed {tmp_path.name}", "removed old"]
    assert isinstance(exchanging, bool)
