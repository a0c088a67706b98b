"""Completing one image and its caption from files into files. `tools/inpaint.py` calls it."""

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
    """What to complete, and where the result goes."""

    model: str
    """Run folder or model folder of a fused inpainting model."""
    image: str
    """Image file; its largest centered square is taken, at the model's size."""
    mask: str | None = None
    """Image file as large as the image: what is lighter than half gray is drawn anew."""
    caption: str = ""
    """Its caption; each [MASK] in it is one word to be told."""
    device: str | None = None
    """Where the network runs, such as cuda:0."""
    out: str = Field("out", min_length=1)
    """Folder of the results."""

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
    """Write OUT/completed.png and OUT/sheet.png (given, mask, completed); returns what was completed.

    Raises ConfigError for an image or mask that does not serve and where nothing can be written, ModelFolderError for
    a folder without such a model.
    """
    device = usable_device(config.device, "--device")
    inpainter = Inpainter.from_pretrained(config.model, device)
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
            raise ConfigError(f"mask {config.mask} is black all over, so nothing is missing; make some of it white")

    ids, masked_captions = inpainter.masked_captions.read([config.caption])
    if int(masked_captions.sum()) < config.caption.count(BLANK):
        raise ConfigError(
            f"the caption has more than the {inpainter.tokenizer.length} tokens of the model: its last {BLANK} is "
            "lost; shorten it"
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
    """Pixels of the mask's largest centered square, at `side` pixels, that are light anywhere."""
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
