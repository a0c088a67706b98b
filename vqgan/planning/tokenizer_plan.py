"""The plan of a stage-1 config."""

from vqgan.config.schema import ConfigError
from vqgan.data.loader import BatchShard
from vqgan.planning.parallelism import total
from vqgan.planning.plan import Hardware, Plan
from vqgan.planning.suggestions import find_remedies
from vqgan.planning.tokenizer import trace_tokenizer_step
from vqgan.train_tokenizer import TrainVQGANConfig


def plan_tokenizer(config: TrainVQGANConfig, name: str, hardware: Hardware) -> Plan:
    """Raises ConfigError for divided weights, which stage 1 has not, DataError for a batch that does not divide."""
    parallelism = hardware.parallelism
    if parallelism.strategy != "ddp":
        raise ConfigError(f"--strategy {parallelism.strategy}: stage 1 trains with whole weights on each GPU; use ddp")
    gradient_accumulation_steps = config.loop.gradient_accumulation_steps
    at_a_time = BatchShard(
        processes=parallelism.gpus, gradient_accumulation_steps=gradient_accumulation_steps
    ).local_size(config.data.batch_size)
    step = trace_tokenizer_step(config, at_a_time)
    grid = config.model.image_size // config.model.stride
    plan = Plan(
        name=name,
        what=f"{config.model.kind}, {step.parameters / 1e6:.1f} million weights, images of {config.model.image_size}",
        parts=step.parts,
        frozen_parts=step.frozen_parts,
        hardware=hardware,
        at_a_time=at_a_time,
        batch=config.data.batch_size,
        steps=config.loop.steps,
        codes_a_image=grid * grid,
        memory=parallelism.memory(step, config.task.precision != "fp32"),
        flops_a_image=step.flops,
    )
    if plan.fits:
        return plan

    def measure(changed: TrainVQGANConfig, on: Hardware) -> int:
        share = BatchShard(
            processes=on.parallelism.gpus, gradient_accumulation_steps=changed.loop.gradient_accumulation_steps
        )
        step = trace_tokenizer_step(changed, share.local_size(changed.data.batch_size))
        return total(on.parallelism.memory(step, changed.task.precision != "fp32"))

    return plan.with_suggestions(find_remedies(measure, config, hardware, plan.needed, plan.room))
