"""Draw image codes from a stage-2 model, one position after the other, with a key-value cache.

Classifier-free guidance runs both sides as one batch; the unconditional text side is the same for every picture and
is computed once. A picture is a function of (model, prompt, seed, settings): each has its own random numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor, nn

from parti.models.generator import Generator
from parti.sampling.filters import draw, guide, keep_top_k, keep_top_p
from vqgan.config import Config, validate


class SamplingConfig(Config):
    """How codes are drawn. The defaults are plain sampling: every setting has a value that switches it off."""

    guidance_scale: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Classifier-free guidance, at least 0; 1 is off, Parti reports 1.2."""
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Divides the logits, at least 0; 1 is off, 0 takes the most likely code."""
    top_k: int = Field(0, ge=0)
    """Draw only from the k most likely codes; 0 is off."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw only from the most likely codes that together reach this probability, in (0, 1]; 1 is off."""

    def overridden(self, **given: int | float | None) -> "SamplingConfig":
        """These settings with the given ones in their place; None keeps. Raises ConfigError: unknown, out of range."""
        values = {name: value for name, value in given.items() if value is not None}
        return validate(SamplingConfig, self.model_dump() | values, "sampling settings")


@torch.no_grad()
def generate_codes(
    model: Generator,
    text_ids: Int64[Tensor, "B T"],
    null_ids: Int64[Tensor, "T"],
    seeds: Sequence[int],
    settings: SamplingConfig = SamplingConfig(),  # noqa: B008 - frozen
    on_position: Callable[[int], None] | None = None,
) -> Int64[Tensor, "B N"]:
    """Codes of one picture per row of `text_ids`, row b drawn with `seeds[b]`.

    `null_ids` is the empty caption of the unconditional side. `on_position` is called after each code with the
    number of codes done. Raises ValueError when seeds and rows differ in number.
    """
    batch, device = len(text_ids), text_ids.device
    if len(seeds) != batch:
        raise ValueError(f"one seed a picture: received {len(seeds)} seeds for {batch} pictures")
    guided = settings.guidance_scale != 1.0
    with _evaluating(model):
        # A prompt of several pictures is read once, and so is the empty one of the unconditional side.
        asked = torch.cat([text_ids, null_ids[None].to(device)]) if guided else text_ids
        distinct, row = torch.unique(asked, dim=0, return_inverse=True)
        rows = torch.cat([row[:batch], row[-1:].expand(batch)]) if guided else row
        memory = model.encode_text(distinct).rows(rows)
        caches = model.new_caches(2 * batch if guided else batch)
        length = model.tokens.image_length
        uniforms = torch.stack([_uniforms(seed, length) for seed in seeds]).to(device)

        codes = torch.empty(batch, length, dtype=torch.int64, device=device)
        previous = None
        for position in range(length):
            logits = model.step(previous, position, memory, caches)
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = guide(conditional, unconditional, settings.guidance_scale)
            codes[:, position] = choose(logits, uniforms[:, position], settings)
            previous = codes[:, position].repeat(2) if guided else codes[:, position]
            if on_position is not None:
                on_position(position + 1)
        return codes


def choose(logits: Tensor, uniform: Tensor, settings: SamplingConfig) -> Int64[Tensor, "B"]:
    """One code a row from guided logits (B, V), by temperature, top-k and top-p, with one uniform number a row."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = logits / settings.temperature
    if settings.top_k:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p < 1:
        logits = keep_top_p(logits, settings.top_p)
    return draw(logits, uniform)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to what it was however the block ends."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _uniforms(seed: int, length: int) -> Tensor:
    """The random numbers of one picture: on the CPU, so that they are the same on every device."""
    return torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
