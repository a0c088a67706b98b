"""ImageTokenizer: the public interface of stage 1.

tokenizer = ImageTokenizer.from_pretrained("runs/vqgan-shapes/model")
codes = tokenizer.encode("cat.png")   # (B, N) int64; also PIL images, lists, arrays, tensors (B, 3, H, W) in [-1, 1]
images = tokenizer.decode(codes)      # (B, 3, H, W) in [-1, 1]; output_type="pil": PIL images

`from_pretrained` takes a model folder, a run folder or a name on the Hugging Face Hub; `push_to_hub` uploads one.

Other image sizes than that of training: `decode(codes, grid=tokenizer.grid_of(height, width))`.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from vqgan.config.schema import Config, validate
from vqgan.data.images.inputs import ImagesInput, OutputType, as_output, load_images
from vqgan.fingerprints import FrozenPart, settings_fingerprint, weights_fingerprint
from vqgan.hub.model_folder import ModelFolder, load_model
from vqgan.hub.pretrained import PushToHubMixin
from vqgan.model_card import image_tokenizer_card
from vqgan.models import AUTOENCODERS, AnyAutoencoderConfig, Autoencoder, build_autoencoder
from vqgan.models.autoencoder import Grid


class _Stored(Config):
    """What a model folder's config.json holds."""

    model: AnyAutoencoderConfig
    """The autoencoder."""


class CodesFingerprint(NamedTuple):
    """Fingerprint of everything that determines an image's codes and their meaning, without the decoder.

    Tokenizers with equal fingerprints are interchangeable, though their decoded images may look different.
    """

    settings: str
    """Fingerprint of kind and sizes of encoder and quantizer, including the image size."""
    encoder: str
    """Fingerprint of the encoder's weights."""
    quantizer: str
    """Fingerprint of the quantizer's weights, including the codebook."""

    def __str__(self) -> str:
        return "-".join(self)

    @classmethod
    def parse(cls, text: object) -> "CodesFingerprint | None":
        """Parses the result of `str`; returns None for anything else."""
        parts = text.split("-") if isinstance(text, str) else []
        return cls(*parts) if len(parts) == len(cls._fields) else None

    def differs_from(self, other: "CodesFingerprint") -> str:
        """Returns the differences in words."""
        names = {"settings": "settings", "encoder": "the encoder's weights", "quantizer": "the codebook"}
        return " and ".join(what for name, what in names.items() if getattr(self, name) != getattr(other, name))


def codes_fingerprint(autoencoder: Autoencoder) -> CodesFingerprint:
    """Computes the fingerprint of an autoencoder, with one pass over its encoder's weights."""
    return CodesFingerprint(
        settings_fingerprint(autoencoder.config.settings_of_codes(with_defaults=False)),
        weights_fingerprint(autoencoder.encoder.state_dict()),
        weights_fingerprint(autoencoder.quantizer.weights_of_codes()),
    )


class ImageTokenizer(PushToHubMixin, nn.Module):
    """A frozen autoencoder that converts images to codes and back; always fp32, even under autocast.

    Half precision would change which code is nearest.
    """

    kinds = tuple(AUTOENCODERS)
    folder_holds = (f"image tokenizer ({', '.join(AUTOENCODERS)})", "give the model folder of a stage-1 run")

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)

    def codes_fingerprint(self) -> CodesFingerprint:
        """Returns the fingerprint of the codes, with one pass over the encoder's weights."""
        return codes_fingerprint(self.autoencoder)

    def codes_as_frozen_part(self) -> FrozenPart:
        """Returns the frozen part of a run that trains on its codes, whichever decoder is used."""
        remedy = "the run's model/image_tokenizer is a copy, and one with the same codes and another decoder serves too"
        return FrozenPart(self.codes_fingerprint()._asdict(), remedy=remedy)

    def decoder_fingerprint(self) -> str:
        """Returns the fingerprint of the decoder's weights and settings, which only decoded images depend on."""
        settings = settings_fingerprint(self.autoencoder.config.model_dump(mode="json", include={"decoder", "output"}))
        return f"{settings}-{weights_fingerprint(self.autoencoder.decoder.state_dict())}"

    @property
    def grid(self) -> Grid:
        """Code grid (h, w) of a training image; N = h * w codes, row-major."""
        return self._code_grid(self.autoencoder.grid)

    @property
    def vocab_size(self) -> int:
        """Number of codes V."""
        return self.autoencoder.quantizer.codebook_size

    @property
    def image_size(self) -> int:
        """Side of the square training images in pixels."""
        return self.autoencoder.image_size

    @property
    def latent_dim(self) -> int:
        """Width D of the latents of codes."""
        return self.autoencoder.quantizer.code_dim

    def grid_of(self, height: int, width: int) -> Grid:
        """Code grid of an image of other sides. Raises ValueError where they are no multiples of the stride."""
        return self._code_grid(self.autoencoder.grid_of(height, width))

    def train(self, mode: bool = True) -> "ImageTokenizer":  # noqa: ARG002
        """Does nothing: the tokenizer stays in evaluation mode while stage 2 trains on its codes."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights; images and codes are moved to it."""
        return next(self.autoencoder.parameters()).device

    @torch.no_grad()
    def encode(self, images: ImagesInput, *, check_range: bool = True) -> Int64[Tensor, "B N"]:
        """Returns the codes of one image or several, on the tokenizer's device.

        Args:
            images: PIL images and files become squares of `image_size` pixels, as in evaluation; arrays (B, H, W, 3)
                and tensors (B, 3, H, W), uint8 or floating point in [-1, 1], keep their size.
            check_range: Whether the range of floating point is checked; that waits for a GPU.

        Raises:
            DataError: for a file that cannot be decoded.
            ValueError: for another shape or range, and where a side is not a multiple of the stride.
        """
        batch = load_images(images, self.image_size, check_range=check_range).to(self.device)
        with torch.autocast(batch.device.type, enabled=False):
            return self.autoencoder.quantizer.encode(self.autoencoder.encode(batch))

    @overload
    def reconstruct(self, images: ImagesInput, output_type: Literal["pt"] = "pt") -> Float[Tensor, "B 3 H W"]: ...

    @overload
    def reconstruct(self, images: ImagesInput, output_type: Literal["pil"]) -> list[Image.Image]: ...

    def reconstruct(
        self, images: ImagesInput, output_type: OutputType = "pt"
    ) -> Float[Tensor, "B 3 H W"] | list[Image.Image]:
        """Returns reconstructions, encoded and decoded: a tensor in [-1, 1] (`pt`) or PIL images (`pil`).

        `images`, sizes and errors are those of `encode`.
        """
        batch = load_images(images, self.image_size)
        grid = self.grid_of(*batch.shape[2:])
        return as_output(self.decode(self.encode(batch, check_range=False), grid), output_type)

    @torch.no_grad()
    def embed(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B P D"]:
        """Returns the latents, one for each place of the image, that codes stand for: P = N but for residual
        quantizers.

        Raises ValueError for codes outside [0, vocab_size).
        """
        depth = self.autoencoder.quantizer.codes_per_latent
        if codes.ndim != 2 or codes.shape[1] % depth:
            raise ValueError(
                f"codes are (B, N) with N a multiple of {depth}, received shape {tuple(codes.shape)}; "
                "pass the codes of whole images"
            )
        lowest, highest = (int(end) for end in codes.aminmax()) if codes.numel() else (0, 0)
        if lowest < 0 or highest >= self.vocab_size:
            raise ValueError(
                f"codes must lie in [0, {self.vocab_size}), received {lowest} to {highest}; "
                "they come from another tokenizer"
            )
        return self.autoencoder.quantizer.embed(codes)

    @overload
    def decode(
        self, codes: Int64[Tensor, "B N"], grid: Grid | None = None, output_type: Literal["pt"] = "pt"
    ) -> Float[Tensor, "B 3 H W"]: ...

    @overload
    def decode(
        self, codes: Int64[Tensor, "B N"], grid: Grid | None = None, *, output_type: Literal["pil"]
    ) -> list[Image.Image]: ...

    @torch.no_grad()
    def decode(
        self, codes: Int64[Tensor, "B N"], grid: Grid | None = None, output_type: OutputType = "pt"
    ) -> Float[Tensor, "B 3 H W"] | list[Image.Image]:
        """Decodes codes to images: a tensor in [-1, 1] (`pt`) or PIL images (`pil`).

        `grid` (h, w) is that of training unless given. Raises ValueError where N is not h * w.
        """
        height, width = grid or self.grid
        if codes.ndim != 2 or codes.shape[1] != height * width:
            raise ValueError(
                f"an image is {height * width} codes ({height}x{width}), received shape {tuple(codes.shape)}; "
                "pass codes as (B, N), and `grid` for images of another size"
            )
        latents = self.embed(codes.to(self.device))
        with torch.autocast(latents.device.type, enabled=False):
            places = (height, width // self.autoencoder.quantizer.codes_per_latent)
            images = self.autoencoder.decode(latents, places).images.clamp(-1, 1)
        return as_output(images, output_type)

    def __repr__(self) -> str:
        """Returns kind, sizes and place on one line, not the tree of modules."""
        side, (height, width) = self.image_size, self.grid
        weights = sum(parameter.numel() for parameter in self.autoencoder.parameters())
        return (
            f"ImageTokenizer({self.autoencoder.config.kind}: {side}x{side} pixels -> {height}x{width} codes of "
            f"{self.vocab_size:,}, {weights:,} weights on {self.device})"
        )

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        return self.autoencoder.config.model_dump(mode="json"), self.autoencoder

    def model_card(self, name: str) -> str:
        """Returns README.md of the tokenizer on the Hub: kind, sizes and how to use it."""
        return image_tokenizer_card(name, self.autoencoder, self.vocab_size, self.grid)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | ModelFolder, *, device: str | torch.device = "cpu"
    ) -> "ImageTokenizer":
        """Reads a model folder (`save_pretrained`), the one in a run folder, or a Hub name (owner/name[@revision]).

        Weights are float32 on any device. Raises ModelFolderError when there is no image tokenizer, ConfigError for a
        config that is none of ours.
        """
        return super().from_pretrained(folder).to(device)

    @classmethod
    def image_size_in(cls, folder: ModelFolder) -> int:
        """Returns the side of the training images of the tokenizer in `folder`, mostly without reading its weights.

        Raises ModelFolderError or ConfigError where it holds no tokenizer.
        """
        size = folder.config.get("image_size")
        # Else from_pretrained, whose error says what the folder is.
        return size if isinstance(size, int) else cls.from_pretrained(folder).image_size

    @classmethod
    def _load(cls, folder: ModelFolder) -> "ImageTokenizer":
        config = validate(_Stored, {"model": folder.config}, str(folder)).model
        return cls(load_model(lambda: build_autoencoder(config), folder.path))

    def _code_grid(self, places: Grid) -> Grid:
        # A residual quantizer's codes of one position are adjacent: the grid is that much wider.
        return places[0], places[1] * self.autoencoder.quantizer.codes_per_latent
