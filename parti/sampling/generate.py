"""Samples image codes from a stage-2 model autoregressively, with a key-value cache.

Classifier-free guidance runs both sides as one batch; the unconditional text is the same for every image and is encoded
once, and so is a prompt that several images share. An image is a function of (model, prompt, seed, settings): each
has its own random numbers.

Some codes may be known, such as those of the top half of an image or all but a hole. In raster order a code attends
only to those before it. So the sampled part continues what is above and left of it, but does not take into account what
is below or right of it: seams there are a property of the model, not of the settings. Masked generators are better at
holes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from parti.models.generator import Generator, PromptGroup
from parti.sampling.cuda_graph import GraphedStep
from parti.sampling.filters import apply_guidance, keep_top_k, keep_top_p, sample_codes, temper
from parti.sampling.packed_weights import Precision, prepared
from vqgan.config.schedule import cosine
from vqgan.config.schema import Config, ConfigError, validate

LARGEST_SEED = 2**63 - 1
"""Largest seed of an image, a limit of torch."""
LARGEST_GUIDANCE = 1e6
"""Largest guidance scale; above it, rounding loses the differences of logits."""


class SamplingConfig(
    Config,
    may_change=("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "precision", "cuda_graph"),
):
    """Sampling settings. The defaults are plain sampling; every setting has a value that switches it off."""

    guidance_scale: float = Field(1.0, ge=0, le=LARGEST_GUIDANCE, allow_inf_nan=False)
    """Classifier-free guidance, 0 to a million; 1 is off, Parti reports 1.2."""
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Guidance scale over the codes of an image. constant; or linear or cosine, which grow from 1 to the scale, so that
    the first codes are freer and later ones follow the prompt."""
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Divisor of the logits, at least 0; 1 is off, 0 takes the most probable code."""
    top_k: int = Field(0, ge=0)
    """Sample from the k most probable codes; 0 is off."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most probable codes that together reach this probability, in (0, 1]; 1 is off."""
    precision: Precision = "fp32"
    """Precision of the weights that each step reads: fp32, bf16 (half the bytes), int8 (a quarter; on x86 CPUs). Fewer
    bytes are faster; logits are always fp32. In bf16 and int8 an image may differ between batches (1 of 64 in one
    trial, none in another): rounding amplifies differences in the last bit."""

    cuda_graph: bool = False
    """Replay each step as a CUDA graph: for GPUs, when launching a small model's kernels takes longer than running
    them."""

    def overridden(self, **given: int | float | str | None) -> "SamplingConfig":
        """Returns these settings with the given ones replaced; None keeps a setting. Raises ConfigError: unknown, out
        of range."""
        values = {name: value for name, value in given.items() if value is not None}
        return validate(SamplingConfig, self.model_dump() | values, "sampling settings")

    def guidance_at(self, position: int, length: int) -> float:
        """Returns the guidance scale of the code at `position` of `length`."""
        progress = position / max(1, length - 1)
        match self.guidance_schedule:
            case "constant":
                return self.guidance_scale
            case "linear":
                return 1 + (self.guidance_scale - 1) * progress
            case "cosine":
                return cosine(1.0, self.guidance_scale, progress)


class KnownCodes(NamedTuple):
    """Known codes, which are not sampled: those where `kept` is true."""

    codes: Int64[Tensor, "B N"]
    kept: Bool[Tensor, "B N"]


@torch.no_grad()
def generate_codes(
    model: Generator,
    text_ids: Int64[Tensor, "B T"],
    null_ids: Int64[Tensor, "T"],
    seeds: Sequence[int],
    settings: SamplingConfig = SamplingConfig(),  # noqa: B008 - frozen
    *,
    given: KnownCodes | None = None,
    on_codes: Callable[[Int64[Tensor, "B n"]], None] | None = None,
) -> Int64[Tensor, "B N"]:
    """Samples the codes of one image per row of `text_ids`; row b uses `seeds[b]`.

    `null_ids` is the empty caption of the unconditional side. `on_codes` is called after each position with the codes
    so far. Raises ValueError if seeds or known codes do not fit the rows, ConfigError for a precision or CUDA graphs
    that this device does not support.
    """
    batch, length, device = len(text_ids), model.tokens.image_length, text_ids.device
    if len(seeds) != batch:
        raise ValueError(f"one seed an image: received {len(seeds)} seeds for {batch} images")
    if given is not None and not given.codes.shape == given.kept.shape == (batch, length):
        raise ValueError(
            f"given codes are {batch} x {length} with as many marks, received codes {tuple(given.codes.shape)} and "
            f"marks {tuple(given.kept.shape)}"
        )
    if settings.cuda_graph and device.type != "cuda":
        raise ConfigError(f"cuda_graph is for CUDA devices, this is {device.type}; leave it out")
    guided = settings.guidance_scale != 1.0
    with _evaluating(model):
        fast = prepared(model, settings.precision)
        prompts, order = _by_prompt(fast, text_ids)
        if guided:
            prompts.append(PromptGroup(fast.encode_text(null_ids[None].to(device)), batch))
        state = fast.start(prompts)
        step = GraphedStep(fast, state, 2 * batch if guided else batch) if settings.cuda_graph else None
        back = order.argsort()
        uniforms = torch.stack([_uniforms(seed, length) for seed in seeds]).to(device)[order]
        taken = None if given is None else KnownCodes(given.codes.to(device)[order], given.kept.to(device)[order])

        codes = torch.empty(batch, length, dtype=torch.int64, device=device)
        previous = torch.full((batch,), model.start_code, device=device)
        for position in range(length):
            rows = previous.repeat(2) if guided else previous
            logits = fast.step(rows, position, state) if step is None else step(rows, position)
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = apply_guidance(conditional, unconditional, settings.guidance_at(position, length))
            previous = sample_token(logits, uniforms[:, position], settings)
            if taken is not None:
                previous = torch.where(taken.kept[:, position], taken.codes[:, position], previous)
            codes[:, position] = previous
            if on_codes is not None:
                on_codes(codes[back, : position + 1])
        return codes[back]


def sample_token(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"], settings: SamplingConfig
) -> Int64[Tensor, "B"]:
    """Samples one code per row from guided logits, by temperature, top-k and top-p, with one uniform number per row."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = temper(logits, settings.temperature)
    if settings.top_k:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p < 1:
        logits = keep_top_p(logits, settings.top_p)
    return sample_codes(logits, uniform)


def _by_prompt(model: Generator, text_ids: Int64[Tensor, "B T"]) -> tuple[list[PromptGroup], Int64[Tensor, "B"]]:
    """Encodes the distinct texts once each; returns them and the order of the rows by text.

    If all occur equally often their keys and values are shared, otherwise each row has its own.
    """
    distinct, text, images = torch.unique(text_ids, dim=0, return_inverse=True, return_counts=True)
    memory = model.encode_text(distinct)
    order = text.argsort(stable=True)
    if (images == images[0]).all():
        return [PromptGroup(memory, int(images[0]))], order
    return [PromptGroup(memory.rows(text[order]))], order


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switches to evaluation mode and restores the previous mode at the end of the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _uniforms(seed: int, length: int) -> Tensor:
    """Returns the random numbers of one image, from a CPU generator, so that they are the same on every device."""
    return torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
