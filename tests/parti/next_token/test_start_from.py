"""A generator that starts from another one: what fits is taken, mapped or resized, and all else is said."""

from pathlib import Path

import pytest
import torch

from parti.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder
from parti.next_token.start_from import start_generator_from
from parti.pairs import token_space
from parti.pipeline import TextToImage
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from tests.tiny import (
    CAPTIONS,
    GENERATOR,
    tiny_generator,
    tiny_image_tokenizer,
    tiny_text_to_image,
    tiny_text_tokenizer,
)
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import AUTOENCODERS
from vqgan.models.vit_vqgan import ViTVQGANConfig


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tiny_text_to_image().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_of_the_same_tokenizers_everything_is_taken(source: Path) -> None:
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    generator = tiny_generator(token_space(text, image), seed=1)
    lines = start_generator_from(generator, text, image, source)
    expected = TextToImage.from_pretrained(source).generator.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in generator.state_dict().items())
    assert len(lines) == 1
    assert f"{len(expected)} of {len(expected)} tensors taken" in lines[0]


def test_another_vocabulary_is_mapped_token_by_token(source: Path) -> None:
    words = [*CAPTIONS, "a purple zebra", "a purple zeppelin"]
    text, image = TextTokenizer.train(words, TextTokenizerConfig(vocab_size=320, length=10)), tiny_image_tokenizer()
    generator = tiny_generator(token_space(text, image), seed=1)
    fresh = {name: value.clone() for name, value in generator.state_dict().items()}
    lines = start_generator_from(generator, text, image, source)

    model = TextToImage.from_pretrained(source)
    theirs, before, now = model.generator.state_dict(), model.text_tokenizer.tokens(), text.tokens()
    name = "text_encoder.embedding.weight"
    new = [token for token in now if token not in before]
    moved = [token for token in now if token in before and now[token] != before[token]]
    assert new, "or else no row would stay fresh"
    assert moved, "or else copying by number would do"
    for token, row in now.items():
        expected = theirs[name][before[token]] if token in before else fresh[name][row]
        assert torch.equal(generator.state_dict()[name][row], expected), token
    positions = generator.state_dict()["text_encoder.positions"]
    assert torch.equal(positions[:8], theirs["text_encoder.positions"])
    assert torch.equal(positions[8:], fresh["text_encoder.positions"][8:])
    assert any(f"{len(now) - len(new):,} of {len(now):,} tokens" in line for line in lines)
    assert any("text_encoder.positions 8x32 to 10x32" in line for line in lines)


def test_codes_of_another_tokenizer_have_fresh_rows(source: Path) -> None:
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer(seed=5)
    generator = tiny_generator(token_space(text, image), seed=1)
    fresh = {name: value.clone() for name, value in generator.state_dict().items()}
    lines = start_generator_from(generator, text, image, source)
    theirs = TextToImage.from_pretrained(source).generator.state_dict()
    for name, value in generator.state_dict().items():
        assert torch.equal(value, (fresh if name in generator.code_rows() else theirs)[name]), name
    assert any("head.weight (another image tokenizer: the encoder's weights" in line for line in lines)


def test_a_larger_grid_of_the_same_codes_has_resized_positions(source: Path) -> None:
    """64 to 128 pixels: the patches' codes stay, their places are interpolated."""
    text = tiny_text_tokenizer()
    small = TextToImage.from_pretrained(source)
    config = small.image_tokenizer.autoencoder.config
    assert isinstance(config, ViTVQGANConfig)
    image = ImageTokenizer(AUTOENCODERS["vit_vqgan"](config.model_copy(update={"image_size": 32})))
    generator = tiny_generator(token_space(text, image), seed=1)
    lines = start_generator_from(generator, text, image, source)
    assert any("image_positions 16x32 to 64x32" in line for line in lines)
    resized, learned = generator.image_positions.view(8, 8, 32), small.generator.state_dict()["image_positions"]
    assert torch.corrcoef(torch.stack([resized[1::2, 1::2].flatten(), learned.flatten()]))[0, 1] > 0.7


def test_settings_that_no_tensor_shows_are_named(source: Path) -> None:
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    config = GENERATOR.model_copy(update={"heads": 4})
    lines = start_generator_from(EncoderDecoder(config, token_space(text, image)), text, image, source)
    assert any("learned under other settings: model.heads was 2 and is 4" in line for line in lines)


def test_decoder_only_models_too(tmp_path: Path) -> None:
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    config = DecoderOnlyConfig(depth=1, width=16, heads=2, mlp_width=32, dropout=0.0)
    model = TextToImage(DecoderOnly(config, token_space(text, image)), text, image)
    model.save_pretrained(tmp_path / "model")
    longer = TextTokenizer.train([*CAPTIONS, "zebra"], TextTokenizerConfig(vocab_size=310, length=12))
    generator = DecoderOnly(config, token_space(longer, image))
    start_generator_from(generator, longer, image, tmp_path / "model")
    start = model.generator.state_dict()["text_embedding.weight"][-1]
    assert torch.equal(generator.text_embedding.weight[-1], start), "the start token is behind the last token"
    assert torch.equal(generator.row_positions, model.generator.state_dict()["row_positions"])


def test_nothing_that_fits_and_no_model_are_one_line(source: Path, tmp_path: Path) -> None:
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    narrow = EncoderDecoder(GENERATOR.model_copy(update={"width": 16, "mlp_width": 24}), token_space(text, image))
    with pytest.raises(ConfigError, match=r"only [\d,]+ of [\d,]+ weights fit .* of the same kind and width"):
        start_generator_from(narrow, text, image, source)
    image.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelFolderError, match="no text-to-image model"):
        start_generator_from(narrow, text, image, tmp_path / "tokenizer")
