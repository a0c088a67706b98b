"""Stage 2 with and without the code cache: images a second of training, and bytes an image.

python benchmarks/code_cache.py --json out/code_cache.json

Both sides train the model of --config on the same images in the same order: one reads, draws and encodes them in
every step, the other reads their codes. They run in turn; `times` is the median of the rounds' ratios. Seconds are of
the process's CPU clock: what other processes do on the machine enters little. The tokenizer is --tokenizer, or an
untrained one of --tokenizer-config, whose work is the same. On a CPU, whose metrics these are, the fp32 encoder and
the bf16 generator cost what they cost there: on a GPU the shares differ.

Also told: whether codes depend on who is encoded beside an image, as the sums of a matrix product do.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Timing

from parti.code_cache.data import CodeCache, CodedPipeline, PairDataConfig
from parti.code_cache.encode import encode
from parti.code_cache.settings import EncodeConfig
from parti.code_cache.shard import smallest_type
from parti.next_token.next_token_task import NextTokenTask
from parti.next_token.train_next_token import TrainPartiConfig, build_task
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import load_config, validate
from vqgan.data.batch import Batch
from vqgan.data.loader import BatchShard, DataPipeline
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import build_autoencoder
from vqgan.stored_tokenizer import StoredImageTokenizer
from vqgan.system.host_memory import keep_freed_memory
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.parallel.distributed import build_accelerator

FROM_IMAGES, FROM_CODES = "images", "codes"


class Training:
    """Steps of a run, one after the other."""

    def __init__(self, task: NextTokenTask, batches: Iterator[list[Batch]]) -> None:
        self._task = task
        self._batches = enumerate(batches)

    def steps(self, count: int) -> None:
        for _ in range(count):
            step, batches = next(self._batches)
            self._task.train_step(batches, step)


def make_cache(config: TrainPartiConfig, tokenizer: Path, folder: Path, images: int) -> CodeCache:
    """The codes, captions and text ids of so many of the config's images."""
    source = config.data.source.model_dump(mode="json") | {"train_size": images, "val_size": 64}
    transform = config.data.transform.model_dump(mode="json")
    values = {
        "tokenizer": str(tokenizer),
        "out": str(folder),
        "data": {"source": source, "transform": transform},
        "text": config.text.model_dump(mode="json"),
    }
    encode(validate(EncodeConfig, values, "benchmark"))
    return CodeCache(folder)


def build(config: TrainPartiConfig, cache: CodeCache, tokenizer: Path, steps: int) -> dict[str, Training]:
    """Both sides, with the same weights and order."""
    text, accelerator = TextTokenizer.from_pretrained(cache.folder), build_accelerator()
    data = cache.resolved(PairDataConfig(codes=str(cache.folder), batch_size=config.data.batch_size))
    sides: dict[str, tuple[DataPipeline, Callable[[Path], ImageTokenizer], bool]] = {
        FROM_IMAGES: (DataPipeline(data, 0, require_captions=True), ImageTokenizer.from_pretrained, False),
        FROM_CODES: (CodedPipeline(data, 0, cache), StoredImageTokenizer, True),
    }
    trainings = {}
    for name, (pipeline, image, ids_are_ours) in sides.items():
        torch.manual_seed(0)
        task = build_task(config, accelerator, text, image(tokenizer), ids_are_ours=ids_are_ours)
        trainings[name] = Training(task, pipeline.training_batches(0, steps, BatchShard()))
    return trainings


def cpu_seconds(trainings: dict[str, Training], rounds: int, steps: int) -> dict[str, Timing]:
    """CPU seconds of `steps` steps of each side in interleaved rounds, after a step that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for training in trainings.values():
        training.steps(1)
    for turn in range(rounds):
        for name in list(trainings)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            trainings[name].steps(steps)
            seconds[name].append(time.process_time() - start)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def bytes_a_image(cache: CodeCache) -> dict[str, float]:
    """Of the shards as they lie on the disk, and of the codes in them."""
    shards = [path.stat().st_size for path in cache.folder.glob("*.arrow")]
    images = sum(split.images for split in cache.record.splits.values())
    about = cache.record.image_tokenizer
    return {
        "all": sum(shards) / images,
        "codes": float(about.grid[0] * about.grid[1] * smallest_type(about.vocab_size).itemsize),
    }


def codes_beside_others(cache: CodeCache, tokenizer: Path, size: int) -> dict[str, float]:
    """Of `size` images: the largest difference between latents encoded together and one by one, and how many codes
    differ."""
    image = ImageTokenizer.from_pretrained(tokenizer)
    data = DataPipeline(cache.resolved(PairDataConfig(batch_size=size)), 0, require_captions=True)
    images = next(iter(data.training_batches(0, 1, BatchShard())))[0].images
    with torch.no_grad():
        together = image.autoencoder.encode(images)
        alone = torch.cat([image.autoencoder.encode(one[None]) for one in images])
        codes, codes_alone = (image.autoencoder.quantizer.encode(latents) for latents in (together, alone))
    return {
        "latents": (together - alone).abs().max().item(),
        "scale": together.abs().mean().item(),
        "codes": float((codes != codes_alone).sum()),
        "of": float(codes.numel()),
    }


def untrained(config: str, folder: Path) -> Path:
    """A tokenizer of a stage-1 config that has learned nothing."""
    torch.manual_seed(0)
    ImageTokenizer(build_autoencoder(load_config(TrainVQGANConfig, config).model)).save_pretrained(folder)
    return folder


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as place:
        tokenizer = options.tokenizer or untrained(options.tokenizer_config, Path(place) / "tokenizer")
        config = load_config(TrainPartiConfig, options.config, [f"--image_tokenizer={tokenizer}", *options.overrides])
        cache = make_cache(config, tokenizer, Path(place) / "cache", options.images)
        trainings = build(config, cache, tokenizer, options.rounds * options.steps + 1)
        timings = cpu_seconds(trainings, options.rounds, options.steps)
        images = options.steps * config.data.batch_size
        ratio = timings[FROM_IMAGES].ratio(timings[FROM_CODES])
        for name, timing in timings.items():
            print(f"from {name:9} {timing.rate(images):8.1f} images a CPU second, spread {timing.spread:.2f}")
        print(f"a step from images takes {ratio:.2f} times the CPU time of one from codes")
        size = bytes_a_image(cache)
        print(f"{size['all']:.0f} bytes an image in the cache, {size['codes']:.0f} of them codes")
        beside = codes_beside_others(cache, tokenizer, config.data.batch_size)
        print(
            f"encoded together or alone: latents differ by {beside['latents']:.1e} (mean size {beside['scale']:.1e}), "
            f"{beside['codes']:.0f} of {beside['of']:.0f} codes"
        )
    if options.json:
        record: dict[str, Any] = {key: str(value) for key, value in vars(options).items() if key != "json"}
        record |= {"torch": torch.__version__, "cores": os.cpu_count()}
        rates = {name: timing.rate(images) for name, timing in timings.items()}
        metrics = {"images_per_cpu_second": rates, "times": ratio, "bytes": size, "beside_others": beside}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"setting": record} | metrics, indent=2) + "\n")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("code_cache.py", description="Stage 2 with and without the code cache.")
    parser.add_argument("--config", default="configs/parti/shapes.yaml", help="stage-2 config on shapes")
    parser.add_argument("--tokenizer", type=Path, help="image tokenizer; without it an untrained one")
    parser.add_argument("--tokenizer-config", default="configs/vqgan/shapes.yaml", help="what the untrained one is")
    parser.add_argument("--images", type=int, default=2048, help="images in the cache")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="training steps in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="after --: overrides of the config")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
