"""The fusion block: its size, identity at the start, its formula by brute force, both kernels, padding, gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from parti.fused.fusion import Fusion, Normalization, TextToImageFusion, exchange, softmax_by_kernel, softmax_by_steps

pytestmark = pytest.mark.slow_threads

C, D, HEADS = 24, 32, 4  # heads of 8 channels: three on the image side, four on the text side
MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def norms(module: nn.Module) -> int:
    return sum(parameters(part) for part in module.modules() if isinstance(part, nn.GroupNorm | nn.LayerNorm))


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, C, 3, 2, generator=generator), torch.randn(2, 5, D, generator=generator)


def fusion(normalization: Normalization = "softmax") -> Fusion:
    """With opinions: the last layers are random."""
    torch.manual_seed(0)
    block = Fusion(C, D, HEADS, normalization)
    for layer in (block.image_last, block.text_last):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias, std=0.3)
    return block


@pytest.mark.parametrize(
    ("channels", "both_ways", "one_way"),
    [(64, 5.94, 1.80), (128, 6.07, 1.90), (256, 6.56, 2.30), (512, 8.53, 3.87)],
)
def test_parameters_beside_a_text_of_768(channels: int, both_ways: float, one_way: float) -> None:
    with torch.device("meta"):
        blocks = Fusion(channels, 768, 12), TextToImageFusion(channels, 768, 12)
    for block, millions in zip(blocks, (both_ways, one_way), strict=True):
        assert round((parameters(block) - norms(block)) / 1e6, 2) == millions
        assert norms(block) == 2 * channels + 2 * 768


def test_the_generated_widths_at_256_channels() -> None:
    with torch.device("meta"):
        block = Fusion(256, 768, 12)
    assert (block.image_heads, block.head_width) == (4, 64)
    widths = {name: (layer.weight.shape[1], layer.weight.shape[0]) for name, layer in block.named_children()
              if isinstance(layer, nn.Linear | nn.Conv2d)}  # fmt: skip
    assert widths == {
        "image_key": (256, 256),
        "image_value": (256, 512),
        "text_key": (768, 768),
        "text_value": (768, 1536),
        "image_read": (512, 512),
        "text_read": (1536, 1536),
        "image_last": (768, 256),
        "text_last": (2304, 768),
    }


def test_a_fresh_fusion_is_the_identity_and_learns() -> None:
    torch.manual_seed(0)
    block, alone = Fusion(C, D, HEADS), TextToImageFusion(C, D, HEADS)
    image, text = inputs()
    fused_image, fused_text = block(image, text, MASK)
    assert torch.equal(fused_image, image)
    assert torch.equal(fused_text, text)
    assert torch.equal(alone(image, text, MASK), image)
    (fused_image.sum() + fused_text.sum()).backward()
    for layer in (block.image_last, block.text_last):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("normalization", ["softmax", "count"])
def test_the_formula_by_brute_force(normalization: Normalization) -> None:
    """One affinity for each position, image head, token and text head, written out."""
    block, (image, text) = fusion(normalization), inputs()
    got_image, got_text = block(image, text, MASK)
    n, m, h = block.image_heads, HEADS, D // HEADS
    for row in range(2):
        normed_image = block.image_norm(image[row : row + 1])
        normed_text = block.text_norm(text[row])
        image_key, image_value = block.image_key(normed_image)[0], block.image_value(normed_image)[0]
        text_key, text_value = block.text_key(normed_text), block.text_value(normed_text)
        image_vectors = [(y, x, head) for y in range(3) for x in range(2) for head in range(n)]
        text_vectors = [(t, head) for t in range(5) for head in range(m)]
        affinity = torch.zeros(len(image_vectors), len(text_vectors))
        for i, (y, x, a) in enumerate(image_vectors):
            for j, (t, b) in enumerate(text_vectors):
                keys = image_key[a * h : (a + 1) * h, y, x], text_key[t, b * h : (b + 1) * h]
                affinity[i, j] = keys[0] @ keys[1] / math.sqrt(h)
        real = torch.tensor([bool(MASK[row, t]) for t, _ in text_vectors])
        if normalization == "softmax":
            to_image, to_text = affinity[:, real].softmax(1), affinity.softmax(0)
        else:
            to_image, to_text = affinity[:, real] / real.sum(), affinity / len(image_vectors)
        values = torch.stack([text_value[t, b * 2 * h : (b + 1) * 2 * h] for t, b in text_vectors])
        read_image = torch.zeros(2 * n * h, 3, 2)
        for (y, x, a), value in zip(image_vectors, to_image @ values[real], strict=True):
            read_image[a * 2 * h : (a + 1) * 2 * h, y, x] = value
        values = torch.stack([image_value[a * 2 * h : (a + 1) * 2 * h, y, x] for y, x, a in image_vectors])
        read_text = torch.zeros(5, 2 * D)
        for (t, b), value in zip(text_vectors, to_text.T @ values, strict=True):
            read_text[t, b * 2 * h : (b + 1) * 2 * h] = value
        both = torch.cat([image[row], block.image_read(read_image[None])[0]])
        expected_image = image[row] + block.image_last(both[None])[0]
        change = block.text_last(torch.cat([text[row], block.text_read(read_text)], dim=1))
        expected_text = text[row] + change * MASK[row][:, None]
        torch.testing.assert_close(got_image[row], expected_image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got_text[row], expected_text, rtol=1e-4, atol=1e-5)


def test_one_way_reads_as_both_ways_do() -> None:
    block, alone = fusion(), TextToImageFusion(C, D, HEADS)
    shared = {name: weight for name, weight in block.state_dict().items() if name in alone.state_dict()}
    alone.load_state_dict(shared)
    image, text = inputs()
    torch.testing.assert_close(alone(image, text, MASK), block(image, text, MASK)[0])


def test_the_stored_affinity_and_the_fused_kernel_agree() -> None:
    generator = torch.Generator().manual_seed(1)
    image_keys, text_keys = torch.randn(2, 7, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    image_values, text_values = torch.randn(2, 7, 16, generator=generator), torch.randn(2, 5, 16, generator=generator)
    to_image, to_text = exchange(image_keys, text_keys, image_values, text_values, MASK, "softmax")
    for way in (softmax_by_kernel, softmax_by_steps):
        torch.testing.assert_close(to_image, way(image_keys, text_keys, text_values, MASK))
        torch.testing.assert_close(to_text, way(text_keys, image_keys, image_values, None))


@pytest.mark.parametrize("normalization", ["softmax", "count"])
def test_padding_is_never_attended_to_and_stays(normalization: Normalization) -> None:
    block, (image, text) = fusion(normalization), inputs()
    other = torch.where(MASK[..., None], text, 100 * torch.randn(text.shape))
    fused_image, fused_text = block(image, text, MASK)
    other_image, other_text = block(image, other, MASK)
    torch.testing.assert_close(other_image, fused_image)
    torch.testing.assert_close(other_text[MASK], fused_text[MASK])
    assert torch.equal(other_text[~MASK], other[~MASK])
    # And a text without padding does not know that there is a mask.
    alone_image, alone_text = block(image[:1], text[:1], MASK[:1])
    torch.testing.assert_close((alone_image[0], alone_text[0]), (fused_image[0], fused_text[0]))
    short_image, short_text = block(image[1:], text[1:, :3], MASK[1:, :3])
    torch.testing.assert_close((short_image[0], short_text[0]), (fused_image[1], fused_text[1, :3]))


@pytest.mark.parametrize("normalization", ["softmax", "count"])
def test_bf16_keeps_the_affinity_in_fp32(normalization: Normalization) -> None:
    block, (image, text) = fusion(normalization), inputs()
    exact = block(image, text, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = block(image, text, MASK)
    for one, other in zip(exact, rounded, strict=True):
        torch.testing.assert_close(other.float(), one, rtol=0.05, atol=0.1)


def test_the_literal_reading_does_not_grow_with_the_map() -> None:
    block = fusion("count")
    text = inputs()[1]
    small = torch.randn(2, C, 1, 1).expand(2, C, 4, 4)
    torch.testing.assert_close(
        block(small, text, MASK)[1], block(small.repeat(1, 1, 2, 2), text, MASK)[1], rtol=1e-4, atol=1e-5
    )


def test_heads_must_divide_the_text() -> None:
    with pytest.raises(ValueError, match="text width 32 does not divide into 5 heads"):
        Fusion(C, D, 5)
