"""The warm-up of the text encoder: BERT's masks and both objectives."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parti.models import EncoderDecoder
from parti.next_token.train_next_token import TrainPartiConfig
from parti.pairs import token_space
from parti.text import PretrainedTokenizerConfig, build_text_tokenizer
from parti.text.encoders import TrainedTextEncoder
from parti.text.masked_tokens import MaskedText, MaskingConfig, Words, choose, mask_tokens, score_masked_tokens
from parti.text.pretrained_tokenizer import load_pretrained_tokenizer
from parti.text.warm_start import warm_start
from parti.text_encoder.corpus import Corpus
from parti.text_encoder.network import TextEncoderPretraining
from parti.text_encoder.pretraining_task import TextPretrainingTaskConfig
from parti.text_encoder.train_text_encoder import TrainTextEncoderConfig, build_task
from tests.findings import check_findings
from tests.tiny import CAPTIONS, pairs, tiny_image_tokenizer, tiny_text_tokenizer
from tests.tiny_text_models import write_bert
from tests.tiny_warm_up import tiny_task, uneven_pairs
from tests.two_processes import run_in_processes
from vqgan.config.schema import ConfigError, dump_config, load_config, validate
from vqgan.data.batch import Batch
from vqgan.data.loader import DataPipeline
from vqgan.data.source import DataError
from vqgan.training.parallel.distributed import build_accelerator

pytestmark = pytest.mark.slow_threads

HALVES = (slice(4), slice(4, 8))
CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "text_encoder").glob("*.yaml"))


# Masks


def long_texts(rows: int, length: int = 200) -> tuple[Tensor, Words]:
    """Texts of 40 to 200 random words of a vocabulary, padded."""
    tokenizer = tiny_text_tokenizer()
    words = Words(tokenizer)
    generator = torch.Generator().manual_seed(5)
    ids = words.ids[torch.randint(len(words.ids), (rows, length), generator=generator)]
    lengths = torch.randint(40, length + 1, (rows, 1), generator=generator)
    return ids.masked_fill(torch.arange(length) >= lengths, tokenizer.pad_id), words


def masked(ids: Tensor, words: Words, **changes: Any) -> MaskedText:
    settings = {"batch_size": len(ids), "seed": 3, "step": 7, "start": 0} | changes
    return mask_tokens(ids, words, settings.pop("config", MaskingConfig()), **settings)


def test_masks_have_the_shares_of_bert() -> None:
    ids, words = long_texts(400)
    found = masked(ids, words)
    real = ids != 0
    assert not (found.chosen & ~real).any(), "padding is never chosen"
    assert torch.equal(found.ids[~real], ids[~real])
    assert ((found.chosen.sum(1) - 0.15 * real.sum(1)).abs() < 0.501).all()
    changed = found.ids != ids
    assert not (found.hidden & ~found.chosen).any()
    assert not (changed & (~found.chosen | found.hidden)).any()
    count = found.chosen.sum().item()
    # Four standard deviations; a random token is the same again once in a vocabulary.
    for share, expected in ((found.hidden.sum() / count, 0.8), (changed.sum() / count, 0.1)):
        assert abs(share.item() - expected) < 4 * math.sqrt(expected * (1 - expected) / count) + 0.1 / len(words.ids)
    generated = found.ids[changed]
    assert set(generated.tolist()) <= set(words.ids.tolist()), "never padding, never the null token"
    assert len(generated.unique()) > 0.8 * len(words.ids)
    where = found.chosen.float().sum(0)[:40] / len(ids)  # all texts are that long
    assert where.std() < 2 * math.sqrt(0.15 * 0.85 / len(ids)), "any position alike"


def test_masks_are_a_function_of_seed_step_and_row() -> None:
    ids, words = long_texts(12)
    whole = masked(ids, words)
    parts = [masked(ids[start : start + 4], words, batch_size=12, start=start) for start in (0, 4, 8)]
    for number, name in enumerate(MaskedText._fields):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[number]), name
    for change in ({"seed": 4}, {"step": 8}):
        assert not torch.equal(masked(ids, words, **change).chosen, whole.chosen)
    assert torch.equal(masked(ids, words).ids, whole.ids)


def test_of_a_short_text_one_token_is_chosen_and_of_an_empty_one_none() -> None:
    tokenizer = tiny_text_tokenizer()
    words, ids = Words(tokenizer), tokenizer.encode(["cat", "", "a red cat"])
    found = masked(ids, words)
    assert found.chosen.sum(1).tolist() == [1, 0, 1]
    assert torch.equal(found.ids[1], ids[1])
    order = torch.tensor([[0.9, 0.1, 0.5, 0.0]])
    word = torch.tensor([[True, True, True, False]])
    assert choose(word, 0.15, order).tolist() == [[False, True, False, False]]
    assert choose(word, 0.6, order).tolist() == [[False, True, True, False]]


def test_what_frames_every_text_of_a_pretrained_vocabulary_is_not_asked_for(tmp_path: Path) -> None:
    tokenizer = load_pretrained_tokenizer(PretrainedTokenizerConfig(name=str(write_bert(tmp_path)), length=16))
    ids, words = tokenizer.encode(CAPTIONS), Words(tokenizer)
    first, last = tokenizer.null_ids[:2].tolist()  # [CLS] [SEP]
    assert not (words.where(ids) & ((ids == first) | (ids == last) | (ids == tokenizer.pad_id))).any()
    assert words.where(ids).sum(1).tolist() == [3] * len(CAPTIONS)


def test_only_chosen_tokens_count() -> None:
    ids = torch.tensor([[3, 4, 5], [6, 0, 0]])
    chosen = torch.tensor([[True, False, True], [True, False, False]])
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    logits[1, 5] = 9.0
    scores = score_masked_tokens(logits, MaskedText(torch.zeros_like(ids), chosen, chosen, ids))
    expected = -sum(F.log_softmax(row, -1)[target] for row, target in zip(logits, (3, 5, 6), strict=True))
    torch.testing.assert_close(scores.nats, torch.as_tensor(expected))
    assert scores.total == 3
    assert scores.correct == sum(row.argmax().item() == target for row, target in zip(logits, (3, 5, 6), strict=True))
    none = torch.zeros_like(chosen)
    assert score_masked_tokens(torch.zeros(0, 8), MaskedText(ids, none, none, ids)) == (0, 0, 0)


def test_passages_are_the_lines_of_a_file_and_a_function_of_seed_step_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parti.text_encoder.corpus._CHUNK", 7)
    lines = ["a red cat", "", "ein Hütchen", "x", *(f"line {number}" for number in range(20))]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    corpus = Corpus(tmp_path / "text.txt")
    assert [corpus[index] for index in range(len(corpus))] == [line for line in lines if line]
    whole = corpus.sample(3, 7, 0, 12)
    assert [passage for start in (0, 4, 8) for passage in corpus.sample(3, 7, start, 4)] == whole
    assert len(set(whole)) > 3
    assert corpus.sample(4, 7, 0, 12) != whole != corpus.sample(3, 8, 0, 12)


@pytest.mark.parametrize("text", [None, "", "\n\n"])
def test_a_file_without_passages_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "text.txt").write_text(text)
    with pytest.raises(DataError, match="give a text file with one passage a line"):
        Corpus(tmp_path / "text.txt")


# The network


def read_twice(network: TextEncoderPretraining, ids: Tensor, found: MaskedText) -> Any:
    return network.eval()(pairs(len(ids)).images, ids, found)


def test_a_hidden_token_is_not_seen_and_the_texts_that_are_compared_are_whole() -> None:
    task = tiny_task()
    tokenizer, network = task.tokenizer, task.network
    ids = tokenizer.encode(CAPTIONS[:4])
    found = masked(ids, Words(tokenizer), config=MaskingConfig(hidden=1.0, replaced=0.0))
    plain = read_twice(network, ids, found)
    other = found._replace(ids=torch.where(found.hidden, 9, found.ids))
    assert torch.equal(read_twice(network, ids, other).logits, plain.logits)
    shown = read_twice(network, ids, found._replace(hidden=torch.zeros_like(found.hidden)))
    assert not torch.allclose(shown.logits, plain.logits)
    torch.testing.assert_close(shown.texts, plain.texts)

    # The vectors are the means of the states that stage 2 reads, and padding has no part in them.
    mask = ids != tokenizer.pad_id
    states = network.text_encoder(ids, mask)
    means = torch.stack([row[seen].mean(0) for row, seen in zip(states, mask, strict=True)])
    torch.testing.assert_close(plain.texts, F.normalize(network.text_projection(means), dim=-1))


def test_both_objectives_reach_the_text_encoder_and_each_trains_its_own_part() -> None:
    task = tiny_task()
    network, batch = task.network.eval(), pairs(8)
    texts = task._read(batch, 8, 0, 0)

    def gradients(loss: Callable[[Any], Tensor]) -> set[str]:
        network.zero_grad(set_to_none=True)
        loss(network(batch.images, texts.ids, texts.masked)).backward()
        weights = network.named_parameters()
        return {name for name, weight in weights if weight.grad is not None and weight.grad.any()}

    by_tokens = gradients(lambda read: score_masked_tokens(read.logits, texts.masked).nats)
    by_contrast = gradients(lambda read: -(read.scale * (read.images * read.texts).sum()))
    encoder = {f"text_encoder.{name}" for name, _ in network.text_encoder.named_parameters()}
    assert encoder <= by_tokens
    assert encoder <= by_contrast
    alone = {"hidden_token", "token_bias"}
    assert alone <= by_tokens - by_contrast
    assert "image_encoder.patches.weight" in by_contrast - by_tokens
    assert by_tokens | by_contrast == {name for name, _ in network.named_parameters()}


def test_the_tokens_of_a_step_count_alike_in_whatever_parts_they_are_read() -> None:
    """The mean of the parts' means is another number."""
    found, batch = {}, uneven_pairs()
    halves = [Batch(*(part[rows] for part in (batch.images, batch.captions, batch.names))) for rows in HALVES]
    for name, parts in (("whole", [batch]), ("halves", halves)):
        task = tiny_task(masking={"chosen": 0.5}, ema={"decay": 0.0})
        found[name] = task.train_step(parts, 3)
    for metric in ("loss_masked", "masked_accuracy", "cut_captions"):
        torch.testing.assert_close(found["halves"][metric], found["whole"][metric])
    assert found["halves"]["loss_contrastive"] < found["whole"]["loss_contrastive"], "among fewer"


def test_passages_are_what_hidden_tokens_are_of_and_captions_are_compared_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("jug jug jug jug\n")
    found = {}
    for corpus in (None, str(tmp_path / "text.txt")):
        task = tiny_task(corpus)
        found[corpus] = task._read(pairs(8), 8, 3, 0, task._passages), task.train_step([pairs(8)], 3)
    (captions, plain), (other, metrics) = found.values()
    assert torch.equal(other.ids, captions.ids)
    words = task.tokenizer.decode(other.masked.whole)
    assert words == ["jug jug jug jug"] * 8
    assert (other.masked.chosen.sum(1) == 1).all()
    torch.testing.assert_close(metrics["loss_contrastive"], plain["loss_contrastive"])
    assert metrics["loss_masked"] != plain["loss_masked"]
    for metric, value in task.evaluate([pairs(8)]).items():  # of captions
        assert math.isfinite(value), metric


def one_of_two(folder: str) -> None:
    rank = int(os.environ["RANK"])
    task = tiny_task(masking={"chosen": 0.5})
    val = task.evaluate([[pairs(8), uneven_pairs()][rank]])
    whole, own = uneven_pairs(), slice(4 * rank, 4 * rank + 4)
    metrics = task.train_step([Batch(whole.images[own], whole.captions[own], whole.names[own])], 3)
    found = {"val": val, "metrics": {name: metric.detach() for name, metric in metrics.items()}}
    torch.save(found, Path(folder, f"found-{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # test_equal_steps has a step of each objective in two processes
def test_two_processes_are_one(tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    assert run_in_processes(one_of_two, tmp_path, said=said) == [0, 0], said.read_text()
    first, second = (torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in range(2))

    task = tiny_task(masking={"chosen": 0.5})
    val = task.evaluate([pairs(8), uneven_pairs()])
    assert first["val"] == second["val"] == pytest.approx(val, rel=1e-5)
    metrics = task.train_step([uneven_pairs()], 3)
    for name in ("loss", "loss_masked", "masked_accuracy", "loss_contrastive", "batch_accuracy", "gradient_norm"):
        mean = (first["metrics"][name] + second["metrics"][name]) / 2
        torch.testing.assert_close(mean, metrics[name], rtol=1e-4, atol=1e-6)
    assert first["metrics"]["gradient_norm"] == second["metrics"]["gradient_norm"]


def test_the_scale_of_the_cosines_stays_below_100() -> None:
    task = tiny_task()
    task.network.log_scale.data.fill_(9.0)
    task.train_step([pairs(8)], 0)
    assert task.network.log_scale.item() == pytest.approx(math.log(100))


def test_val_metrics_are_those_of_the_same_masks_every_time() -> None:
    task = tiny_task()
    first = task.evaluate([pairs(8), pairs(4, seed=1)])
    assert task.evaluate([pairs(8), pairs(4, seed=1)]) == first


def test_diagnosis_names_lost_numbers_and_losses_that_are_no_better_than_guessing() -> None:
    task = tiny_task()
    tokens = math.log(task.tokenizer.vocab_size - 2)
    healthy = {"loss": 3.0, "loss_masked": tokens - 0.1, "loss_contrastive": math.log(8) - 0.1, "run_share": 0.9}
    assert task.diagnose(healthy) == task.diagnose({}) == []
    assert task.diagnose(healthy | {"loss_masked": 9.0, "run_share": 0.05}) == [], "it has just begun"
    cases = {
        "not finite: loss;": healthy | {"loss": math.nan},
        "6.0% of the steps had no finite gradient": healthy | {"skipped_share": 0.06},
        "loss_masked 9.000 is no better than guessing": healthy | {"loss_masked": 9.0},
        "no better than guessing among 8 pairs": healthy | {"loss_contrastive": math.log(8) + 0.01},
    }
    check_findings(task.diagnose, cases, TextPretrainingTaskConfig)


# Configs


def test_configs_that_do_not_fit_are_refused() -> None:
    cases = {
        "image_size 256 does not divide into patches of 7": {"model": {"patch_size": 7}},
        "width 30 does not divide into 4 heads": {"model": {"width": 30, "heads": 4}},
        "leaves no two pairs to compare": {"data": {"batch_size": 4}, "loop": {"gradient_accumulation_steps": 4}},
        "text.dropout 0.1: a warm-up reads whole words": {"text": {"dropout": 0.1}},
    }
    for message, values in cases.items():
        with pytest.raises(ConfigError, match=message):
            validate(TrainTextEncoderConfig, values, "test")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_built_and_stage_2_can_start_from_it(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainTextEncoderConfig, path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(TrainTextEncoderConfig, tmp_path / "again.yaml") == config

    data = DataPipeline(config.data, config.seed)
    tokenizer = build_text_tokenizer(config.text, lambda _: list(data.captions(500)))
    task = build_task(config, build_accelerator(), tokenizer)
    captions = list(data.captions(500))
    assert not any(tokenizer.is_cut(captions)), "a relation that is cut off cannot be learned"
    stage_2_config = load_config(
        TrainPartiConfig,
        path.parents[1] / "parti" / path.name,
        ["--text", f"{{kind: saved, folder: {config.run_dir}}}", "--model.text_encoder.start", config.run_dir],
    )
    assert stage_2_config.data.source == config.data.source
    generator = EncoderDecoder(stage_2_config.model, token_space(tokenizer, tiny_image_tokenizer()))
    task.save_model(tmp_path / "model")
    assert isinstance(generator.text_encoder, TrainedTextEncoder)
    warm_start(generator.text_encoder, tmp_path / "model")


def test_there_are_configs() -> None:
    assert "shapes.yaml" in {path.name for path in CONFIGS}
