"""The plan of a stage-1 config."""

from vqgan.config import ConfigError
from vqgan.data.loader import Share
from vqgan.planning.division import total
from vqgan.planning.plan import Machines, Plan
from vqgan.planning.remedies import find_remedies
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
    if plan.fits:
        return plan

    def measure(changed: TrainVQGANConfig, on: Machines) -> int:
        share = Share(processes=on.division.gpus, micro_batches=changed.loop.micro_batches)
        step = rehearse_tokenizer(changed, share.local_size(changed.data.batch_size))
        return total(on.division.memory(step, changed.task.precision != "fp32"))

    return plan.with_remedies(find_remedies(measure, config, machines, plan.needed, plan.room))
