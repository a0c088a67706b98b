"""A stage-1 step, rehearsed: autoencoder, discriminator and perceptual network as `vqgan.autoencoder_task` trains
them."""

from typing import NamedTuple

import torch

from vqgan.autoencoder_task import AutoencoderTask, AutoencoderTaskConfig
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import AnyAutoencoderConfig, build_autoencoder
from vqgan.models.vit_vqgan import ViTVQGANConfig
from vqgan.planning.depth import Shallow, Stacks, shallow_networks, watch_blocks
from vqgan.planning.footprint import Counted, Footprint
from vqgan.planning.step_recorder import Kernels, fake_step
from vqgan.planning.step_trace import Roles, StepTrace, images, parameters_of, trace_step
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.parallel.distributed import build_accelerator


def trace_tokenizer_step(
    config: TrainVQGANConfig, micro_batch_size: int, kernels: Kernels = "gpu", *, whole: bool | None = None
) -> StepTrace:
    """Traces a step with everything active: quantization, the discriminator, and R1.

    Of a deep network only a few blocks are traced and the rest is extrapolated, unless it is traced as a `whole`.
    """
    stacks = _stacks(config.model)
    if whole is None:
        whole = sum(map(len, stacks.values())) <= _SHALLOW
    kept = max(map(len, stacks.values()), default=0) if whole else 1
    networks = shallow_networks(stacks, kept)
    played = [_play(config, micro_batch_size, kernels, networks[0]._replace(times=1), kept)]
    if len(networks) > 1:
        # What a block more adds is found without R1, which takes longest to record and knows nothing of the blocks.
        adversarial = config.task.adversarial.model_copy(update={"r1_gamma": 0.0})
        plain = config.model_copy(update={"task": config.task.model_copy(update={"adversarial": adversarial})})
        base = networks[0]._replace(times=networks[0].times - 1)
        played += [_play(plain, micro_batch_size, kernels, network, kept) for network in (base, *networks[1:])]
    with torch.device("meta"):
        autoencoder = build_autoencoder(config.model)
    parts = {
        "encoder": parameters_of(autoencoder.encoder),
        "quantizer": parameters_of(autoencoder.quantizer),
        "decoder": parameters_of(autoencoder.decoder),
    } | played[0].discriminator
    return StepTrace(
        Footprint([one.counted for one in played]),
        parts,
        largest_block=0,
        outside_blocks=0,
        flops=sum(one.counted.times * one.flops for one in played),
        frozen_parts=played[0].frozen_parts,
    )


_SHALLOW = 32
"""Blocks up to which recording all takes no longer than recording few several times."""


class _Played(NamedTuple):
    """One network's steps; flops: of an image, R1 in its share."""

    counted: Counted
    flops: float
    discriminator: dict[str, int]
    frozen_parts: dict[str, int]


def _play(config: TrainVQGANConfig, micro_batch_size: int, kernels: Kernels, shallow: Shallow, kept: int) -> _Played:
    with fake_step(kernels) as recording:
        recording.exactly()
        autoencoder = build_autoencoder(_with_stacks(config.model, shallow))
        if config.codes_from:
            autoencoder.freeze_codes()
        settings = all_at_once(config.task)
        task = AutoencoderTask(settings, autoencoder, build_accelerator(), config.loop.steps, config.seed)
        watch_blocks(
            recording, {name: list(getattr(autoencoder, name).transformer.blocks) for name in shallow.stacks}, kept
        )
        discriminator_trainer = task.discriminator_trainer
        trained = [autoencoder, *([discriminator_trainer.discriminator] if discriminator_trainer is not None else [])]
        perceptual = task.losses.perceptual
        roles = Roles(trained, [] if perceptual is None else [perceptual], [task.ema.module])
        size = config.model.image_size
        # All micro-batches: their images are stored for the discriminator's update. R1 is due at step 0.
        first = (images(micro_batch_size, size) for _ in range(config.loop.gradient_accumulation_steps))
        steps = (list(first), [images(micro_batch_size, size)])
        since, (with_penalty, without) = trace_step(recording, task, roles, steps)
        often = 1 / settings.adversarial.r1_every
    return _Played(
        Counted(recording, since, shallow.times),
        flops=often * with_penalty + (1 - often) * without,
        discriminator={}
        if discriminator_trainer is None
        else {"discriminator": parameters_of(discriminator_trainer.discriminator)},
        frozen_parts={} if perceptual is None else {"perceptual network": parameters_of(perceptual)},
    )


def _stacks(model: AnyAutoencoderConfig) -> Stacks[str]:
    """Networks of another kind than transformers have no equal blocks."""
    if not isinstance(model, ViTVQGANConfig):
        return {}
    return {"encoder": ["block"] * model.encoder.depth, "decoder": ["block"] * model.decoder.depth}


def _with_stacks(model: AnyAutoencoderConfig, shallow: Shallow) -> AnyAutoencoderConfig:
    if not isinstance(model, ViTVQGANConfig):
        return model
    sides = {
        name: getattr(model, name).model_copy(update={"depth": len(blocks)}) for name, blocks in shallow.stacks.items()
    }
    return model.model_copy(update=sides)


def tokenizer_without_weights(config: TrainVQGANConfig) -> ImageTokenizer:
    """Returns what a stage-1 run makes, for a stage-2 rehearsal: inside of one it has no memory."""
    return ImageTokenizer(build_autoencoder(config.model))


def encoding_flops(config: TrainVQGANConfig) -> int:
    """Of one image to its codes."""
    with fake_step() as recording:
        tokenizer = tokenizer_without_weights(config)
        before = recording.flops
        tokenizer.encode(torch.zeros(1, 3, config.model.image_size, config.model.image_size))
        return recording.flops - before


def all_at_once(config: AutoencoderTaskConfig) -> AutoencoderTaskConfig:
    """Nothing that comes later in a run or now and then, but R1; the perceptual network's weights do not matter."""
    maintenance = config.codebook_maintenance.model_copy(update={"unquantized": 0, "restart_every": 0})
    adversarial = config.adversarial.model_copy(update={"start": 0, "warmup": 0})
    perceptual = config.perceptual.model_copy(update={"weights": "random"})
    return config.model_copy(
        update={"codebook_maintenance": maintenance, "adversarial": adversarial, "perceptual": perceptual}
    )
