"""What a run will need: memory on each GPU by kind, arithmetic, time to the end, and the cost of drawing an image.

parti plan --config parti/parti_3b --gpus 64 --gpu h100 [--section.field value ...]

Nothing is allocated, downloaded or trained. For the configs of every objective; the options of a training command are
taken as they are.
Exit code: 0 if all fits, 1 if it does not (with what to change), 2 for a wrong option or config.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parti.next_token.train_next_token import TrainPartiConfig
from parti.objectives import choose_objective
from parti.planning.generator_plan import plan_generator, tokenizer_config
from parti.planning.objective_plan import plan_objective
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.options import Option, read_options
from vqgan.config.schema import Config, apply_options
from vqgan.config.shipped_configs import shipped_configs
from vqgan.errors import ConfigError
from vqgan.planning.fit_batch import fit_batch
from vqgan.planning.hardware import gpu_of
from vqgan.planning.parallelism import ParallelismPlan, Strategy
from vqgan.planning.plan import Hardware, Plan
from vqgan.planning.report import ROW_HEADER, as_row, as_text
from vqgan.planning.tokenizer_plan import plan_tokenizer
from vqgan.train_tokenizer import TrainVQGANConfig


class PlanConfig(Config):
    """The machines."""

    gpus: int = 1
    """Number of GPUs."""
    gpu: str | None = None
    """A GPU by name, for its memory, bf16 TFLOPS and bandwidth: a100-80, h100, h200, b200, l40s or rtx4090."""
    gpu_memory: float | None = None
    """Memory of a GPU in GB."""
    gpu_tflops: float | None = None
    """Its dense bf16 TFLOPS."""
    gpu_bandwidth: float | None = None
    """Its memory's bandwidth in TB/s."""
    strategy: Strategy = "ddp"
    """How weights are divided."""
    gpus_a_node: int = 8
    """With hybrid: GPUs that share weights."""
    activation_checkpointing: bool = False
    """Plan with model.checkpoint_activations true."""
    mfu: float = 0.4
    """Share of the GPUs' peak that is reached."""
    price_per_gpu_hour: float | None = None
    """For the cost of the run."""
    image_tokenizer: str | None = None
    """Stage 2, where there is no folder of the image tokenizer yet: its config."""
    row: bool = False
    """A row of a Markdown table."""

    def hardware(self) -> Hardware:
        """Raises ConfigError for numbers that no machines have."""
        gpu = gpu_of(self.gpu, self.gpu_memory, self.gpu_tflops, self.gpu_bandwidth)
        parallelism = ParallelismPlan(self.strategy, self.gpus, self.gpus_a_node)
        return Hardware(parallelism, gpu, self.mfu, self.price_per_gpu_hour)


def main(argv: Sequence[str]) -> int:
    """Plans, and returns the exit code."""

    def choose(path: Path | None, options: list[Option]) -> Command:
        of_run = [option for option in options if not _is_own(option)]

        def print_plan(config: PlanConfig) -> int:
            plan = plan_run(config, path, of_run)
            print_out(f"{ROW_HEADER}\n{as_row(plan)}" if config.row else as_text(plan))
            return ExitCode.DONE if plan.fits else ExitCode.ANSWER_IS_NO

        def load(_: Path | None, options: list[Option]) -> PlanConfig:
            own = [option for option in options if _is_own(option)]
            return apply_options(PlanConfig, None, read_options(own, PlanConfig))

        return Command(PlanConfig, print_plan, __doc__, load=load)

    return run_command(argv, choose)


def plan_run(config: PlanConfig, path: Path | None, options: Sequence[Option]) -> Plan:
    """The plan of the run of a config file with a training command's options. Raises ConfigError or DataError."""
    if path is None:
        raise ConfigError("--config is missing: the config of the run, a YAML file or the name of a shipped config")
    run_type = choose_objective(path, {option.name: option.word for option in options}.get("objective")).config_type
    given = read_options(options, run_type)
    if config.activation_checkpointing:
        given["model.checkpoint_activations"] = True
    run: Any = apply_options(run_type, path, given)
    hardware = config.hardware()
    loop, note = fit_batch(run.loop, run.data.batch_size, config.gpus)
    run = run.model_copy(update={"loop": loop})
    if isinstance(run, TrainVQGANConfig):
        return replace(plan_tokenizer(run, path.stem, hardware), note=note)
    tokenizer = None
    if hasattr(run, "image_tokenizer"):
        tokenizer = tokenizer_config(run, path, config.image_tokenizer)
    if isinstance(run, TrainPartiConfig) and tokenizer is not None:
        return replace(plan_generator(run, tokenizer, path.stem, hardware), note=note)
    return replace(plan_objective(run, path.stem, hardware, tokenizer), note=note)


def _is_own(option: Option) -> bool:
    """Whether it is the planner's; any other is the run's. An image tokenizer's config is, and its folder is not."""
    if option.name == "image_tokenizer":
        word = option.word or ""
        return word.endswith((".yaml", ".yml")) or word in shipped_configs()
    return option.name in PlanConfig.model_fields
