"""How each stage-2 transformer of `generator_baselines` draws: ours, and the peers in their own fastest public way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from generator_baselines import Sizes, count, dalle_pytorch, parti_pytorch, t5
from interleave import Sampled, Tick, Whole
from torch import Tensor

from parti.models import Generator
from parti.sampling.generate import SamplingConfig, generate_codes
from parti.sampling.packed_weights import Precision

GUIDANCE = 3.0


@dataclass(frozen=True)
class Baseline:
    """How it draws, and the parameters behind that."""

    baseline: Whole | Sampled
    parameters: int


def sample_ours(build: Callable[[Sizes], Generator], sizes: Sizes, guided: bool, *, precision: Precision) -> Baseline:
    """As the pipeline draws: weights are laid out for drawing at the start of each call, so that counts too."""
    generator = build(sizes).eval()
    captions, empty = sizes.captions(), torch.ones(sizes.text_tokens, dtype=torch.int64)
    settings = SamplingConfig(guidance_scale=GUIDANCE if guided else 1.0, precision=precision)

    def draw(tick: Tick) -> Tensor:
        seeds = range(sizes.batch)
        return generate_codes(generator, captions, empty, seeds, settings, on_codes=lambda _: tick())

    return Baseline(Whole(draw), count(generator))


def sample_t5(sizes: Sizes, guided: bool, *, dtype: torch.dtype) -> Baseline:
    """`generate` with its default cache. Its `guidance_scale` is for decoders without an encoder and raises here, so
    guidance is a logits processor over a doubled batch, which adds the same Gumbel noise to both halves: the most
    likely token is then a draw, and both halves go on with the same one."""
    from transformers import LogitsProcessor, LogitsProcessorList
    from transformers.generation.streamers import BaseStreamer

    class Guidance(LogitsProcessor):
        def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
            conditional, unconditional = scores.chunk(2)
            guided_scores = unconditional + GUIDANCE * (conditional - unconditional)
            return (guided_scores - torch.empty_like(guided_scores).exponential_().log()).repeat(2, 1)

    class Ticking(BaseStreamer):
        def __init__(self, tick: Tick) -> None:
            self.tick, self.started = tick, False

        def put(self, _: Tensor) -> None:
            if self.started:
                self.tick()
            self.started = True  # the first to come is the start token

        def end(self) -> None:
            pass

    model = t5(sizes).eval().to(dtype)
    captions = sizes.captions()
    how: dict[str, Any] = {"do_sample": True, "top_k": 0}
    if guided:
        captions = torch.cat([captions, torch.ones_like(captions)])
        how = {"do_sample": False, "logits_processor": LogitsProcessorList([Guidance()])}

    def draw(tick: Tick) -> Tensor:
        exactly = {"max_new_tokens": sizes.image_tokens, "min_new_tokens": sizes.image_tokens}
        return model.generate(
            captions, attention_mask=torch.ones_like(captions), streamer=Ticking(tick), **exactly, **how
        )

    return Baseline(Whole(draw), count(model))


def sample_parti_pytorch(sizes: Sizes, guided: bool) -> Baseline:
    """A step of its `generate`, which keeps no cache: all positions so far, twice, as it is always guided."""
    assert guided
    model = parti_pytorch(sizes).eval()
    from parti_pytorch.parti_pytorch import gumbel_sample, top_k

    embeddings = torch.randn(sizes.batch, sizes.text_tokens, sizes.width)
    mask = torch.ones(sizes.batch, sizes.text_tokens, dtype=torch.bool)
    images = sizes.images()

    @torch.no_grad()
    def step(position: int) -> Tensor:
        tokens = images[:, :position]
        logits = model.forward_with_cond_scale(text_token_embeds=embeddings, text_mask=mask, image_token_ids=tokens)
        generated = gumbel_sample(top_k(logits[:, -1], thres=0.9), temperature=1.0)
        return torch.cat([tokens, generated[:, None]], dim=-1)

    return Baseline(Sampled(step), count(model))


def sample_dalle_pytorch(sizes: Sizes, guided: bool) -> Baseline:
    """`generate_images` with its cache, which it uses with guidance only."""
    assert guided
    model, captions = dalle_pytorch(sizes).eval(), sizes.captions()

    def draw(tick: Tick) -> Tensor:
        passes = 0

        def of_both_sides(*_: Any) -> None:
            nonlocal passes
            passes += 1
            if passes % 2 == 0:
                tick()

        hook = model.to_logits.register_forward_hook(of_both_sides)
        try:
            return model.generate_images(captions.clone(), cond_scale=GUIDANCE, use_cache=True)  # it writes to them
        finally:
            hook.remove()

    return Baseline(Whole(draw), count(model))
