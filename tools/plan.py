"""What a run will need: memory on each GPU by kind, arithmetic, time to the end, and the cost of drawing an image.

python tools/plan.py --config configs/parti/parti_3b.yaml --gpus 64 --gpu h100 [--section.field value ...]

Nothing is allocated, downloaded or trained. For the configs of all training tools; any key of them may follow.
Exit code: 0 if all fits, 1 if it does not (with what to change), 2 for a wrong option or config.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from parti.next_token.train_next_token import TrainPartiConfig
from parti.planning.generator_plan import plan_generator, tokenizer_config
from parti.planning.objective_plan import config_type, plan_objective
from vqgan.cli.command_line import print_error, print_out
from vqgan.cli.console import command
from vqgan.cli.option_parser import OptionParser
from vqgan.config.schema import load_config
from vqgan.errors import UserError
from vqgan.planning.fit_batch import fit_batch
from vqgan.planning.hardware import GPUS, gpu_of
from vqgan.planning.parallelism import STRATEGIES, ParallelismPlan
from vqgan.planning.plan import Hardware, Plan
from vqgan.planning.report import ROW_HEADER, as_row, as_text
from vqgan.planning.tokenizer_plan import plan_tokenizer
from vqgan.train_tokenizer import TrainVQGANConfig


@command
def main(argv: list[str]) -> int:
    parser = _parser()
    try:
        options, overrides = parser.parse_known_args(argv)
        if options.activation_checkpointing:
            overrides += ["--model.checkpoint_activations", "true"]
        plan = _plan(options, overrides)
    except UserError as error:
        print_error(error)
        return 2
    print_out(f"{ROW_HEADER}\n{as_row(plan)}" if options.row else as_text(plan))
    return 0 if plan.fits else 1


def _plan(options: argparse.Namespace, overrides: list[str]) -> Plan:
    path: Path = options.config
    config: Any = load_config(config_type(path, overrides), path, overrides)
    hardware = _machines(options)
    loop, note = fit_batch(config.loop, config.data.batch_size, options.gpus)
    config = config.model_copy(update={"loop": loop})
    if isinstance(config, TrainVQGANConfig):
        return replace(plan_tokenizer(config, path.stem, hardware), note=note)
    tokenizer = None
    if hasattr(config, "image_tokenizer"):
        tokenizer = tokenizer_config(config, path, options.image_tokenizer)
    if isinstance(config, TrainPartiConfig) and tokenizer is not None:
        return replace(plan_generator(config, tokenizer, path.stem, hardware), note=note)
    return replace(plan_objective(config, path.stem, hardware, tokenizer), note=note)


def _machines(options: argparse.Namespace) -> Hardware:
    gpu = gpu_of(options.gpu, options.gpu_memory, options.gpu_tflops, options.gpu_bandwidth)
    return Hardware(
        ParallelismPlan(options.strategy, options.gpus, options.gpus_a_node), gpu, options.mfu, options.price
    )


def _parser() -> OptionParser:
    parser = OptionParser("plan.py", __doc__, add_help=True)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="The run's YAML file")
    parser.add_argument("--gpus", type=int, default=1, help="Number of GPUs [1]")
    parser.add_argument("--gpu", choices=GPUS, help="A GPU by name: memory, bf16 TFLOPS, bandwidth")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="Memory of a GPU")
    parser.add_argument("--gpu-tflops", type=float, metavar="N", help="Its dense bf16 TFLOPS")
    parser.add_argument("--gpu-bandwidth", type=float, metavar="TB/S", help="Its memory's bandwidth")
    parser.add_argument("--strategy", choices=STRATEGIES, default="ddp", help="How weights are divided [ddp]")
    parser.add_argument(
        "--gpus-a-node", type=int, default=8, metavar="N", help="With hybrid: GPUs that share weights [8]"
    )
    parser.add_argument("--activation-checkpointing", action="store_true", help="model.checkpoint_activations true")
    parser.add_argument("--mfu", type=float, default=0.4, help="Share of the GPUs' peak that is reached [0.4]")
    parser.add_argument("--price-per-gpu-hour", dest="price", type=float, metavar="X", help="For the cost of the run")
    parser.add_argument(
        "--image-tokenizer", type=Path, metavar="FILE", help="Stage 2: the stage-1 config, if no folder"
    )
    parser.add_argument("--row", action="store_true", help="A row of a Markdown table")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
