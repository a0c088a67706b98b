"""Prompt accuracy: a perfect generator scores 1, pairing at random next to nothing, and mistakes keep their reasons."""

import pytest
from PIL import Image

from parti.evaluation import check_images, evaluate_prompts, other_captions
from vqgan.data.sources.shapes import Shapes, ShapesConfig

COUNT = 96
MIRRORED = ["a small red circle above a large blue square", "a large blue square below a small red circle"]


@pytest.fixture(scope="module")
def real() -> tuple[list[Image.Image], list[str]]:
    """Renders and captions of the validation split."""
    source = Shapes(ShapesConfig(), "val", 64)
    samples = [source[index] for index in range(COUNT)]
    return [sample.image for sample in samples], [str(sample.caption) for sample in samples]


def test_a_perfect_generator_is_right_and_random_pairing_is_not(real: tuple[list[Image.Image], list[str]]) -> None:
    evaluation = evaluate_prompts(*real)
    assert evaluation.accuracy == 1.0
    assert evaluation.random_pairing_accuracy == 0.0
    assert [checked.caption for checked in evaluation.checked] == real[1]
    assert len(evaluation.random_pairing) == COUNT
    assert all(verdict.reasons for verdict in evaluation.random_pairing)


def test_wrong_images_lower_the_accuracy_and_say_why(real: tuple[list[Image.Image], list[str]]) -> None:
    images, captions = real
    blank = Image.new("RGB", (64, 64), "white")
    evaluation = evaluate_prompts([blank] * 24 + images[24:], captions)
    assert evaluation.accuracy == 0.75
    wrong = [checked for checked in evaluation.checked if not checked.verdict.correct]
    assert [checked.image for checked in wrong] == [blank] * 24
    assert all(checked.verdict.reasons == ("the image shows no object",) for checked in wrong)


def test_random_pairing_takes_captions_that_ask_for_something_else(real: tuple[list[Image.Image], list[str]]) -> None:
    other = "a small red circle left of a large blue square"
    assert other_captions([*MIRRORED, other])[:2] == [other, other]
    assert other_captions([*MIRRORED, other])[2] in MIRRORED

    captions = real[1]
    others = other_captions(captions, seed=3)
    assert others == other_captions(captions, seed=3) != other_captions(captions, seed=4)
    assert set(others) <= set(captions)
    assert all(own != other for own, other in zip(captions, others, strict=True))


def test_captions_that_all_ask_for_the_same_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="two meanings, received 2 captions of one"):
        other_captions(MIRRORED)


def test_every_image_needs_its_caption(real: tuple[list[Image.Image], list[str]]) -> None:
    images, captions = real
    with pytest.raises(ValueError, match="argument"):
        evaluate_prompts(images[:-1], captions)
    with pytest.raises(ValueError, match="argument"):
        check_images(images, captions[:-1])
