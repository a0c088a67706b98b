"""Training from a code cache is training from its images: the same order, numbers, stops and shipped model."""

import pickle
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import parti.next_token.train_next_token
from parti.code_cache.batch import NO_IMAGE, CodedBatch, CodedSample, read_codes
from parti.code_cache.data import CodeCache, CodedPipeline, PairDataConfig
from parti.code_cache.encode import encode
from parti.code_cache.manifest import read_record, write_record
from parti.fused.captioning.train_captioning import TrainCaptioningConfig
from parti.pairs import PairTokenizer
from parti.pipeline import TextToImage
from parti.text.tokenizer import TextTokenizer
from tests.killed_runs import TIMINGS
from tests.parti.code_cache.test_encode import folder_of_images
from tests.parti.code_cache.tiny_caches import SHAPES, TEXT, contents, settings
from tests.tiny_runs import stage_2, untrained_tokenizer
from vqgan.config.schema import ConfigError, load_config, validate
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.source import DataError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.training.loop import TrainingLoop
from vqgan.training.run_folder import RunFolder

pytestmark = pytest.mark.slow_threads


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def cache(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "cache"
    assert encode(settings(folder, tokenizer))
    return folder


@pytest.fixture(scope="module")
def from_images(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "run"
    assert start(folder, tokenizer, None)
    return folder


@pytest.fixture(scope="module")
def from_codes(tokenizer: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes") / "run"
    assert start(folder, tokenizer, cache)
    return folder


def start(run: Path, tokenizer: Path, cache: Path | None, **changes: Any) -> bool:
    """A run of 8 steps with previews, judged prompts, dropout and dropped captions."""
    data = {"source": SHAPES, "transform": {"image_size": 32}, "batch_size": 8}
    if cache is not None:
        data = {"codes": str(cache), "batch_size": 8}
    return parti.next_token.train_next_token.train(
        stage_2(run, tokenizer, data=data, **{"loop.preview_every": 3, "text": TEXT} | changes)
    )


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints/step-0000008/state.pt", weights_only=True)


def metrics(run: Path) -> list[dict[str, object]]:
    records = RunFolder(run).read_metrics()
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    for part in ("generator", "ema"):
        weights = state(other)[part]
        for name, weight in state(one)[part].items():
            assert torch.equal(weight, weights[name]) if isinstance(weight, torch.Tensor) else weight == weights[name]
    for preview in (one / "samples").iterdir():
        assert preview.read_bytes() == (other / "samples" / preview.name).read_bytes()


def test_a_run_from_codes_is_bit_for_bit_the_run_from_images(from_images: Path, from_codes: Path) -> None:
    assert_same_run(from_codes, from_images)
    assert len(list((from_codes / "samples").iterdir())) == 4, "at step 1, at every third, at the last"
    assert (from_codes / "text_tokenizer.json").read_bytes() == (from_images / "text_tokenizer.json").read_bytes()


def test_the_shipped_folder_holds_the_image_tokenizer(from_codes: Path, tokenizer: Path) -> None:
    model = TextToImage.from_pretrained(from_codes)
    assert model("a small red circle above a large blue square").images[0].size == (32, 32)
    assert contents(from_codes / "model/image_tokenizer") == contents(tokenizer)


def test_the_recorded_config_names_the_source_and_starts_the_same_run(from_codes: Path, cache: Path) -> None:
    recorded = load_config(parti.next_token.train_next_token.TrainPartiConfig, from_codes / "config.yaml")
    assert recorded.data.codes == str(cache)
    assert recorded.data.source.model_dump() | SHAPES == recorded.data.source.model_dump()
    assert parti.next_token.train_next_token.train(recorded), "complete already"


def test_a_resumed_run_from_codes_is_the_one_that_never_stopped(
    from_codes: Path, tokenizer: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    should_stop = TrainingLoop._should_stop

    def stopping(loop: TrainingLoop, done: int) -> bool:
        loop._stop.made = done == 4
        return should_stop(loop, done)

    monkeypatch.setattr(TrainingLoop, "_should_stop", stopping)
    assert start(tmp_path / "run", tokenizer, cache) is False
    monkeypatch.undo()
    torch.manual_seed(12345)
    assert start(tmp_path / "run", tokenizer, cache) is True
    assert_same_run(tmp_path / "run", from_codes)


def test_the_image_tokenizer_is_in_memory_only_while_images_are_decoded(
    tokenizer: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = ImageTokenizer.from_pretrained.__func__  # type: ignore[attr-defined]

    def counting(kind: type[ImageTokenizer], folder: Path | str, **options: Any) -> ImageTokenizer:
        read.append(str(folder))
        return original(kind, folder, **options)

    train_step, kept = parti.next_token.train_next_token.NextTokenTask.train_step, []

    def watching(task: Any, batches: Any, step: int) -> Any:
        kept.extend(weight.device.type for weight in task.tokenizers.image.parameters())
        assert all(batch.images.numel() == 0 for batch in batches)
        return train_step(task, batches, step)

    monkeypatch.setattr(ImageTokenizer, "from_pretrained", classmethod(counting))
    monkeypatch.setattr(parti.next_token.train_next_token.NextTokenTask, "train_step", watching)
    changes = {"loop.steps": 4, "loop.evaluate_every": 0, "loop.preview_every": 0, "task.sampled_prompts": 0}
    prompts = ["a small red circle above a large blue square"] * 13  # more than there are validation images
    assert start(tmp_path / "run", tokenizer, cache, **changes, preview_prompts=prompts)
    assert set(kept) == {"meta"}, "nothing of it is there while the generator learns"
    assert len(read) == 2, "once to see that it can be read, once for the last preview"


def pipelines(cache: Path, source: dict[str, Any], **changes: Any) -> tuple[DataPipeline, CodedPipeline]:
    """The images' and the codes' pipeline of the same settings."""
    values = {"source": source, "transform": {"image_size": 32}, "batch_size": 4} | changes
    found = CodeCache(cache)
    config = found.resolved(validate(PairDataConfig, {"codes": str(cache), "batch_size": 4} | changes, "test"))
    return DataPipeline(validate(DataConfig, values, "test"), 3, require_captions=True), CodedPipeline(config, 3, found)


def shown(data: DataPipeline, first: int, steps: int, share: BatchShard) -> list[Any]:
    return [
        (batch.names, batch.captions, [item.name for item in batch.skipped])
        for parts in data.training_batches(first, steps, share)
        for batch in parts
    ]


@pytest.mark.parametrize(
    "share", [BatchShard(), BatchShard(1, 2, 1), BatchShard(0, 1, 2)], ids=["one", "second of two", "in parts"]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_order_captions_and_unusable_images_are_those_of_the_images(
    share: BatchShard, workers: int, tokenizer: Path, tmp_path: Path
) -> None:
    images = folder_of_images(tmp_path / "images")
    for number in (2, 9):
        (images / f"train/{number:02d}.png").write_bytes(b"no image")
    source = {"kind": "folder", "path": str(images), "captions": "random"}
    assert encode(settings(tmp_path / "cache", tokenizer, source, shard_size=5))
    ours, theirs = pipelines(tmp_path / "cache", source, workers=workers)
    expected = shown(ours, 0, 9, share)
    assert shown(theirs, 0, 9, share) == expected
    assert len({caption for _, captions, _ in expected for caption in captions}) > 12, "several captions are shown"
    assert any(skipped for *_, skipped in expected)
    assert shown(theirs, 4, 9, share) == expected[4 * share.gradient_accumulation_steps :], (
        "a later start sees the same"
    )
    val = [[(batch.names, batch.captions) for batch in data.val_batches()] for data in (ours, theirs)]
    assert val[0] == val[1]


def test_a_mixture_is_shown_by_its_weights(tokenizer: Path, tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images")
    source = {
        "kind": "mixture",
        "sources": [{"weight": 3, "source": {"kind": "folder", "path": str(images)}}, {"source": SHAPES}],
    }
    assert encode(settings(tmp_path / "cache", tokenizer, source))
    ours, theirs = pipelines(tmp_path / "cache", source)
    expected = shown(ours, 0, 10, BatchShard())
    assert shown(theirs, 0, 10, BatchShard()) == expected
    assert sum("folder" in name for names, *_ in expected for name in names) == 30
    assert list(islice(theirs.captions(9), 9)) == list(islice(ours.captions(9), 9))
    assert theirs.preview_batch(6).names == ours.preview_batch(6).names


def test_training_draws_among_the_crops(tokenizer: Path, tmp_path: Path) -> None:
    transform = {"image_size": 32, "crop": "random", "smallest_crop": 0.4}
    source = SHAPES | {"train_size": 4}
    assert encode(settings(tmp_path / "cache", tokenizer, source, transform=transform, views=4))
    _, data = pipelines(tmp_path / "cache", source, transform=transform)
    seen: dict[str, list[list[int]]] = {}
    for (batch,) in data.training_batches(0, 40, BatchShard()):
        assert isinstance(batch, CodedBatch)
        for name, codes in zip(batch.names, batch.codes.tolist(), strict=True):
            seen.setdefault(name, []).append(codes)
    rows = [data._cache.record.splits["train"], *(data._train[index] for index in range(4))][1:]
    for row in rows:
        kinds = {tuple(codes) for codes in row.codes.tolist()}
        assert {tuple(codes) for codes in seen[row.name]} == kinds
    (once,), (again,) = (next(iter(data.training_batches(7, 8, BatchShard()))) for _ in range(2))
    assert torch.equal(once.codes, again.codes)


def test_a_cached_split_goes_to_a_worker_as_a_name(cache: Path) -> None:
    _, data = pipelines(cache, SHAPES)
    copy = pickle.loads(pickle.dumps(data._train))
    assert len(pickle.dumps(data._train)) < 10_000
    assert np.array_equal(copy[11].codes, data._train[11].codes)


def test_text_ids_are_used_only_where_they_are_of_the_runs_vocabulary(
    tokenizer: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[str] = []
    original = TextTokenizer.tokenize

    def counting(text: TextTokenizer, captions: Any) -> Any:
        tokenized.extend(captions)
        return original(text, captions)

    monkeypatch.setattr(TextTokenizer, "tokenize", counting)
    short = {"loop.steps": 2, "task.sampled_prompts": 0, "loop.log_every": 1, "loop.evaluate_every": 0}
    assert start(tmp_path / "same", tokenizer, cache, **short)
    previewed = len(tokenized)
    assert start(tmp_path / "shorter", tokenizer, cache, **short, **{"text": TEXT | {"length": 48}})
    assert len(tokenized) == 2 * previewed + 16 + 8, "the 16 captions of training, the 8 validation ones"
    for folder, codes in (("dropout", cache), ("dropout from images", None)):
        assert start(tmp_path / folder, tokenizer, codes, **short, **{"text": TEXT | {"dropout": 0.3}})
    assert metrics(tmp_path / "dropout") == metrics(tmp_path / "dropout from images")
    assert metrics(tmp_path / "dropout") != metrics(tmp_path / "same")


def test_stored_ids_are_what_the_text_tokenizer_gives(tokenizer: Path, cache: Path) -> None:
    text, image = TextTokenizer.from_pretrained(cache), ImageTokenizer.from_pretrained(tokenizer)
    _, data = pipelines(cache, SHAPES)
    batch, drop = data.preview_batch(4), torch.tensor([True, False, False, True])
    ours, theirs = (PairTokenizer(text, image, ids_are_ours=stored)(batch, drop) for stored in (True, False))
    assert torch.equal(ours.text_ids, theirs.text_ids)
    assert torch.equal(ours.codes, theirs.codes)
    assert ours.truncated_fraction == theirs.truncated_fraction
    assert isinstance(batch, CodedBatch)
    assert batch.text_ids is not None
    assert not torch.equal(batch.text_ids[0], ours.text_ids[0]), "the batch itself keeps its caption"


def other_tokenizer(folder: Path, tokenizer: Path) -> Path:
    changed = ImageTokenizer.from_pretrained(tokenizer)
    with torch.no_grad():
        next(changed.autoencoder.encoder.parameters()).add_(1e-3)
    changed.save_pretrained(folder)
    return folder


def test_codes_of_another_image_tokenizer_are_refused_before_anything_else(
    tokenizer: Path, cache: Path, tmp_path: Path
) -> None:
    other = other_tokenizer(tmp_path / "other", tokenizer)
    with pytest.raises(ConfigError) as raised:
        start(tmp_path / "run", other, cache)
    message = str(raised.value)
    assert message == (
        f"data.codes: the codes in {cache} are not those of image_tokenizer {other}, which differs from the one that "
        "made them in the encoder's weights; give that one, or one with its codes and another decoder (codes_from), "
        "or encode anew with this one"
    )
    assert not (tmp_path / "run").exists()


def test_another_source_or_transform_than_the_caches_is_refused(tokenizer: Path, cache: Path, tmp_path: Path) -> None:
    data = {"codes": str(cache), "batch_size": 8, "source": SHAPES | {"train_size": 41}}
    with pytest.raises(ConfigError, match=r"data\.source differs .*train_size: 41 here, 40 there\); leave it out"):
        parti.next_token.train_next_token.train(stage_2(tmp_path, tokenizer, data=data))
    data = {"codes": str(cache), "batch_size": 8, "transform": {"image_size": 32, "crop": "pad"}}
    with pytest.raises(ConfigError, match=r"data\.transform differs .*crop: 'pad' here, 'center' there"):
        parti.next_token.train_next_token.train(stage_2(tmp_path, tokenizer, data=data))


def break_json(folder: Path) -> None:
    (folder / "cache.json").write_text('{"version": 1')


def unfinished(folder: Path) -> None:
    write_record(folder, read_record(folder).model_copy(update={"complete": False}))


def of_the_future(folder: Path) -> None:
    path = folder / "cache.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "cache.json").unlink(), "make one with tools/encode_dataset.py"),
        (break_json, "is not valid JSON"),
        (unfinished, "is unfinished: run tools/encode_dataset.py again"),
        (of_the_future, "has version 2, this program reads version 1"),
        (lambda folder: (folder / "train-00001.arrow").unlink(), "train-00001.arrow is missing"),
        (lambda folder: (folder / "train-00000.arrow").write_bytes(b""), "is missing or damaged"),
        (
            lambda folder: (folder / "train-00000.arrow").write_bytes(
                (folder / "train-00000.arrow").read_bytes()[:900]
            ),
            "is missing or damaged",
        ),
    ],
)
def test_a_cache_that_cannot_be_used_is_one_clear_error(
    damage: Callable[[Path], object], message: str, tokenizer: Path, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    damage(tmp_path / "cache")
    with pytest.raises(DataError, match=message):
        start(tmp_path / "run", tokenizer, tmp_path / "cache")


def test_objectives_that_read_images_have_no_codes() -> None:
    with pytest.raises(ConfigError, match=r"unknown key data\.codes"):
        validate(TrainCaptioningConfig, {"data": {"codes": "somewhere"}}, "test")


def test_the_ids_are_those_of_the_caption_that_was_chosen() -> None:
    """Of several captions each has ids of its own, and a mark of its own whether it was cut."""
    captions = ("one", "two", "three")
    ids = np.arange(12).reshape(3, 4)
    sample = CodedSample(
        image=NO_IMAGE,
        caption=captions[0],
        name="sample",
        captions=captions,
        codes=np.zeros((1, 4), np.uint8),
        text_ids=ids,
        text_truncated=(False, True, False),
    )
    seen = set()
    for seed in range(20):
        item = read_codes(sample, np.random.default_rng(seed), ())
        number = captions.index(item.caption or "")
        assert item.text_ids is not None
        assert item.text_ids.tolist() == ids[number].tolist()
        assert item.text_truncated is (number == 1)
        seen.add(number)
    assert seen == {0, 1, 2}
