"""What a limited evaluation and a preview see is a sample of the whole validation split, whatever kind of data it
is."""

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.vqgan.data.image_folders import draw
from tests.vqgan.data.tiny_shards import write_shard
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.data.source import Sample
from vqgan.data.stream import interleave
from vqgan.data.val_order import InRandomOrder

CLASSES, EACH, LIMIT = 8, 12, 24


def pixel_of(tmp_path: Path) -> bytes:
    draw(tmp_path / "pixel.png")
    return (tmp_path / "pixel.png").read_bytes()


def sorted_folder(root: Path) -> dict[str, Any]:
    for number in range(CLASSES):
        draw(root / "train" / f"class{number}" / "t.png")
        for item in range(EACH):
            draw(root / "valid" / f"class{number}" / f"{item}.png")
    return {"kind": "folder", "path": str(root)}


def sorted_list(root: Path) -> dict[str, Any]:
    source = sorted_folder(root)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    (root / "metadata.csv").write_text("\n".join(["file_name,text", *(f"{name},x" for name in names)]))
    return source


def sorted_shards(root: Path, *, streaming: bool = False) -> dict[str, Any]:
    pixel = pixel_of(root)
    members = [(f"class{number}-{item}.png", pixel) for number in range(CLASSES) for item in range(EACH)]
    write_shard(root / "train.tar", members)
    names = []
    for number in range(CLASSES if streaming else 1):
        own = members[number * EACH : (number + 1) * EACH] if streaming else members
        names.append(str(write_shard(root / f"val{number}.tar", own)))
    path = str(root / "train.tar")
    return {"kind": "shards", "path": path, "val_paths": tuple(names), "caption_key": None, "streaming": streaming}


def sorted_rows(root: Path) -> dict[str, Any]:
    pixel, folder = pixel_of(root), root / "rows"
    folder.mkdir()
    texts = [f"class{number}" for number in range(CLASSES) for _ in range(EACH)]
    rows = datasets.Dataset.from_dict({"image": [{"bytes": pixel, "path": None}] * len(texts), "text": texts})
    for split in ("train", "validation"):
        rows.cast_column("image", datasets.Image()).to_parquet(str(folder / f"{split}.parquet"))
    return {"kind": "dataset", "name": str(folder), "val_split": "validation"}


def mixed(root: Path) -> dict[str, Any]:
    (root / "other").mkdir()
    parts = [{"weight": 1, "source": sorted_folder(root)}, {"weight": 1, "source": sorted_shards(root / "other")}]
    return {"kind": "mixture", "sources": parts}


def kinds(names: list[str], captions: list[str | None]) -> Counter[str]:
    """How many there are of each class."""
    found = [
        next(part for part in f"{name} {text}".replace("/", " ").replace("-", " ").split() if "class" in part)
        for name, text in zip(names, captions, strict=True)
    ]
    return Counter(found)


SOURCES = {
    "folder": sorted_folder,
    "folder with a list": sorted_list,
    "shards": sorted_shards,
    "streamed shards": lambda root: sorted_shards(root, streaming=True),
    "rows": sorted_rows,
    "mixture": mixed,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_limited_evaluation_is_of_all_classes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    config = {"source": SOURCES[kind](tmp_path), "transform": {"image_size": 4}, "batch_size": 1}
    data = DataPipeline(DataConfig.model_validate(config | {"val_limit": LIMIT, "partitions": 1}), seed=0)
    batches = [list(data.val_batches(batch_size=5)) for _ in range(2)]
    names, captions = ([thing for batch in batches[0] for thing in getattr(batch, of)] for of in ("names", "captions"))
    assert [batch.names for batch in batches[0]] == [batch.names for batch in batches[1]], "always the same"
    assert len(names) == LIMIT
    seen = kinds(names, captions)
    assert len(seen) >= CLASSES - 1, f"{LIMIT} of {CLASSES * EACH}: {seen}"
    assert max(seen.values()) <= 2 * LIMIT / CLASSES + 2
    preview = data.preview_batch(LIMIT // 2)
    assert len(kinds(preview.names, preview.captions)) >= CLASSES // 2
    other = DataPipeline(DataConfig.model_validate(config | {"val_limit": LIMIT, "partitions": 1}), seed=1)
    assert next(iter(other.val_batches())).names == names[:1], "whatever the seed"


class Numbers:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(Image.new("RGB", (1, 1)), f"text {index}", str(index))


def test_the_random_order_has_every_item_once_and_stays_as_the_data_set_grows() -> None:
    small, large = InRandomOrder(Numbers(100)), InRandomOrder(Numbers(110))
    order = [small[index].name for index in range(100)]
    assert sorted(order, key=int) == [str(index) for index in range(100)]
    assert order != sorted(order, key=int)
    assert [name for index in range(110) if int(name := large[index].name) < 100] == order
    assert [small.captions(index) for index in range(100)] == [(f"text {name}",) for name in order]
    assert np.corrcoef(np.arange(100), np.array(order, dtype=int))[0, 1] < 0.3


@pytest.mark.parametrize("parts", [[], [0], [3], [1, 0, 5], [2] * 20, [0, 0, 4, 0]])
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_in_turns_has_every_item_once_from_several_parts_at_a_time(parts: list[int], at_once: int) -> None:
    opened: list[int] = []

    def part(number: int) -> Any:
        opened.append(number)
        return iter([(number, item) for item in range(parts[number])])

    found, most = [], 0
    for item in interleave([lambda number=number: part(number) for number in range(len(parts))], at_once):
        found.append(item)
        most = max(most, len(opened))
        if len(found) == 1:
            assert len(opened) >= min(at_once, sum(count > 0 for count in parts)) or not found
    assert sorted(found) == [(number, item) for number, count in enumerate(parts) for item in range(count)]
    assert sorted(opened) == list(range(len(parts)))
    first = [number for number, _ in found[: min(at_once, sum(count > 0 for count in parts))]]
    if all(parts):
        assert len(set(first)) == len(first), "one of each before a second of any"
