"""ImageTokenizer: images to codes and back, always fp32, and folders that load to the same bits or say why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqgan.config.schema import ConfigError
from vqgan.data.images.transforms import to_pil
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.layers.transformer import TransformerConfig
from vqgan.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from vqgan.quantizers import NearestConfig
from vqgan.system.checksums import SUMS_FILE

pytestmark = pytest.mark.slow_threads

STACK = TransformerConfig(depth=1, width=16, heads=2, mlp_width=24, dropout=0.5)
CONFIG = ViTVQGANConfig(
    image_size=16, patch_size=4, encoder=STACK, decoder=STACK, quantizer=NearestConfig(codebook_size=32, code_dim=6)
)


def build(seed: int = 0) -> ImageTokenizer:
    torch.manual_seed(seed)
    network = ViTVQGAN(CONFIG)
    torch.nn.init.normal_(network.decoder.head[2].weight)  # type: ignore[arg-type]
    return ImageTokenizer(network)


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_encode_embed_decode() -> None:
    tokenizer = build()
    assert (tokenizer.grid, tokenizer.vocab_size, tokenizer.image_size, tokenizer.latent_dim) == ((4, 4), 32, 16, 6)
    codes = tokenizer.encode(images())
    assert codes.shape == (3, 16)
    assert codes.dtype is torch.int64
    assert 0 <= codes.min() <= codes.max() < 32
    latents = tokenizer.embed(codes)
    assert latents.shape == (3, 16, 6)
    torch.testing.assert_close(latents.norm(dim=-1), torch.ones(3, 16))
    image_list = tokenizer.decode(codes)
    assert image_list.shape == (3, 3, 16, 16)
    assert image_list.dtype is torch.float32
    with torch.no_grad():
        expected = tokenizer.autoencoder.decode(latents).images
    assert expected.abs().max() > 1, "or else the clamp would not show"
    assert torch.equal(image_list, expected.clamp(-1, 1))


def test_a_image_does_not_depend_on_its_batch() -> None:
    tokenizer = build()
    assert torch.equal(tokenizer.encode(images())[1:2], tokenizer.encode(images()[1:2]))


def test_encoding_gives_the_codes_that_training_used() -> None:
    tokenizer = build()
    assert torch.equal(tokenizer.encode(images()), tokenizer.autoencoder(images()).quantized.codes)


def test_it_stays_frozen_in_evaluation_mode_and_fp32() -> None:
    tokenizer = build()
    codes, image_list = tokenizer.encode(images()), tokenizer.decode(tokenizer.encode(images()))
    assert tokenizer.train() is tokenizer
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(images()), codes)
        assert torch.equal(tokenizer.decode(codes), image_list)
    assert torch.equal(tokenizer.encode(images().double()), codes)
    assert not tokenizer.decode(codes).requires_grad


def test_a_saved_tokenizer_is_the_same_to_the_bit(tmp_path: Path) -> None:
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [SUMS_FILE, CONFIG_FILE, WEIGHTS_FILE]
    torch.manual_seed(99)
    loaded = ImageTokenizer.from_pretrained(str(tmp_path / "model"))
    assert loaded.autoencoder.config == CONFIG
    codes = tokenizer.encode(images())
    assert torch.equal(loaded.encode(images()), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    for name, weight in tokenizer.autoencoder.state_dict().items():
        assert torch.equal(loaded.autoencoder.state_dict()[name], weight)


@pytest.mark.parametrize("method", ["embed", "decode"])
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 16), 32), r"codes must lie in \[0, 32\), received 32 to 32; they come from another tokenizer"),
        (torch.full((1, 16), -1), r"received -1 to -1"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), r"received shape \(1, 4, 4\); pass"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_codes_that_are_none_are_refused(method: str, codes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(build(), method)(codes)


def test_as_many_codes_as_the_grid_has_places() -> None:
    message = r"an image is 16 codes \(4x4\), received shape \(1, 15\); pass codes as \(B, N\), and `grid`"
    with pytest.raises(ValueError, match=message):
        build().decode(torch.zeros(1, 15, dtype=torch.int64))


def test_images_of_another_size() -> None:
    tokenizer = build()
    images = torch.rand(2, 3, 8, 24) * 2 - 1
    assert tokenizer.grid_of(8, 24) == (2, 6)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, 12)
    assert tokenizer.decode(codes, tokenizer.grid_of(8, 24)).shape == images.shape


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "model")
    assert ImageTokenizer.from_pretrained(tmp_path).vocab_size == 32


def test_no_images_are_no_codes() -> None:
    tokenizer = build()
    codes = tokenizer.encode(images(0))
    assert codes.shape == (0, 16)
    assert tokenizer.decode(codes).shape == (0, 3, 16, 16)


def assert_refused(folder: Path, message: str, kind: type[ValueError] = ModelFolderError) -> None:
    with pytest.raises(kind, match=message) as caught:
        ImageTokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_tokenizer_say_so(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", r"no model in .*nowhere: config\.json is missing")
    build().save_pretrained(tmp_path)
    good, weights = (tmp_path / CONFIG_FILE).read_text(), (tmp_path / WEIGHTS_FILE).read_bytes()

    (tmp_path / CONFIG_FILE).write_text("{")
    assert_refused(tmp_path, "not valid JSON")
    (tmp_path / CONFIG_FILE).write_bytes(b"\xff\xfe\x00")
    assert_refused(tmp_path, "not valid JSON")
    (tmp_path / CONFIG_FILE).write_text("[1]")
    assert_refused(tmp_path, "holds a list, not a")
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"kind": "encoder_decoder"}))
    assert_refused(tmp_path, "of kind 'encoder_decoder', holds no image tokenizer .vit_vqgan.*stage-1 run")
    (tmp_path / CONFIG_FILE).write_text("{}")
    assert_refused(tmp_path, "holds no image tokenizer")
    (tmp_path / CONFIG_FILE).write_text(json.dumps(json.loads(good) | {"patchsize": 4}))
    assert_refused(tmp_path, "unknown key model.patchsize; did you mean model.patch_size", ConfigError)
    (tmp_path / CONFIG_FILE).write_text(good)

    (tmp_path / WEIGHTS_FILE).write_bytes(weights[:-100])
    assert_refused(tmp_path, r"model\.safetensors is damaged or truncated")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"")
    assert_refused(tmp_path, r"model\.safetensors is damaged or truncated")
    (tmp_path / WEIGHTS_FILE).unlink()
    assert_refused(tmp_path, r"no weights in .*: model\.safetensors is missing")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    save_file(weights | {"quantizer.codebook": torch.zeros(16, 6)}, tmp_path / WEIGHTS_FILE)
    assert_refused(tmp_path, r"does not fit its config\.json: .*size mismatch for quantizer\.codebook")
    del weights["encoder.to_latent.bias"]
    save_file(weights, tmp_path / WEIGHTS_FILE)
    assert_refused(tmp_path, r"does not fit its config\.json: .*Missing key.*encoder\.to_latent\.bias")


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    torch.save({"weights": torch.zeros(3)}, tmp_path / WEIGHTS_FILE)
    assert_refused(tmp_path, r"model\.safetensors is damaged")


def test_images_of_every_kind_have_the_same_codes_and_reconstructions(tmp_path: Path) -> None:
    tokenizer = build()
    batch = images(1)
    pil = to_pil(batch)[0]
    pil.save(tmp_path / "a.png")
    levels = torch.from_numpy(np.array(pil)).permute(2, 0, 1)
    expected = tokenizer.encode(levels.float() / 127.5 - 1)
    for one in (pil, tmp_path / "a.png", str(tmp_path / "a.png"), np.array(pil), levels, [pil]):
        assert torch.equal(tokenizer.encode(one), expected)
        assert torch.equal(tokenizer.reconstruct(one), tokenizer.decode(expected))
    assert tokenizer.reconstruct([pil, pil], "pil")[1].size == (16, 16)
    assert tokenizer.decode(expected, output_type="pil")[0].size == (16, 16)
    assert tokenizer.encode(Image.new("RGB", (90, 40))).shape == (1, 16), "a square of the training size"
    assert tokenizer.reconstruct(torch.zeros(1, 3, 16, 32)).shape == (1, 3, 16, 32), "tensors keep their size"


def test_levels_that_are_not_uint8_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lie in \[-1, 1\], received 0 to 255"):
        build().encode(torch.linspace(0, 255, 3 * 16 * 16).view(1, 3, 16, 16))


def test_device_and_repr(tmp_path: Path) -> None:
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path / "model")
    on_meta = ImageTokenizer.from_pretrained(tmp_path / "model", device="meta")
    assert on_meta.device.type == "meta"
    assert tokenizer.device.type == "cpu"
    text = repr(tokenizer)
    assert "\n" not in text
    assert all(word in text for word in ("vit_vqgan", "16x16 pixels", "4x4 codes of 32", "on cpu")), text
