"""The super-resolution network: its size, what it is when fresh, weight normalization, any image size, its folder."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from parti.upsampler.upsampler import TrainedOn, Upsampler, UpsamplerConfig, WeightNormConv2d, bicubic
from tests.tiny import tiny_image_tokenizer
from vqgan.config.schema import ConfigError
from vqgan.data.images.transforms import to_pil
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError

pytestmark = pytest.mark.slow_threads

TINY = UpsamplerConfig(blocks=1, channels=8, expansion=2)
BORDER = 6
"""Pixels of a large image whose surroundings end at the image's edge."""


def make_images(height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    """Of middle contrast: cubic interpolation, which overshoots, stays within [-1, 1]."""
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 0.5


def trained(config: UpsamplerConfig = TINY) -> Upsampler:
    """One whose residual path says something."""
    torch.manual_seed(0)
    upsampler = Upsampler(config)
    for name, weight in upsampler.named_parameters():
        if name.endswith("tail.gain"):
            nn.init.constant_(weight, 0.3)
    return upsampler


def inner(images: Tensor, border: int = BORDER) -> Tensor:
    return images[..., border:-border, border:-border]


@pytest.mark.parametrize(("scale", "millions"), [(2, 14.2), (4, 28.4)])
def test_the_papers_network_has_the_papers_size(scale: int, millions: float) -> None:
    with torch.device("meta"):
        upsampler = Upsampler(UpsamplerConfig.model_validate({"scale": scale}))
    count = sum(parameter.numel() for parameter in upsampler.parameters())
    blocks, width, wide = 12, 128, 512
    layers = [(3, width, 3), (width, 12, 3), (3, 12, 5)] + blocks * [(width, wide, 3), (wide, width, 3)]
    # A filter's weights, its bias and its gain.
    doubling = sum(channels_out * (channels * kernel**2 + 2) for channels, channels_out, kernel in layers)
    assert count == doubling * (scale // 2)
    assert round(count / 1e6, 1) == millions


def test_a_fresh_one_is_bicubic_interpolation() -> None:
    images = make_images()
    with torch.no_grad():
        doubled = Upsampler(TINY)(images)
        assert doubled.shape == (2, 3, 32, 32)
        torch.testing.assert_close(inner(doubled), inner(bicubic(images, 2)), rtol=0, atol=1e-6)
        quadrupled = Upsampler(UpsamplerConfig(scale=4, blocks=1, channels=8))(images)
    twice = bicubic(bicubic(images, 2), 2)
    torch.testing.assert_close(inner(quadrupled, 3 * BORDER), inner(twice, 3 * BORDER), rtol=0, atol=1e-6)


def test_a_fresh_one_keeps_the_borders_of_a_plain_image() -> None:
    images = torch.full((1, 3, 8, 8), -0.8)
    torch.testing.assert_close(Upsampler(TINY).upsample(images), torch.full((1, 3, 16, 16), -0.8), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_baseline_is_pillows_bicubic(scale: int) -> None:
    (image,) = to_pil(make_images()[:1])
    images = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    (ours,) = to_pil(bicubic(images, scale))
    theirs = image.resize((16 * scale, 16 * scale), Image.Resampling.BICUBIC)
    assert np.abs(np.array(ours).astype(int) - np.array(theirs)).max() <= 1


def test_the_skip_is_fp32_under_autocast() -> None:
    images = make_images()
    upsampler = Upsampler(TINY)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = upsampler(images)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, upsampler(images))


def test_training_reaches_every_weight() -> None:
    upsampler = trained()
    upsampler(make_images()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in upsampler.parameters())


def test_training_can_begin_where_the_residual_path_is_still_closed() -> None:
    upsampler = Upsampler(TINY)
    upsampler(make_images()).square().sum().backward()
    gradient = upsampler.last_layer.grad
    assert gradient is not None
    assert gradient.any()
    assert not upsampler.last_layer.any()


def test_convolutions_are_those_of_torchs_weight_norm() -> None:
    torch.manual_seed(0)
    ours = WeightNormConv2d(4, 6, 3)
    theirs = weight_norm(nn.Conv2d(4, 6, 3, padding=1))
    norm = theirs.parametrizations.weight
    with torch.no_grad():
        ours.gain.mul_(torch.rand(6, 1, 1, 1) + 0.5)
        norm.original0.copy_(ours.gain)
        norm.original1.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours.gain.grad, norm.original0.grad)
    torch.testing.assert_close(ours.weight.grad, norm.original1.grad)


def test_the_length_of_a_direction_does_not_matter_and_a_set_weight_is_used() -> None:
    torch.manual_seed(0)
    layer, x = WeightNormConv2d(3, 2, 5), torch.randn(1, 3, 8, 8)
    weight = torch.randn(2, 3, 5, 5)
    layer.set_weight(weight)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias, padding=2))
    longer = copy.deepcopy(layer)
    longer.weight.data *= 3
    torch.testing.assert_close(longer(x), layer(x))


def test_a_part_of_a_image_is_generated_as_within_the_whole() -> None:
    """Fully convolutional: nothing depends on the image's size or on the place within it."""
    upsampler, images = trained(), make_images(20, 26)
    with torch.no_grad():
        whole, part = upsampler(images), upsampler(images[:, :, 3:18, 5:24])
    reach = 5  # small pixels: head, block and tail reach 1 + 2 + 1
    torch.testing.assert_close(inner(part, 2 * reach), inner(whole[:, :, 6:36, 10:48], 2 * reach), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (16, 9)])
@pytest.mark.parametrize("scale", [2, 4])
def test_any_size_of_image(height: int, width: int, scale: int) -> None:
    upsampler = trained(TINY.model_copy(update={"scale": scale}))
    enlarged = upsampler.upsample(4 * make_images(height, width))
    assert enlarged.shape == (2, 3, scale * height, scale * width)
    assert -1 <= enlarged.min() <= enlarged.max() <= 1
    (image,) = to_pil(make_images(height, width)[:1])
    assert upsampler.enlarge(image).size == (scale * width, scale * height)


def test_a_image_is_enlarged_as_its_tensor_is() -> None:
    upsampler = trained()
    images = torch.randint(256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    (expected,) = to_pil(upsampler.upsample(images))
    assert np.array_equal(upsampler.enlarge(to_pil(images)[0]), expected)
    assert not np.array_equal(expected, to_pil(bicubic(images, 2))[0])


@pytest.mark.parametrize("folder", ["model", "."])
def test_a_saved_one_draws_the_same(folder: str, tmp_path: Path) -> None:
    upsampler = trained(TINY.model_copy(update={"scale": 4}))
    upsampler.save_pretrained(tmp_path / folder)
    again = Upsampler.from_pretrained(tmp_path)
    assert again.config == upsampler.config
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(again.upsample(make_images()), upsampler.upsample(make_images()))


def test_another_decoder_is_said_and_other_codes_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny_image_tokenizer()
    upsampler = trained()
    upsampler.trained_on = TrainedOn.of(tokenizer)
    upsampler.save_pretrained(tmp_path)
    again = Upsampler.from_pretrained(tmp_path)
    assert again.note_on(tokenizer) == ""
    with torch.no_grad():
        next(tokenizer.autoencoder.decoder.parameters()).add_(1)
    assert "another decoder of the same codes" in again.note_on(tokenizer)
    assert "this model has none" in again.note_on(None)
    with torch.no_grad():
        next(tokenizer.autoencoder.encoder.parameters()).add_(1)
    with pytest.raises(
        ModelFolderError, match=r"another image tokenizer .* in the encoder's weights; give an upsampler"
    ):
        again.note_on(tokenizer)


def test_an_upsampler_of_an_earlier_version_says_nothing(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    again = Upsampler.from_pretrained(tmp_path)
    assert again.trained_on is None
    assert again.note_on(tiny_image_tokenizer()) == ""


def test_folders_that_hold_no_upsampler(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json is missing"):
        Upsampler.from_pretrained(tmp_path / "nowhere")
    tiny_image_tokenizer().save_pretrained(tmp_path / "stage1")
    with pytest.raises(
        ModelFolderError, match=r"holds no upsampler; give the folder of a run of tools/train_upsampler"
    ):
        Upsampler.from_pretrained(tmp_path / "stage1")


def test_damaged_folders(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"channels": 16}))
    with pytest.raises(ModelFolderError, match=r"does not fit its config\.json"):
        Upsampler.from_pretrained(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"scale": 3}))
    with pytest.raises(ConfigError, match="scale: 3 is not a choice"):
        Upsampler.from_pretrained(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    weights = tmp_path / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelFolderError, match="damaged or truncated"):
        Upsampler.from_pretrained(tmp_path)
