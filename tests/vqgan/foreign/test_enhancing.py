"""enhancing-transformers: the imported model computes what the project's formulas say, step by step."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vqgan.foreign.enhancing import from_enhancing
from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.image_tokenizer import ImageTokenizer

pytestmark = pytest.mark.slow_threads

PATCH, SIDE, CODES, CODE_DIM = 4, 3, 24, 5
STACKS = {
    "encoder": {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 20},
    "decoder": {"dim": 12, "depth": 1, "heads": 1, "mlp_dim": 28},
}
PARAMS = {
    "image_key": "image",
    "image_size": PATCH * SIDE,
    "patch_size": PATCH,
    **STACKS,
    "quantizer": {"embed_dim": CODE_DIM, "n_embed": CODES},
}
YAML = {"model": {"target": "enhancing.modules.stage1.vitvqgan.ViTVQ", "params": PARAMS}}


def foreign_state(seed: int = 0) -> dict[str, Tensor]:
    """A state dict with the project's names; random numbers everywhere, the loss's networks included."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def add(name: str, *shape: int, scale: float = 0.3) -> None:
        state[name] = torch.randn(shape, generator=generator) * scale

    def add_linear(name: str, inputs: int, outputs: int, bias: bool = True, scale: float = 0.3) -> None:
        add(f"{name}.weight", outputs, inputs, scale=scale)
        if bias:
            add(f"{name}.bias", outputs, scale=0.1)

    for side, size in STACKS.items():
        dim = size["dim"]
        add(f"{side}.{side[:2]}_pos_embedding", 1, SIDE * SIDE, dim, scale=2)
        for index in range(size["depth"]):
            layer = f"{side}.transformer.layers.{index}"
            for half in (0, 1):
                add(f"{layer}.{half}.norm.weight", dim, scale=1)
                add(f"{layer}.{half}.norm.bias", dim)
            add_linear(f"{layer}.0.fn.to_qkv", dim, 3 * 64 * size["heads"], bias=False)
            add_linear(f"{layer}.0.fn.to_out", 64 * size["heads"], dim, scale=0.05)
            add_linear(f"{layer}.1.fn.net.0", dim, size["mlp_dim"])
            add_linear(f"{layer}.1.fn.net.2", size["mlp_dim"], dim)
        add(f"{side}.transformer.norm.weight", dim, scale=1)
        add(f"{side}.transformer.norm.bias", dim)
    add("encoder.to_patch_embedding.0.weight", 16, 3, PATCH, PATCH)
    add("encoder.to_patch_embedding.0.bias", 16)
    add("decoder.to_pixel.1.weight", 12, 3, PATCH, PATCH)
    add("decoder.to_pixel.1.bias", 3)
    add_linear("pre_quant", 16, CODE_DIM)
    add_linear("post_quant", CODE_DIM, 12)
    add("quantizer.embedding.weight", CODES, CODE_DIM, scale=3)
    add("loss.perceptual_loss.lin0.model.1.weight", 1, 64, 1, 1)
    return state


def stack(state: dict[str, Tensor], side: str, x: Tensor) -> Tensor:
    """Positions, blocks and the last norm, by their formulas; one head at a time."""

    def norm(x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        deviation = (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centered / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    heads, depth = STACKS[side]["heads"], STACKS[side]["depth"]
    x = x + state[f"{side}.{side[:2]}_pos_embedding"]
    for index in range(depth):
        layer = f"{side}.transformer.layers.{index}"
        qkv = norm(x, f"{layer}.0.norm") @ state[f"{layer}.0.fn.to_qkv.weight"].T
        mixed = []
        for head in range(heads):
            q, k, v = (qkv[..., (part * heads + head) * 64 :][..., :64] for part in range(3))
            mixed.append((q @ k.mT / math.sqrt(64)).softmax(-1) @ v)
        x = x + linear(torch.cat(mixed, -1), f"{layer}.0.fn.to_out")
        hidden = torch.tanh(linear(norm(x, f"{layer}.1.norm"), f"{layer}.1.fn.net.0"))
        x = x + linear(hidden, f"{layer}.1.fn.net.2")
    return norm(x, f"{side}.transformer.norm")


def encode(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Latents of images in [0, 1]: each patch times the kernel, the stack, `pre_quant`."""
    weight, bias = state["encoder.to_patch_embedding.0.weight"], state["encoder.to_patch_embedding.0.bias"]
    patches = [
        torch.einsum("bcij,dcij->bd", images[:, :, r * PATCH :, c * PATCH :][:, :, :PATCH, :PATCH], weight) + bias
        for r in range(SIDE)
        for c in range(SIDE)
    ]
    return stack(state, "encoder", torch.stack(patches, 1)) @ state["pre_quant.weight"].T + state["pre_quant.bias"]


def decode(state: dict[str, Tensor], codes: Tensor) -> Tensor:
    """Images in [0, 1]: normalized codes, `post_quant`, the stack, each token times the kernel."""
    chosen = state["quantizer.embedding.weight"][codes]
    chosen = chosen / chosen.square().sum(-1, keepdim=True).sqrt()
    x = stack(state, "decoder", chosen @ state["post_quant.weight"].T + state["post_quant.bias"])
    images = torch.zeros(len(codes), 3, PATCH * SIDE, PATCH * SIDE)
    for token in range(SIDE * SIDE):
        r, c = divmod(token, SIDE)
        patch = torch.einsum("bd,dcij->bcij", x[:, token], state["decoder.to_pixel.1.weight"])
        images[:, :, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH] = patch
    return images + state["decoder.to_pixel.1.bias"][:, None, None]


@pytest.mark.parametrize("config", [None, YAML])
def test_encoder_codes_and_decoder_are_the_projects(config: dict[str, Any] | None) -> None:
    state = foreign_state()
    model = from_enhancing(state, config).eval()
    assert model.image_size == PATCH * SIDE
    assert model.grid == (SIDE, SIDE)
    images = torch.rand(3, 3, PATCH * SIDE, PATCH * SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latents = encode(state, images)
        torch.testing.assert_close(model.encode(2 * images - 1), latents, atol=1e-5, rtol=1e-5)

        cosine = F.normalize(latents, dim=-1) @ F.normalize(state["quantizer.embedding.weight"], dim=-1).T
        codes = cosine.argmax(-1)
        tokenizer = ImageTokenizer(model)
        assert torch.equal(tokenizer.encode(2 * images - 1), codes)
        assert codes.unique().numel() > 3, "or else the comparison would say little"

        image_list = model.decode(tokenizer.embed(codes)).images
        torch.testing.assert_close((image_list + 1) / 2, decode(state, codes), atol=1e-5, rtol=1e-5)
        assert torch.equal(tokenizer.decode(codes), image_list.clamp(-1, 1))


def test_codes_without_normalization() -> None:
    state = foreign_state()
    params = PARAMS | {"quantizer": {"embed_dim": CODE_DIM, "n_embed": CODES, "use_norm": False}}
    model = from_enhancing(state, {"model": {"params": params}})
    latents = torch.randn(2, SIDE * SIDE, CODE_DIM, generator=torch.Generator().manual_seed(2)) * 3
    codes = model.quantizer.encode(latents)
    assert torch.equal(codes, torch.cdist(latents, state["quantizer.embedding.weight"]).argmin(-1))
    assert torch.equal(model.quantizer.embed(codes), state["quantizer.embedding.weight"][codes])


def test_every_tensor_is_taken_over_bit_for_bit() -> None:
    state = foreign_state()
    own = list(from_enhancing(state).state_dict().values())
    used = [tensor for name, tensor in state.items() if not name.startswith("loss.")]
    assert len(own) == len(used)
    for tensor in used:
        flat = tensor.flatten()
        assert any(flat.numel() == ours.numel() and torch.equal(flat, ours.flatten()) for ours in own)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pre_quant.bias", None, "1 missing (pre_quant.bias)"),
        ("decoder.de_pos_embedding", None, "decoder.de_pos_embedding of 3 dimensions, it is missing"),
        ("encoder.to_patch_embedding.0.weight", None, "0.weight of 4 dimensions, it is missing among the file's"),
        ("quantizer.embedding.weight", torch.zeros(3), "of 2 dimensions, it is of shape (3,)"),
        ("encoder.en_pos_embedding", torch.zeros(1, 8, 16), "has 8 places, which is no square"),
        ("encoder.transformer.layers.0.0.fn.to_qkv.weight", torch.zeros(100, 16), "(100, 16): not three times heads"),
        ("decoder.to_pixel.1.weight", torch.zeros(12, 3, 5, 5), "decoder.to_pixel.1.weight (12, 3, 5, 5), must be"),
        ("decoder.extra", torch.zeros(1), "1 not known (decoder.extra)"),
        ("encoder.transformer.layers.0.1.fn.net.2.weight", torch.zeros(16, 21), "layers.0.1.fn.net.2.weight (16, 21)"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(name: str, change: Tensor | None, message: str) -> None:
    state = foreign_state()
    if change is None:
        del state[name]
    else:
        state[name] = change
    with pytest.raises(ForeignCheckpointError, match=re.escape(message)) as error:
        from_enhancing(state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("", "image_size", 256, "the config says image_size 256, the tensors are those of image_size 12"),
        ("encoder", "heads", 4, "the config says encoder.heads 4, the tensors are those of encoder.heads 2"),
        ("quantizer", "n_embed", 8, "the config says quantizer.n_embed 8"),
        ("quantizer", "use_residual", True, "the config says quantizer.use_residual True"),
    ],
)
def test_a_yaml_that_disagrees(section: str, key: str, value: Any, message: str) -> None:
    params: dict[str, Any] = dict(PARAMS)
    if section:
        params[section] = params[section] | {key: value}
    else:
        params[key] = value
    with pytest.raises(ForeignCheckpointError, match=re.escape(message)):
        from_enhancing(foreign_state(), {"model": {"params": params}})


def test_a_yaml_of_something_else() -> None:
    with pytest.raises(ForeignCheckpointError, match="no config of an enhancing-transformers"):
        from_enhancing(foreign_state(), {"model": {"params": {"ddconfig": {}}}})
