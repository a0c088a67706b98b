"""What benchmarks/loader.py compares: endless batches of (B, 3, S, S) in [-1, 1] with captions, shuffled.

The peers are written as their documentation shows, with torchvision's transforms: `PIL` resizes PIL images (what most
training scripts do), `tensor` resizes bytes (torchvision's advice since 0.17), each antialiased bilinear to the shorter
side and a centered crop. Ours is DataPipeline with crop=center, Lanczos.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vqgan.data.loader import BatchShard, DataConfig, DataPipeline

_ENDLESS = 10**9


@dataclass(frozen=True)
class Setting:
    """One comparison: the data set's folder (loader_images.py), what to make of it, and how."""

    folder: Path
    image_size: int
    batch: int
    workers: int


Batches = Callable[[Setting], Iterator[Any]]


def ours(setting: Setting, source: dict[str, Any]) -> Iterator[Any]:
    config = DataConfig.model_validate(
        {
            "source": source,
            "transform": {"image_size": setting.image_size, "crop": "center"},
            "batch_size": setting.batch,
            "workers": setting.workers,
        }
    )
    pipeline = DataPipeline(config, seed=0, require_captions=True)
    return (batches[0].images for batches in pipeline.training_batches(0, _ENDLESS, BatchShard()))


def our_folder(setting: Setting) -> Iterator[Any]:
    return ours(setting, {"kind": "folder", "path": str(setting.folder / "files")})


def our_rows(setting: Setting, streaming: bool) -> Iterator[Any]:
    name = str(setting.folder / "parquet")
    return ours(setting, {"kind": "dataset", "name": name, "streaming": streaming, "val_count": 8})


def our_shards(setting: Setting, streaming: bool) -> Iterator[Any]:
    return ours(setting, {"kind": "shards", "path": str(setting.folder / "tars"), "streaming": streaming})


class Files(Dataset[Any]):
    """A folder, as everybody writes it."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self._paths = sorted(folder.glob("*.jpg"))
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        path = self._paths[index]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), path.with_suffix(".txt").read_text()


def torchvision_transform(image_size: int, on: str) -> Callable[[Image.Image], torch.Tensor]:
    from torchvision.transforms import v2

    normalize = v2.Normalize([0.5] * 3, [0.5] * 3)
    resize = v2.Resize(image_size, antialias=True)
    to_float = v2.ToDtype(torch.float32, scale=True)
    if on == "PIL":
        return v2.Compose([resize, v2.CenterCrop(image_size), v2.ToImage(), to_float, normalize])
    return v2.Compose([v2.ToImage(), resize, v2.CenterCrop(image_size), to_float, normalize])


def infinite(loader: Any) -> Iterator[Any]:
    while True:
        yield from (images for images, _ in loader)


def plain_folder(setting: Setting, on: str) -> Iterator[Any]:
    files = Files(setting.folder / "files", torchvision_transform(setting.image_size, on))
    return infinite(DataLoader(files, setting.batch, shuffle=True, num_workers=setting.workers, drop_last=True))


def their_webdataset(setting: Setting, on: str) -> Iterator[Any]:
    import webdataset

    tars = [str(path) for path in sorted((setting.folder / "tars").glob("*.tar"))]
    stream = (
        webdataset.WebDataset(tars, shardshuffle=len(tars), workersplitter=webdataset.shardlists.split_by_worker)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(torchvision_transform(setting.image_size, on), lambda text: text)
        .batched(setting.batch, partial=False)
        .repeat()
    )
    return (images for images, _ in webdataset.WebLoader(stream, batch_size=None, num_workers=setting.workers))


def _prepared(rows: dict[str, Any], transform: Callable[[Image.Image], torch.Tensor]) -> dict[str, Any]:
    return {"image": [transform(image.convert("RGB")) for image in rows["image"]], "text": rows["text"]}


def their_rows(setting: Setting, on: str, streaming: bool) -> Iterator[Any]:
    import datasets

    files = [str(path) for path in sorted((setting.folder / "parquet").glob("*.parquet"))]
    rows = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=streaming, trust_remote_code=False
    )
    prepare = partial(_prepared, transform=torchvision_transform(setting.image_size, on))
    if streaming:
        rows = rows.shuffle(seed=0, buffer_size=1000).map(prepare, batched=True, batch_size=setting.batch)
        rows = rows.repeat(None).with_format("torch")
    else:
        rows = rows.with_transform(prepare)
    loader = DataLoader(
        rows, setting.batch, shuffle=None if streaming else True, num_workers=setting.workers, drop_last=True
    )
    return infinite((batch["image"], batch["text"]) for batch in loader) if streaming else _rows_again(loader)


def _rows_again(loader: Any) -> Iterator[Any]:
    while True:
        yield from (batch["image"] for batch in loader)


BASELINES: dict[str, dict[str, Batches]] = {
    "folder": {
        "ours": our_folder,
        "DataLoader, torchvision on PIL": partial(plain_folder, on="PIL"),
        "DataLoader, torchvision on tensors": partial(plain_folder, on="tensor"),
    },
    "parquet": {
        "ours": partial(our_rows, streaming=False),
        "ours, streaming": partial(our_rows, streaming=True),
        "datasets, torchvision on PIL": partial(their_rows, on="PIL", streaming=False),
        "datasets, torchvision on tensors": partial(their_rows, on="tensor", streaming=False),
        "datasets streaming, torchvision on tensors": partial(their_rows, on="tensor", streaming=True),
    },
    "tar": {
        "ours": partial(our_shards, streaming=False),
        "ours, streaming": partial(our_shards, streaming=True),
        "webdataset, torchvision on PIL": partial(their_webdataset, on="PIL"),
        "webdataset, torchvision on tensors": partial(their_webdataset, on="tensor"),
    },
}
