"""ImageTokenizer: the one face of stage 1 that anyone else sees.

tokenizer = ImageTokenizer.from_pretrained("runs/vqgan-shapes/model")
codes = tokenizer.encode(images)      # (B, N) int64
images = tokenizer.decode(codes)      # (B, 3, H, W) in [-1, 1]
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vqgan.config import validate
from vqgan.model_folder import ModelFolderError, load_weights, read_model_config, save_model_folder
from vqgan.models import AUTOENCODERS, Autoencoder, AutoencoderConfig


class ImageTokenizer(nn.Module):
    """A frozen autoencoder as a translator between pictures and codes; always fp32, whatever the autocast.

    Half precision would change which code is nearest.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)

    @property
    def grid(self) -> tuple[int, int]:
        """Code grid (h, w); N = h * w, row-major."""
        return self.autoencoder.grid

    @property
    def vocab_size(self) -> int:
        """Number of codes V."""
        return self.autoencoder.quantizer.config.codebook_size

    @property
    def image_size(self) -> int:
        """Side of the square pictures in pixels."""
        return self.autoencoder.image_size

    @property
    def latent_dim(self) -> int:
        """Width D of an embedded code."""
        return self.autoencoder.quantizer.config.code_dim

    def train(self, mode: bool = True) -> "ImageTokenizer":  # noqa: ARG002
        """Stays in evaluation mode: a tokenizer does not change while stage 2 trains on its codes."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int64[Tensor, "B N"]:
        """Codes of pictures in [-1, 1]. Raises ValueError for another picture size."""
        with torch.autocast(images.device.type, enabled=False):
            return self.autoencoder.quantizer.encode(self.autoencoder.encode(images.float()))

    @torch.no_grad()
    def embed(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """The latents that codes stand for. Raises ValueError for codes outside [0, vocab_size) or another N."""
        height, width = self.grid
        if codes.ndim != 2 or codes.shape[1] != height * width:
            raise ValueError(
                f"a picture is {height * width} codes ({height}x{width}), received shape {tuple(codes.shape)}; "
                "pass codes as (B, N)"
            )
        lowest, highest = (int(end) for end in codes.aminmax()) if codes.numel() else (0, 0)
        if lowest < 0 or highest >= self.vocab_size:
            raise ValueError(
                f"codes must lie in [0, {self.vocab_size}), received {lowest} to {highest}; "
                "they come from another tokenizer"
            )
        return self.autoencoder.quantizer.embed(codes)

    @torch.no_grad()
    def decode(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Pictures in [-1, 1] from codes."""
        latents = self.embed(codes)
        with torch.autocast(latents.device.type, enabled=False):
            return self.autoencoder.decode(latents).images.clamp(-1, 1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        config: Any = self.autoencoder.config
        save_model_folder(Path(folder), config.model_dump(mode="json"), self.autoencoder.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ImageTokenizer":
        """Read what `save_pretrained` wrote. Raises ModelFolderError when the folder holds no image tokenizer."""
        folder = Path(folder)
        values = read_model_config(folder)
        kind = values.get("kind")
        if kind not in AUTOENCODERS:
            raise ModelFolderError(
                f"{folder} holds a {kind!r}, not an image tokenizer ({', '.join(AUTOENCODERS)}); "
                "give the model folder of a stage-1 run"
            )
        autoencoder = AUTOENCODERS[kind](validate(AutoencoderConfig, values, str(folder)))
        load_weights(autoencoder, folder)
        return cls(autoencoder)
