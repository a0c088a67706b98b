"""Scores are what transformers computes from the folder's own processor; and one line for what cannot be read."""

import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parti.reranker import scorer as scorer_module
from parti.reranker.dual_encoder import DualEncoderConfig, TowerConfig, build_dual_encoder, build_processor
from parti.reranker.scorer import Scorer
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from tests.tiny import tiny_text_to_image
from vqgan.data.images.transforms import to_pil
from vqgan.hub.model_folder import WEIGHTS_FILE, ModelFolderError

TOWER = TowerConfig(depth=1, width=16, heads=2, mlp_width=32)
OWN = DualEncoderConfig(image_size=16, patch_size=8, image_encoder=TOWER, text_encoder=TOWER, embedding_width=8)
PROMPTS = ["a red cat", "a blue dog over there", "a red cat"]
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_clip(folder: Path) -> None:
    """A random CLIP as others ship it: images resized and cropped, its own mean, CLIP's tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    text = _TOWER | {"vocab_size": 54, "max_position_embeddings": 12, "bos_token_id": 52, "eos_token_id": 53}
    vision = _TOWER | {"image_size": 24, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    crop = {"height": 24, "width": 24}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    make_images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=crop)
    CLIPProcessor(make_images, tokenizer).save_pretrained(folder)


def save_siglip(folder: Path) -> None:
    """A random SigLIP: a bias on the logits, the text read at the last position, padding included."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    text = _TOWER | {"vocab_size": 8, "max_position_embeddings": 6, "projection_size": 16, "pad_token_id": 0}
    text |= {"bos_token_id": 1, "eos_token_id": 1}
    vision = _TOWER | {"image_size": 24, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "cat": 4, "blue": 5}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    inputs = ["input_ids"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_max_length=6, model_input_names=inputs
    )
    SiglipProcessor(SiglipImageProcessor(size={"height": 24, "width": 24}), tokenizer).save_pretrained(folder)


def save_own(folder: Path) -> None:
    """What tools/train_reranker.py ships, with random weights."""
    TextTokenizer.train(PROMPTS, TextTokenizerConfig(vocab_size=270, length=10)).save_pretrained(folder / "vocabulary")
    processor = build_processor(OWN, folder / "vocabulary")
    Scorer(build_dual_encoder(OWN, processor), processor).save_pretrained(folder)


KINDS: dict[str, Callable[[Path], None]] = {"clip": save_clip, "siglip": save_siglip, "own": save_own}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    found = {}
    for kind, save in KINDS.items():
        found[kind] = tmp_path_factory.mktemp(kind) / "folder"
        found[kind].mkdir()
        save(found[kind])
    return found


def make_images(count: int = 3, height: int = 40, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def oracle(folder: Path, images: Tensor, prompts: list[str], padding: str | bool) -> Tensor:
    """transformers alone: logits of each image and its prompt, without scale and bias."""
    import transformers

    name = "Siglip" if padding == "max_length" else "CLIP"
    model: Any = getattr(transformers, f"{name}Model").from_pretrained(folder)
    processor = getattr(transformers, f"{name}Processor").from_pretrained(folder)
    inputs = processor(text=prompts, images=to_pil(images), padding=padding, truncation=True, return_tensors="pt")
    logits = model.eval()(**inputs).logits_per_image.diagonal()
    return (logits - getattr(model, "logit_bias", 0.0)) / model.logit_scale.exp()


@pytest.mark.parametrize(("kind", "padding"), [("clip", True), ("siglip", "max_length"), ("own", True)])
def test_scores_are_the_logits_of_transformers_without_their_scale(
    kind: str, padding: str | bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.from_pretrained(folders[kind])
    expected = oracle(folders[kind], make_images(), PROMPTS, padding)
    scores = scorer.score(make_images(), PROMPTS)
    assert scores.shape == (3,)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    assert len({round(score, 5) for score in scores.tolist()}) == 3
    assert scores.abs().max() <= 1

    monkeypatch.setattr(scorer_module, "_AT_ONCE", 2)
    torch.testing.assert_close(scorer.score(make_images(), PROMPTS), expected, rtol=1e-5, atol=1e-6)


def test_our_own_folder_reads_pixels_as_training_does(folders: dict[str, Path]) -> None:
    scorer = Scorer.from_pretrained(folders["own"])
    levels = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    images = levels / 127.5 - 1
    torch.testing.assert_close(scorer.pixels(to_pil(images)), images, rtol=0, atol=1e-6)
    assert scorer.pixels(to_pil(make_images())).shape == (2 + 1, 3, 16, 16)


def test_our_own_folder_reads_text_between_start_and_end(folders: dict[str, Path]) -> None:
    scorer = Scorer.from_pretrained(folders["own"])
    tokenizer = scorer.processor.tokenizer
    tokens = scorer.tokens(["A red  cat", "", "ein 🦊 über Zürich, weit weg"])
    assert tokens.keys() == {"input_ids", "attention_mask"}
    assert tokens["input_ids"].shape == (3, 10)
    for row, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True):
        used = row[mask.bool()]
        assert used[0] == tokenizer.bos_token_id
        assert used[-1] == tokenizer.eos_token_id == scorer.model.config.text_config.eos_token_id
        assert (row[~mask.bool()] == tokenizer.pad_token_id).all()
    assert scorer.is_cut(["a red cat", "", "ein 🦊 über Zürich, weit weg"]) == [False, False, True]
    assert tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True).split() == ["A", "red", "cat"]


def test_a_run_folder_stands_for_its_model(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["own"], tmp_path / "model")
    scores = [Scorer.from_pretrained(place).score(make_images(), PROMPTS) for place in (tmp_path, folders["own"])]
    assert torch.equal(*scores)


def test_weights_saved_in_half_precision_score_in_fp32(folders: dict[str, Path], tmp_path: Path) -> None:
    half = Scorer.from_pretrained(folders["clip"])
    half.model.half()
    half.save_pretrained(tmp_path)
    scorer = Scorer.from_pretrained(tmp_path)
    assert {weight.dtype for weight in scorer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("images", "prompts"), [(2, 3), (3, 2), (0, 0)])
def test_every_image_needs_a_prompt(images: int, prompts: int, folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=f"received {prompts} prompts for {images} images"):
        Scorer.from_pretrained(folders["own"]).score(make_images(3)[:images], PROMPTS[:prompts])


def test_what_is_no_reranker_is_said_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    (tmp_path / "empty").mkdir()
    tiny_text_to_image().save_pretrained(tmp_path / "stage2")
    BertModel(BertConfig(**_TOWER, vocab_size=8)).save_pretrained(tmp_path / "bert")
    for name, missing in (("no-weights", WEIGHTS_FILE), ("no-words", "tokenizer.json")):
        shutil.copytree(folders["own"], tmp_path / name)
        (tmp_path / name / missing).unlink()
    shutil.copytree(folders["own"], tmp_path / "cut")
    (tmp_path / "cut" / WEIGHTS_FILE).write_bytes((folders["own"] / WEIGHTS_FILE).read_bytes()[:2000])
    cases = {
        "empty": "no model in .*empty: ",
        "stage2": "no model in .*stage2: ",
        "bert": "holds a bert model, which does not compare images with texts; give a CLIP or SigLIP model",
        "no-weights": "its weights are missing or damaged: ",
        "no-words": "its processor is damaged: ",
        "cut": "its weights are missing or damaged: ",
    }
    for name, message in cases.items():
        with pytest.raises(ModelFolderError, match=message) as caught:
            Scorer.from_pretrained(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["owner/name", "nowhere", "/no/such/folder", "./runs/reranker"])
def test_a_name_that_is_nowhere_is_said_without_a_connection(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFolderError, match=f"no CLIP or SigLIP: '{name}' is no folder here") as caught:
        Scorer.from_pretrained(name)
    assert ("and the Hugging Face Hub gives no model of that name" in str(caught.value)) == (name[0] not in "./")
    assert "\n" not in str(caught.value)


def test_a_model_with_weights_left_out_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["own"], tmp_path / "part")
    weights = load_file(tmp_path / "part" / WEIGHTS_FILE)
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "part" / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"its weights lack text_projection\.weight"):
        Scorer.from_pretrained(tmp_path / "part")
