"""The smallest models that still do everything: width 32, 4x4 codes of 32, 16x16 pixels, eight words of text."""

import torch
from torch import Tensor, nn

from parti.models import EncoderDecoder, EncoderDecoderConfig, TokenSpace
from parti.pairs import token_space
from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from vqgan.data.batch import Batch
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.layers.transformer import TransformerConfig
from vqgan.models import AUTOENCODERS
from vqgan.models.vit_vqgan import ViTVQGANConfig
from vqgan.quantizers import NearestConfig

CAPTIONS = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("cat", "dog", "hat", "jug")]
TOKENS = TokenSpace(text_vocab_size=20, text_length=8, image_vocab_size=32, image_grid=(4, 4))
GENERATOR = EncoderDecoderConfig(encoder_depth=1, decoder_depth=2, width=32, heads=2, mlp_width=64, dropout=0.0)
STACK = TransformerConfig(depth=1, width=32, heads=2, mlp_width=64)
AUTOENCODER = ViTVQGANConfig(
    image_size=16, patch_size=4, encoder=STACK, decoder=STACK, quantizer=NearestConfig(codebook_size=32, code_dim=8)
)


def tiny_generator(tokens: TokenSpace = TOKENS, seed: int = 0, dropout: float = 0.0) -> EncoderDecoder:
    """A generator with opinions: its head is random, where a fresh one is zero. In evaluation mode."""
    torch.manual_seed(seed)
    generator = EncoderDecoder(GENERATOR.model_copy(update={"dropout": dropout}), tokens)
    nn.init.normal_(generator.head.weight, std=0.5)
    nn.init.normal_(generator.head.bias, std=0.5)
    return generator.eval()


def tiny_text_tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, TextTokenizerConfig(vocab_size=300, length=8))


def tiny_image_tokenizer(seed: int = 0) -> ImageTokenizer:
    torch.manual_seed(seed)
    return ImageTokenizer(AUTOENCODERS["vit_vqgan"](AUTOENCODER))


def tiny_text_to_image(sampling: SamplingConfig = SamplingConfig(), seed: int = 0) -> TextToImage:  # noqa: B008 - frozen
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer(seed)
    return TextToImage(tiny_generator(token_space(text, image), seed), text, image, sampling)


def text_ids(batch: int, seed: int = 0) -> Tensor:
    """Random texts of TOKENS of 1 to 8 words, padded with 0; a text never holds the pad or the null id."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, TOKENS.text_vocab_size, (batch, TOKENS.text_length), generator=generator)
    lengths = torch.randint(1, TOKENS.text_length + 1, (batch, 1), generator=generator)
    return ids.masked_fill(torch.arange(TOKENS.text_length) >= lengths, 0)


def codes(batch: int, seed: int = 0) -> Tensor:
    """Random codes of TOKENS."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TOKENS.image_vocab_size, (batch, TOKENS.image_length), generator=generator)


def pairs(count: int = 8, seed: int = 0) -> Batch:
    """The first captions, each with an image of its own: 4x4 random patches."""
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    captions: list[str | None] = [*CAPTIONS[:count]]
    return Batch(noise, captions, [f"pair {index}" for index in range(count)])
