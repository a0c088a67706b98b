"""How captions are framed, written word by word, and refined."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parti.fused.captioning.decoding import (
    DecodingConfig,
    Row,
    decode,
    decoding_noise,
    least_probable,
)
from parti.fused.captioning.show_attend_tell import LSTMState
from parti.fused.captioning.tokens import CaptionTokens
from parti.fused.captioning.word_loop import DecodedWords, KnownWords, generate_words, sample_from
from parti.text import PretrainedTokenizerConfig, TextTokenizerConfig
from parti.text.pretrained_tokenizer import load_pretrained_tokenizer
from parti.text.tokenizer import TextTokenizer
from tests.tiny import CAPTIONS, tiny_text_tokenizer
from tests.tiny_captions import caption_ids, random_images, tiny_captioner
from tests.tiny_text_models import write_bert, write_clip, write_gpt2_tokenizer, write_t5
from vqgan.config.schema import ConfigError, validate

pytestmark = pytest.mark.slow_threads

TOKENS = CaptionTokens(tiny_text_tokenizer())
A, RED, BLUE, CAT = (int(word) for word in TOKENS.encode(["a red blue cat"]).ids[0, 1:5])
END, PAD, MASK = TOKENS.end, TOKENS.pad, TOKENS.mask
VOCABULARY = TOKENS.space.vocab_size


# Framing


@pytest.mark.parametrize("writer", [write_bert, write_clip, write_t5, write_gpt2_tokenizer], ids=lambda w: w.__name__)
def test_captions_of_any_vocabulary_are_framed_and_come_back(writer: Callable[..., Any], tmp_path: Any) -> None:
    name = str(writer(tmp_path / "model"))
    tokens = CaptionTokens(load_pretrained_tokenizer(PretrainedTokenizerConfig(name=name, length=14)))
    check_framing(tokens)


def test_captions_of_a_learned_vocabulary_are_framed_and_come_back() -> None:
    check_framing(TOKENS)


def check_framing(tokens: CaptionTokens) -> None:
    captions = ["a red cat", "a blue jug", ""]
    ids, cut = tokens.encode(captions)
    assert ids.shape == (3, tokens.length)
    assert cut == [False] * 3
    assert tokens.texts(ids) == captions
    assert (ids[:, 0] == tokens.start).all()
    real, predicted = tokens.real(ids), tokens.predicted(ids)
    last = real.sum(1) - 1
    assert (ids[torch.arange(3), last] == tokens.end).all(), "the end stands in front of the padding"
    assert (real == (torch.arange(tokens.length) <= last[:, None])).all()
    assert torch.equal(predicted[:, 1:], real[:, 1:])
    assert not predicted[:, 0].any()
    assert tokens.visible_words[ids[predicted]].all(), "whatever is learned can be told"
    assert not tokens.visible_words[[tokens.pad, tokens.mask]].any()
    assert tokens.mask == tokens.space.vocab_size - 1


def test_a_caption_that_is_too_long_is_cut_and_ends() -> None:
    ids, cut = TOKENS.encode(["a red cat", "a " * 7, "a " * 6])
    assert cut == [False, True, False]
    assert ids[1].tolist() == [TOKENS.start, *[A] * 6, END]
    assert torch.equal(ids[1], ids[2])


def test_a_frame_must_have_room_for_a_word() -> None:
    tokenizer = TextTokenizer.train(CAPTIONS, TextTokenizerConfig(vocab_size=300, length=2))
    with pytest.raises(ConfigError, match=r"text.length is 2, but start and end take 2 tokens; set it to 3"):
        CaptionTokens(tokenizer)


# Writing


def scripted(rows: list[list[int]], chances: float = 0.9) -> Any:
    """Arguments of `write` for a model that wants `rows`, whatever was told before; the next most wanted is CAT."""

    def logits(h: Tensor) -> Tensor:
        position = int(h[0, 0])
        found = torch.full((len(rows), VOCABULARY), 0.05 / VOCABULARY)
        found[:, CAT] = 0.9 - chances + 0.05
        for row, wanted in enumerate(rows):
            found[row, wanted[min(position, len(wanted) - 1)]] += chances
        return found.log()

    def step(t: int, before: Tensor, mind: LSTMState) -> LSTMState:
        return LSTMState(torch.full_like(mind.h, float(t)), before)

    zero = torch.zeros(len(rows), 1)
    return LSTMState(zero, zero), step, lambda ids, _: ids[:, None].float(), logits


def test_words_are_told_until_the_end() -> None:
    written = generate_words(TOKENS, *scripted([[A, RED, END, BLUE], [A, RED, BLUE, CAT, A, RED, BLUE, CAT]]))
    assert written.ids.tolist() == [
        [TOKENS.start, A, RED, END, PAD, PAD, PAD, PAD],
        [TOKENS.start, A, RED, BLUE, CAT, A, RED, END],
    ]
    confidence = written.probabilities
    assert (confidence[0, 4:] == 1).all()
    assert (confidence[:, 0] == 1).all()
    torch.testing.assert_close(confidence[0, 1:4], torch.full((3,), confidence[0, 1].item()))
    assert 0.8 < confidence[0, 1] < 1
    assert confidence[1, 7] < 0.1, "nobody wanted to end there"


def test_what_is_no_word_is_never_told() -> None:
    written = generate_words(TOKENS, *scripted([[PAD, MASK, PAD, END]]))
    assert written.ids[0, 1:4].tolist() == [CAT, CAT, CAT]


def test_given_slots_stay_unless_the_caption_has_ended() -> None:
    before = DecodedWords(
        torch.tensor([[TOKENS.start, A, RED, CAT, END, PAD, PAD, PAD]] * 3),
        torch.tensor([[1.0] + [0.25] * 4 + [1.0] * 3] * 3),
    )
    kept = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]).bool()
    wanted = [[BLUE] * 7, [END] * 7, [BLUE, BLUE, BLUE, BLUE, RED, END]]
    written = generate_words(TOKENS, *scripted(wanted), known=KnownWords(before, kept))
    assert written.ids.tolist() == [
        [TOKENS.start, A, BLUE, CAT, END, PAD, PAD, PAD],
        [TOKENS.start, A, END, PAD, PAD, PAD, PAD, PAD],
        [TOKENS.start, A, RED, CAT, BLUE, RED, END, PAD],
    ]
    assert written.probabilities[0, [1, 3, 4]].tolist() == [0.25] * 3, "what stays keeps its probability"
    assert written.probabilities[0, 2] > 0.8


def test_draws_have_the_models_shares_and_the_temperature() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    noise = torch.cat([torch.rand(4000, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1 - 2**-24])])
    generated = sample_from(probabilities.expand(len(noise), -1), noise)
    shares = generated.bincount(minlength=6) / len(noise)
    assert shares[[0, 2, 5]].sum() == 0
    torch.testing.assert_close(shares, probabilities, atol=4 * math.sqrt(0.25 / 4000), rtol=0)
    many = [[A, END]] * 2000
    noise = torch.rand(2000, 8, generator=torch.Generator().manual_seed(1))
    plain, hot = (generate_words(TOKENS, *scripted(many, 0.6), noise=noise, temperature=t) for t in (1.0, 3.0))
    expected = plain.probabilities[plain.ids[:, 1] == A][0, 1].item()
    share = (plain.ids[:, 1] == A).float().mean().item()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 2000))
    assert (hot.ids[:, 1] == A).float().mean() < share - 0.1
    assert hot.probabilities[hot.ids[:, 1] == A][0, 1] == pytest.approx(expected), "the model's own probability"


# Refining


class Notes:
    """Stands for a view: drafts a caption, tells what it is scripted to, and notes what it was shown."""

    def __init__(self, *predicted: list[list[int]], sure: list[list[float]]) -> None:
        self.predicted = [torch.tensor(rows) for rows in predicted]
        self.sure = torch.tensor(sure)
        self.seen: list[Tensor] = []
        self.known: list[KnownWords | None] = []

    def draft(self, noise: Tensor | None, temperature: float) -> DecodedWords:  # noqa: ARG002
        return DecodedWords(self.predicted[0], self.sure)

    def predict(
        self,
        seen: Tensor,
        real: Tensor,
        row: Row,  # noqa: ARG002
        noise: Tensor | None,  # noqa: ARG002
        temperature: float,  # noqa: ARG002
        known: KnownWords | None,
    ) -> DecodedWords:
        assert torch.equal(real, seen != PAD)
        self.seen.append(seen)
        self.known.append(known)
        return DecodedWords(self.predicted[min(len(self.seen), len(self.predicted) - 1)], self.sure)


SURE = [[1.0, 0.9, 0.2, 0.4, 0.3, 0.8, 1.0, 1.0]]
FIRST = [TOKENS.start, A, RED, BLUE, CAT, END, PAD, PAD]
OTHER = [TOKENS.start, A, BLUE, BLUE, CAT, END, PAD, PAD]


def test_rounds_hide_the_least_probable_words_fewer_each_time() -> None:
    context = Notes([FIRST], [FIRST], [OTHER], [FIRST], [OTHER], [FIRST], sure=SURE)
    decoded = decode(context, TOKENS, DecodingConfig(rounds=4))
    hidden = [(seen[0] == MASK).nonzero().flatten().tolist() for seen in context.seen]
    # Of five tokens (four words and the end) 4/5, 3/5, 2/5 and 1/5.
    assert hidden == [[], [2, 3, 4, 5], [2, 3, 4], [2, 4], [2]]
    assert len(decoded.stages) == 5
    assert [stage.ids[0].tolist() for stage in decoded.stages] == [FIRST, OTHER, FIRST, OTHER, FIRST]
    for seen, known in zip(context.seen[1:], context.known[1:], strict=True):
        assert known is not None
        assert torch.equal(known.mask, (seen != MASK) & (seen != PAD))
    assert context.known[0] is None


def test_a_caption_that_a_round_leaves_unchanged_is_done_whatever_its_batch_does() -> None:
    context = Notes([FIRST] * 2, [FIRST] * 2, [FIRST, OTHER], [OTHER, FIRST], [OTHER, FIRST], sure=SURE * 2)
    decoded = decode(context, TOKENS, DecodingConfig(rounds=4))
    assert [stage.ids[0].tolist() for stage in decoded.stages] == [FIRST] * 5, "done after round 1"
    assert [stage.ids[1].tolist() for stage in decoded.stages] == [FIRST, OTHER, FIRST, FIRST, FIRST]
    assert len(context.seen) == 4, "nobody tells captions that are all done"


def test_the_share_that_is_hidden_is_counted_exactly() -> None:
    for count in range(1, 31):
        written = DecodedWords(
            torch.zeros(1, 32).long(), torch.rand(1, 32, generator=torch.Generator().manual_seed(count))
        )
        words = ((torch.arange(32) > 0) & (torch.arange(32) <= count))[None]
        for rounds in range(1, 5):
            for number in range(1, rounds + 1):
                hidden = least_probable(written, words, 1 - number / (rounds + 1))
                assert hidden.sum() == count * (rounds + 1 - number) // (rounds + 1)
                assert not (hidden & ~words).any()
                if 0 < hidden.sum() < count:
                    confidence = written.probabilities
                    assert confidence[hidden].max() <= confidence[words & ~hidden].min()


def test_a_draft_is_not_refined() -> None:
    context = Notes([FIRST], [OTHER], sure=SURE)
    decoded = decode(context, TOKENS, DecodingConfig(exit_row=3, rounds=4))
    assert decoded.captions.ids[0].tolist() == FIRST
    assert context.seen == []


def test_more_rounds_than_four_are_refused() -> None:
    for values, message in (
        ({"rounds": 5}, "rounds: input should be less than or equal to 4, received 5"),
        ({"exit_row": 8}, "exit_row: 8 is not a choice"),
        ({"temperature": -1}, "temperature"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(DecodingConfig, values, "test")


# With a captioner


@pytest.mark.parametrize("row", [3, 7, 11, 14])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_caption_does_not_depend_on_its_batch(row: Row, temperature: float) -> None:
    captioner, images = tiny_captioner(), random_images(5)
    config = DecodingConfig(exit_row=row, rounds=3, temperature=temperature)
    noise = decoding_noise(range(5), captioner.tokens.length, 3)
    together = decode(captioner.context(images), captioner.tokens, config, noise).captions
    for number in range(5):
        part = slice(number, number + 1)
        alone = decode(captioner.context(images[part]), captioner.tokens, config, noise[:, part]).captions
        assert torch.equal(alone.ids, together.ids[part])
        torch.testing.assert_close(alone.probabilities, together.probabilities[part], atol=1e-5, rtol=1e-4)


def test_seeds_say_what_is_generated() -> None:
    captioner, images = tiny_captioner(), random_images(1).expand(6, -1, -1, -1)
    config = DecodingConfig(rounds=0, temperature=1.0)

    def generated(seeds: list[int]) -> list[list[int]]:
        noise = decoding_noise(seeds, captioner.tokens.length, 0)
        return decode(captioner.context(images), captioner.tokens, config, noise).captions.ids.tolist()

    first = generated([1, 2, 3, 4, 5, 6])
    assert first == generated([1, 2, 3, 4, 5, 6])
    assert first[::-1] == generated([6, 5, 4, 3, 2, 1])
    assert len({tuple(ids) for ids in first}) > 1


def test_drafting_and_reading_the_draft_are_the_same_states() -> None:
    """What Show, Attend and Tell had in mind when it drafted is what it has in mind when it reads its draft."""
    captioner = tiny_captioner()
    context = captioner.context(random_images())
    drafted = context.draft()
    states = context.read(drafted.ids).states
    logits = captioner.logits(3, states).masked_fill(~captioner.tokens.visible_words, -torch.inf)
    predicted = captioner.tokens.predicted(drafted.ids)
    predicted[:, -1] = False  # where a caption is made to end
    assert torch.equal(logits.argmax(-1)[:, :-1][predicted[:, 1:]], drafted.ids[:, 1:][predicted[:, 1:]])


def test_rows_behind_the_exit_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = tiny_captioner()
    context, ids = captioner.context(random_images()), caption_ids(captioner)
    steps: list[int] = []
    step = type(captioner.parts).text_step
    monkeypatch.setattr(
        type(captioner.parts), "text_step", lambda parts, row, *rest: steps.append(row) or step(parts, row, *rest)
    )
    for row, expected in ((7, [4]), (11, [4, 11]), (14, [4, 11, 12, 13, 14])):
        steps.clear()
        context.predict(ids, captioner.tokens.real(ids), row)
        assert steps == expected
