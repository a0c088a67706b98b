"""Nothing that lies in a folder is passed over in silence: links are followed, the rest is told by ending and count."""

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from tests.vqgan.data.image_folders import draw, outcomes, told, write
from vqgan.data.folders.listing import EXTENSIONS, list_folder
from vqgan.data.images.decode import FORMATS
from vqgan.data.source import DataError
from vqgan.data.sources.folder import Folder, FolderConfig


def test_linked_folders_and_images_are_read_with_their_captions(tmp_path: Path) -> None:
    store, root = tmp_path / "store", tmp_path / "set"
    for number in range(3):
        draw(store / "cats" / f"{number}.png")
        write(store / "cats" / f"{number}.txt", f"cat {number}")
    draw(root / "dogs" / "a.png")
    (root / "cats").symlink_to(store / "cats")
    (root / "dogs" / "b.png").symlink_to(store / "cats" / "0.png")
    (root / "dogs" / "b.txt").symlink_to(store / "cats" / "0.txt")
    found = {
        "dogs/a.png": None,
        "dogs/b.png": "cat 0",
        **{f"cats/{number}.png": f"cat {number}" for number in range(3)},
    }
    assert outcomes(root) == found
    assert told(root) == {}


def test_links_that_go_round_end_and_no_folder_is_read_twice(tmp_path: Path) -> None:
    root = tmp_path / "outer" / "set"
    for name in ("a/x.png", "b/y.png"):
        draw(root / name)
    draw(tmp_path / "outer" / "above.png")
    (root / "a" / "to_b").symlink_to(root / "b")
    (root / "b" / "to_a").symlink_to(root / "a")
    (root / "self").symlink_to(root)
    (root / "up").symlink_to(tmp_path / "outer")
    (root / "disk").symlink_to("/")
    assert outcomes(root) == {"a/x.png": None, "b/y.png": None}
    assert told(root) == {"linked folders": (5, True)}
    many = tmp_path / "many"
    for number in range(12):  # each links to all: one path through them for every order of twelve
        draw(many / str(number) / "z.png")
        for other in range(12):
            (many / str(number) / f"link{other}").symlink_to(many / str(other))
    assert len(outcomes(many)) == 12


def test_two_links_to_one_folder_outside_are_one(tmp_path: Path) -> None:
    draw(tmp_path / "store" / "cats" / "a.png")
    draw(tmp_path / "set" / "b.png")
    (tmp_path / "set" / "all").symlink_to(tmp_path / "store")
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "store" / "cats")
    assert outcomes(tmp_path / "set") == {"b.png": None, "all/cats/a.png": None}
    assert told(tmp_path / "set") == {"linked folders": (1, True)}


def test_what_is_no_regular_file_is_named_and_waits_for_nobody(tmp_path: Path) -> None:
    draw(tmp_path / "fine.png")
    draw(tmp_path / "also.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "infinite.png").symlink_to("/dev/zero")
    (tmp_path / "kernel.png").symlink_to("/proc/self/mountinfo")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "gone").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    found = outcomes(tmp_path)
    assert found.pop("round.png")
    assert found == {
        "fine.png": None,
        "also.png": None,
        "pipe.png": "it is a pipe, not a regular file",
        "infinite.png": "it is a device, not a regular file",
        "kernel.png": "the file is empty (0 bytes)",
        "gone.png": "the file is missing",
    }
    assert told(tmp_path) == {"links": (1, True), "pipes, sockets or devices": (2, False)}


def test_captions_behind_a_device_or_of_gigabytes_cost_their_item_only(tmp_path: Path) -> None:
    for name in "abc":
        draw(tmp_path / f"{name}.png")
    write(tmp_path / "a.txt", "a cat")
    (tmp_path / "b.txt").symlink_to("/dev/zero")
    with (tmp_path / "c.txt").open("wb") as file:
        file.truncate(3 * 2**30)
    found = outcomes(tmp_path)
    assert found["a.png"] == "a cat"
    assert found["b.png"] is None
    assert str(found["c.png"]).startswith(
        "its caption file c.txt cannot be read: it has 3,221,225,472 bytes, the limit is "
    )


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    draw(tmp_path / "secret" / "c.png")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert outcomes(tmp_path) == {"a.png": None, "b.png": None}
    assert told(tmp_path) == {"folders": (1, True)}
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        Folder(FolderConfig(path=str(tmp_path / "secret")), "train")


def test_every_ending_of_the_formats_that_are_decoded_is_read() -> None:
    Image.init()
    decoded = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert decoded <= set(EXTENSIONS)


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".apng", ".dib", ".ico", ".pbm", ".pnm", ".j2k", ".jpx", ".avif"])
def test_endings_that_are_seldom_seen(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / f"b{suffix}")
    write(tmp_path / "b.txt", "a cat")
    assert outcomes(tmp_path) == {"a.png": None, f"b{suffix}": "a cat"}
    assert told(tmp_path) == {}


def test_other_files_are_told_by_ending_and_those_that_may_be_images_count_as_lost(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    for number in range(3):
        write(tmp_path / "deep" / f"{number}.HEIC", "x")
        draw(tmp_path / f"photo{number}.jpg_large")
        draw(tmp_path / f"hash{number}")
    for name in ("a.json", "b.json", "script.py", "set.tar", "captions.csv", "a.caption", "lost.txt", "list"):
        write(tmp_path / name, "x")
    assert told(tmp_path) == {
        "files ending in .heic": (3, True),
        "files ending in .jpg_large": (3, True),
        "files without an ending": (4, True),
        "files ending in .json": (2, False),
        "files ending in .py": (1, False),
        "files ending in .tar": (1, True),
        "files ending in .csv": (1, True),
        "files ending in .caption": (1, True),
        "text files of no image": (1, False),
    }


def test_what_anyone_expects_beside_images_is_not_told(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    write(tmp_path / "a.txt", "a cat")
    for name in ("README", "readme.MD", "LICENSE.txt", "Thumbs.db", "desktop.ini", ".DS_Store", "SHA256SUMS", "a.md5"):
        write(tmp_path / name, "x")
    write(tmp_path / ".git" / "config", "x")
    write(tmp_path / "__MACOSX" / "._a.png", "x")
    assert told(tmp_path) == {}


def test_no_images_at_all_says_what_there_is_instead(tmp_path: Path) -> None:
    write(tmp_path / "a.heic", "x")
    write(tmp_path / "b.heic", "x")
    with pytest.raises(DataError, match=r"no images in .*; there are 2 files ending in \.heic \(a\.heic, b\.heic\)"):
        Folder(FolderConfig(path=str(tmp_path)), "train")


@pytest.mark.parametrize("name", ["set [v2]", "a*b", "{x}", "what?", "50% #1", "~", "Ünï"])
def test_folders_with_signs_of_patterns_in_their_names(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    draw(root / "[a]" / "x[1].png")
    draw(root / "b*" / "y?.png")
    write(root / "[a]" / "x[1].txt", "a cat")
    assert outcomes(root) == {"[a]/x[1].png": "a cat", "b*/y?.png": None}
    write(root / "metadata.csv", "file_name,text\n[a]/x[1].png,one\nb*/y?.png,two\n")
    assert outcomes(root) == {"[a]/x[1].png": "one", "b*/y?.png": "two"}


def test_names_come_in_order_whatever_the_disk_says(tmp_path: Path) -> None:
    names = ["b/c.png", "a.png", "b.png", "b/a.png", "Z.png"]
    for name in names:
        draw(tmp_path / name)
    assert list_folder(tmp_path).images == sorted(names)
