"""What is taken away: how large holes are, which words are hidden, how often what; a function of the row alone."""

import numpy as np
import pytest
import torch

from parti.fused.inpainting.corruption import CorruptedPair, CorruptionConfig, corrupt, mask_images, mask_words
from parti.fused.inpainting.holes import OVERSHOOT, random_hole
from parti.text.masked_tokens import Words
from tests.tiny import tiny_text_tokenizer
from vqgan.config.schema import ConfigError, validate

TOKENIZER = tiny_text_tokenizer()
WORDS = Words(TOKENIZER)
CAPTION = "a b c d e f g h"  # cut to as many tokens as there are positions, eight
IDS = TOKENIZER.encode([CAPTION])
SIDE = 32
MOSTLY_IMAGE = CorruptionConfig(mostly_image=1.0, mostly_caption=0.0)
MOSTLY_CAPTION = CorruptionConfig(mostly_image=0.0, mostly_caption=1.0)


def lost(rows: int, config: CorruptionConfig | None = None, step: int = 3, start: int = 0) -> CorruptedPair:
    ids = IDS.repeat(rows, 1)
    return corrupt(ids, SIDE, WORDS, config or CorruptionConfig(), seed=1, step=step, start=start)


@pytest.mark.parametrize("side", [16, 64, 256])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_holes_are_as_large_as_wanted(side: int, share: float) -> None:
    holes = [random_hole(side, share, np.random.default_rng(seed)) for seed in range(20)]
    assert all(share <= hole.mean() <= share + OVERSHOOT for hole in holes)
    assert len({hole.tobytes() for hole in holes}) == 20
    assert np.array_equal(holes[0], random_hole(side, share, np.random.default_rng(0)))


def test_holes_are_everywhere() -> None:
    mean = np.mean([random_hole(64, 0.4, np.random.default_rng(seed)) for seed in range(150)], axis=0)
    assert mean.min() > 0.08
    assert mean.max() < 0.75


def test_how_often_what_is_lost() -> None:
    holes, text = lost(600)
    covered = holes.float().mean(dim=(1, 2, 3))
    asked = text.chosen.sum(1)
    image, caption = covered > 0, asked > 0
    assert (image | caption).all()
    assert (image & ~caption).float().mean() == pytest.approx(0.25, abs=0.04)
    assert (caption & ~image).float().mean() == pytest.approx(0.25, abs=0.04)
    # Alone, each loses much.
    alone = covered[image & ~caption]
    assert ((alone >= 0.75) & (alone <= 0.75 + OVERSHOOT)).all()
    assert (asked[caption & ~image] >= 4).all()
    assert text.hidden[caption & ~image].equal(text.chosen[caption & ~image])
    # Together, both lose moderately.
    both = image & caption
    assert covered[both].min() >= 0.25
    assert covered[both].max() <= 0.5
    assert covered[both].mean() == pytest.approx(0.375, abs=0.03)


def test_words_are_hidden_as_in_bert_or_as_a_span() -> None:
    config = CorruptionConfig(mostly_image=0.0, mostly_caption=0.0, completion=0.0)
    _, text = lost(1500, config)
    assert (text.chosen.sum(1) == 1).all()  # 15% of eight words
    count = text.chosen.sum().item()
    replaced = (text.ids != text.whole) & text.chosen
    assert text.hidden.sum().item() / count == pytest.approx(0.8, abs=0.04)
    assert replaced.sum().item() / count == pytest.approx(0.1 * (1 - 1 / len(WORDS.ids)), abs=0.03)
    assert not (text.hidden & ~text.chosen).any()
    assert text.ids[~text.chosen].equal(text.whole[~text.chosen])
    assert text.chosen.float().mean(0).std() < 0.025

    _, text = lost(700, config.model_copy(update={"completion": 1.0}))
    lengths = text.chosen.sum(1)
    assert set(lengths.tolist()) == {2, 3, 4, 5, 6, 7, 8}  # 30% to 100%
    assert text.hidden.equal(text.chosen)
    edges = text.chosen.int().diff(dim=1).ne(0).sum(1)
    assert (edges <= 2).all()  # one span
    short = text.chosen[lengths == 4]
    at_end = short[:, -1].float().mean().item()
    assert at_end == pytest.approx(0.5 + 0.5 / 5, abs=0.15)


def test_it_depends_on_seed_step_and_row_alone() -> None:
    whole, second = lost(6), lost(3, start=3)
    for one, other in zip((whole.holes, *whole.text), (second.holes, *second.text), strict=True):
        assert torch.equal(one[3:], other)
    assert not torch.equal(whole.holes, lost(6, step=4).holes)


def test_an_empty_caption_loses_nothing_and_padding_is_never_asked_for() -> None:
    ids = TOKENIZER.encode(["", "a cat"]).repeat(50, 1)
    _, text = corrupt(ids, SIDE, WORDS, MOSTLY_CAPTION, seed=0, step=0, start=0)
    assert not text.chosen[::2].any()
    assert text.chosen[1::2].any(1).all()
    assert not text.chosen[ids == TOKENIZER.pad_id].any()


def test_each_side_alone() -> None:
    holes, text = lost(20, MOSTLY_IMAGE)
    assert not text.chosen.any()
    assert holes.any(dim=3).any(dim=2).all()
    holes, text = lost(20, MOSTLY_CAPTION)
    assert text.chosen.any(1).all()
    assert not holes.any()


def test_what_the_network_reads() -> None:
    holes, text = lost(8)
    images = torch.rand(8, 3, SIDE, SIDE) + 1
    empty = mask_images(images, holes)
    where = holes.expand_as(images)
    assert (empty[where] == 0).all()
    assert torch.equal(empty[~where], images[~where])
    ids = mask_words(text, 999)
    assert (ids[text.hidden] == 999).all()
    assert torch.equal(ids[~text.hidden], text.ids[~text.hidden])


def test_shares_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="are more than all pairs; lower one"):
        validate(CorruptionConfig, {"mostly_image": 0.7, "mostly_caption": 0.4}, "test")
    with pytest.raises(ConfigError, match=r"smallest_hole 0\.6 is larger than largest_hole 0\.5"):
        validate(CorruptionConfig, {"smallest_hole": 0.6}, "test")
