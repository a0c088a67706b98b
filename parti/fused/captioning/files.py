"""Captions image files, and writes sheets of attention heatmaps. `tools/caption.py` calls it."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from parti.fused.captioning.captioner import Captioner
from parti.fused.captioning.decoding import MOST_ROUNDS, DecodingConfig, Row, decode, decoding_noise
from parti.fused.captioning.heatmaps import heatmap_sheet, words_with_attention
from vqgan.config.schema import Config, ConfigError
from vqgan.data.images.decode import decode_image
from vqgan.data.images.transforms import ImageTransform, TransformConfig, to_pil
from vqgan.data.source import UnusableSample
from vqgan.system.devices import usable_device

_AT_ONCE = 64
"""Images in one pass of the model."""


class CaptionConfig(Config):
    """What to caption, and how."""

    model: str
    """Run folder or model folder of a captioner, or a Hub name (owner/name)."""
    images: tuple[str, ...] = Field(strict=False, min_length=1)
    """Image files; each is center-cropped to a square and resized to the model's size."""
    refine: int = Field(1, ge=0, le=MOST_ROUNDS)
    """Largest number of refinement rounds, 0 to 4; they stop when nothing changes."""
    exit: Row = 14
    """Row whose head decodes the caption: 7, 11 or 14, smaller is faster; 3 is the draft, which is not refined."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """0: greedy decoding; otherwise words are sampled at this temperature."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the first image when a temperature is set; image i uses seed + i."""
    heatmaps: str | None = None
    """Folder for sheets of the attention heatmap of each word."""
    device: str | None = None
    """Device of the network, such as cuda:0."""

    @model_validator(mode="after")
    def _check_last_seed(self) -> "CaptionConfig":
        if self.seed + len(self.images) > 2**63:
            raise ValueError(
                f"seeds from {self.seed} on exceed {2**63 - 1} for {len(self.images)} images; give a seed of at most "
                f"{2**63 - len(self.images)}"
            )
        return self


class Caption(NamedTuple):
    """An image file and its caption."""

    file: str
    text: str


def caption_files(config: CaptionConfig) -> Iterator[Caption]:
    """Yields the caption of each file, in order. With `heatmaps` it also writes HEATMAPS/NAME.png, or NAME-2.png and
    so on for files of the same name from several folders.

    Raises ConfigError for a file that is not an image and for an output folder that cannot be written to,
    ModelFolderError for a folder without a captioner.
    """
    device = usable_device(config.device, "--device")
    captioner = Captioner.from_pretrained(config.model).to(device)
    tokens = captioner.tokens
    transform = ImageTransform(TransformConfig(image_size=captioner.config.image_size))
    decoding = DecodingConfig(exit_row=config.exit, rounds=config.refine, temperature=config.temperature)
    names = _sheet_names(config.images)
    for start in range(0, len(config.images), _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, len(config.images)))
        images = torch.stack([_read(config.images[number], transform) for number in numbers])
        noise = decoding_noise([config.seed + number for number in numbers], tokens.length, config.refine)
        with torch.no_grad():
            context = captioner.context(images.to(device))
            ids = decode(context, tokens, decoding, noise.to(device)).captions.ids
            # The attention at position t is for the token at t + 1.
            attention_maps = context.read(ids).attention_maps[:, :-1].cpu().numpy()
        for row, (number, text) in enumerate(zip(numbers, tokens.texts(ids), strict=True)):
            if config.heatmaps is not None:
                written = ids[row, 1 : int(tokens.predicted(ids)[row].sum())].cpu()  # without its end
                prefixes = tokens.texts(_prefixes(written, tokens.pad))
                words = words_with_attention(prefixes, attention_maps[row, : len(prefixes)])
                sheet = heatmap_sheet(to_pil(images[row : row + 1])[0], text, words)
                try:
                    Path(config.heatmaps).mkdir(parents=True, exist_ok=True)
                    sheet.save(Path(config.heatmaps) / names[number])
                except OSError as error:
                    reason = error.strerror or error
                    raise ConfigError(f"heatmaps {config.heatmaps}: {reason}; choose another folder") from None
            yield Caption(config.images[number], text)


def _prefixes(ids: Tensor, pad: int) -> Tensor:
    """Row t: the first t + 1 ids, padded."""
    return ids.expand(len(ids), -1).masked_fill(~torch.ones(len(ids), len(ids)).tril().bool(), pad)


def _sheet_names(files: Sequence[str]) -> list[str]:
    """Returns a unique sheet name for each file."""
    taken: set[str] = set()
    names = []
    for file in files:
        stem = re.sub(r"[^\w.-]+", "_", Path(file).stem) or "image"
        name, number = f"{stem}.png", 2
        while name in taken:
            name, number = f"{stem}-{number}.png", number + 1
        taken.add(name)
        names.append(name)
    return names


def _read(file: str, transform: ImageTransform) -> Tensor:
    try:
        return transform(decode_image(Path(file), file), None)
    except UnusableSample as error:
        raise ConfigError(f"{error}; give another file") from None
