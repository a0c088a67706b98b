"""Super-resolution of generated images: 2x or 4x, a residual network without text (Parti, 2206.10789; papers.md D.5).

Parti names a WDSR-style network of 12 residual blocks of 128 channels; the rest is WDSR-A (Yu et al., 1808.08718):
blocks that widen before their activation, weight normalization, a global skip of one 5x5 convolution, pixel shuffle.
A doubling has 14.2M parameters, two in a row 28.4M: Parti's "about 15M" and "about 30M".

Departure from WDSR: a new upsampler is bicubic interpolation. The skip's filters are initialized with Keys' kernel, for
which 5x5 pixels suffice, and the residual path ends in a gain of 0, so training starts from the bicubic baseline.

Letters: B batch, h w pixels of the small image, H W of the large one, C channels.
"""

from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from vqgan.config.schema import Config, validate
from vqgan.data.images.transforms import to_pil
from vqgan.hub.model_folder import ModelFolder, ModelFolderError, load_model
from vqgan.hub.pretrained import PretrainedMixin
from vqgan.image_tokenizer import CodesFingerprint, ImageTokenizer


class UpsamplerConfig(Config, fixed=("kind", "scale", "blocks", "channels", "expansion")):
    """A super-resolution network; the defaults are Parti's for 256 to 512 pixels."""

    kind: Literal["upsampler"] = "upsampler"
    """`kind` in the config.json of a model folder."""
    scale: Literal[2, 4] = 2
    """Scale factor of the sides; 4 is two doublings in a row."""
    blocks: int = Field(12, gt=0)
    """Residual blocks of each doubling."""
    channels: int = Field(128, gt=0)
    """Width between the blocks."""
    expansion: int = Field(4, gt=0)
    """Width inside a block, where the activation is, as a multiple of `channels`."""


class TrainedOn(NamedTuple):
    """The image tokenizer whose reconstructions an upsampler was trained on."""

    codes: CodesFingerprint
    decoder: str
    """Fingerprint of its decoder (`ImageTokenizer.decoder_fingerprint`)."""

    @classmethod
    def of(cls, tokenizer: ImageTokenizer) -> "TrainedOn":
        """Returns the fingerprints of a tokenizer."""
        return cls(tokenizer.codes_fingerprint(), tokenizer.decoder_fingerprint())

    def stored(self) -> dict[str, str]:
        """Returns what config.json of a model folder has of it."""
        return {_CODES: str(self.codes), _DECODER: self.decoder}

    @classmethod
    def parse(cls, codes: object, decoder: object) -> "TrainedOn | None":
        """Parses the values of `stored`; returns None for anything else, as in folders of earlier versions."""
        parsed = CodesFingerprint.parse(codes)
        return cls(parsed, decoder) if parsed is not None and isinstance(decoder, str) else None


_CODES, _DECODER = "codes_fingerprint", "decoder_fingerprint"


class Upsampler(nn.Module, PretrainedMixin):
    """Images of any size to images with sides `scale` times as long. `from_pretrained` gives a frozen one."""

    kinds = ("upsampler",)
    folder_holds = ("upsampler", "give the folder of a run of tools/train_upsampler.py")

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.trained_on: TrainedOn | None = None
        self.doublings = nn.Sequential(*(_Doubling(config) for _ in range(config.scale.bit_length() - 1)))

    def forward(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 H W"]:
        """Returns enlarged images, nominally in [-1, 1] but not clamped, in fp32 even under autocast."""
        return self.doublings(images)

    def repeated_layers(self) -> list[nn.Module]:
        """The residual blocks of all doublings."""
        return [block for doubling in self.doublings for block in cast(_Doubling, doubling).blocks]

    @property
    def last_layer(self) -> nn.Parameter:
        """Where the adaptive adversarial weight compares gradients: unlike the direction, a gain of 0 has one."""
        last = self.doublings[-1]
        assert isinstance(last, _Doubling)
        return last.tail.gain

    @torch.no_grad()
    def upsample(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 H W"]:
        """Returns enlarged images in [-1, 1], in fp32."""
        with torch.autocast(images.device.type, enabled=False):
            return self(images.float()).clamp(-1, 1)

    def enlarge(self, image: Image.Image) -> Image.Image:
        """Enlarges one RGB image."""
        pixels = torch.from_numpy(np.array(image)).to(self.last_layer.device)  # (h, w, 3) uint8
        (enlarged,) = to_pil(self.upsample(pixels.permute(2, 0, 1)[None].float().div(127.5).sub(1)))
        return enlarged

    def note_on(self, tokenizer: ImageTokenizer | None) -> str:
        """Returns what to say where the images of `tokenizer` are enlarged, which may not be that of the training.

        Raises ModelFolderError if its codes are others: then its decoder's errors are others too. Empty if it is the
        same tokenizer, or where the model folder is of an earlier version, which does not say.
        """
        if self.trained_on is None:
            return ""
        if tokenizer is None:
            return "the upsampler was trained on images of an image tokenizer, and this model has none"
        if differing := self.trained_on.codes.differs_from(tokenizer.codes_fingerprint()):
            raise ModelFolderError(
                "the upsampler was trained on images of another image tokenizer than the model's, which differs from "
                f"it in {differing}; give an upsampler that was trained with the model's image_tokenizer"
            )
        if self.trained_on.decoder != tokenizer.decoder_fingerprint():
            return (
                "the upsampler was trained on images of another decoder of the same codes than the one in use; it may "
                "sharpen errors that are not there, so compare with the images before it (without --upsample)"
            )
        return ""

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        trained_on = {} if self.trained_on is None else self.trained_on.stored()
        return self.config.model_dump(mode="json") | trained_on, self

    @classmethod
    def _load(cls, folder: ModelFolder) -> "Upsampler":
        values = dict(folder.config)
        trained_on = TrainedOn.parse(values.pop(_CODES, None), values.pop(_DECODER, None))
        config = validate(UpsamplerConfig, values, str(folder))
        upsampler = load_model(lambda: cls(config), folder.path).eval().requires_grad_(False)
        upsampler.trained_on = trained_on
        return upsampler


def bicubic(images: Float[Tensor, "B 3 h w"], scale: int) -> Float[Tensor, "B 3 H W"]:
    """Enlarges by bicubic interpolation as in Pillow, clamped to [-1, 1]: the baseline of an upsampler."""
    # Without `antialias`, which has no other effect when enlarging, torch uses a = -0.75 for Keys' kernel.
    return F.interpolate(images, scale_factor=scale, mode="bicubic", antialias=True).clamp(-1, 1)


class _Doubling(nn.Module):
    """(B, 3, h, w) -> (B, 3, 2h, 2w): shuffle(skip(x) + tail(blocks(head(x))))."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        channels = config.channels
        self.head = WeightNormConv2d(3, channels, 3)
        self.blocks = nn.Sequential(*(_Block(channels, config.expansion * channels) for _ in range(config.blocks)))
        self.tail = WeightNormConv2d(channels, 3 * 2**2, 3)
        # Replicated borders: with zero padding the initial skip would draw a dark frame around the image.
        self.skip = WeightNormConv2d(3, 3 * 2**2, 5, padding_mode="replicate")
        with torch.no_grad():
            self.tail.gain.zero_()
            self.tail.bias.zero_()
            self.skip.set_weight(_bicubic_filters())
            self.skip.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        residual = self.tail(self.blocks(self.head(images)))
        # fp32: bf16 would round the image itself, by up to one of its 256 levels.
        with torch.autocast(images.device.type, enabled=False):
            return F.pixel_shuffle(self.skip(images.float()) + residual.float(), 2)


class _Block(nn.Module):
    """x + conv(relu(conv(x))), wide in between (WDSR-A, section 3.1)."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.widen = WeightNormConv2d(channels, inner_channels, 3)
        self.narrow = WeightNormConv2d(inner_channels, channels, 3)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.narrow(F.relu(self.widen(x)))


class WeightNormConv2d(nn.Conv2d):
    """Convolution that keeps the size, each filter a direction and a length: gain * v / |v| (1602.07868, equation 2).

    `weight` is v. torch's own parametrization computes the same, but hides v from the optimizer's groups, which are
    formed by what a parameter is.
    """

    bias: nn.Parameter

    def __init__(
        self, channels: int, out_channels: int, kernel: int, *, padding_mode: Literal["zeros", "replicate"] = "zeros"
    ) -> None:
        super().__init__(channels, out_channels, kernel, padding=kernel // 2, padding_mode=padding_mode)
        self.gain = nn.Parameter(_lengths(self.weight.detach()))

    @torch.no_grad()
    def set_weight(self, weight: Float[Tensor, "C_out C k k"]) -> None:
        """Sets the filters."""
        self.weight.copy_(weight)
        self.gain.copy_(_lengths(self.weight))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C_out h w"]:
        return self._conv_forward(x, self.weight * (self.gain / _lengths(self.weight)), self.bias)


def _lengths(weight: Float[Tensor, "C_out C k k"]) -> Float[Tensor, "C_out 1 1 1"]:
    return torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)


def _bicubic_filters() -> Float[Tensor, "12 3 5 5"]:
    """Returns filters whose pixel-shuffled outputs are the doubled image: for each color its four new pixels, row by
    row."""
    # In each direction the two new pixels are a quarter of a pixel before and after the center.
    taps = torch.arange(-2, 3)
    lines = torch.stack([_keys(taps + 0.25), _keys(taps - 0.25)])
    patches = torch.einsum("ay,bx->abyx", lines, lines).flatten(0, 1)  # (4, 5, 5)
    return torch.einsum("cd,pyx->cpdyx", torch.eye(3), patches).flatten(0, 1)


def _keys(distance: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
    """Returns Keys' interpolation kernel with a = -1/2 (Keys 1981, equation 15), at distances in pixels."""
    t = distance.abs()
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
