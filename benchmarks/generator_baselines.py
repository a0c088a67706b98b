"""Our stage-2 transformers and public ones of the same size.

All read `text_tokens` token ids and predict `image_tokens` codes, with random weights. What a peer needs besides its
transformer is made up, so that nothing is downloaded and no time is spent outside of it: image tokenizers that decode
to nothing, text embeddings in place of a frozen T5's. What is compared with what: benchmarks/sampling.py and
benchmarks/generator_training.py.
"""

import importlib.metadata
import importlib.util
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from bandwidth import StepSize
from torch import Tensor, nn

from parti.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, EncoderDecoderConfig, Generator, TokenSpace

SIZES = {
    "width": (512, "of every model"),
    "depth": (6, "blocks of the encoder and of the decoder each; decoder-only models have twice as many"),
    "heads": (8, "of every attention"),
    "mlp_width": (2048, "of every feed-forward, four times the width"),
    "text_tokens": (64, "of a caption"),
    "codes": (8192, "of the image tokenizer, and tokens of the text"),
}
"""What a command line can change, with the default."""
PACKAGES = {
    "parti-pytorch": "parti_pytorch",
    "dalle-pytorch": "dalle_pytorch",
    "transformers T5": "transformers",
    "x-transformers": "x_transformers",
}


def installed(name: str) -> bool:
    """Whether the contender of this name can be built; ours always."""
    return importlib.util.find_spec(PACKAGES.get(name, "parti")) is not None


def versions(names: Iterable[str]) -> str:
    """Of torch and the peers among these contenders, for people; a peer that is missing is said to be."""
    found = [f"torch {torch.__version__}"]
    for name in names:
        if name in PACKAGES:
            package = PACKAGES[name]
            version = importlib.metadata.version(package) if installed(name) else "not installed, left out"
            found.append(f"{package.replace('_', '-')} {version}")
    return ", ".join(found)


@dataclass(frozen=True)
class Sizes:
    """What every contender is built for. `depth`: blocks of the encoder and of the decoder each; decoder-only models
    have twice as many."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    text_tokens: int
    image_tokens: int
    codes: int
    batch: int

    def __post_init__(self) -> None:
        if self.side**2 != self.image_tokens:
            raise ValueError(f"peers draw square images: {self.image_tokens} image tokens are no square of a number")
        if self.mlp_width != 4 * self.width:
            raise ValueError(
                f"dalle-pytorch has feed-forwards four times as wide as the model, so mlp_width is {4 * self.width} "
                f"at width {self.width}, received {self.mlp_width}"
            )

    @property
    def side(self) -> int:
        return math.isqrt(self.image_tokens)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def captions(self) -> Tensor:
        """One for each image, all different; 0 is padding and 1 the empty caption, so neither is in them."""
        return torch.randint(2, self.codes, (self.batch, self.text_tokens), generator=torch.Generator().manual_seed(1))

    def images(self) -> Tensor:
        """Codes of the batch."""
        return torch.randint(self.codes, (self.batch, self.image_tokens), generator=torch.Generator().manual_seed(2))

    def encoder_decoder_step(self) -> StepSize:
        """Self-attention has four square matrices; cross-attention's keys and values are computed once."""
        return self._step(attentions=6, depth=self.depth)

    def decoder_only_step(self) -> StepSize:
        return self._step(attentions=4, depth=2 * self.depth)

    def _step(self, attentions: int, depth: int) -> StepSize:
        return StepSize(
            depth=depth,
            width=self.width,
            mlp_width=self.mlp_width,
            attentions=attentions,
            codes=self.codes,
            text_tokens=self.text_tokens,
            image_tokens=self.image_tokens,
        )


def count(model: nn.Module) -> int:
    """Parameters, a shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def our_encoder_decoder(sizes: Sizes) -> Generator:
    config = EncoderDecoderConfig(
        encoder_depth=sizes.depth,
        decoder_depth=sizes.depth,
        width=sizes.width,
        heads=sizes.heads,
        mlp_width=sizes.mlp_width,
        dropout=0.0,
    )
    return EncoderDecoder(config, token_space(sizes))


def our_decoder_with_text_given(sizes: Sizes) -> Generator:
    """Without the text encoder: what it would say is given, as with a frozen one whose output is kept."""

    class GivenText(nn.Module):
        states: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("states", torch.randn(sizes.batch, sizes.text_tokens, sizes.width))

        def forward(self, text_ids: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002
            return self.states

    model = our_encoder_decoder(sizes)
    model.text_encoder = GivenText()
    return model


def our_decoder_only(sizes: Sizes) -> Generator:
    config = DecoderOnlyConfig(
        depth=2 * sizes.depth, width=sizes.width, heads=sizes.heads, mlp_width=sizes.mlp_width, attention="full"
    )
    return DecoderOnly(config, token_space(sizes))


def token_space(sizes: Sizes) -> TokenSpace:
    return TokenSpace(
        text_vocab_size=sizes.codes,
        text_length=sizes.text_tokens,
        image_vocab_size=sizes.codes,
        image_grid=(sizes.side, sizes.side),
    )


def t5(sizes: Sizes) -> Any:
    """One alphabet for text and codes, as T5 has it, so that its head is as wide as ours."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=sizes.codes,
        d_model=sizes.width,
        d_kv=sizes.head_width,
        d_ff=sizes.mlp_width,
        num_layers=sizes.depth,
        num_decoder_layers=sizes.depth,
        num_heads=sizes.heads,
        dropout_rate=0.0,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=None,  # or images would end early
    )
    return T5ForConditionalGeneration(config)


def parti_pytorch(sizes: Sizes) -> Any:
    """Its text encoder is a frozen T5, so it has the decoder's blocks alone; keys and values have one head."""
    from parti_pytorch.parti_pytorch import Parti
    from parti_pytorch.t5 import T5_CONFIGS

    class ImageTokenizer(nn.Module):
        codebook_size, image_size = sizes.codes, sizes.side

        def __init__(self) -> None:
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # it is asked for its device

        def get_encoded_fmap_size(self, image_size: int) -> int:
            return image_size

    T5_CONFIGS["made up"] = {"config": SimpleNamespace(d_model=sizes.width)}  # it asks even when the width is given
    return Parti(
        dim=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        dim_head=sizes.head_width,
        vae=ImageTokenizer(),
        t5_name="made up",
        max_text_len=sizes.text_tokens,
    )


def dalle_pytorch(sizes: Sizes) -> Any:
    """Learned positions and no token shift, as in the paper and faster here than its defaults. Its feed-forwards are
    gated, so half as large again, and its head is over text and codes together."""
    with _stand_ins():
        from dalle_pytorch import DALLE, DiscreteVAE

    class ImageTokenizer(DiscreteVAE):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.image_size, self.num_layers, self.num_tokens = sizes.side, 0, sizes.codes

        def decode(self, codes: Tensor) -> Tensor:
            return codes

    return DALLE(
        dim=sizes.width,
        depth=2 * sizes.depth,
        heads=sizes.heads,
        dim_head=sizes.head_width,
        vae=ImageTokenizer(),
        num_text_tokens=sizes.codes,
        text_seq_len=sizes.text_tokens,
        shift_tokens=False,
        rotary_emb=False,
    )


def x_transformers(sizes: Sizes) -> Any:
    from x_transformers import XTransformer

    side = {
        "num_tokens": sizes.codes,
        "depth": sizes.depth,
        "heads": sizes.heads,
        "attn_dim_head": sizes.head_width,
        "attn_flash": True,
    }
    lengths = {"enc_max_seq_len": sizes.text_tokens, "dec_max_seq_len": sizes.image_tokens + 1}
    both = {f"{prefix}_{name}": value for prefix in ("enc", "dec") for name, value in side.items()}
    return XTransformer(dim=sizes.width, **both, **lengths)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """While dalle-pytorch 1.6.6 (2023) is imported: names that it imports and that its transformer does not use.

    `taming` and `omegaconf` are for a pretrained VQGAN only and have no release that goes with today's packages;
    `pkg_resources` has left setuptools.
    """
    names = {
        "taming": [],
        "taming.models": [],
        "taming.models.vqgan": ["VQModel", "GumbelVQ"],
        "omegaconf": ["OmegaConf"],
        "pkg_resources": ["get_distribution"],
    }
    added = []
    for name, contents in names.items():
        if name not in sys.modules:
            module = ModuleType(name)
            for content in contents:
                setattr(module, content, object)
            sys.modules[name] = module
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
