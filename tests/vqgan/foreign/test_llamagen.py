"""Import of LlamaGen's tokenizers: the same images and codes as transformers' port of them in Janus."""

import re

import pytest
import torch
from torch import Tensor, nn

from vqgan.foreign.llamagen import from_llamagen
from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.foreign.taming import to_taming
from vqgan.image_tokenizer import ImageTokenizer

pytestmark = pytest.mark.slow_threads

State = dict[str, Tensor]
CLOSE = {"rtol": 0.0, "atol": 1e-5}
"""For networks in float64: what fp32 is off by depends on the processor's kernels and reached 1.1e-5."""


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def oracle(multipliers: tuple[int, ...], base_channels: int = 32) -> nn.Module:
    """Janus' VQ model with distinct weights; unit codes, because it compares and returns them unnormalized."""
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    config = JanusVQVAEConfig(
        base_channels=base_channels,
        channel_multiplier=list(multipliers),
        latent_channels=24,
        embed_dim=8,
        num_embeddings=64,
        num_patches=32 // 2 ** (len(multipliers) - 1),
    )
    model = JanusVQVAE(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        model.quantize.embedding.weight.copy_(nn.functional.normalize(model.quantize.embedding.weight, dim=-1))
    return model


def llamagen_state(model: nn.Module) -> State:
    """The oracle's weights by LlamaGen's names."""
    state: State = {"quantize.codebook_used": torch.zeros(65536)}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"^(encoder|decoder)\.(down|up)\.", r"\1.conv_blocks.", name).replace(".block.", ".res.")
        for ours, theirs in (("block_1", "0"), ("attn_1", "1"), ("block_2", "2")):
            name = name.replace(f".mid.{ours}.", f".mid.{theirs}.")
        state[name] = tensor
    return state


@pytest.mark.parametrize("multipliers", [(1, 1, 2, 2, 4), (1, 2, 2, 4)], ids=["VQ-16", "VQ-8"])
@torch.no_grad()
def test_codes_and_images_are_those_of_the_janus_port(multipliers: tuple[int, ...]) -> None:
    model = oracle(multipliers)
    autoencoder = from_llamagen(llamagen_state(model), image_size=32)
    tokenizer = ImageTokenizer(autoencoder)
    codes, latents = tokenizer.encode(images()), tokenizer.embed(tokenizer.encode(images()))
    assert torch.equal(codes.flatten(), model.encode(images()).image_tokens)
    assert codes.unique().numel() > 3

    autoencoder.double(), model.double()
    expected = model.quant_conv(model.encode(images().double()).last_hidden_state).flatten(2).transpose(1, 2)
    torch.testing.assert_close(autoencoder.encode(images().double()), expected, **CLOSE)
    image_list = autoencoder.decode(latents.double(), tokenizer.grid).images
    torch.testing.assert_close(image_list.double(), model.decode(codes), **CLOSE)


def test_codes_are_compared_by_direction() -> None:
    state = llamagen_state(oracle((1, 2)))
    plain = ImageTokenizer(from_llamagen(state, image_size=32))
    lengths = torch.rand(64, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    scaled_state = {**state, "quantize.embedding.weight": state["quantize.embedding.weight"] * lengths}
    scaled = ImageTokenizer(from_llamagen(scaled_state, image_size=32))
    codes = plain.encode(images())
    assert torch.equal(scaled.encode(images()), codes)
    torch.testing.assert_close(scaled.decode(codes), plain.decode(codes))


def test_the_config_is_that_of_the_tensors() -> None:
    config = from_llamagen(llamagen_state(oracle((1, 2, 2)))).config
    assert config.channel_multipliers == (1, 2, 2)
    assert config.residual_blocks == 2
    assert config.attention_resolutions == (64,), "the lowest of three levels at 256 pixels"
    assert (config.latent_channels, config.quantizer.code_dim, config.quantizer.codebook_size) == (24, 8, 64)
    assert config.quantizer.l2_normalize


def test_tensors_that_do_not_fit_are_named_as_in_the_file() -> None:
    state = llamagen_state(oracle((1, 2)))
    del state["decoder.conv_blocks.0.res.1.conv1.weight"]
    state["decoder.mid.1.q.bias"] = torch.zeros(7)
    with pytest.raises(ForeignCheckpointError) as error:
        from_llamagen(state)
    assert "1 missing (decoder.conv_blocks.0.res.1.conv1.weight)" in str(error.value)
    assert "1 of another shape (decoder.mid.1.q.bias (7,), must be (64,))" in str(error.value)
    with pytest.raises(ForeignCheckpointError, match=r"LlamaGen has a tensor quantize\.embedding\.weight"):
        from_llamagen({"model": torch.zeros(1)})


def test_it_is_not_exported_as_tamings() -> None:
    with pytest.raises(ForeignCheckpointError, match=r"l2_normalize is on \(as in LlamaGen\)"):
        to_taming(from_llamagen(llamagen_state(oracle((1, 2)))))
