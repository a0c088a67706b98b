"""A run that resumes with another frozen part, another meaning of its weights or another vocabulary is refused in one
line; damage that training does not depend on is one line, and the run goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import parti.next_token.train_next_token
import vqgan.train_tokenizer
from parti.code_cache.encode import encode
from parti.code_cache.settings import EncodeConfig
from parti.fused.captioning import train_captioning as captioning_train
from parti.pipeline import TextToImage
from parti.reranker import train_reranker as reranking
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from parti.text_encoder import train_text_encoder as warming_up
from parti.upsampler import train_upsampler as upsampling
from tests import tiny_captions, tiny_warm_up
from tests.tiny_runs import stage_1, stage_2, untrained_tokenizer
from tests.tiny_text_models import write_bert
from vqgan.config.schema import Config, ConfigError, validate
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.system.checksums import SUMS_FILE
from vqgan.training.checkpoints.run_identity import IDENTITY_FILE
from vqgan.training.checkpoints.store import CheckpointError

SHORT: dict[str, Any] = {"loop": {"steps": 2, "save_every": 1, "evaluate_every": 0, "preview_every": 0}}
LONGER = {"loop": SHORT["loop"] | {"steps": 3}}
_TOWER = {"depth": 1, "width": 16, "heads": 2, "mlp_width": 16}
_IMAGES = {
    "source": {"kind": "shapes", "train_size": 16, "val_size": 8},
    "transform": {"image_size": 16},
    "batch_size": 4,
}


def nudge(folder: Path, part: str) -> None:
    """The tokenizer at this path, trained on: same sizes, other weights."""
    tokenizer = ImageTokenizer.from_pretrained(folder)
    with torch.no_grad():
        next(tokenizer.autoencoder.get_submodule(part).parameters()).add_(1e-3)
    tokenizer.save_pretrained(folder)


def next_token(folder: Path, **changes: Any) -> bool:
    return parti.next_token.train_next_token.train(
        stage_2(folder / "run", folder / "tokenizer", **SHORT | {"task.sampled_prompts": 0} | changes)
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished stage-2 run, run/, and its tokenizer/."""
    untrained_tokenizer(tmp_path / "tokenizer")
    assert next_token(tmp_path)
    return tmp_path


def refused(go_on: Callable[[], object], *words: str) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        go_on()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize(("part", "what"), [("encoder", "encoder was "), ("quantizer", "quantizer was ")])
def test_another_image_tokenizer_at_the_same_path(run: Path, part: str, what: str) -> None:
    before = {path: path.read_bytes() for path in (run / "run").rglob("*") if path.is_file()}
    nudge(run / "tokenizer", part)
    message = refused(lambda: next_token(run, **LONGER), "image_tokenizer: the run in", what, "put the former one back")
    assert "the run's model/image_tokenizer is a copy" in message
    assert {path: path.read_bytes() for path in (run / "run").rglob("*") if path.is_file()} == before
    shutil.copytree(run / "run/model/image_tokenizer", run / "tokenizer", dirs_exist_ok=True)
    assert next_token(run, **LONGER), "the remedy is one"


def test_another_decoder_of_the_same_codes_goes_on_and_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nudge(run / "tokenizer", "decoder")
    capsys.readouterr()
    assert next_token(run, **LONGER)
    assert "image_tokenizer's decoder is another one than before (decoder was " in capsys.readouterr().err
    expected = ImageTokenizer.from_pretrained(run / "tokenizer").decoder_fingerprint()
    assert TextToImage.from_pretrained(run / "run").image_tokenizer.decoder_fingerprint() == expected
    assert next_token(run, **LONGER)
    assert "another one than before" not in capsys.readouterr().err, "once"


def test_a_finished_run_takes_another_decoder_of_the_same_codes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "tokenizer", run / "second")
    nudge(run / "second", "decoder")
    generator = (run / "run/model/model.safetensors").read_bytes()
    config = stage_2(run / "run", run / "second", **SHORT | {"task.sampled_prompts": 0})
    capsys.readouterr()
    assert parti.next_token.train_next_token.train(config)
    assert f"{run / 'run/model'} is written anew with that" in capsys.readouterr().err
    drawing = TextToImage.from_pretrained(run / "run").image_tokenizer
    assert drawing.decoder_fingerprint() == ImageTokenizer.from_pretrained(run / "second").decoder_fingerprint()
    assert (run / "run/model/model.safetensors").read_bytes() == generator
    assert sorted(path.name for path in (run / "run/checkpoints").iterdir()) == ["step-0000001", "step-0000002"]


def test_another_tokenizer_behind_a_code_cache(run: Path) -> None:
    transform = {"image_size": 32}
    values = {"tokenizer": str(run / "tokenizer"), "out": str(run / "cache"), "data": {"transform": transform}}
    values["data"]["source"] = _IMAGES["source"]
    assert encode(validate(EncodeConfig, values, "test"))
    cached = {"data": {"codes": str(run / "cache"), "batch_size": 8}}
    config = stage_2(run / "coded", run / "tokenizer", **SHORT | cached)
    assert parti.next_token.train_next_token.train(config)
    nudge(run / "tokenizer", "encoder")
    refused(lambda: parti.next_token.train_next_token.train(config), "data.codes", "the encoder's weights")
    for path in (run / "cache").iterdir():
        path.unlink()
    assert encode(validate(EncodeConfig, values, "test")), "anew, with the other tokenizer"
    refused(lambda: parti.next_token.train_next_token.train(config), "image_tokenizer: the run in", "encoder was ")


@pytest.mark.parametrize("frozen", [True, False])
def test_another_text_encoder_at_the_same_path(frozen: bool, tmp_path: Path) -> None:
    from transformers import BertModel

    untrained_tokenizer(tmp_path / "tokenizer")
    bert = write_bert(tmp_path / "bert")
    text = {"text": {"kind": "pretrained", "name": str(bert), "length": 32}}
    text |= {"model.text_encoder": {"kind": "pretrained", "name": str(bert), "frozen": frozen}}
    assert next_token(tmp_path, **text)
    network: Any = BertModel.from_pretrained(bert)
    with torch.no_grad():
        network.embeddings.word_embeddings.weight.add_(1e-3)
    network.save_pretrained(bert)
    if frozen:
        refused(lambda: next_token(tmp_path, **text | LONGER), "model.text_encoder: the run in", "weights was ")
    else:
        assert next_token(tmp_path, **text | LONGER), "the checkpoint has the weights"
    settings = json.loads((bert / "config.json").read_text(encoding="utf-8")) | {"num_attention_heads": 4}
    (bert / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    longest = {"loop": SHORT["loop"] | {"steps": 4}}
    refused(lambda: next_token(tmp_path, **text | longest), "model.text_encoder: the run in", "architecture was ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.heads": 4}, "model.heads was 2 and is 4"),
        ({"model.attention": "convolution"}, "model.attention was full and is convolution"),
        ({"model.options": {"rotary": True}}, "model.options.rotary was False and is True"),
        ({"model.options": {"norm": "rms"}}, "model.options.norm was layer and is rms"),
        ({"model.kind": "decoder_only", "model.depth": 1}, "model.kind was encoder_decoder and is decoder_only"),
    ],
)
def test_a_setting_that_no_tensor_shows(change: dict[str, Any], said: str, run: Path) -> None:
    if "model.kind" in change:
        whole = {"kind": "decoder_only", "depth": 1, "width": 16, "heads": 2, "mlp_width": 32}
        change = {"model": whole}
    refused(lambda: next_token(run, **LONGER | change), said, "its weights mean something else with that; set it back")
    assert next_token(run, **LONGER | {"model.dropout": 0.0, "task.caption_dropout": 0.2, "seed": 3}), (
        "these may change"
    )


def test_a_checkpoint_of_an_earlier_version_is_compared_with_the_recorded_config(run: Path) -> None:
    for step in (1, 2):
        folder = run / f"run/checkpoints/step-000000{step}"
        (folder / IDENTITY_FILE).unlink()
        lines = (folder / SUMS_FILE).read_text().splitlines(keepends=True)
        (folder / SUMS_FILE).write_text("".join(line for line in lines if IDENTITY_FILE not in line))
    refused(lambda: next_token(run, **LONGER | {"model.heads": 4}), "model.heads was 2 and is 4")
    assert next_token(run, **LONGER)


# Stage 1 and the others


def perceptual(folder: Path, seed: int) -> Path:
    """A file of squeezenet's weights, which are random."""
    import torchvision

    torch.manual_seed(seed)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), folder / "squeezenet.pth")
    return folder / "squeezenet.pth"


def test_other_perceptual_weights_at_the_same_path(tmp_path: Path) -> None:
    path = perceptual(tmp_path, 0)
    term = {"task.perceptual": {"weight": 0.1, "backbone": "squeeze", "weights": str(path)}}

    def go_on(**changes: Any) -> bool:
        return vqgan.train_tokenizer.train(
            stage_1(tmp_path / "run", **SHORT | term | {"task.adversarial.weight": 0.0} | changes)
        )

    assert go_on()
    path.rename(tmp_path / "moved.pth")
    assert go_on(**LONGER | {"task.perceptual": term["task.perceptual"] | {"weights": str(tmp_path / "moved.pth")}})
    perceptual(tmp_path, 1)
    refused(lambda: go_on(**LONGER), "task.perceptual: the run in", "weights was ")


def test_other_codes_to_keep_at_the_same_path(tmp_path: Path) -> None:
    untrained_tokenizer(tmp_path / "small")
    keeping = {"codes_from": str(tmp_path / "small"), "task.codebook_maintenance": {"memory": 64}}

    def go_on(**changes: Any) -> bool:
        return vqgan.train_tokenizer.train(stage_1(tmp_path / "run", **SHORT | keeping | changes))

    assert go_on()
    nudge(tmp_path / "small", "decoder")
    assert go_on(), "of it the decoder was only where this one's started"
    nudge(tmp_path / "small", "encoder")
    refused(lambda: go_on(**LONGER), "codes_from: the run in", "encoder was ")
    refused(lambda: go_on(**LONGER | {"codes_from": None}), "codes_from: the run in", "is learned in this run")


def upsampler(folder: Path, steps: int = 2) -> bool:
    values = {
        "run_dir": str(folder / "run"),
        "image_tokenizer": str(folder / "tokenizer"),
        "data": _IMAGES | {"transform": {"image_size": 64}},
        "model": {"blocks": 1, "channels": 4, "expansion": 1},
        "task": {"perceptual": {"weight": 0}, "adversarial": {"weight": 0}, "precision": "fp32"},
        "loop": SHORT["loop"] | {"steps": steps},
    }
    return upsampling.train(validate(upsampling.TrainUpsamplerConfig, values, "test"))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_upsampler_knows_what_its_own_tokenizer_decodes(part: str, tmp_path: Path) -> None:
    untrained_tokenizer(tmp_path / "tokenizer")
    assert upsampler(tmp_path)
    nudge(tmp_path / "tokenizer", part)
    refused(lambda: upsampler(tmp_path, steps=3), "image_tokenizer: the run in", f"{part} was ")


def reranker(folder: Path, steps: int, heads: int) -> tuple[Callable[[Any], bool], Config]:
    values = {
        "run_dir": str(folder),
        "data": _IMAGES,
        "text": {"vocab_size": 300, "length": 24, "training_captions": 20},
        "model": {
            "image_size": 16,
            "patch_size": 8,
            "image_encoder": _TOWER,
            "text_encoder": _TOWER | {"heads": heads},
            "embedding_width": 8,
        },
        "loop": SHORT["loop"] | {"steps": steps},
    }
    return reranking.train, validate(reranking.TrainRerankerConfig, values, "test")


def warm_up(folder: Path, steps: int, heads: int) -> tuple[Callable[[Any], bool], Config]:
    loop = SHORT["loop"] | {"steps": steps}
    return warming_up.train, tiny_warm_up.run_config(folder, data=_IMAGES, model={"heads": heads}, loop=loop)


def captioning(folder: Path, steps: int, heads: int) -> tuple[Callable[[Any], bool], Config]:
    loop = SHORT["loop"] | {"steps": steps}
    model = {"text": tiny_captions.MODEL["text"] | {"heads": heads}}
    return captioning_train.train, tiny_captions.run_config(folder, model=model, loop=loop)


def tokenizer(folder: Path, steps: int, heads: int) -> tuple[Callable[[Any], bool], Config]:
    changes = {"loop": SHORT["loop"] | {"steps": steps}, "task.adversarial.weight": 0.0}
    encoder = {"depth": 1, "width": 16, "heads": heads, "mlp_width": 32}
    return vqgan.train_tokenizer.train, stage_1(folder, **changes, **{"model.encoder": encoder})


@pytest.mark.parametrize(
    "objective", [reranker, warm_up, captioning, tokenizer], ids=lambda objective: objective.__name__
)
def test_heads_of_every_objective(objective: Any, tmp_path: Path) -> None:
    train, config = objective(tmp_path / "run", 2, 2)
    assert train(config)
    train, other = objective(tmp_path / "run", 3, 4)
    refused(lambda: train(other), "heads was 2 and is 4")
    train, longer = objective(tmp_path / "run", 3, 2)
    assert train(longer)


# What lies in the run's folder


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def test_a_damaged_vocabulary_wherever_the_byte_is(run: Path) -> None:
    path = run / "run/text_tokenizer.json"
    for place in range(7, path.stat().st_size, path.stat().st_size // 12):
        flip(path, place)
        refused(
            lambda: next_token(run, **LONGER), "the vocabulary of this run: ", "model/text_tokenizer.json is a copy"
        )
        flip(path, place)
    assert next_token(run, **LONGER)


def test_another_vocabulary_with_its_own_checksum(run: Path) -> None:
    words = ["other words", "of another data set"]
    TextTokenizer.train(words, TextTokenizerConfig(vocab_size=280, length=64)).save_pretrained(run / "run")
    message = refused(lambda: next_token(run, **LONGER), "is not the one that this run was trained with; copy")
    assert str(run / "run/model/text_tokenizer.json") in message
    for name in ("text_tokenizer.json", SUMS_FILE):
        shutil.copy(run / "run/model" / name, run / "run" / name)
    assert next_token(run, **LONGER), "the remedy is one"


def test_a_vocabulary_that_is_gone_is_not_learned_anew_in_silence(run: Path) -> None:
    (run / "run/text_tokenizer.json").unlink()
    changed = {"data.source": {"kind": "shapes", "train_size": 40, "val_size": 8, "seed": 5}}
    refused(lambda: next_token(run, **LONGER | changed), "is not the one that this run was trained with")


def test_damaged_metrics_are_one_line_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untrained_tokenizer(tmp_path / "tokenizer")
    many = {"loop": {"steps": 10, "log_every": 1, "evaluate_every": 0, "preview_every": 0, "save_every": 5}}
    assert next_token(tmp_path, **many)
    path = tmp_path / "run/metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    for number, bit in ((1, 1), (4, 128), (6, 4), (8, 2)):
        flip(path, starts[number] + len(lines[number]) // 2, bit)
    capsys.readouterr()
    assert next_token(tmp_path, **many | {"loop": many["loop"] | {"steps": 11}})
    said = [line for line in capsys.readouterr().err.splitlines() if "not as they were written" in line]
    assert said == [
        f"stage 2: {path}: 4 of its {len(lines)} lines are not as they were written (lines 2, 5, 7, 9); their record "
        "is lost, training does not depend on it"
    ]


@pytest.mark.parametrize("damage", ["cut", "gone", "newline"])
def test_metrics_that_lost_lines(damage: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "run/metrics.jsonl"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    elif damage == "gone":
        path.unlink()
    else:
        flip(path, path.read_bytes().index(b"\n"))
    capsys.readouterr()
    assert next_token(run, **LONGER)
    assert "lines are not as they were written" in capsys.readouterr().err


def test_a_damaged_record_of_the_settings_is_said_and_written_anew(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "run/config.yaml"
    path.write_bytes(b"\xff: [" + path.read_bytes())
    capsys.readouterr()
    assert next_token(run, **LONGER)
    assert "the record of its settings was damaged, and is written anew" in capsys.readouterr().err
    path.unlink()
    assert next_token(run, **LONGER), "the checkpoints say what the run began with"


def test_what_a_checkpoint_notes_can_be_read(run: Path) -> None:
    noted = json.loads((run / "run/checkpoints/step-0000002" / IDENTITY_FILE).read_text(encoding="utf-8"))
    assert noted["settings"]["model.heads"] == 2
    assert set(noted["frozen"]) == {"image_tokenizer", "image_tokenizer's decoder"}
    assert list(noted["files"]) == ["text_tokenizer.json"]
    assert str(run) not in json.dumps(noted), "a run may be moved"
