"""Nothing that a model folder, a Hub name or a data set holds can name code: every loader, with a trap in each file."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parti.fused.text_side import TextEmbeddings, TextLayer, TextSideConfig, start_from_bert, text_space
from parti.models import EncoderDecoder
from parti.pairs import token_space
from parti.pipeline import TextToImage
from parti.reranker.scorer import Scorer
from parti.sampling.generate import SamplingConfig
from parti.text import PretrainedTokenizerConfig
from parti.text.encoders import PretrainedTextEncoder, PretrainedTextEncoderConfig
from parti.text.pretrained_tokenizer import load_pretrained_tokenizer
from parti.text.transformers_folder import UnsafeFolderError, check_settings
from tests.parti.reranker.test_scorer import save_clip
from tests.tiny import GENERATOR, tiny_image_tokenizer
from tests.tiny_text_models import WRITERS
from vqgan.config.schema import ConfigError
from vqgan.data.source import DataError
from vqgan.data.sources.huggingface import DatasetConfig, HubDataset
from vqgan.hub.model_folder import CONFIG_FILE, ModelFolderError
from vqgan.metrics.inception import InceptionV3

PACKAGES = [Path(__file__).parents[2] / name for name in ("vqgan", "parti", "tools", "benchmarks")]
LENGTH = 16
Load = Callable[[Path], object]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}
    found["scorer"] = tmp_path_factory.mktemp("scorer")
    save_clip(found["scorer"])
    text = load_pretrained_tokenizer(PretrainedTokenizerConfig(name=str(found["bert"]), length=LENGTH))
    image = tiny_image_tokenizer()
    encoder = PretrainedTextEncoderConfig(name=str(found["bert"]))
    generator = EncoderDecoder(GENERATOR.model_copy(update={"text_encoder": encoder}), token_space(text, image))
    found["stage2"] = tmp_path_factory.mktemp("stage2")
    TextToImage(generator, text, image, SamplingConfig()).save_pretrained(found["stage2"])
    return found


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose code leaves a mark; whoever asks whether to run it is told so; the environment says yes."""
    mark = tmp_path / "PWNED"
    code = tmp_path / "trap.py"
    names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "Trap")
    code.write_text(f"open({str(mark)!r}, 'w')\n" + "".join(f"class {name}: pass\n" for name in names))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked whether to run it"))
    for variable in ("HF_DATASETS_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE"):
        monkeypatch.setenv(variable, "1")
    return code


def load_tokenizer(folder: Path) -> object:
    return load_pretrained_tokenizer(PretrainedTokenizerConfig(name=str(folder), length=LENGTH))


def load_encoder(folder: Path) -> object:
    return PretrainedTextEncoder(PretrainedTextEncoderConfig(name=str(folder)), 10, LENGTH, 32)


def load_warm_start(folder: Path) -> object:
    bert = load_pretrained_tokenizer(PretrainedTokenizerConfig(name=str(WARM["bert"]), length=LENGTH))
    config = TextSideConfig(width=24, heads=2, mlp_width=32, bert=str(folder))
    space = text_space(bert)
    start_from_bert(TextEmbeddings(config, space), [TextLayer(config)], config, space)
    return space


WARM: dict[str, Path] = {}
LOADERS: dict[str, tuple[str, Load]] = {
    "text tokenizer": ("bert", load_tokenizer),
    "text encoder": ("bert", load_encoder),
    "text encoder of T5": ("t5", load_encoder),
    "text encoder of CLIP": ("clip", load_encoder),
    "warm start": ("bert", load_warm_start),
    "scorer": ("scorer", Scorer.from_pretrained),
}


def with_entry(path: Path, entry: dict[str, Any]) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | entry))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_runs_or_asks(loader: str, file: str, folders: dict[str, Path], trap: Path, tmp_path: Path) -> None:
    name, load = LOADERS[loader]
    WARM["bert"] = folders["bert"]
    folder = tmp_path / "folder"
    shutil.copytree(folders[name], folder)
    load(folder)  # as it is, it serves
    for reference in ("trap.Trap", f"{trap.parent}--trap.Trap"):
        shutil.copy(trap, folder / "trap.py")
        auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor"), reference)
        with_entry(folder / file, {"auto_map": auto | {"AutoTokenizer": [reference, reference]}})
        with pytest.raises((ConfigError, ModelFolderError), match=r"auto_map asks transformers for classes") as caught:
            load(folder)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "blip_text_model", "auto_map": {"AutoModel": "TRAP"}}, "'blip_text_model' is no text encoder"),
        ({"auto_map": {"AutoModel": "TRAP"}}, "auto_map asks transformers for classes of its author"),
        ({"model_type": "timm_backbone"}, "is no text encoder"),
        ({"model_type": ["bert"]}, "is no text encoder"),
        ({"model_type": None}, "is no text encoder"),
        ({"_attn_implementation_internal": "someone/kernel"}, "is code of others"),
        ({"attn_implementation": "someone/kernel@main:attention"}, "is code of others"),
        ({"_experts_implementation": {"": "someone/kernel"}}, "is code of others"),
        ({"quantization_config": {"quant_method": "torchao"}}, "a library for quantized weights"),
        ({"attribute_map": {"hidden_size": "x"}}, "a bert has no attribute_map"),
        ({"hidden_sizes": 3}, "a bert has no hidden_sizes"),
        ({"hidden_size": "wide"}, "transformers builds no bert of it"),
        ({"hidden_act": "os.system"}, "transformers builds no bert of it"),
        ({"num_labels": 2**40}, "num_labels is 1099511627776, at most"),
    ],
)
def test_a_stage_2_folder_names_no_code(
    change: dict[str, Any], message: str, folders: dict[str, Path], trap: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["stage2"], folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    planted = json.loads(json.dumps(change).replace("TRAP", f"{trap.parent}--trap.Trap"))
    config["model"]["text_encoder"]["architecture"] |= planted
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises((ConfigError, ModelFolderError), match=message) as caught:
        TextToImage.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "PWNED").exists()


def test_a_stage_2_folder_without_its_network_reads_no_other(folders: dict[str, Path], tmp_path: Path) -> None:
    """Else the folder would decide what is fetched from the Hub, or read elsewhere on this machine."""
    folder = tmp_path / "model"
    shutil.copytree(folders["stage2"], folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["model"]["text_encoder"]["architecture"] = None
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match="names a text encoder outside of the folder"):
        TextToImage.from_pretrained(folder)


def test_what_others_left_in_a_config_is_not_saved_and_does_no_harm(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(folders["bert"], folder)
    with_entry(folder / CONFIG_FILE, {"position_embedding_type": "absolute", "some_key": 3})
    with_entry(folder / "tokenizer_config.json", {"special_tokens_map_file": "/root/of/another/machine.json"})
    load_tokenizer(folder)
    encoder = load_encoder(folder)
    assert isinstance(encoder, PretrainedTextEncoder)
    assert encoder.config.architecture is not None
    assert "some_key" not in encoder.config.architecture


def test_a_folder_names_no_file_of_this_machine_and_holds_regular_files(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    cases: dict[str, Callable[[Path], object]] = {
        "vocab_file names '/dev/zero'": lambda f: with_entry(f / "tokenizer_config.json", {"vocab_file": "/dev/zero"}),
        "gguf_file asks": lambda f: with_entry(f / "tokenizer_config.json", {"gguf_file": "x.gguf"}),
        "extra_ids is 1000000000": lambda f: with_entry(f / "tokenizer_config.json", {"extra_ids": 10**9}),
        "not a regular file": lambda f: (f / "vocab.txt").symlink_to("/dev/zero"),
        "cannot be read": lambda f: (f / "vocab.txt").symlink_to("nowhere"),
        "holds an adapter": lambda f: (f / "adapter_config.json").write_text("{}"),
        "is not valid JSON": lambda f: (f / "processor_config.json").write_text("[" * 10**6),
        "no safetensors file beside it": lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"x": "../../secret.safetensors"}})
        ),
        "bytes, at most": lambda f: (f / "generation_config.json").write_text(" " * (5 << 20)),
    }
    for number, (message, change) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        shutil.copytree(folders["bert"], folder)
        change(folder)
        with pytest.raises(ConfigError, match=message) as caught:
            load_tokenizer(folder)
        assert "\n" not in str(caught.value)


def test_transformers_own_words_for_attention_are_no_code() -> None:
    for word in ("eager", "sdpa", "flash_attention_2", None, {"text_config": "eager"}):
        check_settings({"_attn_implementation": word, "quantization_config": None, "auto_map": {}}, "here")
    with pytest.raises(UnsafeFolderError):
        check_settings({"vision_config": [{"attn_implementation": "me/kernel"}]}, "here")


def test_a_data_set_runs_no_script(trap: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(trap, folder / "images.py")
    for name in (folder, folder / "images.py"):
        with pytest.raises(DataError):
            HubDataset(DatasetConfig(name=str(name)), "train", require_captions=False)
    assert not (tmp_path / "PWNED").exists()


def test_an_evaluator_runs_no_pickle(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "PWNED",))

    torch.save({"weights": Evil()}, tmp_path / "inception.pth")
    with pytest.raises(ConfigError, match="inception"):
        InceptionV3(str(tmp_path / "inception.pth"), torch.device("cpu"))
    assert not (tmp_path / "PWNED").exists()


def test_no_call_leaves_it_to_a_default() -> None:
    """Each call of transformers' and datasets' loaders says that no code of others is run."""
    own = {"ImageTokenizer", "TextTokenizer", "TextToImage", "Scorer", "Upsampler", "Captioner", "Inpainter"}
    own |= {"ProgressiveTextToImage", "NETWORKS[found.kind]", "cls"}
    seen = 0
    for path in (file for package in PACKAGES for file in package.rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if not isinstance(call.func, ast.Attribute):
                continue
            loader, owner = call.func.attr, ast.unparse(call.func.value)
            if loader not in ("from_pretrained", "from_config", "load_dataset", "pipeline") or owner in own:
                continue
            if owner in ("self.pipeline", "super()", "diffusers"):
                continue
            said = {ast.unparse(word.value) for word in call.keywords if word.arg is None}
            said |= {f"{word.arg}={ast.unparse(word.value)}" for word in call.keywords}
            assert said & {"SAFELY", "SAFE_WEIGHTS", "trust_remote_code=False"}, f"{path}:{call.lineno}"
            seen += 1
    assert seen >= 9
