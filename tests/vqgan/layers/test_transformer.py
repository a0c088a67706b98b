"""The ViT's blocks against their formula, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.layers.positions import positions_on
from vqgan.layers.transformer import SelfAttention, Transformer, TransformerConfig

pytestmark = pytest.mark.threads

CONFIG = TransformerConfig(depth=2, width=12, heads=3, mlp_width=20)


def states(seed: int = 0) -> Tensor:
    return torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(seed))


def attention(layer: SelfAttention, x: Tensor) -> Tensor:
    """Head by head: of the projection's columns come all queries, then all keys, then all values."""
    q, k, v = layer.qkv(x).split(12, dim=-1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1)
        heads.append(weights @ v[..., part])
    return layer.out(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("grid", [None, (3, 2)])
def test_pre_norm_blocks_after_positions_and_a_norm_at_the_end(grid: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG, (2, 3)).eval()
    x = states() + positions_on(model.positions, (2, 3), grid or (2, 3))
    for block in model.blocks:
        x = x + attention(block.attention, F.layer_norm(x, (12,)))
        inner = F.gelu(block.mlp[0](F.layer_norm(x, (12,))))
        x = x + block.mlp[2](inner)
    torch.testing.assert_close(model(states(), grid), F.layer_norm(x, (12,)), rtol=1e-4, atol=1e-5)


def test_positions_begin_small() -> None:
    torch.manual_seed(0)
    assert Transformer(CONFIG, (30, 30)).positions.std().item() == pytest.approx(0.02, rel=0.05)


def test_dropout_is_on_both_branches_in_training_alone() -> None:
    torch.manual_seed(0)
    block = Transformer(CONFIG.model_copy(update={"dropout": 0.5}), (2, 3)).blocks[0]
    dropped = []
    block.dropout.register_forward_hook(lambda _, __, result: dropped.append((result == 0).any().item()))
    block(states())
    block.eval()(states())
    assert dropped == [True, True, False, False]
