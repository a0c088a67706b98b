"""The trunk: the drawing's table of shapes and its size, smaller trunks, padding, the identity start, gradients."""

import pytest
import torch
from torch import nn

from parti.fused.fusion import group_norm
from parti.fused.rows import TrunkConfig
from parti.fused.text_side import TextSpace
from parti.fused.trunk import Trunk
from tests.parti.fused.tiny_trunk import TEXT, TOKENS, TRUNK, random_images, texts, with_opinions
from vqgan.config.schema import ConfigError, validate

pytestmark = pytest.mark.slow_threads

GENERATED = {
    1: (128, 64, False),
    2: (64, 128, False),
    3: (32, 256, True),
    4: (16, 512, True),
    5: (8, 512, True),
    6: (4, 512, True),
    7: (2, 512, True),
    8: (4, 512, True),
    9: (8, 512, True),
    10: (16, 512, True),
    11: (32, 256, True),
    12: (64, 128, False),
    13: (128, 64, False),
    14: (256, 3, False),
}
"""The drawing: side and channels of the image beside 30 x 768, and whether "fusion" stands between them."""


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def trunk(config: TrunkConfig = TRUNK) -> Trunk:
    torch.manual_seed(0)
    return Trunk(config, TOKENS).eval()


@pytest.fixture(scope="module")
def generated() -> Trunk:
    with torch.device("meta"):
        return Trunk(TrunkConfig(), TextSpace(30522, 30, 0, 103))


def test_the_table_of_shapes_row_by_row(generated: Trunk) -> None:
    model = generated
    with torch.device("meta"):
        states = list(model.run_rows(torch.zeros(2, 3, 256, 256), torch.zeros(2, 30, dtype=torch.int64)))
    assert [state.row for state in states] == list(GENERATED)
    for state in states:
        side, channels, fused = GENERATED[state.row]
        assert state.image.shape == (2, channels, side, side)
        assert state.text.shape == (2, 30, 768)
        assert (str(state.row) in model.parts.fusions) == fused
        step = model.parts.image[str(state.row)][0]
        assert type(step) is (nn.Conv2d if state.row <= 7 else nn.ConvTranspose2d)


def test_parameters_of_the_generated_trunk(generated: Trunk) -> None:
    """Without the norms beside the convolutions and in the fusions, which the drawing does not have."""
    parts = generated.parts
    beside = [norm for norm in parts.image.modules() if isinstance(norm, nn.GroupNorm)]
    inside = [norm for norm in parts.fusions.modules() if isinstance(norm, nn.GroupNorm | nn.LayerNorm)]
    convolutions = parameters(parts.image) - sum(map(parameters, beside))
    fusions = parameters(parts.fusions) - sum(map(parameters, inside))
    counts = convolutions, parameters(parts.text), fusions, parameters(parts.embeddings)
    assert counts == (17_260_291, 99_230_208, 72_811_008, 23_467_008)
    assert sum(counts) == 212_768_515
    assert parameters(generated) == 212_799_491


@pytest.mark.parametrize(
    ("deepest", "side", "rows"),
    [
        (3, 16, (1, 2, 3, 12, 13, 14)),
        (4, 64, (1, 2, 3, 4, 11, 12, 13, 14)),
        (5, 64, (1, 2, 3, 4, 5, 10, 11, 12, 13, 14)),
    ],
)
def test_smaller_trunks_leave_out_rows_in_the_middle(deepest: int, side: int, rows: tuple[int, ...]) -> None:
    channels = tuple(8 * (row + 1) for row in range(deepest))
    config = TrunkConfig(image_size=side, deepest_row=deepest, channels=channels, text=TEXT)
    model = trunk(config)
    states = list(model.run_rows(random_images(2, side), texts([6, 2])))
    assert tuple(state.row for state in states) == rows == config.rows
    for state in states:
        level = min(state.row, 14 - state.row)
        assert state.image.shape == (2, channels[level - 1] if level else 3, side >> level, side >> level)
        assert state.text.shape == (2, 6, 32)
    assert set(model.parts.fusions) == {str(row) for row in rows if 3 <= row <= 11}
    image, states_of_text = model(random_images(2, side), texts([6, 2]))
    assert torch.equal(image, states[-1].image)
    assert torch.equal(states_of_text, states[-1].text)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="image_size 48 cannot be halved 7 times; use a multiple of 128"):
        validate(TrunkConfig, {"image_size": 48}, "test")
    with pytest.raises(ConfigError, match="channels has 4 values for rows 1 to 7"):
        validate(TrunkConfig, {"channels": [8, 8, 8, 8]}, "test")
    with pytest.raises(ConfigError, match="width 768 does not divide into 7 heads"):
        validate(TrunkConfig, {"text": {"heads": 7}}, "test")


def test_fresh_fusions_leave_both_sides_alone() -> None:
    """What an image becomes does not depend on the text, nor the other way round; with opinions both do."""
    model = trunk()
    one = model(random_images(2), texts([6, 3]))
    other_text, other_image = (
        model(random_images(2), texts([6, 3], seed=5)),
        model(random_images(2, seed=5), texts([6, 3])),
    )
    assert torch.equal(other_text[0], one[0])
    assert torch.equal(other_image[1], one[1])
    with_opinions(model)
    one = model(random_images(2), texts([6, 3]))
    other_text, other_image = (
        model(random_images(2), texts([6, 3], seed=5)),
        model(random_images(2, seed=5), texts([6, 3])),
    )
    assert not torch.allclose(other_text[0], one[0])
    assert not torch.allclose(other_image[1][:, :3], one[1][:, :3])


def test_gradients_cross_in_both_directions() -> None:
    model = trunk()
    with_opinions(model)
    images = random_images(2).requires_grad_()
    image, states = model(images, texts([6, 3]))
    (of_text,) = torch.autograd.grad(states[:, :3].square().sum(), images, retain_graph=True)
    assert (of_text.abs().sum(dim=(1, 2, 3)) > 0).all()
    embeddings = model.parts.embeddings.weight
    (of_image,) = torch.autograd.grad(image.square().sum(), embeddings)
    read = texts([6, 3]).unique()
    assert (of_image[read[read != 0]].abs().sum(1) > 0).all()


def test_padding_changes_nothing() -> None:
    """A text is read as if it stood alone, whatever the padding holds and however much there is of it."""
    model = trunk()
    with_opinions(model)
    ids = texts([6, 3])
    both = model(random_images(2), ids)
    alone = model(random_images(2)[:1], ids[:1])
    torch.testing.assert_close((alone[0][0], alone[1][0]), (both[0][0], both[1][0]))
    short = model(random_images(2)[1:], ids[1:, :3])
    torch.testing.assert_close((short[0][0], short[1][0]), (both[0][1], both[1][1, :3]))
    with torch.no_grad():
        model.parts.embeddings.weight[TOKENS.pad_id] = 50.0
    loud = model(random_images(2), ids)
    torch.testing.assert_close(loud[0], both[0])
    torch.testing.assert_close(loud[1][1, :3], both[1][1, :3])


def test_skips_add_rows_of_the_same_size() -> None:
    plain, skipping = trunk(), trunk(TRUNK.model_copy(update={"skips": True}))
    assert parameters(plain) == parameters(skipping)
    ids = texts([6, 3])
    before = {state.row: state.image for state in plain.run_rows(random_images(2), ids)}
    after = {state.row: state.image for state in skipping.run_rows(random_images(2), ids)}
    assert all(torch.equal(after[row], before[row]) for row in (1, 2, 3))
    torch.testing.assert_close(after[12], before[12] + before[2])
    torch.testing.assert_close(after[13], plain.parts.image_step(13, after[12]) + before[1])


@pytest.mark.parametrize("channels", [8, 12, 16, 24, 96, 512])
def test_a_norm_keeps_what_all_of_a_image_has_in_common(channels: int) -> None:
    """Groups of one channel would take it away: a flat image of any color would become the same."""
    norm = group_norm(channels)
    flat = torch.randn(2, channels, 1, 1).expand(2, channels, 4, 4)
    one, other = norm(flat)
    assert not torch.allclose(one, other, atol=0.1)


def test_the_literal_reading_reaches_every_fusion() -> None:
    model = trunk(TRUNK.model_copy(update={"normalization": "count"}))
    assert {fusion.normalization for fusion in model.parts.fusions.values()} == {"count"}  # type: ignore[union-attr]
