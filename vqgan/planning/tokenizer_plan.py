"""The plan of a stage-1 config."""

from vqgan.config import ConfigError
from vqgan.data.loader import Share
from vqgan.planning.division import total
from vqgan.planning.plan import Machines, Plan, Remedy
from vqgan.planning.tokenizer import rehearse_tokenizer
from vqgan.train import TrainVQGANConfig


def plan_tokenizer(config: TrainVQGANConfig, name: str, machines: Machines) -> Plan:
    """Raises ConfigError for divided weights, which stage 1 has not, DataError for a batch that does not divide."""
    division = machines.division
    if division.strategy != "ddp":
        raise ConfigError(f"--strategy {division.strategy}: stage 1 trains with whole weights on each GPU; use ddp")
    micro_batches = config.loop.micro_batches
    at_a_time = Share(processes=division.gpus, micro_batches=micro_batches).local_size(config.data.batch_size)
    step = rehearse_tokenizer(config, at_a_time)
    grid = config.model.image_size // config.model.stride
    plan = Plan(
        name=name,
        what=f"{config.model.kind}, {step.parameters / 1e6:.1f} million weights, pictures of {config.model.image_size}",
        parts=step.parts,
        frozen_parts=step.frozen_parts,
        machines=machines,
        at_a_time=at_a_time,
        batch=config.data.batch_size,
        steps=config.loop.steps,
        codes_a_picture=grid * grid,
        memory=division.memory(step, config.task.precision != "fp32"),
        flops_a_picture=step.flops,
    )
    if plan.fits or at_a_time == 1:
        return plan
    more = more_micro_batches(micro_batches, at_a_time, plan.needed / plan.room)
    step = rehearse_tokenizer(config, at_a_time * micro_batches // more)
    memory = division.memory(step, config.task.precision != "fp32")
    return plan.with_remedies([Remedy(f"--loop.micro_batches {more}", total(memory))])


def more_micro_batches(micro_batches: int, at_a_time: int, excess: float) -> int:
    """So many that each is smaller by `excess` at least, or of one picture."""
    sizes = [size for size in range(1, at_a_time) if at_a_time % size == 0 and size * excess <= at_a_time]
    return micro_batches * at_a_time // max(sizes, default=1)
