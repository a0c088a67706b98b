"""The plan of a config of any objective beside the image tokenizer and the next token."""

from typing import Any

from parti.planning.objective import rehearse_objective
from vqgan.config.schema import ConfigError
from vqgan.data.loader import BatchShard
from vqgan.planning.parallelism import total
from vqgan.planning.plan import Hardware, Plan
from vqgan.planning.suggestions import find_remedies
from vqgan.train_tokenizer import TrainVQGANConfig


def plan_objective(config: Any, name: str, hardware: Hardware, tokenizer: TrainVQGANConfig | None = None) -> Plan:
    """Plans the run. Raises ConfigError for sharding, which these objectives do not have, or an unknown vocabulary,
    DataError for a batch that does not divide over the GPUs."""
    parallelism = hardware.parallelism
    objective = config.objective
    if parallelism.strategy != "ddp":
        raise ConfigError(
            f"--strategy {parallelism.strategy}: {objective} trains with whole weights on each GPU; use ddp"
        )
    at_a_time = _at_a_time(config, hardware)
    step = rehearse_objective(config, at_a_time, tokenizer=tokenizer)
    size = config.data.transform.image_size
    plan = Plan(
        name=name,
        what=f"{objective}, {step.parameters / 1e6:.1f} million weights, images of {size}",
        parts=step.parts,
        frozen_parts=step.frozen_parts,
        hardware=hardware,
        at_a_time=at_a_time,
        batch=config.data.batch_size,
        steps=config.loop.steps,
        codes_a_image=0,
        memory=parallelism.memory(step, config.task.precision != "fp32"),
        flops_a_image=step.flops,
    )
    if plan.fits:
        return plan

    def measure(changed: Any, on: Hardware) -> int:
        step = rehearse_objective(changed, _at_a_time(changed, on), tokenizer=tokenizer)
        return total(on.parallelism.memory(step, changed.task.precision != "fp32"))

    return plan.with_suggestions(find_remedies(measure, config, hardware, plan.needed, plan.room))


def _at_a_time(config: Any, hardware: Hardware) -> int:
    share = BatchShard(
        processes=hardware.parallelism.gpus, gradient_accumulation_steps=config.loop.gradient_accumulation_steps
    )
    return share.local_size(config.data.batch_size)
