"""Import of taming-transformers VQGANs: the same images and codes as two ports of transformers, and as the formulas.

Sizes are small, the topology is whole: several levels, widths that change, attention, both sides.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.foreign.taming import from_taming, to_taming
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models.autoencoder import Autoencoder
from vqgan.models.cnn_vqgan import CNNVQGAN, CNNVQGANConfig
from vqgan.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from vqgan.quantizers import NearestConfig

pytestmark = pytest.mark.slow_threads

State = dict[str, Tensor]
CLOSE = {"rtol": 0.0, "atol": 1e-5}
"""Ten times what fp32 is off by here, but for whole VQGANs: they are compared in float64."""


def images(height: int = 24, width: int = 16) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def with_random_weights(module: nn.Module) -> nn.Module:
    """Every tensor is told apart, norms and biases too; activations stay near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_(noise if "quantize" in name else noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval()


def janus(**changes: Any) -> nn.Module:
    """transformers' port of LlamaGen's VQ model: this network, with attention at the lowest level only."""
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    sizes = {
        "base_channels": 32,
        "channel_multiplier": [1, 1, 2],
        "latent_channels": 12,
        "embed_dim": 10,
        "num_embeddings": 64,
    }
    return JanusVQVAE(JanusVQVAEConfig(**{**sizes, **changes}))


def taming_state(oracle: nn.Module, levels: int = 3) -> State:
    """The oracle's weights by taming's names: there the decoder's levels count from the full resolution down."""
    state: State = {}
    for name, tensor in oracle.state_dict().items():
        if name.startswith("decoder.up."):
            _, _, level, rest = name.split(".", 3)
            name = f"decoder.up.{levels - 1 - int(level)}.{rest}"
        state[name] = tensor
    return state


def small_state(**sizes: Any) -> State:
    """Weights by taming's names, attention at the middle one of three levels."""
    config = CNNVQGANConfig(
        image_size=32,
        base_channels=32,
        channel_multipliers=(1, 1, 2),
        attention_resolutions=(16,),
        latent_channels=12,
        residual_blocks=1,
        quantizer=NearestConfig(codebook_size=64, code_dim=10, l2_normalize=False),
    )
    model = CNNVQGAN(config.model_copy(update=sizes))
    return {name: tensor.clone() for name, tensor in to_taming(with_random_weights(model))[0].items()}


SMALL_YAML: dict[str, Any] = {
    "model": {
        "params": {
            "embed_dim": 10,
            "n_embed": 64,
            "ddconfig": {
                **{"double_z": False, "z_channels": 12, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32},
                **{"ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0},
            },
        }
    }
}


def yaml_with(**changes: Any) -> dict[str, Any]:
    params = SMALL_YAML["model"]["params"]
    return {"model": {"params": {**params, "ddconfig": {**params["ddconfig"], **changes}}}}


def grid_latents(autoencoder: Autoencoder, codes: Tensor, height: int, width: int) -> Tensor:
    return autoencoder.quantizer.embed(codes).transpose(1, 2).reshape(len(codes), -1, height, width)


@torch.no_grad()
def test_encoder_codes_and_decoder_are_those_of_the_janus_port() -> None:
    oracle = with_random_weights(janus())
    state = {**taming_state(oracle), "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    autoencoder = from_taming(state).eval()
    assert autoencoder.config.attention_resolutions == (64,), "the lowest of three levels at 256 pixels"
    codes = autoencoder(images()).quantized.codes
    assert torch.equal(codes.flatten(), oracle.encode(images()).image_tokens)
    assert codes.unique().numel() > 8

    autoencoder.double(), oracle.double()
    latents = oracle.quant_conv(oracle.encode(images().double()).last_hidden_state).flatten(2).transpose(1, 2)
    torch.testing.assert_close(autoencoder.encode(images().double()), latents, **CLOSE)
    quantized = grid_latents(autoencoder, codes, 6, 4).double()
    image_list = autoencoder.decode(quantized.flatten(2).transpose(1, 2), (6, 4)).images
    torch.testing.assert_close(image_list.double(), oracle.decoder(oracle.post_quant_conv(quantized)), **CLOSE)


@torch.no_grad()
def test_the_encoder_with_attention_higher_up_is_that_of_the_chameleon_port() -> None:
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    config = ChameleonVQVAEConfig(
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=1,
        latent_channels=12,
        embed_dim=10,
        num_embeddings=64,
        resolution=32,
        attn_resolutions=[16],
    )
    oracle = ChameleonVQVAE(config).eval()
    state = small_state()
    unused = oracle.load_state_dict(state, strict=False)
    assert not unused.missing_keys
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in unused.unexpected_keys)
    found, expected = from_taming(state, SMALL_YAML).eval()(images()), oracle.encode(images())
    latents = oracle.quant_conv(expected.last_hidden_state)
    torch.testing.assert_close(found.latents, latents.flatten(2).transpose(1, 2), **CLOSE)
    assert torch.equal(found.quantized.codes.flatten(), expected.image_tokens)


class Formulas:
    """taming's decoder and encoder, written from its names: what a checkpoint computes, step by step."""

    def __init__(self, state: State) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride, 0 if stride == 2 else weight.shape[-1] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        grouped = x.reshape(len(x), 32, -1)
        centered = grouped - grouped.mean(-1, keepdim=True)
        x = (centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
        return x * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def residual(self, x: Tensor, name: str) -> Tensor:
        y = self.norm(x, f"{name}.norm1")
        y = self.conv(y * y.sigmoid(), f"{name}.conv1")
        y = self.norm(y, f"{name}.norm2")
        y = self.conv(y * y.sigmoid(), f"{name}.conv2")
        return y + (self.conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, x: Tensor, name: str) -> Tensor:
        y = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(y, f"{name}.{layer}").flatten(2) for layer in "qkv")
        weights = (torch.einsum("bcq,bck->bqk", q, k) / x.shape[1] ** 0.5).softmax(-1)
        return x + self.conv(torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape), f"{name}.proj_out")

    def level(self, x: Tensor, name: str) -> Tensor:
        for index in range(9):
            if f"{name}.block.{index}.conv1.weight" in self.state:
                x = self.residual(x, f"{name}.block.{index}")
            if f"{name}.attn.{index}.q.weight" in self.state:
                x = self.attention(x, f"{name}.attn.{index}")
        return x

    def middle(self, x: Tensor, name: str) -> Tensor:
        return self.residual(self.attention(self.residual(x, f"{name}.block_1"), f"{name}.attn_1"), f"{name}.block_2")

    def end(self, x: Tensor, side: str) -> Tensor:
        x = self.norm(x, f"{side}.norm_out")
        return self.conv(x * x.sigmoid(), f"{side}.conv_out")

    def encode(self, x: Tensor, levels: int = 3) -> Tensor:
        x = self.conv(x, "encoder.conv_in")
        for level in range(levels):
            x = self.level(x, f"encoder.down.{level}")
            if level < levels - 1:
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", stride=2)
        return self.conv(self.end(self.middle(x, "encoder.mid"), "encoder"), "quant_conv")

    def decode(self, x: Tensor, levels: int = 3) -> Tensor:
        x = self.middle(self.conv(self.conv(x, "post_quant_conv"), "decoder.conv_in"), "decoder.mid")
        for level in reversed(range(levels)):
            x = self.level(x, f"decoder.up.{level}")
            if level:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv")
        return self.end(x, "decoder")


@torch.no_grad()
def test_a_gumbel_vqgan_is_what_the_formulas_say() -> None:
    generator = torch.Generator().manual_seed(2)
    state = small_state()
    del state["quantize.embedding.weight"]
    state["quantize.proj.weight"] = torch.randn(64, 10, 1, 1, generator=generator)
    state["quantize.proj.bias"] = torch.randn(64, generator=generator)
    state["quantize.embed.weight"] = torch.randn(64, 10, generator=generator)
    tokenizer = ImageTokenizer(from_taming(state, SMALL_YAML))
    formulas = Formulas(state)
    logits = formulas.conv(formulas.encode(images(32, 32)), "quantize.proj")
    codes = logits.argmax(1)
    assert torch.equal(tokenizer.encode(images(32, 32)), codes.flatten(1))
    assert codes.unique().numel() > 8
    image_list = formulas.decode(state["quantize.embed.weight"][codes].permute(0, 3, 1, 2))
    torch.testing.assert_close(tokenizer.decode(codes.flatten(1)), image_list.clamp(-1, 1), **CLOSE)


@torch.no_grad()
def test_a_vqgan_with_attention_higher_up_is_what_the_formulas_say() -> None:
    state = small_state()
    tokenizer, formulas = ImageTokenizer(from_taming(state, SMALL_YAML)), Formulas(state)
    latents = formulas.encode(images(32, 32)).permute(0, 2, 3, 1)
    codebook = state["quantize.embedding.weight"]
    codes = (latents[:, :, :, None] - codebook).square().sum(-1).argmin(-1)
    assert torch.equal(tokenizer.encode(images(32, 32)), codes.flatten(1))
    image_list = formulas.decode(codebook[codes].permute(0, 3, 1, 2))
    torch.testing.assert_close(tokenizer.decode(codes.flatten(1)), image_list.clamp(-1, 1), **CLOSE)


def test_the_published_f16_has_these_names_and_shapes() -> None:
    with torch.device("meta"):
        oracle = janus(base_channels=128, channel_multiplier=[1, 1, 2, 2, 4], latent_channels=256, embed_dim=256)
        ours = CNNVQGAN(CNNVQGANConfig(quantizer=NearestConfig(codebook_size=64, code_dim=256, l2_normalize=False)))
    state, config = to_taming(ours)
    published = taming_state(oracle, levels=5)
    assert len(published) == 343
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in published.items()}
    assert config["model"]["params"]["ddconfig"] == {
        **{"double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128},
        **{"ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0},
    }, "the ddconfig of imagenet_vqgan.yaml"


@pytest.mark.parametrize(
    ("multipliers", "attention", "latent"),
    [((1, 1, 2, 2, 4), (16,), 8), ((1, 2, 2, 4), (32,), 4), ((1, 2, 4), (), 3), ((1, 1, 2, 2, 4), (16, 64), 16)],
    ids=["f16", "f8", "f4", "two attending levels"],
)
def test_sizes_are_read_from_the_tensors(multipliers: tuple[int, ...], attention: tuple[int, ...], latent: int) -> None:
    config = CNNVQGANConfig(
        base_channels=32,
        channel_multipliers=multipliers,
        residual_blocks=1,
        attention_resolutions=attention,
        latent_channels=latent,
        quantizer=NearestConfig(codebook_size=16, code_dim=latent, l2_normalize=False),
    )
    state, yaml = to_taming(CNNVQGAN(config))
    for told in (None, yaml):
        found = from_taming(state, told).config
        assert set(found.attention_resolutions) == set(attention)
        assert found == config.model_copy(update={"attention_resolutions": found.attention_resolutions})


def test_out_and_back_changes_no_bit() -> None:
    state = small_state()
    again, config = to_taming(from_taming(state, SMALL_YAML))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    params, expected = config["model"]["params"], SMALL_YAML["model"]["params"]
    assert {name: params[name] for name in expected} == expected


def test_half_precision_becomes_fp32() -> None:
    halves = {name: tensor.half() for name, tensor in small_state().items()}
    found = from_taming(halves, SMALL_YAML).state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["encoder.conv_in.weight"], halves["encoder.conv_in.weight"].float())


def test_tensors_that_do_not_fit_are_named_as_in_the_file() -> None:
    state = small_state()
    del state["decoder.up.2.block.1.norm1.bias"]
    del state["post_quant_conv.weight"]
    state["quantize.extra"] = torch.zeros(1)
    state["decoder.mid.attn_1.q.bias"] = torch.zeros(7)
    with pytest.raises(ForeignCheckpointError) as error:
        from_taming(state)
    message = str(error.value)
    assert "2 missing (post_quant_conv.weight, decoder.up.2.block.1.norm1.bias)" in message
    assert "1 not known (quantize.extra)" in message
    assert "1 of another shape (decoder.mid.attn_1.q.bias (7,), must be (64,))" in message


def test_other_files_are_refused() -> None:
    with pytest.raises(ForeignCheckpointError, match=r"has a tensor quantize.embedding.weight .* it is missing among"):
        from_taming({"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)})
    without_levels = {name: tensor for name, tensor in small_state().items() if ".down." not in name}
    with pytest.raises(ForeignCheckpointError, match="network of 0 levels"):
        from_taming(without_levels)
    with pytest.raises(ForeignCheckpointError, match="base_channels 16 do not divide into groups 32"):
        from_taming({**small_state(), "encoder.conv_in.weight": torch.zeros(16, 3, 3, 3)})
    with pytest.raises(ForeignCheckpointError, match="channel_multipliers: Input should be greater than 0"):
        from_taming({**small_state(), "encoder.conv_in.weight": torch.zeros(128, 3, 3, 3)})
    uneven = {"encoder.down.2.block.0.conv1.weight": torch.zeros(80, 32, 3, 3)}
    with pytest.raises(ForeignCheckpointError, match=r"down.2.block.0.conv1.weight \(80, 32, 3, 3\), must be \(64, "):
        from_taming({**small_state(), **uneven})
    with pytest.raises(ForeignCheckpointError, match=r"encoder.conv_in.weight of 4 dimensions, it is of shape \(0, "):
        from_taming({**small_state(), "encoder.conv_in.weight": torch.zeros(0, 3, 3, 3)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch_mult": [1, 2, 2]}, r"says ch_mult \[1, 2, 2\], the tensors are those of ch_mult \[1, 1, 2\]"),
        ({"attn_resolutions": [8]}, r"says attn_resolutions \[8\], the tensors are those of attn_resolutions \[16\]"),
        ({"resolution": 64}, r"says attn_resolutions \[16\], the tensors are those of attn_resolutions \[32\]"),
        ({"double_z": True}, "says double_z True, the tensors are those of double_z False"),
        ({"resolution": "high"}, r"no config of a taming-transformers VQGAN \(ValueError"),
        ({"resolution": 30}, "for 30 pixels .* not a multiple of the 4 pixels"),
    ],
)
def test_a_config_that_disagrees_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ForeignCheckpointError, match=message):
        from_taming(small_state(), yaml_with(**changes))


def test_attention_resolutions_that_no_level_has_do_not_matter() -> None:
    assert from_taming(small_state(), yaml_with(attn_resolutions=[16, 4])).config.attention_resolutions == (16,)


def test_what_taming_cannot_express_is_not_exported() -> None:
    small = CNNVQGANConfig(
        base_channels=8,
        groups=8,
        output="logit_laplace",
        attention_resolutions=(),
        quantizer=NearestConfig(l2_normalize=True),
    )
    with pytest.raises(
        ForeignCheckpointError, match=r"l2_normalize is on .*; model.groups is 8.*; model.output is logit"
    ):
        to_taming(CNNVQGAN(small))
    with torch.device("meta"):
        other = ViTVQGAN(ViTVQGANConfig())
    with pytest.raises(ForeignCheckpointError, match="convolutional VQGANs only, received a ViTVQGAN"):
        to_taming(other)
