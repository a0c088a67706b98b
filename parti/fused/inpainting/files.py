"""Completes an image file and its caption, and writes the results to a folder. `tools/inpaint.py` calls it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from parti.fused.inpainting.corruption import mask_images
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.masked_captions import BLANK
from vqgan.config.schema import Config, ConfigError
from vqgan.contact_sheet import contact_sheet
from vqgan.data.images.decode import decode_image
from vqgan.data.images.transforms import ImageTransform, TransformConfig, to_pil
from vqgan.data.source import UnusableSample
from vqgan.system.devices import usable_device

_LIGHT = 128
_MARKS = ("[", "]")


class InpaintConfig(Config):
    """What to complete, and where to write the result."""

    model: str
    """Run folder or model folder of a fused inpainting model."""
    image: str
    """Image file; it is center-cropped to a square and resized to the model's size."""
    mask: str | None = None
    """Image file of the same size: pixels lighter than half gray are filled in."""
    caption: str = ""
    """The caption; each [MASK] in it is one word to predict."""
    device: str | None = None
    """Device of the network, such as cuda:0."""
    out: str = Field("out", min_length=1)
    """Output folder."""

    @model_validator(mode="after")
    def _check_something_is_missing(self) -> "InpaintConfig":
        if self.mask is None and BLANK not in self.caption:
            raise ValueError(f"nothing is missing; give --mask FILE, or a --caption with {BLANK} in it")
        return self


class Completion(NamedTuple):
    """The completed image at the model's size, and the caption with its filled words in brackets."""

    image: Image.Image
    caption: str


def inpaint(config: InpaintConfig) -> Completion:
    """Completes the image and caption of `config`; writes OUT/completed.png and OUT/sheet.png (input, mask, completed).

    Raises ConfigError for an unusable image or mask and for an output folder that cannot be written to,
    ModelFolderError for a folder without such a model.
    """
    device = usable_device(config.device, "--device")
    inpainter = Inpainter.from_pretrained(config.model).to(device)
    image = _read("image", config.image)
    transform = ImageTransform(TransformConfig(image_size=inpainter.image_size))
    images = transform(image, None)[None]
    holes = torch.zeros_like(images[:, :1], dtype=torch.bool)
    if config.mask is not None:
        mask = _read("mask", config.mask)
        if mask.size != image.size:
            raise ConfigError(
                f"mask {config.mask} has {mask.width}x{mask.height} pixels, the image {image.width}x"
                f"{image.height}; give one as large as the image"
            )
        holes = light_parts(mask, inpainter.image_size)[None, None]
        if not holes.any() and BLANK not in config.caption:
            raise ConfigError(f"mask {config.mask} is all black, so nothing is missing; make some of it white")

    ids, masked_captions = inpainter.masked_captions.read([config.caption])
    if int(masked_captions.sum()) < config.caption.count(BLANK):
        raise ConfigError(
            f"the caption is longer than the model's {inpainter.tokenizer.length} tokens, so its last {BLANK} is cut "
            "off; shorten it"
        )
    filled = inpainter.fill(images.to(device), holes.to(device), ids.to(device), masked_captions.to(device))
    caption = inpainter.masked_captions.write(config.caption, filled.ids.cpu()[masked_captions], _MARKS)

    completed = to_pil(filled.images)[0]
    shown = [to_pil(mask_images(images, holes))[0], _as_image(holes[0, 0]), completed]
    sheet = contact_sheet(shown, [config.caption, "mask", caption], columns=3)
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        completed.save(out / "completed.png")
        sheet.save(out / "sheet.png")
    except OSError as error:
        raise ConfigError(f"out {config.out}: {error.strerror or error}; choose another folder") from None
    return Completion(completed, caption)


def light_parts(mask: Image.Image, side: int) -> Bool[Tensor, "side side"]:
    """Center-crops the mask and resizes it to `side` pixels; a pixel is true if any part of it is light."""
    square = min(mask.size)
    left, top = (mask.width - square) // 2, (mask.height - square) // 2
    light = np.array(mask.convert("L").crop((left, top, left + square, top + square))) >= _LIGHT
    share = Image.fromarray(light.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(share) > 0)


def _as_image(holes: Bool[Tensor, "side side"]) -> Image.Image:
    return Image.fromarray(holes.numpy().astype(np.uint8) * 255)


def _read(option: str, path: str) -> Image.Image:
    try:
        return decode_image(Path(path), path)
    except UnusableSample as error:
        raise ConfigError(f"{option} {error}; give another file") from None
