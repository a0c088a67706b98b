"""Validation nats per image code of Parti's decoder with other blocks and masks, after equal training time.

    python benchmarks/block_options.py --image_tokenizer out/demo/vqgan --steps 1200 --out out/options

Each variant is configs/parti/shapes.yaml with one change (the last has all of TransformerOptions'). First all of them
take turns for some steps, so that whatever else the machine does slows all alike: that gives each one's time a step.
Then each trains for as many steps as fit into the time of `--steps` plain ones, its schedule stretched to that, and is
evaluated: nats a code on 512 validation pairs, and how many of 128 validation prompts are drawn right (the checker of
shapes). Masks: on 8x8 codes a kernel of 3 is what 11 is to the paper's 32x32, and sees 5 codes; 5 sees 13.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from parti.next_token.next_token_task import NextTokenTask
from parti.next_token.train_next_token import TrainPartiConfig, build_task
from parti.text import TextTokenizer, build_text_tokenizer
from vqgan.config.schema import load_config
from vqgan.data.loader import BatchShard, DataPipeline
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.caption_checkers import caption_checker
from vqgan.system.host_memory import keep_freed_memory
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.parallel.seeding import seed_everything

CONFIG = Path(__file__).parents[1] / "configs/parti/shapes.yaml"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask: convolution of 3": {"attention": "convolution", "kernel": 3},
    "mask: convolution of 5": {"attention": "convolution", "kernel": 5},
    "RMSNorm": {"options": {"norm": "rms"}},
    "SwiGLU": {"options": {"feed_forward": "swiglu"}},
    "QK-norm": {"options": {"qk_norm": True}},
    "rotary 2-D": {"options": {"rotary": True}},
    "all four": {"options": {"norm": "rms", "feed_forward": "swiglu", "qk_norm": True, "rotary": True}},
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_tokenizer", default="out/demo/vqgan", help="stage-1 run or model folder of shapes")
    parser.add_argument("--steps", type=int, default=1200, help="steps of the plain variant")
    parser.add_argument("--calibration", type=int, default=30, help="steps that all take in turn")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/options"), help="folder for results.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    arguments.out.mkdir(parents=True, exist_ok=True)

    seed, names = arguments.seed, list(dict.fromkeys(["plain", *arguments.variants]))
    image_tokenizer = ImageTokenizer.from_pretrained(arguments.image_tokenizer)
    config = load_config(TrainPartiConfig, CONFIG, ["--image_tokenizer", arguments.image_tokenizer])
    data = DataPipeline(config.data, seed, require_captions=True)
    text_tokenizer = build_text_tokenizer(config.text, lambda count: list(data.captions(count)))
    slowness = step_times(names, config, data, text_tokenizer, image_tokenizer, arguments.calibration)
    results = {}
    print(f"{'':24}{'time a step':>12}{'steps':>8}{'nats a code':>13}{'prompts right':>15}", flush=True)
    for name in names:
        steps = round(arguments.steps / slowness[name])
        metrics = train(name, config, data, text_tokenizer, image_tokenizer, steps, seed)
        results[name] = {"time_a_step": slowness[name], "steps": steps, **metrics}
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        nats, right = metrics["nats_per_code"], metrics["prompt_accuracy"]
        print(f"{name:24}{slowness[name]:12.3f}{steps:8}{nats:13.4f}{right:15.1%}", flush=True)
    return 0


def task_of(
    name: str,
    config: TrainPartiConfig,
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
    steps: int,
    seed: int,
) -> NextTokenTask:
    """The shipped recipe with the variant's change, `steps` long."""
    values = config.model_dump(mode="python")
    values["model"] |= VARIANTS[name]
    values["loop"]["steps"], values["seed"] = steps, seed
    changed = TrainPartiConfig.model_validate(values)
    seed_everything(seed, 0)
    check_image = caption_checker(config.data.source)
    return build_task(changed, build_accelerator(), text_tokenizer, image_tokenizer, check_image)


def step_times(
    names: list[str],
    config: TrainPartiConfig,
    data: DataPipeline,
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
    rounds: int,
) -> dict[str, float]:
    """Time of a step in parts of the plain one's: the median over rounds in which each takes one step in turn."""
    warm_up = 3
    tasks = {name: task_of(name, config, text_tokenizer, image_tokenizer, 1000, 0) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for step, batches in enumerate(data.training_batches(0, rounds + warm_up, BatchShard())):
        first = step % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            tasks[name].train_step(batches, step)
            seconds[name].append(time.perf_counter() - start)
    plain = seconds["plain"][warm_up:]
    return {
        name: statistics.median(own / its for own, its in zip(times[warm_up:], plain, strict=True))
        for name, times in seconds.items()
    }


def train(
    name: str,
    config: TrainPartiConfig,
    data: DataPipeline,
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Validation metrics of the averaged weights after `steps`."""
    task = task_of(name, config, text_tokenizer, image_tokenizer, steps, seed)
    for step, batches in enumerate(data.training_batches(0, steps, BatchShard())):
        task.train_step(batches, step)
    return task.evaluate(data.val_batches())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
