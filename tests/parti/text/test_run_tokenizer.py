"""A run's vocabulary says how far it is while its captions are read, and while it learns from them."""

import time
from collections.abc import Iterator

import pytest

from parti.text import run_tokenizer as load_or_train_tokenizer
from parti.text.run_tokenizer import vocabulary_progress
from vqgan.data.source import DataError


def slow(count: int) -> Iterator[str]:
    for number in range(count):
        time.sleep(0.02)
        yield f"caption {number}"


def test_reading_and_learning_say_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load_or_train_tokenizer, "_SECONDS_BETWEEN_LINES", 0.1)
    with vocabulary_progress(slow) as captions:
        assert len(captions(20)) == 20
        time.sleep(0.25)
    lines = capfd.readouterr().err.splitlines()
    reading = [line for line in lines if "of up to 20 captions read" in line]
    assert any("a second, about" in line and "s left" in line for line in reading), lines
    assert any("learning from 20 captions" in line for line in lines), lines


def test_no_caption_is_one_line() -> None:
    with vocabulary_progress(lambda _: []) as captions, pytest.raises(DataError, match="no caption in the training"):
        captions(5)
