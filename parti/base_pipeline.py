"""Pipeline: what sampling, evaluation, reranking and serving see of a text-to-image model, of whatever kind it is.

model = open_pipeline("runs/parti-shapes")  # parti/open_pipeline.py; or a class's own from_pretrained
images = [one.image for one in model.stream([("a small red circle", 0), ("a small red circle", 1)])]
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from parti.completion import Completion
from parti.models import Generator
from parti.sampling.generate import SamplingConfig
from parti.text.tokenizer import TextTokenizer
from parti.text.truncation import about_cut_prompts
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolder
from vqgan.hub.pretrained import PretrainedMixin
from vqgan.image_tokenizer import ImageTokenizer

# Not typing.Self, which beartype checks in decorated classes alone.
PipelineT = TypeVar("PipelineT", bound="Pipeline")
Requests = Sequence[tuple[str, int]]
"""(prompt, seed) pairs."""


@dataclass(frozen=True)
class GeneratedImage:
    """One image with what it was generated from."""

    image: Image.Image
    prompt: str
    seed: int


@dataclass(frozen=True)
class TextToImageOutput:
    """All images of a call: for each prompt in turn its `num_images` samples."""

    generated: list[GeneratedImage]

    @property
    def images(self) -> list[Image.Image]:
        """The images alone."""
        return [generated.image for generated in self.generated]


OnRows = Callable[[Callable[[], list[GeneratedImage]], int], None]
"""Gets what decodes a batch's images as far as they are generated, which takes time, and how many rows of codes that
is."""


@dataclass(frozen=True)
class SampleOptions:
    """How images are sampled beyond prompt and seed; each kind of model supports some of it."""

    sampling: SamplingConfig | None = None
    """How codes are sampled; None: the pipeline's own settings."""
    completion: Completion | None = None
    """An image of which some codes stay, so that only the rest is generated."""
    on_rows: OnRows | None = None
    """Gets unfinished images."""
    all_scales: bool = False
    """Each image at all scales side by side."""


class Pipeline(PretrainedMixin):
    """A text-to-image model with its tokenizers, out of one folder.

    A new kind of model (say, a masked generator) is a subclass with an entry in `parti.open_pipeline.PIPELINES`; every
    command works with it then. It provides

    - `generator` and `text_tokenizer`, and where images are made of codes `image_tokenizer` and `sampling`;
    - `unsupported`: which fields of `SampleOptions`, and `image_tokenizer`, it has no use for, and why;
    - `image_size`, and the two functions of a folder that answer without its weights, `sampling_in` and
      `image_size_in`;
    - `_generate_batch`, which samples one batch; `unit` and `steps_per_image`, which the progress bar counts;
    - `next_token_generator`, where the likelihood of codes can be computed;
    - `_stored` and `_load` of `PretrainedMixin`, with `kinds` and `folder_holds`.

    Checks of prompts, seeds and options, batches, progress, and moving between devices are here, once.
    """

    generator: nn.Module
    text_tokenizer: TextTokenizer
    image_tokenizer: ImageTokenizer | None = None
    """Decodes the codes; None for a model without codes."""
    sampling: SamplingConfig | None = None
    """The settings that the model recommends; None for a model without settings."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """By name of an option: why this kind of model has no use for it ("generates images of one size")."""
    unit: ClassVar[str] = "image"
    """What the progress bar counts."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the images in pixels."""

    @property
    def steps_per_image(self) -> int:
        """Number of `unit`s that an image takes."""
        return 1

    @property
    def next_token_generator(self) -> Generator | None:
        """The generator, where it predicts each code from those before it; None for other kinds of model."""
        return None

    @classmethod
    @abstractmethod
    def sampling_in(cls, folder: ModelFolder) -> SamplingConfig | None:
        """Returns the settings that a folder recommends, without reading its weights. Raises ConfigError."""

    @classmethod
    @abstractmethod
    def image_size_in(cls, folder: ModelFolder) -> int:
        """Returns the side of a folder's images in pixels, without reading weights.

        Raises ModelFolderError or ConfigError.
        """

    @abstractmethod
    def _generate_batch(
        self, requests: Requests, options: SampleOptions, advance: Callable[[], object]
    ) -> list[Image.Image]:
        """Returns the images of one batch, in their order; calls `advance` after each step of it."""

    def stream(
        self,
        requests: Requests,
        options: SampleOptions = SampleOptions(),
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Iterator[GeneratedImage]:
        """Yields the images of (prompt, seed) pairs in their order, each as soon as its batch is done.

        Raises ValueError for a blank prompt, a seed outside [0, 2**63) or an empty batch, ConfigError for an option
        that this kind of model has no use for.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, received {batch_size}")
        for prompt, seed in requests:
            if not prompt.strip():
                raise ValueError("a prompt is blank; give some text")
            if not 0 <= seed < 2**63:
                raise ValueError(f"a seed lies in [0, 2**63), received {seed}")
        given = [field.name for field in fields(options) if getattr(options, field.name) not in (None, False)]
        self.check_supported({name: name for name in given}, type(self).__name__)
        with tqdm(
            total=len(requests) * self.steps_per_image, unit=self.unit, disable=not progress, desc="sampling"
        ) as bar:
            for start in range(0, len(requests), batch_size):
                batch = requests[start : start + batch_size]
                images = self._generate_batch(batch, options, partial(bar.update, len(batch)))
                for image, (prompt, seed) in zip(images, batch, strict=True):
                    yield GeneratedImage(image, prompt, seed)

    @classmethod
    def check_supported(cls, options: Mapping[str, str], model: str) -> None:
        """Raises ConfigError for the first of `options` that this kind of model has no use for.

        `options` maps what the user calls an option to the name in `unsupported`; `model` is what the error calls the
        model.
        """
        for called, name in options.items():
            if name in cls.unsupported:
                raise ConfigError(f"{called}: {model} {cls.unsupported[name]}; leave it out")

    @classmethod
    def from_pretrained(
        cls: type[PipelineT], folder: str | Path | ModelFolder, *, image_tokenizer: str | Path | None = None
    ) -> PipelineT:
        """Reads a stage-2 model folder, the run folder with one in `model/`, or a Hub name (owner/name[@revision]).

        `image_tokenizer`, a folder or Hub name too, decodes instead of the folder's own: one with the same codes and
        another decoder, such as that of Parti's second phase (`codes_from`).

        Raises ModelFolderError when there is no such model, it is damaged, its parts do not fit, or the image tokenizer
        has other codes; ConfigError when its config.json holds what no config admits, or the model has no codes for
        an image tokenizer to decode.
        """
        found = cls.open_folder(folder)
        if image_tokenizer is None:
            return cls._load(found)
        cls.check_supported({"image_tokenizer": "image_tokenizer"}, f"the model in {found}")
        return cls._load_with(found, image_tokenizer)

    @classmethod
    def _load_with(cls: type[PipelineT], folder: ModelFolder, image_tokenizer: str | Path) -> PipelineT:
        """Returns the model in `folder` with another image tokenizer, where that is not `unsupported`."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes one folder that samples: weights, config.json and the tokenizers."""
        super().save_pretrained(folder)
        self.text_tokenizer.save_pretrained(Path(folder))

    def to(self: PipelineT, device: str | torch.device) -> PipelineT:
        """Moves the networks."""
        self.generator.to(device)
        if self.image_tokenizer is not None:
            self.image_tokenizer.to(device)
        return self

    def _generate_all(
        self,
        prompts: str | Sequence[str],
        num_images: int,
        seed: int,
        options: SampleOptions,
        batch_size: int,
        progress: bool,
    ) -> TextToImageOutput:
        """Returns `num_images` images of each prompt; sample j has seed `seed` + j. For `__call__`.

        A prompt whose end the model does not read gives a warning. Raises ValueError for no image, and what `stream`
        raises.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if num_images < 1 or not prompts:
            raise ValueError(
                f"nothing to generate: {len(prompts)} prompts with num_images {num_images}; give 1 or more"
            )
        for line in about_cut_prompts(prompts, self.text_tokenizer):
            warnings.warn(line, stacklevel=3)
        requests = [(prompt, seed + sample) for prompt in prompts for sample in range(num_images)]
        return TextToImageOutput(list(self.stream(requests, options, batch_size=batch_size, progress=progress)))
