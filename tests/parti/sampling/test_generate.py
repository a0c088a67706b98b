"""Generation: equal to a slow sampler without a cache, and a function of (model, prompt, seed, settings) alone."""

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from parti.models import Generator
from parti.sampling.generate import KnownCodes, SamplingConfig, generate_codes
from tests.tiny import TOKENS, codes, text_ids, tiny_generator
from vqgan.config.schema import ConfigError

pytestmark = pytest.mark.threads

NULL_IDS = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])
PLAIN = SamplingConfig()
EVERYTHING = SamplingConfig(guidance_scale=1.7, temperature=1.3, top_k=20, top_p=0.95)


@torch.no_grad()
def slow_codes(
    model: Generator, text: Tensor, seed: int, settings: SamplingConfig, given: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """One image: a full forward for every code and each side, filters code by code, no cache, no batch.

    `given` are codes and which of them stay.
    """
    uniforms = torch.rand(TOKENS.image_length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    generated = torch.zeros(1, TOKENS.image_length, dtype=torch.int64)
    for position in range(TOKENS.image_length):
        if given is not None and given[1][position]:
            generated[0, position] = given[0][position]
            continue
        logits = model(text[None], generated).image[0, position]
        if settings.guidance_scale != 1:
            progress = position / (TOKENS.image_length - 1)
            way = {"constant": 1.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}
            scale = 1 + way[settings.guidance_schedule] * (settings.guidance_scale - 1)
            unconditional = model(NULL_IDS[None], generated).image[0, position]
            logits = unconditional + scale * (logits - unconditional)
        if settings.temperature == 0:
            generated[0, position] = logits.argmax()
            continue
        order = sorted(range(len(logits)), key=lambda code: (-logits[code].item(), code))
        order = order[: settings.top_k or None]
        probabilities = (logits[order].double() / settings.temperature).softmax(-1)
        kept = [place for place in range(len(order)) if probabilities[:place].sum() < settings.top_p]
        left = {order[place]: probabilities[place].item() for place in kept}
        target = uniforms[position].item() * sum(left.values())
        for code in sorted(left):
            target -= left[code]
            if target < 0:
                break
        generated[0, position] = code
    return generated[0]


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        EVERYTHING,
        SamplingConfig(guidance_scale=2.0, temperature=0.0),
        SamplingConfig(top_k=5, top_p=0.8),
        SamplingConfig(guidance_scale=4.0, guidance_schedule="linear"),
        SamplingConfig(guidance_scale=4.0, guidance_schedule="cosine", top_p=0.9),
    ],
)
def test_equals_a_slow_sampler_without_a_cache(settings: SamplingConfig) -> None:
    model, text = tiny_generator(), text_ids(3)
    fast = generate_codes(model, text, NULL_IDS, [5, 6, 7], settings)
    slow = torch.stack([slow_codes(model, row, seed, settings) for row, seed in zip(text, (5, 6, 7), strict=True)])
    assert fast.dtype == torch.int64
    assert torch.equal(fast, slow)


def masks() -> dict[str, Tensor]:
    """Which of 4 x 4 codes stay."""
    rows = torch.arange(16) // 4
    hole = torch.ones(4, 4, dtype=torch.bool)
    hole[1:3, 1:3] = False
    scattered = torch.rand(16, generator=torch.Generator().manual_seed(0)) < 0.5
    return {
        "top": rows < 2,
        "bottom": rows >= 2,
        "hole": hole.flatten(),
        "scattered": scattered,
        "all": rows < 4,
        "none": rows < 0,
    }


@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING])
@pytest.mark.parametrize("name", masks())
def test_given_codes_stay_and_the_rest_equals_a_slow_sampler_that_is_given_them(
    name: str, settings: SamplingConfig
) -> None:
    model, text, seeds = tiny_generator(), text_ids(3)[[0, 1, 0]], [15, 16, 17]
    wanted, kept = codes(3, seed=1), masks()[name].expand(3, -1)
    generated = generate_codes(model, text, NULL_IDS, seeds, settings, given=KnownCodes(wanted, kept))
    assert torch.equal(generated[kept], wanted[kept])
    for row in range(3):
        assert torch.equal(generated[row], slow_codes(model, text[row], seeds[row], settings, (wanted[row], kept[row])))


def test_each_image_has_its_own_given_codes() -> None:
    model, text, seeds = tiny_generator(), text_ids(4)[[3, 1, 3, 0]], [0, 1, 2, 3]
    wanted = codes(4, seed=1)
    kept = torch.rand(4, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    together = generate_codes(model, text, NULL_IDS, seeds, given=KnownCodes(wanted, kept))
    assert torch.equal(together[kept], wanted[kept])
    for row in range(4):
        one = slice(row, row + 1)
        given = KnownCodes(wanted[one], kept[one])
        assert torch.equal(generate_codes(model, text[one], NULL_IDS, seeds[one], given=given), together[one])


@pytest.mark.parametrize("name", masks())
def test_codes_that_would_have_been_generated_change_nothing_when_given(name: str) -> None:
    # A position has its own random number, whether it is needed or not.
    model, text = tiny_generator(), text_ids(2)
    plain = generate_codes(model, text, NULL_IDS, [8, 9], EVERYTHING)
    given = KnownCodes(plain, masks()[name].expand(2, -1))
    assert torch.equal(generate_codes(model, text, NULL_IDS, [8, 9], EVERYTHING, given=given), plain)


@pytest.mark.parametrize("shapes", [((2, 16), (3, 16)), ((3, 15), (3, 15)), ((3, 16), (3, 15)), ((1, 16), (1, 16))])
def test_given_codes_of_another_shape_are_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    given = KnownCodes(torch.zeros(shapes[0], dtype=torch.int64), torch.ones(shapes[1], dtype=torch.bool))
    with pytest.raises(ValueError, match="given codes are 3 x 16 with as many marks, received codes"):
        generate_codes(tiny_generator(), text_ids(3), NULL_IDS, [0, 1, 2], given=given)


@pytest.mark.parametrize("order", [[0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1, 2, 2], [2, 0, 2, 1, 2, 0], [0, 1, 1]])
@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING])
def test_images_of_one_prompt_are_those_that_it_gives_alone(settings: SamplingConfig, order: list[int]) -> None:
    # Equal counts share the text's keys and values, unequal ones have copies.
    model, text, seeds = tiny_generator(), text_ids(3)[order], list(range(len(order)))
    together = generate_codes(model, text, NULL_IDS, seeds, settings)
    for row, seed in enumerate(seeds):
        assert torch.equal(generate_codes(model, text[row : row + 1], NULL_IDS, [seed], settings)[0], together[row])


@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING])
def test_a_image_is_the_same_alone_and_in_any_batch(settings: SamplingConfig) -> None:
    model, text, seeds = tiny_generator(), text_ids(7), [3, 1, 4, 1, 5, 9, 2]
    together = generate_codes(model, text, NULL_IDS, seeds, settings)
    for row, seed in enumerate(seeds):
        assert torch.equal(generate_codes(model, text[row : row + 1], NULL_IDS, [seed], settings)[0], together[row])
    order = [6, 2, 0, 5]
    shuffled = generate_codes(model, text[order], NULL_IDS, [seeds[row] for row in order], settings)
    assert torch.equal(shuffled, together[order])


def test_prompt_and_seed_both_matter() -> None:
    model, text = tiny_generator(), text_ids(4)
    one_seed = generate_codes(model, text, NULL_IDS, [0] * 4)
    one_text = generate_codes(model, text[:1].expand(4, -1), NULL_IDS, [0, 1, 2, 3])
    for generated in (one_seed, one_text):
        assert all(not torch.equal(first, second) for first, second in pairwise(generated))


def test_a_guidance_scale_of_one_is_no_guidance_at_all() -> None:
    model, text = tiny_generator(), text_ids(4)
    plain = generate_codes(model, text, NULL_IDS, [0, 1, 2, 3])
    for null_ids in (NULL_IDS, text[0]):
        assert torch.equal(
            generate_codes(model, text, null_ids, [0, 1, 2, 3], SamplingConfig(guidance_scale=1.0)), plain
        )
    assert not torch.equal(
        generate_codes(model, text, NULL_IDS, [0, 1, 2, 3], SamplingConfig(guidance_scale=3.0)), plain
    )


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_guidance_scale_of_one_is_none_with_any_schedule(schedule: str) -> None:
    model, text = tiny_generator(), text_ids(4)
    settings = PLAIN.overridden(guidance_scale=1.0, guidance_schedule=schedule)
    plain = generate_codes(model, text, NULL_IDS, [0, 1, 2, 3])
    assert torch.equal(generate_codes(model, text, NULL_IDS, [0, 1, 2, 3], settings), plain)


@pytest.mark.parametrize("scale", [0.0, 1.2, 5.0])
def test_guidance_schedules_are_their_formulas(scale: float) -> None:
    settings = {
        name: PLAIN.overridden(guidance_scale=scale, guidance_schedule=name)
        for name in ("constant", "linear", "cosine")
    }
    for position in range(16):
        progress = position / 15
        assert settings["constant"].guidance_at(position, 16) == scale
        assert settings["linear"].guidance_at(position, 16) == pytest.approx(1 + (scale - 1) * progress)
        wave = 0.5 * (1 - math.cos(math.pi * progress))
        assert settings["cosine"].guidance_at(position, 16) == pytest.approx(1 + (scale - 1) * wave)
    for name in ("linear", "cosine"):
        assert settings[name].guidance_at(0, 16) == pytest.approx(1)
        assert settings[name].guidance_at(15, 16) == pytest.approx(scale)
        assert settings[name].guidance_at(0, 1) == pytest.approx(1)  # the only code is the first


def test_a_guidance_scale_of_zero_ignores_the_prompt() -> None:
    model, text = tiny_generator(), text_ids(3)
    generated = generate_codes(model, text, NULL_IDS, [0, 1, 2], SamplingConfig(guidance_scale=0.0))
    assert torch.equal(generated, generate_codes(model, NULL_IDS.expand(3, -1), NULL_IDS, [0, 1, 2]))


def test_temperature_zero_does_not_depend_on_the_seed() -> None:
    model, text = tiny_generator(), text_ids(1)
    generated = generate_codes(model, text.expand(4, -1), NULL_IDS, [0, 1, 2, 3], SamplingConfig(temperature=0.0))
    assert (generated == generated[0]).all()


def test_all_random_numbers_come_from_the_seeds() -> None:
    model, text = tiny_generator(), text_ids(2)
    torch.manual_seed(1)
    first, state = generate_codes(model, text, NULL_IDS, [0, 1]), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(generate_codes(model, text, NULL_IDS, [0, 1]), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # and the global generator was not touched


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_drawing_and_the_mode_is_restored(training: bool) -> None:
    model, text = tiny_generator(dropout=0.5).train(training), text_ids(2)
    first = generate_codes(model, text, NULL_IDS, [0, 1])
    assert torch.equal(generate_codes(model, text, NULL_IDS, [0, 1]), first)
    assert model.training is training

    def fail(_codes: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_codes(model, text, NULL_IDS, [0, 1], on_codes=fail)
    assert model.training is training


def test_nothing_is_kept_for_gradients() -> None:
    assert not generate_codes(tiny_generator(), text_ids(1), NULL_IDS, [0]).requires_grad


def test_on_codes_shows_the_codes_so_far_in_the_order_asked_for() -> None:
    shown: list[Tensor] = []
    text = text_ids(4)[[0, 1, 0, 2]]  # the second image of the first text is drawn next to the first
    generated = generate_codes(tiny_generator(), text, NULL_IDS, [0, 1, 2, 3], on_codes=shown.append)
    assert len(shown) == 16
    for done, so_far in enumerate(shown, 1):
        assert torch.equal(so_far, generated[:, :done])


def test_as_many_seeds_as_images() -> None:
    with pytest.raises(ValueError, match="one seed an image: received 3 seeds for 2 images"):
        generate_codes(tiny_generator(), text_ids(2), NULL_IDS, [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance_scale", -0.1),
        ("guidance_scale", float("inf")),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError):
        SamplingConfig(**{name: value})
    with pytest.raises(ConfigError, match=f"sampling settings: {name}: "):
        PLAIN.overridden(**{name: value})


def test_given_settings_override_and_none_keeps() -> None:
    assert EVERYTHING.overridden(guidance_scale=None, top_k=0) == EVERYTHING.model_copy(update={"top_k": 0})
    with pytest.raises(ConfigError, match="unknown key topk; did you mean top_k"):
        PLAIN.overridden(topk=3)
