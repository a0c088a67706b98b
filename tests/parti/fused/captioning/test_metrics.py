"""Metrics of captions against published and brute-force metrics; verdicts on captions."""

import math
from collections import Counter

import pytest

from parti.fused.captioning.metrics import can_compare_texts, compare_texts, describes, words
from vqgan.data.sources.shapes import Placement, Scene, ShapeObject, ShapesConfig, render
from vqgan.metrics.caption_checkers import caption_checker

needs_libraries = pytest.mark.skipif(not can_compare_texts(), reason="the extra 'captions' is not installed")


@needs_libraries
def test_bleu_of_papinenis_example() -> None:
    """Section 2.1: clipped unigram precision 2/7, and no brevity penalty with the second reference's seven words."""
    references = ["The cat is on the mat.", "There is a cat on the mat."]
    found = compare_texts(["the the the the the the the."], [references])
    assert found["bleu_1"] == pytest.approx(2 / 7, abs=1e-6)
    assert found["bleu_4"] < 1e-6


@needs_libraries
def test_meteor_of_the_usual_examples() -> None:
    """Reference 'the cat sat on the mat': the scores that Wikipedia's article on METEOR works out."""
    examples = {
        "the cat sat on the mat": 1 - 0.5 * (1 / 6) ** 3,
        "on the mat sat the cat": 0.5,
        "the cat was sat on the mat": 0.9654,
        "": 0.0,
    }
    for caption, score in examples.items():
        found = compare_texts([caption], [["the cat sat on the mat"]])
        assert found["meteor_like"] == pytest.approx(score, abs=1e-4)
    stems = compare_texts(["the cats sat on the mats"], [["the cat sat on the mat"]])
    assert stems["meteor_like"] > 0.99


def cider_by_hand(captions: list[str], references: list[str]) -> float:
    """CIDEr-D of one reference each, from equations 1 to 5 and the penalty and clipping of section 6."""
    count = len(captions)

    def vector(text: str, n: int) -> dict[tuple[str, ...], float]:
        parts = text.split()
        grams = Counter(tuple(parts[i : i + n]) for i in range(len(parts) - n + 1))
        weights = {}
        for gram, times in grams.items():
            having = sum(f" {' '.join(gram)} " in f" {other} " for other in references)
            weights[gram] = times * math.log(count / max(having, 1))
        return weights

    total = 0.0
    for caption, reference in zip(captions, references, strict=True):
        for n in range(1, 5):
            predicted, true = vector(caption, n), vector(reference, n)
            dot = sum(min(predicted[gram], true.get(gram, 0.0)) * true.get(gram, 0.0) for gram in predicted)
            lengths = math.hypot(*predicted.values()) * math.hypot(*true.values())
            penalty = math.exp(-((len(caption.split()) - len(reference.split())) ** 2) / (2 * 6**2))
            total += 10 / 4 * penalty * (dot / lengths if lengths else 0.0)
    return total / count


@needs_libraries
def test_cider_is_its_formula() -> None:
    references = ["a small red circle above a dog", "a large blue cat", "two dogs on the small boat", "a red boat here"]
    captions = ["a small red circle above a red dog", "a large red cat sleeps", "two dogs on the small boat", "a dog"]
    found = compare_texts(captions, [[reference] for reference in references])
    assert found["cider"] == pytest.approx(cider_by_hand(captions, references), rel=1e-6)
    same = compare_texts(references, [[reference] for reference in references])
    assert same["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert found["cider"] < same["cider"]


@needs_libraries
def test_a_caption_without_a_reference_is_refused() -> None:
    for captions, references in ((["a"], []), (["a"], [[]]), ([], [])):
        with pytest.raises(ValueError, match="give each caption at least one"):
            compare_texts(captions, references)


def test_words_have_no_punctuation_and_no_case() -> None:
    assert words("A dog's tail, 2 Boats - here!") == ["a", "dog's", "tail", "2", "boats", "here"]


def test_a_caption_is_right_when_it_describes_the_image() -> None:
    scene = Scene(ShapeObject("small", "red", "circle"), "above", ShapeObject("large", "blue", "square"))
    image = render(scene, (Placement(0.5, 0.2), Placement(0.5, 0.7)), 64)
    check_image = caption_checker(ShapesConfig())
    assert check_image is not None
    verdicts = {
        str(scene): True,
        "a large blue square below a small red circle": True,
        "a large blue square above a small red circle": False,
        "a small red circle above a large blue circle": False,
        "a small red circle above a small blue square": False,
        "a small green circle above a large blue square": False,
        "a small red circle left of a large blue square": False,
        "a small red circle above a large": False,
        "": False,
    }
    assert {caption: describes(check_image, image, caption) for caption in verdicts} == verdicts
