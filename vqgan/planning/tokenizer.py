"""A stage-1 step, rehearsed: autoencoder, discriminator and perceptual network as `vqgan.tasks` trains them."""

import torch

from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import build_autoencoder
from vqgan.planning.recording import Kernels, rehearsal
from vqgan.planning.rehearsed_step import Cast, Rehearsed, parameters_of, pictures, rehearse
from vqgan.tasks import AutoencoderTask, AutoencoderTaskConfig
from vqgan.train import TrainVQGANConfig
from vqgan.training.distributed import build_accelerator


def rehearse_tokenizer(config: TrainVQGANConfig, pictures_at_a_time: int, kernels: Kernels = "gpu") -> Rehearsed:
    """The step in which all play: codes are looked up, the discriminator has joined, and R1 is due."""
    with rehearsal(kernels) as recording:
        autoencoder = build_autoencoder(config.model)
        if config.codes_from:
            autoencoder.freeze_codes()
        settings = all_at_once(config.task)
        task = AutoencoderTask(settings, autoencoder, build_accelerator(), config.loop.steps, config.seed)
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
    parts = {
        "encoder": parameters_of(autoencoder.encoder),
        "quantiser": parameters_of(autoencoder.quantizer),
        "decoder": parameters_of(autoencoder.decoder),
    }
    if adversary is not None:
        parts["discriminator"] = parameters_of(adversary.discriminator)
    return Rehearsed(
        recording,
        since,
        parts,
        largest_block=0,
        outside_blocks=0,
        flops=often * with_penalty + (1 - often) * without,
        frozen_parts={} if perceptual is None else {"perceptual network": parameters_of(perceptual)},
    )


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
