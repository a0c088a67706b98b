"""TextToImage: from a prompt to pictures, out of one folder.

model = TextToImage.from_pretrained("runs/parti-shapes")
pictures = model("a small red circle above a large blue square", num_images=4, seed=0).images
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from parti.models import GENERATORS, EncoderDecoder, GeneratorConfig, TokenSpace
from parti.sampling.generate import SamplingConfig, generate_codes
from parti.text.tokenizer import TextTokenizer
from vqgan.config import validate
from vqgan.data.transforms import to_pil
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.model_folder import CONFIG_FILE, ModelFolderError, load_weights, read_model_config, save_model_folder

_IMAGE_TOKENIZER = "image_tokenizer"


@dataclass(frozen=True)
class Drawn:
    """One picture with what it was drawn from."""

    image: Image.Image
    prompt: str
    seed: int


@dataclass(frozen=True)
class TextToImageOutput:
    """All pictures of a call: for each prompt in turn its `num_images` samples."""

    drawn: list[Drawn]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures alone."""
        return [drawn.image for drawn in self.drawn]


class TextToImage:
    """A stage-2 model with both of its tokenizers."""

    def __init__(self, generator: EncoderDecoder, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer):
        self.generator = generator
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num_images: int = 1,
        seed: int = 0,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> TextToImageOutput:
        """Draw `num_images` pictures of each prompt; sample j has seed `seed` + j.

        A picture depends on prompt, seed and settings alone, not on what else is drawn. Raises ConfigError for
        settings out of range, ValueError for a blank prompt or no picture.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"num_images and batch_size are at least 1, received {num_images} and {batch_size}")
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("a prompt is blank; give some text")
        values = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings = validate(SamplingConfig, values, "sampling settings")
        wanted = [(prompt, seed + sample) for prompt in prompts for sample in range(num_images)]
        drawn: list[Drawn] = []
        length = self.generator.tokens.image_length
        with tqdm(total=len(wanted) * length, unit="code", disable=not progress, desc="sampling") as bar:
            for start in range(0, len(wanted), batch_size):
                part = wanted[start : start + batch_size]
                images = self.draw(part, settings, on_position=partial(_advance, bar, len(part)))
                drawn += [Drawn(image, *key) for image, key in zip(to_pil(images), part, strict=True)]
        return TextToImageOutput(drawn)

    def draw(
        self, wanted: Sequence[tuple[str, int]], settings: SamplingConfig, on_position: Any = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Pictures in [-1, 1] of (prompt, seed) pairs, as one batch."""
        device = self.generator.head.weight.device
        text_ids = self.text_tokenizer.encode([prompt for prompt, _ in wanted]).to(device)
        seeds = [seed for _, seed in wanted]
        codes = generate_codes(
            self.generator, text_ids, self.text_tokenizer.null_ids, seeds, settings, on_position=on_position
        )
        return self.image_tokenizer.decode(codes)

    def to(self, device: str | torch.device) -> "TextToImage":
        """Move both networks."""
        self.generator.to(device)
        self.image_tokenizer.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write one folder that samples: weights, configs and both tokenizers."""
        folder = Path(folder)
        config = {
            "model": self.generator.config.model_dump(mode="json"),
            "tokens": self.generator.tokens.model_dump(mode="json"),
        }
        save_model_folder(folder, config, self.generator.state_dict())
        self.text_tokenizer.save_pretrained(folder)
        self.image_tokenizer.save_pretrained(folder / _IMAGE_TOKENIZER)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TextToImage":
        """Read a stage-2 model folder, or the run folder that has one in `model/`.

        Raises ModelFolderError when there is none or it is damaged.
        """
        folder = model_folder(folder)
        values = read_model_config(folder)
        if not {"model", "tokens"} <= values.keys():
            raise ModelFolderError(f"{folder} holds no text-to-image model; give the folder of a stage-2 run")
        kind = values["model"].get("kind")
        if kind not in GENERATORS:
            raise ModelFolderError(f"{folder}: unknown model kind {kind!r}; known: {', '.join(GENERATORS)}")
        generator = GENERATORS[kind](
            validate(GeneratorConfig, values["model"], str(folder)), validate(TokenSpace, values["tokens"], str(folder))
        )
        load_weights(generator, folder)
        generator.eval()
        return cls(
            generator,
            TextTokenizer.from_pretrained(folder),
            ImageTokenizer.from_pretrained(folder / _IMAGE_TOKENIZER),
        )


def _advance(bar: "tqdm[Any]", count: int, _: int) -> None:
    bar.update(count)


def model_folder(folder: str | Path) -> Path:
    """`folder` itself if it is a model folder, else its `model/`: run folders may be given for models."""
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file() and (folder / "model" / CONFIG_FILE).is_file():
        return folder / "model"
    return folder
