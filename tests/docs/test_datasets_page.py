"""docs/datasets.md: its commands are parsed, and its layouts are read, in small stand-ins of the public sets."""

import importlib
import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tools.check_data import main as check_data
from vqgan.data.sources.folder import Folder, FolderConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line.strip()
]
CONVERSIONS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, script, *words = shlex.split(command)
    tool = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    if script == "tools/plan.py":
        assert tool.main([*words, "--print-config"]) == 0
    else:
        assert tool.main([*words, "--print-config"]) == 0


def an_image(path: Path, color: tuple[int, int, int], side: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((side, side), 60 + color[0]).convert("RGB").save(path, format="JPEG")


def conversion(names: str) -> str:
    (found,) = [code for code in CONVERSIONS if names in code]
    return found


def is_right(data: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = check_data(["--data", data, "--data.transform.image_size", "32", "--data.batch_size", "2"])
    said = capsys.readouterr()
    assert code in (0, 1), said.err
    assert re.search(r"broken +0 +0\nwithout caption +0 +0\n", said.out), said.out
    return said.out


def test_coco(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path("data/coco")
    for split, count in (("train", 4), ("val", 2)):
        images, annotations = [], []
        for number in range(count):
            name = f"{number:012d}.jpg"
            an_image(root / split / name, (number, 0, 0))
            images.append({"id": number, "file_name": name, "height": 48, "width": 48})
            annotations += [{"image_id": number, "id": 9, "caption": f"A thing\n number {n}."} for n in range(5)]
        (root / "annotations").mkdir(exist_ok=True)
        text = json.dumps({"info": {}, "images": images, "annotations": annotations})
        (root / "annotations" / f"captions_{split}2017.json").write_text(text)
    exec(conversion("captions_{split}2017"), {})
    for split, count in (("train", 4), ("val", 2)):
        folder = Folder(FolderConfig(path="data/coco", captions="random"), split, require_captions=True)
        assert len(folder) == count
        assert folder[0].captions == tuple(f"A thing number {n}." for n in range(5))
    is_right("{kind: folder, path: data/coco, captions: random}", capsys)


def test_what_img2dataset_writes(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path("data/pairs")
    root.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for number in range(40):
                key = f"{shard:05d}{number:04d}"
                image = io.BytesIO()
                Image.effect_noise((48, 40), 50 + number).convert("RGB").save(image, format="JPEG")
                record = json.dumps({"url": "http://x", "caption": f"number {number}", "status": "success", "key": key})
                parts = {"jpg": image.getvalue(), "json": record.encode(), "txt": f"number {number}".encode()}
                for ending, content in parts.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        (root / f"{shard:05d}_stats.json").write_text("{}")
        (root / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    assert "80" in is_right("{kind: shards, path: data/pairs}", capsys)


def test_imagenet_with_class_names(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path("data/imagenet")
    for split in ("train", "val"):
        for synset in ("n01440764", "n01443537"):
            for number in range(2):
                an_image(root / split / synset / f"{synset}_{split}_{number}.JPEG", (number, 0, 0))
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    exec(conversion("LOC_synset_mapping"), {})
    folder = Folder(FolderConfig(path=str(root), captions="random"), "train", require_captions=True)
    assert len(folder) == 4
    assert folder[0].captions == ("tench", "Tinca tinca")
    is_right("{kind: folder, path: data/imagenet, captions: random}", capsys)
