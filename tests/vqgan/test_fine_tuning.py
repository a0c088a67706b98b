"""An image tokenizer that starts from another one."""

from pathlib import Path

import pytest
import torch

from tests.tiny import AUTOENCODER, tiny_image_tokenizer
from vqgan.config.schema import ConfigError
from vqgan.fine_tuning import start_discriminator_from, start_tokenizer_from
from vqgan.hub.initial_weights import take_weights
from vqgan.hub.model_folder import ModelFolderError
from vqgan.models import AUTOENCODERS, Autoencoder


def build(seed: int = 1, **changes: object) -> Autoencoder:
    torch.manual_seed(seed)
    return AUTOENCODERS["vit_vqgan"](AUTOENCODER.model_copy(update=changes))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tiny_image_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_same_model_is_taken_whole(source: Path) -> None:
    autoencoder = build()
    lines = start_tokenizer_from(autoencoder, source)
    expected = tiny_image_tokenizer().autoencoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in autoencoder.state_dict().items())
    assert len(lines) == 1


def test_a_larger_image_has_resized_positions_and_the_same_codebook(source: Path) -> None:
    autoencoder = build(image_size=32)
    lines = start_tokenizer_from(autoencoder, source)
    expected = tiny_image_tokenizer().autoencoder
    state, theirs = autoencoder.state_dict(), expected.state_dict()
    same = [name for name in state if torch.equal(state[name], theirs[name])]
    assert sorted(set(state) - set(same)) == ["decoder.transformer.positions", "encoder.transformer.positions"]
    assert any("encoder.transformer.positions 16x32 to 64x32" in line for line in lines)
    # What a network of the old size reads at the new one is what the new one has learned now.
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(autoencoder.encode(images), expected.encode(images))


def test_a_deeper_decoder_says_what_is_new(source: Path) -> None:
    deeper = AUTOENCODER.decoder.model_copy(update={"depth": 2})
    lines = start_tokenizer_from(build(decoder=deeper), source)
    assert any("as initialized: decoder.transformer.blocks.1." in line and "more" in line for line in lines)
    assert any("model.decoder.depth was 1 and is 2" in line for line in lines)


def test_what_is_not_used_is_named() -> None:
    theirs = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4))
    report = take_weights(torch.nn.Sequential(torch.nn.Linear(2, 3)), theirs.state_dict(), "x")
    assert report.unused == ("1.weight", "1.bias")
    assert "not used of x: 1.weight, 1.bias" in report.lines()[-1]


def test_another_width_or_no_tokenizer_is_one_line(source: Path, tmp_path: Path) -> None:
    stack = AUTOENCODER.encoder.model_copy(update={"width": 16, "mlp_width": 32})
    quantizer = AUTOENCODER.quantizer.model_copy(update={"codebook_size": 64, "code_dim": 4})
    with pytest.raises(ConfigError, match="of the same kind and width"):
        start_tokenizer_from(build(encoder=stack, decoder=stack, quantizer=quantizer), source)
    with pytest.raises(ModelFolderError):
        start_tokenizer_from(build(), tmp_path / "missing")


def test_a_discriminator_without_a_run_starts_fresh_and_says_so(source: Path) -> None:
    (line,) = start_discriminator_from(torch.nn.Linear(2, 2), source)
    assert "starts fresh" in line
