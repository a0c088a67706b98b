"""An image tokenizer that stays in its folder: the same face, nothing in memory, and what its fingerprint is of."""

import hashlib
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_image_tokenizer
from vqgan.fingerprints import file_fingerprint
from vqgan.hub.model_folder import ModelFolderError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.stored_tokenizer import StoredImageTokenizer, files_fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_image_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def test_it_translates_as_the_tokenizer_in_the_folder_does(folder: Path) -> None:
    stored, kept = StoredImageTokenizer(folder).to("cpu"), ImageTokenizer.from_pretrained(folder)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = kept.encode(images)
    assert torch.equal(stored.encode(images), codes)
    assert torch.equal(stored.embed(codes), kept.embed(codes))
    assert torch.equal(stored.decode(codes), kept.decode(codes))
    assert (stored.grid, stored.vocab_size, stored.image_size) == (kept.grid, kept.vocab_size, kept.image_size)
    assert (stored.latent_dim, stored.grid_of(32, 16)) == (kept.latent_dim, kept.grid_of(32, 16))
    everything = [*stored.parameters(), *stored.buffers()]
    assert {thing.device.type for thing in everything} == {"meta"}


def test_translating_draws_nothing_from_the_random_state(folder: Path) -> None:
    stored = StoredImageTokenizer(folder)
    before = torch.get_rng_state()
    stored.decode(torch.zeros(1, 16, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_starts_with_the_draws_of_the_tokenizer_that_is_kept(folder: Path) -> None:
    states = []
    for kind in (StoredImageTokenizer, ImageTokenizer.from_pretrained):
        torch.manual_seed(1)
        kind(folder)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_tokenizer_that_cannot_be_read_shows_at_the_start(folder: Path) -> None:
    weights = folder / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelFolderError, match="damaged or truncated"):
        StoredImageTokenizer(folder)


def test_saving_copies_the_files(folder: Path, tmp_path: Path) -> None:
    StoredImageTokenizer(folder).save_pretrained(tmp_path / "copy")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / "model" / name).read_bytes()


def test_the_fingerprint_is_the_hash_of_names_lengths_and_bytes(folder: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        content = (folder / "model" / name).read_bytes()
        expected.update(name.encode() + b"\0" + len(content).to_bytes(8, "big") + content)
    assert files_fingerprint(folder) == expected.hexdigest(), "a run folder has its model's"
    assert files_fingerprint(folder / "model") == expected.hexdigest()
    tiny_image_tokenizer().save_pretrained(tmp_path / "again")
    assert files_fingerprint(tmp_path / "again") == expected.hexdigest()
    tiny_image_tokenizer(seed=1).save_pretrained(tmp_path / "other")
    assert files_fingerprint(tmp_path / "other") != expected.hexdigest()
    with pytest.raises(ModelFolderError, match=r"config\.json is missing"):
        files_fingerprint(tmp_path / "nowhere")


def test_a_files_fingerprint_is_its_hash(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    assert file_fingerprint(tmp_path / "file") == hashlib.sha256(b"text").hexdigest()
