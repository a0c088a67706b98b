"""Making a code cache: what is in it, and that it is the same whatever stops the work and however many do it."""

import errno
import importlib.util
import itertools
import json
import os
import shutil
import signal
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from parti.code_cache.data import CodeCache, CodedPipeline, PairDataConfig
from parti.code_cache.encode import encode
from parti.code_cache.manifest import ITEM_ORDER, read_record
from parti.code_cache.shard import Shard, smallest_type
from parti.text.tokenizer import TextTokenizer
from tests.parti.code_cache.tiny_caches import SHAPES, contents, settings
from tests.tiny_runs import untrained_tokenizer
from tests.two_processes import free_port
from vqgan.config.schema import ConfigError
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.source import DataError, UnusableSample
from vqgan.data.sources.shapes import Shapes, ShapesConfig
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.system.atomic_files import CannotWriteError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def whole(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    assert encode(settings(folder, tokenizer))
    return folder


def test_a_row_is_what_the_tokenizers_make_of_the_image(whole: Path, tokenizer: Path) -> None:
    image, text = ImageTokenizer.from_pretrained(tokenizer), TextTokenizer.from_pretrained(whole)
    source, transform = Shapes(ShapesConfig(**SHAPES), "train", 32), ImageTransform(TransformConfig(image_size=32))
    for position in (0, 17, 39):
        sample, row = source[position], Shard(whole / f"train-{position // 16:05d}.arrow").row(position)
        assert (row.name, row.captions, row.position) == (sample.name, (sample.caption,), position)
        codes = image.encode(transform(sample.image, None)[None])
        assert row.codes.tolist() == codes.tolist()
        assert row.text_ids is not None
        assert row.text_ids.tolist() == text.encode([sample.caption or ""]).tolist()
        assert row.text_truncated == (False,)
        assert row.codes.dtype == np.uint8, "32 codes fit into a byte"
        assert not row.codes.flags.owndata, "mapped, not read"


def test_the_record_says_what_was_made_from_what(whole: Path) -> None:
    record = json.loads((whole / "cache.json").read_text())
    assert record["complete"] is True
    assert record["image_tokenizer"] | {"fingerprint": ""} == {
        **{"fingerprint": "", "grid": [4, 4], "vocab_size": 32, "image_size": 32}
    }
    assert record["source"]["kind"] == "shapes"
    assert record["splits"]["train"] == {"positions": 40, "parts": [], "images": 40, "shards": 3}
    assert record["splits"]["val"] == {"positions": 8, "parts": [], "images": 8, "shards": 1}
    assert record["skipped"] == []
    assert sorted(contents(whole)) == [
        *("SHA256SUMS", "cache.json", "text_tokenizer.json"),
        *("train-00000.arrow", "train-00001.arrow", "train-00002.arrow", "val-00000.arrow"),
    ]


@pytest.mark.parametrize(("vocab_size", "bytes_each"), [(256, 1), (257, 2), (65_536, 2), (65_537, 4)])
def test_codes_are_kept_in_as_few_bytes_as_hold_them(vocab_size: int, bytes_each: int) -> None:
    kind = smallest_type(vocab_size)
    assert kind.itemsize == bytes_each
    assert np.array([vocab_size - 1]).astype(kind)[0] == vocab_size - 1


def test_crops_depend_on_seed_image_and_number_alone(tokenizer: Path, tmp_path: Path) -> None:
    transform: dict[str, Any] = {"image_size": 32, "crop": "random", "smallest_crop": 0.4, "flip": True}
    assert encode(settings(tmp_path / "cache", tokenizer, transform=transform, views=3, seed=5, text=None))
    image, crop = ImageTokenizer.from_pretrained(tokenizer), ImageTransform(TransformConfig(**transform))
    source = Shapes(ShapesConfig(**SHAPES), "train", 32)
    different = 0
    for position in (3, 20):
        row = Shard(tmp_path / f"cache/train-{position // 16:05d}.arrow").row(position)
        squares = [crop(source[position].image, np.random.default_rng((5, position, number))) for number in range(3)]
        assert row.codes.tolist() == image.encode(torch.stack(squares)).tolist()
        assert row.text_ids is None
        different += len({tuple(codes) for codes in row.codes.tolist()})
    assert different > 2
    val = Shapes(ShapesConfig(**SHAPES), "val", 32)[2]
    row = Shard(tmp_path / "cache/val-00000.arrow").row(2)
    assert row.codes.tolist() == image.encode(crop(val.image, None)[None]).tolist()


def test_crops_without_chance_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"crops is 2, but data\.transform\.crop center without flip draws nothing"):
        settings(tmp_path, tokenizer, views=2)


def test_unusable_images_are_named_and_counted(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = folder_of_images(tmp_path / "images")
    (images / "train/03.png").write_bytes(b"no image")
    (images / "train/07.txt").unlink()
    assert encode(settings(tmp_path / "cache", tokenizer, {"kind": "folder", "path": str(images)}, shard_size=4))
    record = read_record(tmp_path / "cache")
    assert record.splits["train"].model_dump() == {"positions": 12, "parts": (), "images": 10, "shards": 3}
    assert [(item.split, item.position, item.name) for item in record.skipped] == [
        ("train", 3, "03.png"),
        ("train", 7, "07.png"),
    ]
    assert record.skipped[1].cause == "no caption"
    said = capsys.readouterr().err
    assert "skipped 07.png: no caption" in said
    assert "10 train, 4 val images" in said
    with pytest.raises(UnusableSample, match="no caption"):
        Shard(tmp_path / "cache/train-00001.arrow").row(7)


def test_what_is_not_used_is_said_kept_and_said_again_by_a_run_from_the_codes(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = folder_of_images(tmp_path / "images")
    for number in range(4):
        (images / f"train/{number}.heic").write_bytes(b"x")
    assert encode(settings(tmp_path / "cache", tokenizer, {"kind": "folder", "path": str(images)}, shard_size=4))
    line = "not used: 4 files ending in .heic (train/0.heic, train/1.heic, train/2.heic, ...): an image format"
    assert capsys.readouterr().err.count(line) == 1
    record = read_record(tmp_path / "cache")
    assert [(unused.count, unused.lost) for unused in record.unused] == [(4, True)]
    cache = CodeCache(tmp_path / "cache")
    data = CodedPipeline(cache.resolved(PairDataConfig(codes=str(tmp_path / "cache"), batch_size=2)), 0, cache)
    assert [str(unused).startswith(line.removeprefix("not used: ")) for unused in data.unused()] == [True]


def test_a_cache_that_was_begun_with_another_order_of_items_is_not_gone_on_with(
    tokenizer: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path / "cache", tokenizer)
    assert encode(config)
    file = tmp_path / "cache" / "cache.json"
    record = json.loads(file.read_text())
    assert record.pop("item_order") == ITEM_ORDER
    del record["crc32"]
    file.write_text(json.dumps(record))
    assert read_record(tmp_path / "cache").complete, "what is complete can be read"
    with pytest.raises(ConfigError, match="was made with item_order 1, this config has 2"):
        encode(config)


def folder_of_images(folder: Path) -> Path:
    """12 images for training and 4 held out, each with two captions, one a line."""
    for split, count in (("train", 12), ("val", 4)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng((count, number)).integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / split / f"{number:02d}.png")
            (folder / split / f"{number:02d}.txt").write_text(f"image {number}\nanother word for {number}\n")
    return folder


def killed_at(moment: int, out: Path, tokenizer: Path) -> bool:
    """Encode in a process that is killed (-9) just before its change number `moment` of the disk, or batch.

    True where it was killed, false where it came to its end before.
    """
    child = os.fork()
    if child == 0:
        moments = itertools.count(1)

        def counted(function: Any) -> Any:
            def counting(*arguments: Any, **named: Any) -> Any:
                if next(moments) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **named)

            return counting

        try:
            os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)  # type: ignore[method-assign]
            ImageTokenizer.encode = counted(ImageTokenizer.encode)  # type: ignore[method-assign]
            os._exit(0 if encode(settings(out, tokenizer)) else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


@pytest.mark.parametrize("moment", [1, 2, 3, 5, 6, 7, 8, 14, 17, 24])
def test_killed_and_started_again(moment: int, whole: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    assert killed_at(moment, out, tokenizer)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("[tv]*.arrow")}
    assert encode(settings(out, tokenizer))
    assert contents(out) == contents(whole)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("[tv]*.arrow")}
    assert before.items() <= after.items(), "what was whole is not made again"


def test_killed_again_and_again(whole: Path, tokenizer: Path, tmp_path: Path) -> None:
    out, kills = tmp_path / "cache", 0
    while killed_at(9, out, tokenizer):
        kills += 1
    assert kills >= 3
    assert contents(out) == contents(whole)


def test_a_signal_stops_the_work_with_its_own_exit_code(
    whole: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, done = tmp_path / "cache", itertools.count(1)
    original = ImageTokenizer.encode

    def interrupted(image_tokenizer: ImageTokenizer, images: torch.Tensor) -> torch.Tensor:
        if next(done) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(image_tokenizer, images)

    monkeypatch.setattr(ImageTokenizer, "encode", interrupted)
    words = [f"--{name}={value}" for name, value in options(out, tokenizer).items()]
    assert main(words) == 75
    assert "stopped; the shards that are whole stay" in capsys.readouterr().err
    assert sorted(path.name for path in out.glob("*.arrow")) == ["train-00000.arrow", "train-00001.arrow"]
    assert main(words) == 0
    assert contents(out) == contents(whole)


def options(out: Path, tokenizer: Path) -> dict[str, object]:
    """The settings as command line options."""
    config = settings(out, tokenizer).model_dump(mode="json")
    return {"tokenizer": tokenizer, "out": out, "shard_size": 16, "data": json.dumps(config["data"])} | {
        "text": json.dumps(config["text"])
    }


def main(words: list[str]) -> int:
    spec = importlib.util.spec_from_file_location("encode_dataset", ROOT / "tools/encode_dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(words)


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in ("--tokenizer", "--out", "--views", "--shard_size", "--data.source.path", "--text.folder", "--config"):
        assert name in said


def one_of_two(rank: int, port: int, out: Path, tokenizer: Path) -> int:
    """The number of a process that encodes as one of two."""
    child = os.fork()
    if child == 0:
        try:
            os.environ |= {
                **{"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank)},
                **{"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                "OMP_NUM_THREADS": "1",  # accelerate warns where it is not set
            }
            AcceleratorState._reset_state(reset_partial_state=True)
            os._exit(0 if encode(settings(out, tokenizer)) else 1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(2)
    return child


def test_two_processes_make_what_one_makes(
    whole: Path, tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    shutil.copytree(whole, out)
    for name in ("train-00000.arrow", "train-00002.arrow", "val-00000.arrow"):  # as after a kill
        (out / name).unlink()
    port = free_port()
    children = [one_of_two(rank, port, out, tokenizer) for rank in range(2)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    said = capfd.readouterr().err
    assert statuses == [0, 0], said
    assert contents(out) == contents(whole)
    assert "encoding train, 1 of 2 processes: 100%" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "was made with seed 0, this config has 1"),
        ({"shard_size": 8}, "was made with shard_size 16, this config has 8"),
        ({"text": None}, "was made with text {'kind': 'bpe'"),
        ({"transform": {"crop": "pad"}}, "was made with data.transform"),
        ({"source": SHAPES | {"train_size": 41}}, "was made with data.source"),
    ],
)
def test_other_options_in_the_same_folder_are_refused(
    changes: dict[str, Any], message: str, whole: Path, tokenizer: Path
) -> None:
    before = contents(whole)
    with pytest.raises(ConfigError) as raised:
        encode(settings(whole, tokenizer, **changes))
    assert message in str(raised.value)
    assert str(raised.value).endswith("use the same to go on, or another out")
    assert contents(whole) == before


def test_another_tokenizer_or_grown_data_in_the_same_folder_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "cache", folder_of_images(tmp_path / "images")
    source = {"kind": "folder", "path": str(images)}
    assert encode(settings(out, tokenizer, source))
    other = ImageTokenizer.from_pretrained(tokenizer)
    with torch.no_grad():
        next(other.autoencoder.encoder.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="which differs in the encoder's weights; use the same"):
        encode(settings(out, tmp_path / "other", source))
    shutil.copy(images / "train/00.png", images / "train/99.png")
    shutil.copy(images / "train/00.txt", images / "train/99.txt")
    with pytest.raises(ConfigError, match="is of 12 train items, the data set has 13 now; use another out"):
        encode(settings(out, tokenizer, source))


def test_images_of_another_size_than_the_tokenizers_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.transform\.image_size is 64, the image tokenizer in .* reads 32"):
        encode(settings(tmp_path, tokenizer, transform={"image_size": 64}))


@pytest.mark.parametrize("below", ["", "cache"])
def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: a code cache is a folder, and .*file is a file; choose another out"):
        encode(settings(tmp_path / "file" / below, tmp_path / "nowhere"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_one_line_that_says_what_the_same_command_does(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    for written in ("build.TextTokenizer.save_pretrained", "manifest.write_file", "shard.write_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"parti.code_cache.{written}", full)
            with pytest.raises(CannotWriteError) as raised:
                encode(settings(tmp_path / "cache", tokenizer))
        assert str(raised.value).endswith("space, then run the same command again: it makes what is missing")
    assert encode(settings(tmp_path / "cache", tokenizer))


def test_a_stream_is_encoded_in_its_own_order(tokenizer: Path, tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images") / "train"
    rows = [{"image": str(path), "text": path.with_suffix(".txt").read_text()} for path in sorted(images.glob("*.png"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "dataset", "name": str(tmp_path / "rows.jsonl"), "streaming": True, "val_count": 2}
    assert encode(settings(tmp_path / "cache", tokenizer, source, shard_size=4))
    record = read_record(tmp_path / "cache")
    assert {split: (about.positions, about.shards) for split, about in record.splits.items()} == {
        "train": (10, 3),
        "val": (2, 1),
    }
    captions = [Shard(tmp_path / f"cache/train-{at // 4:05d}.arrow").captions(at)[0] for at in range(10)]
    assert captions == [" ".join(row["text"].split()) for row in rows[2:]]


def test_a_mixture_with_a_stream_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "nowhere.png", "text": "a"}) + "\n")
    stream = {"kind": "dataset", "name": str(tmp_path / "rows.jsonl"), "streaming": True}
    mixture = {"kind": "mixture", "sources": [{"source": SHAPES}, {"source": stream}]}
    with pytest.raises(DataError, match="encode without streaming"):
        encode(settings(tmp_path / "cache", tokenizer, mixture))
