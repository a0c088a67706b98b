"""Traces a stage-2 training step: the generator as `parti.next_token.next_token_task` trains it, on codes of an image
tokenizer or of a cache."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from parti.layers.sparse_attention import dense_mask
from parti.layers.sparse_masks import MaskKind, dalle_layer_kinds
from parti.models import GENERATORS, DecoderOnly, EncoderDecoder, Generator, GeneratorConfig, TokenSpace
from parti.models.decoder_only import DecoderOnlyConfig
from parti.next_token.next_token_task import NextTokenTask
from parti.next_token.train_next_token import TrainPartiConfig
from parti.pairs import PairTokenizer, TokenPair
from parti.planning.flops import training_flops
from parti.planning.stand_ins import text_sizes
from parti.text.encoders import TrainedTextEncoderConfig
from vqgan.data.batch import Batch
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.planning.depth import Shallow, Stacks, shallow_networks, watch_blocks
from vqgan.planning.footprint import Counted, Footprint
from vqgan.planning.step_recorder import Kernels, fake_step
from vqgan.planning.step_trace import Roles, StepTrace, images, parameters_of, trace_step
from vqgan.planning.tokenizer import encoding_flops, tokenizer_without_weights
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.training.parallel.distributed import build_accelerator


def trace_generator_step(
    config: TrainPartiConfig,
    tokenizer: TrainVQGANConfig,
    pairs_at_a_time: int,
    *,
    recompute: bool = False,
    kernels: Kernels = "gpu",
    whole: bool | None = None,
) -> StepTrace:
    """Traces one step. `recompute`: activation checkpointing, as model.checkpoint_activations.

    Of a deep network only a few blocks are traced and the rest is extrapolated, unless it is traced as a `whole`.
    """
    with fake_step():
        image_tokenizer = tokenizer_without_weights(tokenizer)
        tokens = tokens_of(config, image_tokenizer)
    generator = generator_without_weights(config, tokens)
    recompute = recompute or getattr(config.model, "checkpoint_activations", False)
    stacks = _stacks(config.model)
    if whole is None:
        whole = sum(map(len, stacks.values())) <= _SHALLOW
    kept = max(map(len, stacks.values())) if whole else _KEPT_ENDS * len(set(generator.layer_kinds))
    recordings = [
        _record(config, tokenizer, pairs_at_a_time, shallow, kept, recompute=recompute, kernels=kernels)
        for shallow in shallow_networks(stacks, kept)
    ]
    from_cache = config.data.codes is not None
    layers = generator.repeated_layers()
    return StepTrace(
        Footprint(recordings),
        parts_of(generator),
        largest_block=4 * max(map(parameters_of, layers)),
        outside_blocks=parameters_of(generator) - sum(map(parameters_of, layers)),
        flops=training_flops(generator) + (0 if from_cache else encoding_flops(tokenizer)),
        frozen_parts={} if from_cache else {"image tokenizer": parameters_of(image_tokenizer)},
    )


_KEPT_ENDS = 1
"""Blocks that are traced at each end of a stack, for each kind of mask."""
_SHALLOW = 12
"""Depth up to which tracing all blocks takes no longer than tracing a few several times."""


def _record(
    config: TrainPartiConfig,
    tokenizer: TrainVQGANConfig,
    pairs_at_a_time: int,
    shallow: Shallow,
    kept: int,
    *,
    recompute: bool,
    kernels: Kernels,
) -> Counted:
    """Returns the step of the network with these stacks."""
    from_cache = config.data.codes is not None
    with _without_kept_masks(), fake_step(kernels) as recording:
        recording.exactly()
        image_tokenizer = tokenizer_without_weights(tokenizer)
        tokens = tokens_of(config, image_tokenizer)
        generator = GENERATORS[config.model.kind](_with_stacks(config.model, shallow.stacks), tokens)
        generator.layer_kinds = list(cast(Sequence[MaskKind], shallow.stacks[_OF_IMAGE]))
        if recompute:
            for block in generator.repeated_layers():
                _keep_the_input_alone(block)
        tokenizers = MaskedPairs(image_tokenizer, tokens, from_cache)
        task = NextTokenTask(config.task, generator, tokenizers, build_accelerator(), config.loop.steps, config.seed)
        watch_blocks(recording, _blocks(generator), kept)
        cast_of_step = Roles([generator], [] if from_cache else [image_tokenizer], [task.ema.module])
        # One of several micro-batches, as if earlier ones had left their gradients: nothing else remains of them.
        since, _ = trace_step(recording, task, cast_of_step, [[images(pairs_at_a_time, image_tokenizer.image_size)]])
        if config.loop.gradient_accumulation_steps > 1:
            recording.keep("gradients")
    return Counted(recording, since, shallow.times)


_OF_IMAGE, _OF_TEXT = "image blocks", "text blocks"


def _stacks(model: GeneratorConfig) -> Stacks[str]:
    """Returns the kind of each block: its mask, for blocks that attend to the image."""
    if isinstance(model, DecoderOnlyConfig):
        return {_OF_IMAGE: dalle_layer_kinds(model.depth) if model.attention == "sparse" else ["full"] * model.depth}
    text = model.encoder_depth if isinstance(model.text_encoder, TrainedTextEncoderConfig) else 0
    return {_OF_TEXT: ["text"] * text, _OF_IMAGE: [model.attention] * model.decoder_depth}


def _with_stacks(model: GeneratorConfig, stacks: Mapping[str, Sequence[Hashable]]) -> GeneratorConfig:
    """Config with this depth and without checkpointing, which `_keep_the_input_alone` adds."""
    image = len(stacks[_OF_IMAGE])
    if isinstance(model, DecoderOnlyConfig):
        return model.model_copy(update={"depth": image, "checkpoint_activations": False})
    text = len(stacks[_OF_TEXT]) or model.encoder_depth
    return model.model_copy(update={"encoder_depth": text, "decoder_depth": image, "checkpoint_activations": False})


def _blocks(generator: Generator) -> Mapping[str, Sequence[nn.Module]]:
    if isinstance(generator, EncoderDecoder):
        return {_OF_TEXT: generator.text_encoder.repeated_layers(), _OF_IMAGE: generator.decode_layers()}
    return {_OF_IMAGE: generator.decode_layers()}


def generator_without_weights(config: TrainPartiConfig, tokens: TokenSpace) -> Generator:
    """Network on the meta device, for counting."""
    with torch.device("meta"):
        return GENERATORS[config.model.kind](config.model, tokens)


def tokens_of(config: TrainPartiConfig, image_tokenizer: ImageTokenizer) -> TokenSpace:
    """Returns the vocabularies of a run. Raises the errors of `text_sizes`."""
    text = text_sizes(config.text)
    return TokenSpace(
        text_vocab_size=text.vocab_size,
        text_length=text.length,
        image_vocab_size=image_tokenizer.vocab_size,
        image_grid=image_tokenizer.grid,
    )


def parts_of(generator: Generator) -> dict[str, int]:
    """Returns the parameters by part; their sum is all of them."""
    if isinstance(generator, EncoderDecoder):
        encoder = generator.text_encoder
        in_blocks = sum(map(parameters_of, getattr(encoder, "blocks", [encoder])))
        parts = {"text encoder blocks": in_blocks, "decoder blocks": sum(map(parameters_of, generator.decoder))}
        heads: list[nn.Module] = [generator.head]
    elif isinstance(generator, DecoderOnly):
        parts = {"blocks": sum(map(parameters_of, generator.blocks))}
        heads = [generator.text_head, generator.image_head]
    else:
        raise TypeError(f"no parts are known of a {type(generator).__name__}")
    norms = sum(parameters_of(module) for name, module in generator.named_modules() if name in _LAST_NORMS)
    parts |= {"heads": sum(map(parameters_of, heads)), "last norms": norms}
    return parts | {"embeddings": parameters_of(generator) - sum(parts.values())}


_LAST_NORMS = ("norm", "decoder_norm", "text_encoder.norm")


class MaskedPairs(PairTokenizer):
    """Token pairs of the run's shapes, without captions, whose content does not affect memory or time."""

    def __init__(self, image: ImageTokenizer, tokens: TokenSpace, from_cache: bool) -> None:
        self.image = image
        self._tokens = tokens
        self._from_cache = from_cache

    def __call__(
        self,
        batch: Batch,
        drop: Bool[Tensor, "B"] | None = None,  # noqa: ARG002
        draw: tuple[int, int, int] | None = None,  # noqa: ARG002
    ) -> TokenPair:
        text_ids = torch.full((len(batch), self._tokens.text_length), self._tokens.text_pad_id + 1)
        if self._from_cache:
            return TokenPair(text_ids, torch.zeros(len(batch), self._tokens.image_length, dtype=torch.int64), 0.0)
        return TokenPair(text_ids, self.image.encode(batch.images), 0.0)


@contextmanager
def _without_kept_masks() -> Iterator[None]:
    """Clears the mask cache: cached masks with and without storage must not be mixed."""
    dense_mask.cache_clear()
    try:
        yield
    finally:
        dense_mask.cache_clear()


def _keep_the_input_alone(block: nn.Module) -> None:
    """Wraps this block in torch's activation checkpointing."""
    from torch.utils.checkpoint import checkpoint

    forward = block.forward
    # No comparison of the recomputed values: there are none, and the dtype of cached masks may differ.
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    block.forward = lambda *args: checkpoint(forward, *args, **settings)
