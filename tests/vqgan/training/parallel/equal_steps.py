"""One training step of every objective, on captions of uneven lengths, with the gradients that its optimizers see."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import vqgan.train_tokenizer
from parti.fused.inpainting.inpainting_task import InpaintingTask, InpaintingTaskConfig
from parti.fused.inpainting.network import InpaintingNetwork
from parti.fused.rows import TrunkConfig
from parti.fused.synthesis import train_synthesis as synthesis_train
from parti.fused.text_side import TextSideConfig, text_space
from parti.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, EncoderDecoderConfig
from parti.next_token.next_token_task import NextTokenTask, NextTokenTaskConfig
from parti.pairs import PairTokenizer, token_space
from parti.reranker.dual_encoder import build_processor
from parti.reranker.train_reranker import TrainRerankerConfig
from parti.reranker.train_reranker import build_task as build_reranker
from parti.upsampler.upsampler import Upsampler, UpsamplerConfig
from parti.upsampler.upsampler_task import UpsamplerTask, UpsamplerTaskConfig
from tests import tiny_captions, tiny_warm_up
from tests.parti.mim.tiny_mim import NETWORKS, tiny_mim_task
from tests.tiny import pairs, tiny_image_tokenizer, tiny_text_tokenizer
from tests.tiny_runs import stage_1
from vqgan.config.schema import validate
from vqgan.data.batch import Batch
from vqgan.training.parallel.distributed import all_reduce_mean, build_accelerator
from vqgan.training.parallel.sharded_tensors import whole
from vqgan.training.task import Task

_TIMES = ("learning_rate", "discriminator_learning_rate")
_TOWER = {"depth": 1, "width": 16, "heads": 2, "mlp_width": 32}


@dataclass
class Step:
    """The metrics of a step, the gradients in the order of the updates, and the buffers that it left."""

    metrics: dict[str, Tensor]
    gradients: list[Tensor]
    buffers: dict[str, Tensor]

    def differences(self, other: "Step") -> list[str]:
        """What differs by more than rounding."""
        wrong = [
            f"{name} {value.item():.6g}, not {other.metrics[name].item():.6g}"
            for name, value in self.metrics.items()
            if name not in _TIMES and not torch.allclose(value.float(), other.metrics[name].float(), 2e-4, 2e-5)
        ]
        for number, (ours, theirs) in enumerate(zip(self.gradients, other.gradients, strict=True)):
            share = ((ours - theirs).norm() / theirs.norm()).item()
            wrong += [f"the gradient of update {number} by {share:.2%}"] if share > 1e-3 else []
        for name, buffer in self.buffers.items():
            if not torch.allclose(buffer.float(), other.buffers[name].float(), 1e-4, 1e-5):
                wrong.append(f"the buffer {name}")
        return wrong


def uneven_pairs() -> Batch:
    """Eight pairs: captions of eight tokens, then of one, so that halves and quarters have other numbers of them."""
    whole = pairs(8)
    captions: list[str | None] = [
        f"{text} a red hat" if row < 3 else text[-3:] for row, text in enumerate(whole.texts())
    ]
    return Batch(whole.images, captions, whole.names)


def larger(whole: Batch, side: int) -> Batch:
    return Batch(whole.images.repeat_interleave(side // 16, 2).repeat_interleave(side // 16, 3), *_rest(whole))


def _rest(whole: Batch) -> tuple[list[str | None], list[str]]:
    return whole.captions, whole.names


def parts_of(whole: Batch, count: int) -> list[Batch]:
    """So many micro-batches."""
    size = len(whole) // count
    return [
        Batch(whole.images[at : at + size], whole.captions[at : at + size], whole.names[at : at + size])
        for at in range(0, len(whole), size)
    ]


def taken(build: Callable[[], Task], batches: Sequence[Batch], step: int = 2, average: bool = False) -> Step:
    """A fresh task's step `step` on these micro-batches; metrics are averaged over the processes where asked for."""
    torch.manual_seed(0)
    task = build()
    gradients: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        of_all = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        gradients.append(torch.cat([whole(grad.detach()).flatten().clone() for grad in of_all if grad is not None]))

    hook = register_optimizer_step_pre_hook(keep)
    try:
        metrics = task.train_step(batches, step)
    finally:
        hook.remove()
    if average:
        means = all_reduce_mean(build_accelerator(), metrics)
        metrics = {name: torch.tensor(value) for name, value in means.items()}
    networks = [part for part in task.stateful().values() if isinstance(part, nn.Module)]
    buffers = {name: buffer.clone() for network in networks for name, buffer in network.named_buffers()}
    return Step({name: value.detach() for name, value in metrics.items()}, gradients, buffers)


def _opinionated(module: nn.Module) -> None:
    """Random weights wherever there are weights: heads and fusions that start at zero do something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def autoencoder(quantizer: dict[str, Any]) -> Task:
    maintenance = {"unquantized": 0, "restart_every": 0, "memory": 256}
    discriminator = {"kind": "stylegan2", "channels": [4, 6, 8, 8], "stddev_group": 2}
    changes = {
        "model.quantizer": quantizer,
        "task.codebook_maintenance": maintenance,
        "task.optimizer": {"kind": "adamw"},
        "task.adversarial.discriminator": discriminator,
    }
    return vqgan.train_tokenizer.build_task(stage_1(Path("nowhere"), **changes), build_accelerator())


def next_token(decoder_only: bool, **settings: Any) -> Task:
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    tokens = token_space(text, image)
    generator = (
        DecoderOnly(DecoderOnlyConfig(depth=2, width=32, heads=2, mlp_width=64, kernel=3), tokens)
        if decoder_only
        else EncoderDecoder(
            EncoderDecoderConfig(encoder_depth=1, decoder_depth=1, width=32, heads=2, mlp_width=64, dropout=0.0), tokens
        )
    )
    _opinionated(generator)
    values = {"precision": "fp32", "caption_dropout": 0.3, "text_loss_share": 0.5} | settings
    config = validate(NextTokenTaskConfig, values, "test")
    return NextTokenTask(config, generator.train(), PairTokenizer(text, image), build_accelerator(), 10, 0)


def inpainting() -> Task:
    text = TextSideConfig(width=16, heads=2, mlp_width=32, dropout=0.0)
    network = InpaintingNetwork(
        TrunkConfig(image_size=16, deepest_row=3, channels=(4, 8, 8), text=text), text_space(tiny_text_tokenizer())
    )
    _opinionated(network)
    adversarial = {"weight": 0.1, "loss": "hinge", "r1_gamma": 1.0, "r1_every": 2}
    adversarial["discriminator"] = {"kind": "stylegan2", "channels": [4, 8, 8], "stddev_group": 1}
    values = {"perceptual": {"weight": 0.0}, "precision": "fp32", "adversarial": adversarial}
    config = validate(InpaintingTaskConfig, values, "test")
    return InpaintingTask(config, network, tiny_text_tokenizer(), build_accelerator(), 10, seed=0)


def synthesis() -> Task:
    """Without matching, whose pairs are those of a part."""
    text = {"width": 8, "heads": 2, "mlp_width": 16, "dropout": 0.0}
    trunk = {"image_size": 32, "deepest_row": 4, "channels": [8, 8, 8, 8], "text": text}
    values = {
        "data": {"source": {"kind": "shapes"}, "transform": {"image_size": 32}, "batch_size": 8},
        "text": {"vocab_size": 300, "length": 8},
        "model": {"trunk": trunk, "finest_channels": 8, "noise": {"channels": 4, "hidden_channels": 8}},
        "discriminators": {"scale": {"base_channels": 4, "sentence_width": 8}, "sentence_layers": 1},
        "task": {
            "matching": None,
            "distance": {"l1_weight": 1.0, "l2_weight": 0.0, "perceptual": {"weight": 0.0}},
            "adversarial": {"r1_gamma": 0.1, "r1_every": 2},
            "precision": "fp32",
        },
    }
    config = validate(synthesis_train.TrainSynthesisConfig, values, "test")
    return synthesis_train.build_task(config, build_accelerator(), tiny_text_tokenizer())


def reranker() -> Task:
    values = {
        "data": {"source": {"kind": "shapes"}, "transform": {"image_size": 16}, "batch_size": 8},
        "text": {"vocab_size": 300, "length": 8},
        "model": {
            "image_size": 16,
            "patch_size": 4,
            "image_encoder": _TOWER,
            "text_encoder": _TOWER,
            "embedding_width": 16,
        },
        "task": {"precision": "fp32"},
    }
    config = validate(TrainRerankerConfig, values, "test")
    with tempfile.TemporaryDirectory() as written:
        tiny_text_tokenizer().save_pretrained(Path(written))
        processor = build_processor(config.model, Path(written))
    return build_reranker(config, build_accelerator(), processor)


def upsampler() -> Task:
    adversarial = {"discriminator": {"kind": "stylegan2", "channels": [4, 6, 8, 8], "stddev_group": 1}, "r1_every": 2}
    values = {"perceptual": {"weight": 0.0}, "adversarial": adversarial, "precision": "fp32"}
    network = Upsampler(validate(UpsamplerConfig, {"blocks": 1, "channels": 8, "expansion": 2, "scale": 2}, "test"))
    config = validate(UpsamplerTaskConfig, values, "test")
    return UpsamplerTask(config, network, tiny_image_tokenizer(), build_accelerator(), 10)


def mim(name: str) -> Callable[[], Task]:
    return lambda: tiny_mim_task(name, build_accelerator())


def _stage_1(kind: str, **settings: Any) -> Callable[[], Task]:
    return lambda: autoencoder({"kind": kind} | settings)


OBJECTIVES: dict[str, tuple[Callable[[], Task], int]] = {
    "nearest": (_stage_1("nearest", codebook_size=32, code_dim=4), 32),
    "nearest_ema": (_stage_1("nearest_ema", codebook_size=32, code_dim=4), 32),
    "residual": (_stage_1("residual", codebook_size=16, code_dim=4, depth=2), 32),
    "finite_scalar": (_stage_1("finite_scalar", levels=[4, 4]), 32),
    "lookup_free": (_stage_1("lookup_free", bits=5), 32),
    "encoder_decoder": (lambda: next_token(False), 16),
    "decoder_only": (lambda: next_token(True), 16),
    "captioning": (lambda: tiny_captions.tiny_task(), 32),
    "inpainting": (inpainting, 16),
    "text_warm_up": (lambda: tiny_warm_up.tiny_task(masking={"chosen": 0.5}), 16),
    "reranker": (reranker, 16),
    "synthesis": (synthesis, 32),
    "upsampler": (upsampler, 32),
    **{name: (mim(name), 32) for name in NETWORKS},
}
"""How a task is built, and the side of its images."""

ALONE = {
    "lookup_free": "each micro-batch has its own mean distribution over codes",
    "text_warm_up": "pairs of one micro-batch are compared with each other",
    "reranker": "pairs of one micro-batch are compared with each other",
    "synthesis": "a wrong caption is one of the same micro-batch",
}
"""Objectives of which micro-batches are not one batch, as docs/scale.md says, and why."""

BY_PROCESS = {"synthesis": "a wrong caption is one of the same process"}
"""The same of processes."""
