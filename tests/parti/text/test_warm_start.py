"""A warm-up of the text encoder from beginning to end, and stage 2 that starts from what it ships."""

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import parti.next_token.train_next_token
from parti.models import EncoderDecoder
from parti.pipeline import TextToImage
from parti.text import SavedTokenizerConfig, TextTokenizer, build_text_tokenizer
from parti.text.encoders import TrainedTextEncoder
from parti.text.warm_start import save_text_encoder, warm_start
from parti.text_encoder.train_text_encoder import train
from tests.tiny import CAPTIONS, tiny_text_tokenizer
from tests.tiny_runs import stage_2, untrained_tokenizer
from tests.tiny_warm_up import run_config
from vqgan.config.schema import ConfigError, dump_config, load_config
from vqgan.hub.model_folder import ModelFolderError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder

SIZES = (20, 8, 2, 32, 2, 64, 0.0)
"""Of a TrainedTextEncoder: vocabulary, length, depth, width, heads, MLP width, dropout."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("warm-up")
    assert train(run_config(run))
    return run


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_training_tells_more_tokens_and_finds_more_images(trained: Path) -> None:
    records = RunFolder(trained).read_metrics()
    losses = [record for record in records if record["split"] == "train"]
    for name in ("loss_masked", "loss_contrastive"):
        assert float(str(losses[-1][name])) < float(str(losses[0][name])) - 0.3, name
    assert {"batch_accuracy", "masked_accuracy", "logit_scale", "cut_captions", "gradient_norm"} <= losses[0].keys()
    val = [record for record in records if record["split"] == "val"]
    nats, told, *retrieval = (
        [float(str(record[name])) for record in val]
        for name in ("masked_nats", "masked_accuracy", "image_to_text_accuracy", "text_to_image_accuracy")
    )
    assert nats[-1] < nats[0] < math.log(400)
    assert told[-1] > 0.2
    assert sum(values[-1] for values in retrieval) > 6 / 96, "chance is 1/96, twice"
    assert (trained / "samples" / "step-0000060.png").is_file()


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "checkpoints" / "step-0000060")
    shutil.rmtree(run / "model")
    assert train(run_config(run))
    assert (run / "model" / "model.safetensors").read_bytes() == (trained / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"text: the run in .* was started with"):
        train(run_config(run, text={"length": 20}))


def test_what_is_shipped_is_the_text_encoder_alone_and_its_vocabulary(trained: Path) -> None:
    weights = load_file(trained / "model" / "model.safetensors")
    vocabulary = TextTokenizer.from_pretrained(trained / "model").vocab_size
    fresh = TrainedTextEncoder(vocabulary, 24, 1, 32, 2, 64, 0.0)
    shapes = {name: weight.shape for name, weight in fresh.state_dict().items()}
    assert {name: weight.shape for name, weight in weights.items()} == shapes
    assert sorted(path.name for path in (trained / "model").iterdir()) == [
        *("SHA256SUMS", "config.json", "model.safetensors", "text_tokenizer.json")
    ]


def warm(folder: Path | str, text: Path | str | None = None) -> dict[str, Any]:
    return {
        "text": {"kind": "saved", "folder": str(text or folder)},
        "model.width": 32,
        "model.mlp_width": 64,
        "model.text_encoder": {"kind": "trained", "start": str(folder)},
        "loop.steps": 2,
        "loop.save_every": 1,
        "task.sampled_prompts": 0,
    }


def test_stage_2_starts_from_the_folder_and_differs_in_nothing_else(trained: Path, image_tokenizer: Path) -> None:
    generators = []
    for changes in (warm(trained), {**warm(trained), "model.text_encoder": {"kind": "trained"}}):
        config = stage_2(Path("nowhere"), image_tokenizer, **changes)
        torch.manual_seed(1)
        text, image = build_text_tokenizer(config.text, list), ImageTokenizer.from_pretrained(image_tokenizer)
        task = parti.next_token.train_next_token.build_task(config, build_accelerator(), text, image)
        assert isinstance(task.generator, EncoderDecoder)
        generators.append(task.generator.state_dict())
        averaged = task.ema.module.state_dict()
        assert all(torch.equal(averaged[name], weight) for name, weight in generators[-1].items())
    weights = load_file(trained / "model" / "model.safetensors")
    started, plain = generators
    for name, weight in started.items():
        own = name.removeprefix("text_encoder.")
        assert torch.equal(weight, weights[own] if name != own else plain[name]), name


def test_a_started_run_resumes_and_its_model_needs_the_folder_no_more(
    trained: Path, image_tokenizer: Path, tmp_path: Path
) -> None:
    start = shutil.copytree(trained / "model", tmp_path / "start")
    changes = warm(start)
    config = stage_2(tmp_path / "run", image_tokenizer, **changes)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(type(config), tmp_path / "config.yaml") == config
    assert parti.next_token.train_next_token.train(config)
    assert parti.next_token.train_next_token.train(
        stage_2(tmp_path / "run", image_tokenizer, **changes | {"loop.steps": 3})
    )
    shutil.rmtree(start)
    model = TextToImage.from_pretrained(tmp_path / "run")
    assert len(model("a large red circle", guidance_scale=1.5).images) == 1
    assert model.text_tokenizer.vocab_size == TextTokenizer.from_pretrained(trained).vocab_size
    with pytest.raises(ModelFolderError, match=r"no model in .*start"):
        parti.next_token.train_next_token.train(
            stage_2(tmp_path / "run", image_tokenizer, **changes | {"loop.steps": 4})
        )


def test_another_vocabulary_than_that_of_the_start_is_refused(trained: Path, image_tokenizer: Path) -> None:
    for text in ({"kind": "bpe", "vocab_size": 280}, {"kind": "saved", "folder": "elsewhere"}):
        with pytest.raises(ConfigError, match=r"set text\.kind to saved and text\.folder to '") as caught:
            stage_2(Path("nowhere"), image_tokenizer, **warm(trained) | {"text": text})
        assert "\n" not in str(caught.value)


def test_other_sizes_than_those_of_the_start_are_refused_by_name(tmp_path: Path) -> None:
    save_text_encoder(tmp_path, TrainedTextEncoder(*SIZES), tiny_text_tokenizer())
    encoder = TrainedTextEncoder(*SIZES)
    warm_start(encoder, tmp_path)
    cases = {
        0: r"vocab_size 20, not 21 \(the vocabulary of text\.folder\)",
        1: r"length 8, not 9 \(the length of text\.folder\)",
        2: r"depth 2, not 3 \(model\.encoder_depth\)",
        3: r"width 32, not 34 \(model\.width\)",
        4: r"heads 2, not 4 \(model\.heads\)",  # no shape shows it
        5: r"mlp_width 64, not 65 \(model\.mlp_width\)",
    }
    others = {0: 21, 1: 9, 2: 3, 3: 34, 4: 4, 5: 65}
    for place, message in cases.items():
        sizes: list[Any] = list(SIZES)
        sizes[place] = others[place]
        with pytest.raises(ConfigError, match=message) as caught:
            warm_start(TrainedTextEncoder(*sizes), tmp_path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count(", not ") == 1


def test_a_folder_that_is_no_text_encoder_is_refused(image_tokenizer: Path, tmp_path: Path) -> None:
    fill = partial(warm_start, TrainedTextEncoder(*SIZES))
    with pytest.raises(ModelFolderError, match=r"no model in .*nowhere"):
        fill(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match=r"holds no text encoder .* tools/train_text_encoder\.py"):
        fill(image_tokenizer)
    save_text_encoder(tmp_path, TrainedTextEncoder(*SIZES), tiny_text_tokenizer())
    values = json.loads((tmp_path / "config.json").read_text())
    del values["sizes"]["heads"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="heads is required"):
        fill(tmp_path)


def test_a_saved_vocabulary_is_that_of_any_run_or_model_folder(trained: Path, tmp_path: Path) -> None:
    own = TextTokenizer.from_pretrained(trained)
    for folder in (trained, trained / "model"):
        found = build_text_tokenizer(SavedTokenizerConfig(folder=str(folder)), list)
        assert torch.equal(found.encode(CAPTIONS), own.encode(CAPTIONS))
    with pytest.raises(ModelFolderError, match=r"no text tokenizer in .*: text_tokenizer\.json is missing"):
        build_text_tokenizer(SavedTokenizerConfig(folder=str(tmp_path)), list)
