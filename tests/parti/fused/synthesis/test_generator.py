"""The generator against the drawing: rows, sizes, and which way everything is read."""

import pytest
import torch

from parti.fused.fusion import TextToImageFusion
from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from parti.fused.synthesis.noise import NoiseBranch, NoiseConfig, seeded_noise
from parti.fused.synthesis.scales import at_scales, side_by_side
from parti.fused.text_side import TextSpace
from tests.parti.fused.synthesis.tiny_synthesis import MODEL, TRUNK, tiny_generator
from vqgan.config.schema import ConfigError, validate

pytestmark = pytest.mark.slow_threads

IDS = torch.tensor([[3, 4, 5, 6, 0, 0], [7, 8, 0, 0, 0, 0]])

GENERATED = {
    3: (256, 32),
    4: (512, 16),
    5: (512, 8),
    6: (512, 4),
    7: (512, 2),
    8: (512, 4),
    9: (512, 8),
    10: (512, 16),
    11: (256, 32),
    12: (128, 64),
    13: (64, 128),
    14: (32, 256),
}
"""Row: channels and side of the image, read off the drawing."""


def generated_size() -> SynthesisGenerator:
    return SynthesisGenerator(SynthesisConfig(), TextSpace(30_522, 30, 0, 30_521))


def noise(seed: int = 0, batch: int = 2, model: SynthesisConfig = MODEL) -> torch.Tensor:
    return seeded_noise([(seed, number) for number in range(batch)], model.noise_shape)


def test_every_row_has_the_generated_shape() -> None:
    with torch.device("meta"):
        generator = generated_size()
        ids, z = torch.zeros(1, 30, dtype=torch.int64), torch.zeros(1, 32, 2, 2)
        states = list(generator.run_rows(ids, z))
        images = generator(ids, z)
    assert {state.row: tuple(state.image.shape[1:3]) for state in states} == GENERATED
    assert all(state.image.shape[2] == state.image.shape[3] for state in states)
    assert {state.text.shape for state in states} == {(1, 30, 768)}
    assert [image.shape for image in images] == [(1, 3, side, side) for side in (64, 128, 256)]


def test_parts_stand_in_the_generated_rows() -> None:
    with torch.device("meta"):
        generator = generated_size()
    parts = generator.parts
    assert sorted(map(int, parts.text)) == list(range(1, 12))
    assert sorted(map(int, parts.image)) == list(range(4, 13))
    assert sorted(map(int, parts.fusions)) == list(range(3, 13))
    one_way = [row for row, fusion in parts.fusions.items() if isinstance(fusion, TextToImageFusion)]
    assert one_way == ["3"]
    assert {row: type(part.fusion) for row, part in generator.finer.items()} == {
        "13": TextToImageFusion,
        "14": TextToImageFusion,
    }
    assert {row: head.kernel_size for row, head in generator.to_rgb.items()} == dict.fromkeys(
        ("12", "13", "14"), (1, 1)
    )


def test_the_generated_generator_has_the_counted_size() -> None:
    with torch.device("meta"):
        generator = generated_size()
    count = sum(weight.numel() for weight in generator.parameters())
    assert count / 1e6 == pytest.approx(197.6, abs=0.15)
    assert sum(weight.numel() for weight in generator.noise.parameters()) == 32 * 128 * 9 + 128 * 512 * 9 + 640 + 256


def test_fewer_scales_are_the_first_of_all() -> None:
    generator = tiny_generator()
    everything = generator(IDS, noise())
    for scales in (1, 2, 3):
        some = generator(IDS, noise(), scales)
        assert len(some) == scales
        assert all(torch.equal(one, other) for one, other in zip(some, everything, strict=False))


def test_text_is_never_changed_by_a_one_way_fusion() -> None:
    """Rows 13 and 14 read the text of row 12; row 3's text is BertLayer 3's alone, whatever the constant."""
    generator = tiny_generator()
    states = {state.row: state for state in generator.run_rows(IDS, noise())}
    assert states[13].text is states[12].text
    assert states[14].text is states[12].text
    with torch.no_grad():
        generator.constant.weight.add_(1.0)
    moved = {state.row: state for state in generator.run_rows(IDS, noise())}
    assert torch.equal(moved[3].text, states[3].text)
    assert not torch.equal(moved[3].image, states[3].image)
    assert not torch.allclose(moved[4].text, states[4].text), "row 4 is fused both ways"


def test_prompt_and_noise_change_every_scale_and_padding_changes_none() -> None:
    generator = tiny_generator()
    generated = generator(IDS, noise())
    for other in (generator(IDS.flip(0), noise()), generator(IDS, noise(1))):
        assert all((one - two).abs().max() > 1e-3 for one, two in zip(generated, other, strict=True))
    alone = generator(IDS[1:], noise()[1:])
    for one, two in zip(alone, generated, strict=True):
        torch.testing.assert_close(one, two[1:], atol=1e-5, rtol=1e-4)
    assert all(image.abs().max() <= 1 for image in generated)


def test_noise_enters_at_the_deepest_row_and_not_above() -> None:
    generator = tiny_generator()
    pairs = zip(generator.run_rows(IDS, noise()), generator.run_rows(IDS, noise(1)), strict=True)
    same = [one.row for one, two in pairs if torch.equal(one.image, two.image)]
    assert same == [3]
    assert TRUNK.deepest_row == 4


def test_everything_learns_from_the_images() -> None:
    generator = tiny_generator()
    torch.stack([image.square().mean() for image in generator(IDS, noise())]).sum().backward()
    without = [name for name, weight in generator.named_parameters() if weight.grad is None]
    assert without == []


def test_skips_join_the_rows_that_face_each_other() -> None:
    model = MODEL.model_copy(update={"trunk": TRUNK.model_copy(update={"skips": True})})
    plain, joined = tiny_generator(), tiny_generator(model)
    one, two = ({s.row: s.image for s in generator.run_rows(IDS, noise())} for generator in (plain, joined))
    assert torch.equal(one[4], two[4])
    assert not torch.equal(one[11], two[11])


def test_a_trunk_without_a_row_for_the_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trunk.deepest_row is 3, but row 3 is a constant"):
        validate(SynthesisConfig, {"trunk": {"deepest_row": 3, "channels": [8, 8, 8]}}, "test")


def test_noise_is_a_function_of_its_key() -> None:
    alone, together = seeded_noise([(7,)], (2, 3, 3)), seeded_noise([(1,), (7,), (2,)], (2, 3, 3))
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[0], together[2])
    many = seeded_noise([(0, number) for number in range(400)], (4, 2, 2))
    assert abs(many.mean()) < 0.05
    assert abs(many.std() - 1) < 0.05


def test_the_noise_branch_keeps_the_grid() -> None:
    branch = NoiseBranch(NoiseConfig(channels=3, hidden_channels=8), 5)
    assert branch(torch.zeros(2, 3, 2, 2)).shape == (2, 5, 2, 2)


def test_small_images_are_means_of_squares_and_have_no_aliasing() -> None:
    stripes = torch.ones(1, 3, 16, 16)
    stripes[..., ::2] = -1  # the finest there are: an image without antialiasing would be all black or all white
    assert [image.shape[-1] for image in at_scales(stripes, (4, 8, 16))] == [4, 8, 16]
    assert at_scales(stripes, (4, 8, 16))[0].abs().max() == 0
    images = torch.rand(2, 3, 16, 16)
    by_hand = images.view(2, 3, 4, 4, 4, 4).mean((3, 5))
    torch.testing.assert_close(at_scales(images, (4,))[0], by_hand)
    with pytest.raises(ValueError, match="16 pixels do not divide into 5"):
        at_scales(images, (5,))


def test_side_by_side_shows_every_scale_at_one_size() -> None:
    scales = [torch.full((2, 3, side, side), value) for side, value in ((4, -1.0), (8, 1.0))]
    sheets = side_by_side(scales)
    assert [sheet.size for sheet in sheets] == [(16, 8)] * 2
    assert (sheets[0].getpixel((0, 0)), sheets[0].getpixel((8, 0))) == ((0, 0, 0), (255, 255, 255))
