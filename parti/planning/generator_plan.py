"""The plan of a stage-2 config."""

from dataclasses import replace
from pathlib import Path

from parti.planning.generator import generator_without_weights, rehearse_generator, tokens_of
from parti.planning.sampling import drawing_cost
from parti.train import TrainPartiConfig
from parti.upsampling.train import TrainUpsamplerConfig
from vqgan.config import ConfigError, load_config, read_yaml, validate
from vqgan.data.loader import Share
from vqgan.model_folder import CONFIG_FILE, find_model_folder, read_model_config
from vqgan.planning.division import total
from vqgan.planning.plan import Drawing, Machines, Plan
from vqgan.planning.recording import rehearsal
from vqgan.planning.rehearsed_step import Rehearsed
from vqgan.planning.remedies import Change, find_remedies
from vqgan.planning.tokenizer import tokenizer_without_weights
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

    def measure(changed: TrainPartiConfig, on: Machines) -> int:
        return total(_memory(changed, tokenizer, on)[0])

    changes = _changes(config, machines)
    return plan.with_remedies(find_remedies(measure, config, machines, plan.needed, plan.room, changes))


def tokenizer_config(
    config: TrainPartiConfig | TrainUpsamplerConfig, path: Path, given: Path | None
) -> TrainVQGANConfig:
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


def _changes(config: TrainPartiConfig, machines: Machines) -> list[Change]:
    """What may help beside smaller micro-batches: first what costs time alone, then what changes the optimiser."""
    changes = []
    if not config.model.checkpoint_activations:
        changes.append(Change("--model.checkpoint_activations true", _with_checkpointing))
    division = machines.division
    if division.gpus > 1 and division.strategy != "fsdp":
        changes.append(Change("--strategy fsdp", _divided))
    if config.task.optimiser.kind != "adafactor":
        changes.append(Change("--task.optimiser.kind adafactor", _with_adafactor))
    return changes


def _with_checkpointing(config: TrainPartiConfig, machines: Machines) -> tuple[TrainPartiConfig, Machines]:
    model = config.model.model_copy(update={"checkpoint_activations": True})
    return config.model_copy(update={"model": model}), machines


def _with_adafactor(config: TrainPartiConfig, machines: Machines) -> tuple[TrainPartiConfig, Machines]:
    optimiser = config.task.optimiser.model_copy(update={"kind": "adafactor"})
    return config.model_copy(update={"task": config.task.model_copy(update={"optimiser": optimiser})}), machines


def _divided(config: TrainPartiConfig, machines: Machines) -> tuple[TrainPartiConfig, Machines]:
    return config, replace(machines, division=replace(machines.division, strategy="fsdp"))
