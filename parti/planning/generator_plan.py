"""The plan of a stage-2 config."""

from dataclasses import replace
from pathlib import Path

from parti.next_token.train_next_token import TrainPartiConfig
from parti.planning.generator import generator_without_weights, tokens_of, trace_generator_step
from parti.planning.sampling import sampling_cost
from parti.upsampler.train_upsampler import TrainUpsamplerConfig
from vqgan.config.schema import ConfigError, load_config, read_yaml, validate
from vqgan.data.loader import BatchShard
from vqgan.hub.model_folder import CONFIG_FILE, find_model_folder, read_model_config
from vqgan.planning.parallelism import total
from vqgan.planning.plan import Hardware, Plan, SamplingCost
from vqgan.planning.step_recorder import fake_step
from vqgan.planning.step_trace import StepTrace
from vqgan.planning.suggestions import Change, find_remedies
from vqgan.planning.tokenizer import tokenizer_without_weights
from vqgan.train_tokenizer import TrainVQGANConfig


def plan_generator(config: TrainPartiConfig, tokenizer: TrainVQGANConfig, name: str, hardware: Hardware) -> Plan:
    """Raises DataError for a batch that does not divide over the GPUs, ConfigError for an unknown vocabulary."""
    memory, at_a_time, step = _memory(config, tokenizer, hardware)
    with fake_step():
        tokens = tokens_of(config, tokenizer_without_weights(tokenizer))
    generator = generator_without_weights(config, tokens)
    sampling = config.task.sampling
    cost = sampling_cost(generator, sampling)
    bandwidth = hardware.gpu.bandwidth
    plan = Plan(
        name=name,
        what=f"{config.model.kind}, {step.parameters / 1e6:,.2f} million weights, {config.task.optimizer.kind}, "
        f"{config.task.precision}",
        parts=step.parts,
        frozen_parts=step.frozen_parts,
        hardware=hardware,
        at_a_time=at_a_time,
        batch=config.data.batch_size,
        steps=config.loop.steps,
        codes_a_image=tokens.image_length,
        memory=memory,
        flops_a_image=step.flops,
        sampling_cost=SamplingCost(
            settings=f"{sampling.precision}, guidance {sampling.guidance_scale:g}",
            flops=cost.flops,
            cache=cost.cache,
            seconds=None if bandwidth is None else cost.seconds(bandwidth * 1e12),
        ),
        sampling_copy=4 * step.parameters if hardware.parallelism.parts > 1 else 0,
    )
    if plan.fits:
        return plan

    def measure(changed: TrainPartiConfig, on: Hardware) -> int:
        return total(_memory(changed, tokenizer, on)[0])

    changes = _changes(config, hardware)
    return plan.with_suggestions(find_remedies(measure, config, hardware, plan.needed, plan.room, changes))


def tokenizer_config(
    config: TrainPartiConfig | TrainUpsamplerConfig, path: Path, given: str | Path | None
) -> TrainVQGANConfig:
    """Returns the stage-1 config of `image_tokenizer`: `given`, that of its folder, or the shipped one with that
    run_dir.

    Raises ConfigError if there is none of these.
    """
    if given is not None:
        return load_config(TrainVQGANConfig, given)
    folder = find_model_folder(Path(config.image_tokenizer))
    if (folder / CONFIG_FILE).is_file():
        model = read_model_config(folder)
        data = {"transform": {"image_size": model["image_size"]}}
        task = {"codebook_maintenance": {"unquantized": 0, "restart_every": 0}}
        return validate(TrainVQGANConfig, {"model": model, "data": data, "task": task}, str(folder))
    for candidate in sorted((path.parent.parent / "vqgan").glob("*.yaml")):
        if read_yaml(candidate).get("run_dir") == config.image_tokenizer:
            return load_config(TrainVQGANConfig, candidate)
    raise ConfigError(
        f"image_tokenizer {config.image_tokenizer!r} is no folder yet; give its config: --image-tokenizer vqgan/..."
    )


def _memory(
    config: TrainPartiConfig, tokenizer: TrainVQGANConfig, hardware: Hardware
) -> tuple[dict[str, int], int, StepTrace]:
    gradient_accumulation_steps, parallelism = config.loop.gradient_accumulation_steps, hardware.parallelism
    share = BatchShard(processes=parallelism.gpus, gradient_accumulation_steps=gradient_accumulation_steps)
    at_a_time = share.local_size(config.data.batch_size)
    step = trace_generator_step(config, tokenizer, at_a_time)
    return parallelism.memory(step, config.task.precision != "fp32"), at_a_time, step


def _changes(config: TrainPartiConfig, hardware: Hardware) -> list[Change]:
    """Returns changes that may help besides smaller micro-batches: first those that only cost time, then other
    optimizers."""
    changes = []
    if not config.model.checkpoint_activations:
        changes.append(Change("--model.checkpoint_activations true", _with_checkpointing))
    parallelism = hardware.parallelism
    if parallelism.gpus > 1 and parallelism.strategy != "fsdp":
        changes.append(Change("--strategy fsdp", _divided))
    if config.task.optimizer.kind != "adafactor":
        changes.append(Change("--task.optimizer.kind adafactor", _with_adafactor))
    return changes


def _with_checkpointing(config: TrainPartiConfig, hardware: Hardware) -> tuple[TrainPartiConfig, Hardware]:
    model = config.model.model_copy(update={"checkpoint_activations": True})
    return config.model_copy(update={"model": model}), hardware


def _with_adafactor(config: TrainPartiConfig, hardware: Hardware) -> tuple[TrainPartiConfig, Hardware]:
    optimizer = config.task.optimizer.model_copy(update={"kind": "adafactor"})
    return config.model_copy(update={"task": config.task.model_copy(update={"optimizer": optimizer})}), hardware


def _divided(config: TrainPartiConfig, hardware: Hardware) -> tuple[TrainPartiConfig, Hardware]:
    return config, replace(hardware, parallelism=replace(hardware.parallelism, strategy="fsdp"))
