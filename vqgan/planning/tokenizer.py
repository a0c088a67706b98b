"""A stage-1 step, rehearsed: autoencoder, discriminator and perceptual network as `vqgan.tasks` trains them."""

from typing import NamedTuple

import torch

from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import AnyAutoencoderConfig, build_autoencoder
from vqgan.models.vit_vqgan import ViTVQGANConfig
from vqgan.planning.depth import Shallow, Stacks, shallow_networks, watch_blocks
from vqgan.planning.footprint import Counted, Footprint
from vqgan.planning.recording import Kernels, rehearsal
from vqgan.planning.rehearsed_step import Cast, Rehearsed, parameters_of, pictures, rehearse
from vqgan.tasks import AutoencoderTask, AutoencoderTaskConfig
from vqgan.train import TrainVQGANConfig
from vqgan.training.distributed import build_accelerator


def rehearse_tokenizer(
    config: TrainVQGANConfig, pictures_at_a_time: int, kernels: Kernels = "gpu", *, whole: bool | None = None
) -> Rehearsed:
    """The step in which all play: codes are looked up, the discriminator has joined, and R1 is due.

    Of a deep network a few blocks are recorded and the rest is concluded, unless it is recorded `whole`.
    """
    stacks = _stacks(config.model)
    if whole is None:
        whole = sum(map(len, stacks.values())) <= _SHALLOW
    kept = max(map(len, stacks.values()), default=0) if whole else 1
    networks = shallow_networks(stacks, kept)
    played = [_play(config, pictures_at_a_time, kernels, networks[0]._replace(times=1), kept)]
    if len(networks) > 1:
        # What a block more adds is found without R1, which takes longest to record and knows nothing of the blocks.
        adversarial = config.task.adversarial.model_copy(update={"r1_gamma": 0.0})
        plain = config.model_copy(update={"task": config.task.model_copy(update={"adversarial": adversarial})})
        base = networks[0]._replace(times=networks[0].times - 1)
        played += [_play(plain, pictures_at_a_time, kernels, network, kept) for network in (base, *networks[1:])]
    with torch.device("meta"):
        autoencoder = build_autoencoder(config.model)
    parts = {
        "encoder": parameters_of(autoencoder.encoder),
        "quantiser": parameters_of(autoencoder.quantizer),
        "decoder": parameters_of(autoencoder.decoder),
    } | played[0].discriminator
    return Rehearsed(
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
    """One network's steps; flops: of a picture, R1 in its share."""

    counted: Counted
    flops: float
    discriminator: dict[str, int]
    frozen_parts: dict[str, int]


def _play(config: TrainVQGANConfig, pictures_at_a_time: int, kernels: Kernels, shallow: Shallow, kept: int) -> _Played:
    with rehearsal(kernels) as recording:
        recording.exactly()
        autoencoder = build_autoencoder(_with_stacks(config.model, shallow))
        if config.codes_from:
            autoencoder.freeze_codes()
        settings = all_at_once(config.task)
        task = AutoencoderTask(settings, autoencoder, build_accelerator(), config.loop.steps, config.seed)
        watch_blocks(
            recording, {name: list(getattr(autoencoder, name).transformer.blocks) for name in shallow.stacks}, kept
        )
        adversary = task.adversary
        trained = [autoencoder, *([adversary.discriminator] if adversary is not None else [])]
        perceptual = task.losses.perceptual
        cast = Cast(trained, [] if perceptual is None else [perceptual], [task.ema.module])
        size = config.model.image_size
        # All micro-batches: what the discriminator has seen of each is kept for its own update. R1 is due at step 0.
        first = (pictures(pictures_at_a_time, size) for _ in range(config.loop.micro_batches))
        steps = (list(first), [pictures(pictures_at_a_time, size)])
        since, (with_penalty, without) = rehearse(recording, task, cast, steps)
        often = 1 / settings.adversarial.r1_every
    return _Played(
        Counted(recording, since, shallow.times),
        flops=often * with_penalty + (1 - often) * without,
        discriminator={} if adversary is None else {"discriminator": parameters_of(adversary.discriminator)},
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
    """What a stage-1 run makes, for a stage-2 rehearsal: inside of one it has no memory."""
    return ImageTokenizer(build_autoencoder(config.model))


def encoding_flops(config: TrainVQGANConfig) -> int:
    """Of one picture to its codes."""
    with rehearsal() as recording:
        tokenizer = tokenizer_without_weights(config)
        before = recording.flops
        tokenizer.encode(torch.zeros(1, 3, config.model.image_size, config.model.image_size))
        return recording.flops - before


def all_at_once(config: AutoencoderTaskConfig) -> AutoencoderTaskConfig:
    """Nothing that comes later in a run or now and then, but R1; the perceptual network's weights do not matter."""
    care = config.codebook_care.model_copy(update={"continuous": 0, "revive_every": 0})
    adversarial = config.adversarial.model_copy(update={"start": 0, "warmup": 0})
    perceptual = config.perceptual.model_copy(update={"weights": "random"})
    return config.model_copy(update={"codebook_care": care, "adversarial": adversarial, "perceptual": perceptual})
