"""Traces a step of any other objective than the next token: the task as its run builds it, with a blank vocabulary."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

import parti.fused.captioning.train_captioning as captioning
import parti.fused.inpainting.train_inpainting as inpainting
import parti.fused.synthesis.train_synthesis as synthesis
import parti.mim.train_mim as mim
import parti.reranker.train_reranker as reranking
import parti.text_encoder.train_text_encoder as warm_up
from parti.mim.mim_task import MaskedImageTask
from parti.planning.stand_ins import blank_vocabulary, full_caption, text_sizes, without_starts
from parti.reranker.dual_encoder import build_processor
from parti.upsampler.train_upsampler import TrainUpsamplerConfig
from parti.upsampler.upsampler import Upsampler
from parti.upsampler.upsampler_task import UpsamplerTask
from vqgan.data.batch import Batch
from vqgan.planning.footprint import Counted, Footprint
from vqgan.planning.step_recorder import Kernels, fake_step
from vqgan.planning.step_trace import Roles, StepTrace, parameters_of, trace_step
from vqgan.planning.tokenizer import tokenizer_without_weights
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.task import Task


class Play(NamedTuple):
    """A task, and its networks by the names that a plan gives them."""

    task: Task
    trained: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    averaged: list[nn.Module]


def rehearse_objective(
    config: Any, pairs_at_a_time: int, kernels: Kernels = "gpu", *, tokenizer: TrainVQGANConfig | None = None
) -> StepTrace:
    """Traces a step in which all networks are active. `tokenizer` is that of an upsampler. R1 counts by its interval.

    Raises ConfigError for an unknown vocabulary.
    """
    with fake_step(kernels) as recording:
        play = build_play(config, tokenizer)
        roles = Roles(list(play.trained.values()), list(play.frozen.values()), play.averaged)
        batches = [blank_pairs(config, pairs_at_a_time) for _ in range(config.loop.gradient_accumulation_steps)]
        recording.told = _told(config)
        # R1 is due at step 0, and not in the step after it.
        steps = [batches, batches]
        since, (with_penalty, without) = trace_step(recording, play.task, roles, steps)
    often = 1 / _r1_every(config)
    return StepTrace(
        Footprint([Counted(recording, since)]),
        {name: parameters_of(network) for name, network in play.trained.items()},
        largest_block=0,
        outside_blocks=0,
        flops=often * with_penalty + (1 - often) * without,
        frozen_parts={name: parameters_of(network) for name, network in play.frozen.items()},
    )


def build_play(config: Any, tokenizer: TrainVQGANConfig | None = None) -> Play:
    """Builds the task of a run with all networks active, without pretrained weights. `tokenizer` is that of an
    upsampler."""
    return _BUILDERS[type(config)](_all_at_once(without_starts(config)), build_accelerator(), tokenizer)


def blank_pairs(config: Any, count: int) -> Batch:
    """Returns a batch of the run's image size and text length."""
    size = config.data.transform.image_size
    caption = full_caption(text_sizes(config.text).length) if hasattr(config, "text") else ""
    return Batch(torch.zeros(count, 3, size, size), [caption] * count, [str(number) for number in range(count)])


def _warm_up(config: warm_up.TrainTextEncoderConfig, accelerator: Accelerator, _: TrainVQGANConfig | None) -> Play:
    vocabulary = blank_vocabulary(config.text)
    task = warm_up.build_task(config.model_copy(update={"passages": None}), accelerator, vocabulary)
    network = task.network
    parts: dict[str, nn.Module] = {"text encoder": network.text_encoder}
    return Play(task, parts | {"what helps to train it": _Rest(network, parts)}, {}, [task.ema.module])


def _reranker(config: reranking.TrainRerankerConfig, accelerator: Accelerator, _: TrainVQGANConfig | None) -> Play:
    with tempfile.TemporaryDirectory() as folder:
        blank_vocabulary(config.text).save_pretrained(Path(folder))
        processor = build_processor(config.model, Path(folder))
    task = reranking.build_task(config, accelerator, processor)
    parts = {"image encoder": task.model.vision_model, "text encoder": task.model.text_model}
    return Play(task, parts | {"projections": _Rest(task.model, parts)}, {}, [task.ema.module])


def _inpainting(config: inpainting.TrainInpaintingConfig, accelerator: Accelerator, _: object) -> Play:
    task = inpainting.build_task(config, accelerator, blank_vocabulary(config.text))
    return Play(
        task,
        {"network": task.network} | _discriminator(task.discriminator_trainer),
        _perceptual(task.losses),
        [task.ema.module],
    )


def _captioning(config: captioning.TrainCaptioningConfig, accelerator: Accelerator, _: object) -> Play:
    task = captioning.build_task(config, accelerator, blank_vocabulary(config.text))
    return Play(task, {"captioner": task.captioner}, {}, [task.ema.module])


def _synthesis(config: synthesis.TrainSynthesisConfig, accelerator: Accelerator, _: object) -> Play:
    task = synthesis.build_task(config, accelerator, blank_vocabulary(config.text))
    trained = {"generator": task.generator, "discriminators": task.discriminators}
    if task.encoder is not None:
        trained["image encoder"] = task.encoder
    return Play(task, trained, _perceptual(task.losses), [task.ema.module])


def _upsampler(config: TrainUpsamplerConfig, accelerator: Accelerator, tokenizer: TrainVQGANConfig | None) -> Play:
    assert tokenizer is not None, "an upsampler enlarges what an image tokenizer decodes"
    image_tokenizer = tokenizer_without_weights(tokenizer)
    task = UpsamplerTask(config.task, Upsampler(config.model), image_tokenizer, accelerator, config.loop.steps)
    return Play(
        task,
        {"upsampler": task.upsampler} | _discriminator(task.discriminator_trainer),
        {"image tokenizer": image_tokenizer} | _perceptual(task.losses),
        [task.ema.module],
    )


def _mim(config: mim.TrainMIMConfig, accelerator: Accelerator, tokenizer: TrainVQGANConfig | None) -> Play:
    frozen: dict[str, nn.Module] = {}
    if isinstance(config, mim.TrainBEiTConfig):
        assert tokenizer is not None, "BEiT predicts the codes of an image tokenizer"
        frozen["image tokenizer"] = image_tokenizer = tokenizer_without_weights(tokenizer)
        task: MaskedImageTask = mim.build_beit_task(config, accelerator, image_tokenizer)
    else:
        task = mim.build_task(config, accelerator)
    parts: dict[str, nn.Module] = {"encoder": task.network.encoder}
    return Play(task, parts | {"decoder or head": _Rest(task.network, parts)}, frozen, [task.ema.module])


_BUILDERS: dict[type, Callable[[Any, Accelerator, TrainVQGANConfig | None], Play]] = {
    warm_up.TrainTextEncoderConfig: _warm_up,
    reranking.TrainRerankerConfig: _reranker,
    inpainting.TrainInpaintingConfig: _inpainting,
    captioning.TrainCaptioningConfig: _captioning,
    synthesis.TrainSynthesisConfig: _synthesis,
    TrainUpsamplerConfig: _upsampler,
    **dict.fromkeys((mim.TrainMAEConfig, mim.TrainSimMIMConfig, mim.TrainBEiTConfig, mim.TrainMPPConfig), _mim),
}


class _Rest(nn.Module):
    """Returns the parameters of a network that belong to none of the given parts."""

    def __init__(self, network: nn.Module, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        known = {id(parameter) for part in parts.values() for parameter in part.parameters()}
        others = [parameter for parameter in network.parameters() if id(parameter) not in known]
        self.others = nn.ParameterList(others)


def _discriminator(discriminator_trainer: Any) -> dict[str, nn.Module]:
    return {} if discriminator_trainer is None else {"discriminator": discriminator_trainer.discriminator}


def _perceptual(losses: Any) -> dict[str, nn.Module]:
    network = getattr(losses, "perceptual", None)
    return {} if network is None else {"perceptual network": network}


def _all_at_once(config: Any) -> Any:
    """Config in which everything but R1 is active from the first step; perceptual weights are random."""
    task = config.task
    changes: dict[str, Any] = {}
    if "perceptual" in type(task).model_fields:
        changes["perceptual"] = task.perceptual.model_copy(update={"weights": "random"})
    if "adversarial" in type(task).model_fields:
        changes["adversarial"] = task.adversarial.model_copy(update={"start": 0, "warmup": 0})
    if isinstance(config, synthesis.TrainSynthesisConfig):
        perceptual = task.distance.perceptual.model_copy(update={"weights": "random"})
        changes |= {
            "adversarial": task.adversarial.model_copy(update={"start": 0, "warmup": 0}),
            "scale_starts": (0, 0, 0),
            "posterior_start": 0,
            "distance": task.distance.model_copy(update={"perceptual": perceptual}),
        }
    return config.model_copy(update={"task": task.model_copy(update=changes)})


def _told(config: Any) -> float:
    """Returns the largest fraction of words, or of patches, that are predicted."""
    if isinstance(config, mim.TrainBEiTConfig):
        height, width = config.model.encoder.grid
        return config.model.masked_patches / (height * width)
    if isinstance(config, mim.TrainMPPConfig):
        return config.model.chosen
    return config.task.masking.chosen if isinstance(config, warm_up.TrainTextEncoderConfig) else 1.0


def _r1_every(config: Any) -> int:
    if isinstance(config, synthesis.TrainSynthesisConfig):
        return config.task.adversarial.r1_every
    adversarial = getattr(config.task, "adversarial", None)
    return 1 if adversarial is None else adversarial.r1_every
