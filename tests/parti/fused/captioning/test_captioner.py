"""The captioning network: the drawing's shapes and sizes, no leak of the truth, padding, gradients, its folder."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from parti.fused.captioning.captioner import Captioner, CaptionerConfig, TrainOutput
from parti.fused.captioning.decoding import ROWS, DecodingConfig, decode
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from tests.tiny import CAPTIONS, tiny_text_tokenizer
from tests.tiny_captions import MODEL, caption_ids, noise, random_images, tiny_captioner
from vqgan.config.schema import ConfigError, validate
from vqgan.hub.model_folder import ModelFolderError, save_model_folder

pytestmark = pytest.mark.slow_threads

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
    12: (256, 32),
    13: (256, 32),
    14: (256, 32),
}
"""Rows of the drawing; behind row 11 there is text alone, and the image stays as it is."""


class BertSized(TextTokenizer):
    """Stands for bert-base's vocabulary: as large, without its words."""

    def __init__(self) -> None:
        self.length, self.pad_id, self.vocab_size = 30, 0, 30522

    @property
    def null_ids(self) -> Tensor:
        return torch.tensor([101, 102] + [0] * 28, device="cpu")


def test_shapes_and_sizes_as_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    # The meta device knows no autocast, and has no numbers that precision could matter to.
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_settings: nullcontext())
    with torch.device("meta"):
        captioner = Captioner(CaptionerConfig(), BertSized())
        context = captioner.context(torch.zeros(2, 3, 256, 256))
        ids = torch.zeros(2, 30, dtype=torch.int64)
        rows = {state.row: state for state in context.run_rows(context.read(ids).states, ids == ids)}
        assert context.image.vectors.shape == (2, 1024, 256)
        predicted = context.read(ids)
    assert predicted.states.shape == (2, 30, 768)
    assert predicted.attention_maps.shape == (2, 30, 1024)
    assert set(rows) == set(GENERATED)
    for row, (channels, side) in GENERATED.items():
        assert rows[row].image.shape == (2, channels, side, side)
        assert rows[row].text.shape == (2, 30, 768)
    assert {row for row in GENERATED if str(row) in captioner.parts.fusions} == set(range(3, 12))
    assert set(captioner.tellers.heads) == {"7", "11", "14"}
    # 191.2M of convolutions 1-11, fusions, BertLayers 4-14 and embeddings; 28.3M of what tells words.
    assert sum(weight.numel() for weight in captioner.parts.parameters()) == 191_165_696
    assert sum(weight.numel() for weight in captioner.parameters()) == 219436780


def lesson(captioner: Captioner, ids: Tensor, images: Tensor | None = None, seed: int = 0) -> TrainOutput:
    torch.manual_seed(3)  # dropout, where there is some
    return captioner(random_images(len(ids)) if images is None else images, ids, noise(len(ids), seed))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_no_prediction_knows_its_word_or_a_later_one(dropout: float) -> None:
    """For every row that tells words and every position, with one draft: other true words from t on, the same logits
    up to those of word t."""
    captioner = tiny_captioner(text={"width": 16, "heads": 2, "mlp_width": 32, "dropout": dropout}).train()
    words = captioner.tokens.visible_words.nonzero().flatten()
    ids = words[torch.randint(len(words), (3, 8), generator=torch.Generator().manual_seed(1))]
    ids[:, 0] = captioner.tokens.start
    with torch.no_grad():
        truth = lesson(captioner, ids)
        for t in range(1, 8):
            changed = ids.clone()
            changed[:, t:] = words[torch.randint(len(words), (3, 8 - t), generator=torch.Generator().manual_seed(t))]
            other = lesson(captioner, changed)
            for row, one, two in zip(ROWS, truth.logits, other.logits, strict=True):
                assert torch.equal(one[:, :t], two[:, :t]), f"row {row} knows word {t} before it has told it"
                if t < 7:
                    assert (one[:, t] != two[:, t]).any(), f"row {row} does not hear word {t} once it is told"
            assert torch.equal(truth.attention_maps[:, :t], other.attention_maps[:, :t])


def test_the_truth_leaves_no_trace_in_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trunk's rows are the same, to the last bit, whatever the truth is: they are of the draft."""
    captioner = tiny_captioner()
    rows: list[list[Tensor]] = []
    step = type(captioner.parts).text_step

    def noted(parts: nn.Module, row: int, text: Tensor, mask: Tensor) -> Tensor:
        rows[-1].append(step(parts, row, text, mask))
        return rows[-1][-1]

    monkeypatch.setattr(type(captioner.parts), "text_step", noted)
    for ids in (caption_ids(captioner), caption_ids(captioner).flip(0)):
        rows.append([])
        lesson(captioner, ids)
    assert len(rows[0]) == 5
    assert all(torch.equal(one, two) for one, two in zip(*rows, strict=True))


def test_a_teacher_forced_row_3_would_leak() -> None:
    """The reason for drafts, and that the test above can fail: with the truth in row 3 its next word shows behind."""
    captioner, ids = tiny_captioner(), caption_ids(tiny_captioner())
    context, real = captioner.context(random_images()), captioner.tokens.real(ids)
    changed = ids.clone()
    changed[:, 3] = ids[:, 2]
    one, two = (list(context.run_rows(context.read(text).states, real))[-1].text for text in (ids, changed))
    assert (one[:, 1] != two[:, 1]).any()


def test_drafts_depend_on_their_noise_and_hidden_words_too() -> None:
    captioner = tiny_captioner()
    ids = caption_ids(captioner)
    first, again, other = (lesson(captioner, ids, seed=seed) for seed in (0, 0, 1))
    for row, one, same, two in zip(ROWS, first.logits, again.logits, other.logits, strict=True):
        assert torch.equal(one, same)
        assert torch.equal(one, two) == (row == 3), "row 3 has the truth alone"
    generated = noise()
    everything, nothing = (
        captioner(random_images(), ids, generated._replace(share=torch.full((3,), share))) for share in (1.0, 0.0)
    )
    assert not torch.equal(everything.logits[3], nothing.logits[3])


def test_gradients_reach_every_weight_through_the_image_and_the_draft() -> None:
    captioner = tiny_captioner().train()
    found = lesson(captioner, caption_ids(captioner))
    (sum(logits.square().mean() for logits in found.logits) + found.attention_maps.square().sum()).backward()  # type: ignore[union-attr]
    without = {name for name, weight in captioner.named_parameters() if weight.requires_grad and weight.grad is None}
    assert not without, "several processes would wait for these"
    frozen = {name.split(".", 3)[3] for name, weight in captioner.named_parameters() if not weight.requires_grad}
    assert frozen == {
        f"{part}.{kind}" for part in ("text_value", "image_read", "image_last") for kind in ("weight", "bias")
    }
    # And from the words behind row 14 alone, back to the first convolution and into Show, Attend and Tell.
    captioner.zero_grad()
    lesson(captioner, caption_ids(captioner)).logits[3].square().mean().backward()
    for name in ("parts.image.1.0.weight", "tellers.show_attend_tell.image_key.weight", "parts.image.11.0.weight"):
        gradient = captioner.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().max() > 0, name


def test_padding_behind_a_caption_tells_nothing() -> None:
    """Whatever stands behind a draft's end, its own words are read the same."""
    captioner = tiny_captioner()
    ids = caption_ids(captioner)
    context, real = captioner.context(random_images()), captioner.tokens.real(ids)
    other = torch.where(real, ids, captioner.tokens.mask)
    for one, two in zip(*(context.run_rows(context.read(text).states, real) for text in (ids, other)), strict=True):
        torch.testing.assert_close(one.image, two.image)
        torch.testing.assert_close(one.text[real], two.text[real])


def test_a_caption_is_read_the_same_among_longer_ones() -> None:
    """Rows without padding are unchanged by it: a caption in a vocabulary of eight positions and of five."""
    long = tiny_captioner()
    short = tiny_captioner(TextTokenizer.train(CAPTIONS, TextTokenizerConfig(vocab_size=300, length=5)))
    state = long.state_dict()
    position = "parts.embeddings.bert.position_embeddings.weight"
    short.load_state_dict(state | {position: state[position][:5]})
    ids = caption_ids(long)
    assert torch.equal(ids[:, :5], caption_ids(short))
    walks = []
    for captioner, text in ((long, ids), (short, ids[:, :5])):
        context = captioner.context(random_images())
        walks.append(context.run_rows(context.read(text).states, captioner.tokens.real(text)))
    for one, two in zip(*walks, strict=True):
        torch.testing.assert_close(one.text[:, :5], two.text)


def test_skips_are_added() -> None:
    plain, skipping = tiny_captioner(), tiny_captioner(skips=True)
    ids = caption_ids(plain)
    real = plain.tokens.real(ids)
    views = [model.context(random_images()) for model in (plain, skipping)]
    one, two = (
        {state.row: state.image for state in context.run_rows(context.read(ids).states, real)} for context in views
    )
    assert torch.equal(one[4], two[4])
    assert not torch.allclose(one[11], two[11])


def test_a_folder_comes_back_without_its_bert(tmp_path: Path) -> None:
    captioner = tiny_captioner()
    text = captioner.config.text.model_copy(update={"bert": "nowhere/to-be-found"})
    captioner.config = captioner.config.model_copy(update={"text": text})
    captioner.save_pretrained(tmp_path / "model")
    again = Captioner.from_pretrained(tmp_path)
    assert not again.training
    decoded = [
        decode(model.context(random_images()), model.tokens, DecodingConfig(rounds=2)).captions.ids
        for model in (captioner, again)
    ]
    assert torch.equal(*decoded)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    save_model_folder(tmp_path / "other", {"kind": "upsampler"}, {"x": torch.zeros(1)})
    cases = {"nowhere": "config.json is missing", "other": r"of kind 'upsampler', holds no captioner"}
    for name, message in cases.items():
        with pytest.raises(ModelFolderError, match=message):
            Captioner.from_pretrained(tmp_path / name)


def test_a_trunk_without_row_11_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves out row 11, which has a word head; set it to at least 4"):
        validate(CaptionerConfig, MODEL | {"deepest_row": 3}, "test")
    Captioner(validate(CaptionerConfig, MODEL, "test"), tiny_text_tokenizer())
