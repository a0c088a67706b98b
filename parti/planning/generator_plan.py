"""The plan of a stage-2 config."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from parti.planning.generator import generator_without_weights, rehearse_generator, tokens_of
from parti.planning.sampling import drawing_cost
from parti.train import TrainPartiConfig
from vqgan.config import ConfigError, load_config, read_yaml, validate
from vqgan.data.loader import Share
from vqgan.model_folder import CONFIG_FILE, find_model_folder, read_model_config
from vqgan.planning.division import total
from vqgan.planning.plan import Drawing, Machines, Plan, Remedy
from vqgan.planning.recording import rehearsal
from vqgan.planning.rehearsed_step import Rehearsed
from vqgan.planning.tokenizer import tokenizer_without_weights
from vqgan.planning.tokenizer_plan import more_micro_batches
from vqgan.train import TrainVQGANConfig


def plan_generator(config: TrainPartiConfig, tokenizer: TrainVQGANConfig, name: str, machines: Machines) -> Plan:
    """Raises DataError for a batch that does not divide over the GPUs, ConfigError for an unknown vocabulary."""
    memory, at_a_time, step = _memory(config, tokenizer, machines)
    with rehearsal():
        tokens = tokens_of(config, tokenizer_without_weights(tokenizer))
    generator = generator_without_weights(config, tokens)
    sampling = config.task.sampling
    cost = drawing_cost(generator, sampling)
    bandwidth = machines.gpu.bandwidth
    plan = Plan(
        name=name,
        what=f"{config.model.kind}, {step.parameters / 1e6:,.2f} million weights, {config.task.optimiser.kind}, "
        f"{config.task.precision}",
        parts=step.parts,
        frozen_parts=step.frozen_parts,
        machines=machines,
        at_a_time=at_a_time,
        batch=config.data.batch_size,
        steps=config.loop.steps,
        codes_a_picture=tokens.image_length,
        memory=memory,
        flops_a_picture=step.flops,
        drawing=Drawing(
            settings=f"{sampling.precision}, guidance {sampling.guidance_scale:g}",
            flops=cost.flops,
            cache=cost.cache,
            seconds=None if bandwidth is None else cost.seconds(bandwidth * 1e12),
        ),
        copy_to_draw=4 * step.parameters if machines.division.parts > 1 else 0,
    )
    if plan.fits:
        return plan
    remedies = []
    for change, changed, on in _changes(config, machines, plan):
        remedies.append(Remedy(change, total(_memory(changed, tokenizer, on)[0])))
    return plan.with_remedies(remedies)


def tokenizer_config(config: TrainPartiConfig, path: Path, given: Path | None) -> TrainVQGANConfig:
    """The stage-1 config behind `image_tokenizer`: `given`; that of its folder; or the shipped one with that run_dir.

    Raises ConfigError where there is none of these.
    """
    if given is not None:
        return load_config(TrainVQGANConfig, given)
    folder = find_model_folder(Path(config.image_tokenizer))
    if (folder / CONFIG_FILE).is_file():
        model = read_model_config(folder)
        data = {"transform": {"image_size": model["image_size"]}}
        task = {"codebook_care": {"continuous": 0, "revive_every": 0}}
        return validate(TrainVQGANConfig, {"model": model, "data": data, "task": task}, str(folder))
    for candidate in sorted((path.parent.parent / "vqgan").glob("*.yaml")):
        if read_yaml(candidate).get("run_dir") == config.image_tokenizer:
            return load_config(TrainVQGANConfig, candidate)
    raise ConfigError(
        f"image_tokenizer {config.image_tokenizer!r} is no folder yet; give its config: "
        "--image-tokenizer configs/vqgan/....yaml"
    )


def _memory(
    config: TrainPartiConfig, tokenizer: TrainVQGANConfig, machines: Machines
) -> tuple[dict[str, int], int, Rehearsed]:
    micro_batches, division = config.loop.micro_batches, machines.division
    share = Share(processes=division.gpus, micro_batches=micro_batches)
    at_a_time = share.local_size(config.data.batch_size)
    step = rehearse_generator(config, tokenizer, at_a_time)
    return division.memory(step, config.task.precision != "fp32"), at_a_time, step


def _changes(
    config: TrainPartiConfig, machines: Machines, plan: Plan
) -> Iterator[tuple[str, TrainPartiConfig, Machines]]:
    """What may help, one at a time."""
    micro_batches = config.loop.micro_batches
    if plan.at_a_time > 1:
        more = more_micro_batches(micro_batches, plan.at_a_time, plan.needed / plan.room)
        loop = config.loop.model_copy(update={"micro_batches": more})
        yield f"--loop.micro_batches {more}", config.model_copy(update={"loop": loop}), machines
    if not config.model.checkpoint_activations:
        model = config.model.model_copy(update={"checkpoint_activations": True})
        yield "--model.checkpoint_activations true", config.model_copy(update={"model": model}), machines
    if config.task.optimiser.kind != "adafactor":
        optimiser = config.task.optimiser.model_copy(update={"kind": "adafactor"})
        task = config.task.model_copy(update={"optimiser": optimiser})
        yield "--task.optimiser.kind adafactor", config.model_copy(update={"task": task}), machines
    division = machines.division
    if division.gpus > 1 and division.strategy != "fsdp":
        yield "--strategy fsdp", config, replace(machines, division=replace(division, strategy="fsdp"))
