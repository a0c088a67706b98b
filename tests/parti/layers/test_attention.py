"""Attention of the blocks against formulas: all positions at once, one cached step, and both sides of a text."""

import pytest
import torch
from torch import Tensor

from parti.layers.attention import CrossAttention, SelfAttention
from parti.layers.decode_attention import decode_attention, decode_scores
from parti.layers.joint_attention import JointAttention
from parti.layers.kv_cache import CacheLayout, KeyValueCache
from parti.layers.lookup import lookup
from parti.layers.norms import EPS
from parti.layers.rotary import RotaryPositions
from parti.layers.shared_text import SharedText, by_text
from parti.layers.sparse_attention import SparsePattern, dense_mask

pytestmark = pytest.mark.threads

CPU = torch.device("cpu")
GRID = (3, 4)
WIDTH, HEADS = 24, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v over what `mask` shows, of (B, H, Q, d)."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bhkd->bhqd", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)


def by_head(x: Tensor) -> Tensor:
    return torch.stack(x.chunk(HEADS, dim=-1), dim=1)


def normed(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def randomize(module: torch.nn.Module) -> None:
    """Gains that are not 1, and biases that are not 0."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.3)


def expected_self(layer: SelfAttention, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (by_head(part) for part in layer.qkv(x).chunk(3, dim=-1))
    if layer.query_norm is not None and layer.key_norm is not None:
        q, k = normed(q, layer.query_norm.gain), normed(k, layer.key_norm.gain)
    if layer.rotary is not None:
        q, k = layer.rotary.rotate(q), layer.rotary.rotate(k)
    return layer.out(torch.cat(attended(q, k, v, mask).unbind(1), dim=-1))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_self_attention_is_its_formula_in_all_three_ways(qk_norm: bool, rotary: bool) -> None:
    turned = RotaryPositions(GRID, WIDTH // HEADS) if rotary else None
    layer = SelfAttention(WIDTH, HEADS, qk_norm, turned)
    randomize(layer)
    x, pattern = random(2, 12, WIDTH), SparsePattern("convolution", GRID, 3)
    mask = dense_mask(pattern, CPU)
    whole = expected_self(layer, x, mask)
    torch.testing.assert_close(layer(x, mask[None, None]), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.causal_forward(x, pattern), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.causal_forward(x[:, :7], pattern), whole[:, :7], rtol=1e-4, atol=1e-5)
    caches = [KeyValueCache(CacheLayout("convolution", GRID, 3, CPU), 2, HEADS, random(8)) for _ in range(2)]
    for position in range(12):
        for cache, at in zip(caches, (position, torch.tensor(position)), strict=True):
            step = layer.step(x[:, position], cache, at)
            torch.testing.assert_close(step, whole[:, position], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_cross_attention_is_its_formula_at_once_and_step_by_step(qk_norm: bool) -> None:
    layer = CrossAttention(WIDTH, HEADS, qk_norm)
    randomize(layer)
    x, memory = random(2, 5, WIDTH), random(2, 6, WIDTH, seed=1)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    q, (k, v) = by_head(layer.query(x)), (by_head(part) for part in layer.key_value(memory).chunk(2, dim=-1))
    if layer.query_norm is not None and layer.key_norm is not None:
        q, k = normed(q, layer.query_norm.gain), normed(k, layer.key_norm.gain)
    expected = layer.out(torch.cat(attended(q, k, v, mask[:, None, None]).unbind(1), dim=-1))
    keys, values = layer.project_memory(memory)
    torch.testing.assert_close(layer(x, keys, values, mask), expected, rtol=1e-4, atol=1e-5)
    bias = torch.zeros(2, 1, 1, 6).masked_fill(~mask[:, None, None], float("-inf"))
    texts = [SharedText(keys[row : row + 1], values[row : row + 1], bias[row : row + 1], 1) for row in range(2)]
    for position in range(5):
        step = layer.step(x[:, position], texts)
        torch.testing.assert_close(step, expected[:, position], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
def test_joint_attention_of_text_and_then_image_is_that_of_one_row(rotary: bool) -> None:
    turned = RotaryPositions(GRID, WIDTH // HEADS, text_length=5) if rotary else None
    layer = JointAttention(WIDTH, HEADS, qk_norm=True, rotary=turned)
    randomize(layer)
    pattern = SparsePattern("row", GRID, 3, text_length=5)
    # Three images: two of one text, and one of another.
    texts, of_row = random(2, 5, WIDTH, seed=1), [0, 0, 1]
    image = random(3, 12, WIDTH, seed=2)
    whole = expected_self(layer, torch.cat([texts[of_row], image], dim=1), dense_mask(pattern, CPU))
    found, keys, values = layer.prefill(texts)
    torch.testing.assert_close(found[of_row], whole[:, :5], rtol=1e-4, atol=1e-5)
    shared = [SharedText(keys[:1], values[:1], None, 2), SharedText(keys[1:], values[1:], None, 1)]
    cache = KeyValueCache(CacheLayout("row", GRID, 3, CPU), 3, HEADS, random(8))
    for position in range(12):
        step = layer.decode_step(image[:, position], shared, cache, position)
        torch.testing.assert_close(step, whole[:, 5 + position], rtol=1e-4, atol=1e-5)


def test_a_joint_step_in_bf16_gives_bf16_near_what_fp32_gives() -> None:
    layer = JointAttention(WIDTH, HEADS)
    randomize(layer)
    texts, image = random(1, 5, WIDTH, seed=1), random(2, WIDTH)
    steps = []
    for dtype in (torch.float32, torch.bfloat16):
        layer = layer.to(dtype)
        _, keys, values = layer.prefill(texts.to(dtype))
        cache = KeyValueCache(CacheLayout("row", GRID, 3, CPU), 2, HEADS, keys)
        steps.append(layer.decode_step(image.to(dtype), [SharedText(keys, values, None, 2)], cache, 0))
    assert steps[1].dtype == torch.bfloat16
    assert (steps[1].float() - steps[0]).norm() < 0.02 * steps[0].norm()


@pytest.mark.parametrize("masked", [False, True])
def test_one_query_reads_as_many_do(masked: bool) -> None:
    q, k, v = random(2, HEADS, 8), random(2, HEADS, 5, 8, seed=1), random(2, HEADS, 5, 8, seed=2)
    mask = torch.tensor([True, False, True, True, False]) if masked else torch.ones(5, dtype=torch.bool)
    bias = torch.zeros(5).masked_fill(~mask, float("-inf")) if masked else None
    expected = attended(q[:, :, None], k, v, mask)[:, :, 0]
    torch.testing.assert_close(decode_attention(q, k, v, bias), expected)
    scores = torch.einsum("bhd,bhkd->bhk", q, k) / 8**0.5
    torch.testing.assert_close(decode_scores(q, k, bias), scores if bias is None else scores + bias)


def test_images_of_a_text_read_it_as_each_alone_would() -> None:
    """Two texts of three images each."""
    keys, values, queries = random(2, HEADS, 4, 8), random(2, HEADS, 4, 8, seed=1), random(6, HEADS, 8, seed=2)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    bias = torch.zeros(2, 1, 1, 4).masked_fill(~mask[:, None, None], float("-inf"))
    of_row = [0, 0, 0, 1, 1, 1]
    text = SharedText(keys, values, bias, 3)
    assert text.rows == 6
    expected = attended(queries[:, :, None], keys[of_row], values[of_row], mask[of_row][:, None, None])[:, :, 0]
    torch.testing.assert_close(text.read(queries), expected)
    scores = torch.einsum("rhd,rhtd->rht", queries, keys[of_row]) / 8**0.5
    torch.testing.assert_close(text.scores(queries), scores)
    weights = random(6, HEADS, 4, seed=3)
    torch.testing.assert_close(text.mix(weights), torch.einsum("rht,rhtd->rhd", weights, values[of_row]))
    grouped = text.group(queries)
    assert torch.equal(grouped[1, 2, 0], queries[3, 2])
    assert grouped.shape == (2, HEADS, 3, 8)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("length", [1, 2])
def test_a_text_of_one_position_is_read_whole_and_one_of_two_by_the_query(heads: int, length: int) -> None:
    keys, values, of_row = random(2, heads, length, 8), random(2, heads, length, 8, seed=1), [0, 0, 1, 1]
    queries, shown = random(4, heads, 8, seed=2), torch.ones(length, dtype=torch.bool)
    found = SharedText(keys, values, None, 2).read(queries)
    torch.testing.assert_close(found, attended(queries[:, :, None], keys[of_row], values[of_row], shown)[:, :, 0])
    assert torch.equal(found, values[of_row, :, 0]) == (length == 1)


def test_each_side_reads_its_own_texts_one_after_the_other() -> None:
    sides = [SharedText(random(1, HEADS, 4, 8, seed=seed), random(1, HEADS, 4, 8, seed=9), None, 2) for seed in (1, 2)]
    queries = random(4, HEADS, 8)
    found = by_text(sides, SharedText.read, queries)
    assert torch.equal(found, torch.cat([sides[0].read(queries[:2]), sides[1].read(queries[2:])]))
    assert torch.equal(by_text(sides[:1], SharedText.read, queries[:2]), sides[0].read(queries[:2]))


@pytest.mark.parametrize("position", [2, torch.tensor(2), torch.tensor([2])])
def test_a_row_is_looked_up_by_number_and_by_tensor(position: int | Tensor) -> None:
    table = random(5, 3)
    assert torch.equal(lookup(table, position), table[2:3])
