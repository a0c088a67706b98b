"""A model folder with a flipped byte anywhere is refused in one line: no reader gives other weights or words."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parti.fused.captioning.captioner import Captioner
from parti.fused.synthesis import train_synthesis as synthesis_train
from parti.fused.synthesis.pipeline import ProgressiveTextToImage
from parti.pipeline import TextToImage
from parti.reranker.dual_encoder import DualEncoderConfig, build_dual_encoder, build_processor
from parti.reranker.scorer import Scorer
from parti.text.encoders import TrainedTextEncoder
from parti.text.tokenizer import TextTokenizer
from parti.text.warm_start import save_text_encoder, warm_start
from parti.upsampler.upsampler import Upsampler, UpsamplerConfig
from tests.parti.fused.synthesis.tiny_synthesis import tiny_run
from tests.tiny import tiny_image_tokenizer, tiny_text_to_image, tiny_text_tokenizer
from tests.tiny_captions import tiny_captioner
from vqgan.config.schema import ConfigError, validate
from vqgan.hub.model_folder import ModelFolderError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.system.checksums import SUMS_FILE, add_checksums, changed_since_written
from vqgan.training.parallel.distributed import build_accelerator

_FLIPS = 12
_TOWER = {"depth": 1, "width": 16, "heads": 2, "mlp_width": 16}


def text_encoder() -> TrainedTextEncoder:
    tokenizer = tiny_text_tokenizer()
    return TrainedTextEncoder(tokenizer.vocab_size, tokenizer.length, 1, 16, 2, 16, 0.0)


def save_reranker(folder: Path) -> None:
    tiny_text_tokenizer().save_pretrained(folder)
    small = {"image_size": 16, "patch_size": 8, "image_encoder": _TOWER, "text_encoder": _TOWER, "embedding_width": 8}
    config = validate(DualEncoderConfig, small, "test")
    processor = build_processor(config, folder)
    Scorer(build_dual_encoder(config, processor), processor).save_pretrained(folder)


def save_synthesis(folder: Path) -> None:
    task = synthesis_train.build_task(tiny_run(folder / "run"), build_accelerator(), tiny_text_tokenizer())
    task.save_model(folder)


def save_upsampler(folder: Path) -> None:
    Upsampler(UpsamplerConfig(blocks=1, channels=4, expansion=1)).save_pretrained(folder)


FOLDERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "image tokenizer": (lambda folder: tiny_image_tokenizer().save_pretrained(folder), ImageTokenizer.from_pretrained),
    "text to image": (lambda folder: tiny_text_to_image().save_pretrained(folder), TextToImage.from_pretrained),
    "synthesis": (save_synthesis, ProgressiveTextToImage.from_pretrained),
    "captioner": (lambda folder: tiny_captioner().save_pretrained(folder), Captioner.from_pretrained),
    "upsampler": (save_upsampler, Upsampler.from_pretrained),
    "text encoder": (
        lambda folder: save_text_encoder(folder, text_encoder(), tiny_text_tokenizer()),
        lambda folder: (warm_start(text_encoder(), folder), TextTokenizer.from_pretrained(folder)),
    ),
    "reranker": (save_reranker, Scorer.from_pretrained),
}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_flipped_byte_is_noticed(kind: str, tmp_path: Path) -> None:
    save, read = FOLDERS[kind]
    save(tmp_path / "whole")
    read(tmp_path / "whole")
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert len(files) >= 3
    places = torch.Generator().manual_seed(0)
    for file in files:
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged", dirs_exist_ok=True)
        length = (tmp_path / "whole" / file).stat().st_size
        for place in torch.randint(length, (_FLIPS,), generator=places).tolist():
            flip(tmp_path / "damaged" / file, place)
            with pytest.raises((ModelFolderError, ConfigError)) as caught:
                read(tmp_path / "damaged")
            assert "\n" not in str(caught.value)
            flip(tmp_path / "damaged" / file, place)
    read(tmp_path / "damaged")


def test_every_flipped_byte_of_a_vocabulary_is_noticed(tmp_path: Path) -> None:
    tokenizer = tiny_text_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "text_tokenizer.json"
    for place in range(0, path.stat().st_size, 101):
        flip(path, place)
        with pytest.raises(ModelFolderError):
            type(tokenizer).from_pretrained(tmp_path)
        flip(path, place)
    type(tokenizer).from_pretrained(tmp_path)


def test_a_folder_of_an_earlier_version_is_read_as_before(tmp_path: Path) -> None:
    tiny_text_to_image().save_pretrained(tmp_path)
    for sums in (SUMS_FILE, f"image_tokenizer/{SUMS_FILE}"):
        (tmp_path / sums).unlink()
    assert TextToImage.from_pretrained(tmp_path)("a cat").images


def test_the_list_is_that_of_sha256sum_and_grows(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    add_checksums(tmp_path, ["two"])
    add_checksums(tmp_path, ["one"])
    lines = (tmp_path / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    assert [line.split("  ")[1] for line in lines] == ["one", "two"]
    (tmp_path / "one").write_text("other")
    assert changed_since_written(tmp_path, "one") == "it does not have its checksum in SHA256SUMS"
    add_checksums(tmp_path, ["one"])
    assert [changed_since_written(tmp_path, name) for name in ("one", "two")] == ["", ""]
    assert changed_since_written(tmp_path, "three") == "SHA256SUMS beside it does not name it"
