"""A data set for timing loaders: smooth noise of a photograph's spectrum, some shapes, grain; JPEG of quality 90.

Written once, in the three forms that loaders read: a folder, tar shards, Parquet files. An image of 500 x 375 comes
to some 65 kB.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_SHARDS = 4


def write_data_set(folder: Path, size: tuple[int, int], count: int) -> None:
    """`folder`/files, /tars and /parquet with the same captioned images; nothing where they are already."""
    if (folder / "parquet").is_dir():
        return
    import datasets

    names = [f"{number:06d}" for number in range(count)]
    encoded = [encode(image(np.random.default_rng((0, number)), *size)) for number in range(count)]
    captions = [f"image number {number} of many" for number in range(count)]
    for form in ("files", "tars"):
        (folder / form).mkdir(parents=True, exist_ok=True)
    for name, data, caption in zip(names, encoded, captions, strict=True):
        (folder / "files" / f"{name}.jpg").write_bytes(data)
        (folder / "files" / f"{name}.txt").write_text(caption)
    per_shard = -(-count // _SHARDS)
    for shard in range(_SHARDS):
        with tarfile.open(folder / "tars" / f"{shard:06d}.tar", "w") as tar:
            for number in range(shard * per_shard, min(count, (shard + 1) * per_shard)):
                for ending, data in (("jpg", encoded[number]), ("txt", captions[number].encode())):
                    member = tarfile.TarInfo(f"{names[number]}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [{"bytes": data, "path": None} for data in encoded]
    rows = datasets.Dataset.from_dict({"image": images, "text": captions}, features=features)
    (folder / "parquet.part").mkdir(exist_ok=True)
    for shard in range(_SHARDS):
        rows.shard(_SHARDS, shard, contiguous=True).to_parquet(folder / "parquet.part" / f"train-{shard:05d}.parquet")
    (folder / "parquet.part").rename(folder / "parquet")


def image(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """One image."""
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 8, 16, 32, 64):
        grid = (max(2, height * cells // 400 + 2), max(2, width * cells // 400 + 2), 3)
        coarse = rng.normal(0, 110 / cells, grid).astype(np.float32)
        for channel in range(3):
            plane = Image.fromarray(coarse[..., channel])
            total[..., channel] += np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
    image = Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))
    drawing = ImageDraw.Draw(image)
    for _ in range(8):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        reach = int(rng.integers(8, max(9, min(width, height) // 4)))
        draw = drawing.ellipse if rng.random() < 0.5 else drawing.rectangle
        draw((x - reach, y - reach, x + reach, y + reach), fill=tuple(int(level) for level in rng.integers(0, 256, 3)))
    grain = rng.normal(0, 8, (height, width, 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image) -> bytes:
    """As JPEG of quality 90."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
