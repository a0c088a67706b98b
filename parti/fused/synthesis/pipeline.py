"""ProgressiveTextToImage: generates images at three scales from a prompt, in one pass and from one folder.

model = ProgressiveTextToImage.from_pretrained("runs/fused-synthesis-shapes")
images = model("a small red circle above a large blue square", num_images=4, seed=0).images
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from parti.fused.synthesis.noise import seeded_noise
from parti.fused.synthesis.scales import side_by_side
from parti.fused.text_side import refuse_outside, text_space
from parti.pipeline import GeneratedImage, TextToImageOutput
from parti.text.tokenizer import TextTokenizer
from parti.text.truncation import about_cut_prompts
from vqgan.config.schema import validate
from vqgan.data.images.transforms import to_pil
from vqgan.hub.model_folder import ModelFolder, load_model
from vqgan.hub.pretrained import PretrainedMixin

KIND = "fused_synthesis"
"""`kind` in the config.json of such a folder."""


class ProgressiveTextToImage(PretrainedMixin):
    """A generator with its tokenizer. It has no sampling settings: an image depends on model, prompt and seed only."""

    kinds = (KIND,)
    folder_holds = (
        "progressive text-to-image model",
        "give the folder of a run of configs/parti/fused_synthesis*.yaml",
    )

    def __init__(self, generator: SynthesisGenerator, text_tokenizer: TextTokenizer) -> None:
        self.generator = generator
        self.text_tokenizer = text_tokenizer

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the images in pixels, from the smallest to the largest."""
        return self.generator.config.sides

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num_images: int = 1,
        seed: int = 0,
        all_scales: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> TextToImageOutput:
        """Generates `num_images` images for each prompt; image j has the seed `seed` + j.

        With `all_scales` an image shows all scales side by side. A prompt that is longer than the model's text gives
        a warning. Raises ValueError for a blank prompt or if no image is requested.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if num_images < 1 or not prompts:
            raise ValueError(
                f"nothing to generate: {len(prompts)} prompts with num_images {num_images}; give 1 or more"
            )
        for line in about_cut_prompts(prompts, self.text_tokenizer):
            warnings.warn(line, stacklevel=2)
        wanted = [(prompt, seed + sample) for prompt in prompts for sample in range(num_images)]
        generated = self.stream(wanted, all_scales=all_scales, batch_size=batch_size, progress=progress)
        return TextToImageOutput(list(generated))

    def stream(
        self,
        wanted: Sequence[tuple[str, int]],
        *,
        all_scales: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Iterator[GeneratedImage]:
        """Yields the images of (prompt, seed) pairs in order, each as soon as its batch is done.

        Raises ValueError for a blank prompt, a seed outside [0, 2**63) or an empty batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, received {batch_size}")
        for prompt, seed in wanted:
            if not prompt.strip():
                raise ValueError("a prompt is blank; give some text")
            if not 0 <= seed < 2**63:
                raise ValueError(f"a seed lies in [0, 2**63), received {seed}")
        with tqdm(total=len(wanted), unit="image", disable=not progress, desc="sampling") as bar:
            for start in range(0, len(wanted), batch_size):
                part = wanted[start : start + batch_size]
                scales = self.generate(part)
                bar.update(len(part))
                images = side_by_side(scales) if all_scales else to_pil(scales[-1])
                for image, (prompt, seed) in zip(images, part, strict=True):
                    yield GeneratedImage(image, prompt, seed)

    @torch.no_grad()
    def generate(self, wanted: Sequence[tuple[str, int]]) -> list[Float[Tensor, "B 3 _ _"]]:
        """Generates images in [-1, 1] of (prompt, seed) pairs at every scale, as one batch."""
        self.generator.eval()
        device = self.generator.constant.weight.device
        ids = self.text_tokenizer.encode([prompt for prompt, _ in wanted]).to(device)
        noise = seeded_noise([(seed,) for _, seed in wanted], self.generator.config.noise_shape).to(device)
        return list(self.generator(ids, noise))

    def to(self, device: str | torch.device) -> "ProgressiveTextToImage":
        """Moves the generator to a device."""
        self.generator.to(device)
        return self

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        model = self.generator.config.model_dump(mode="json")
        model["trunk"]["text"]["bert"] = None  # its weights are in the folder
        return {"kind": KIND, "model": model}, self.generator

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and text_tokenizer.json."""
        super().save_pretrained(folder)
        self.text_tokenizer.save_pretrained(Path(folder))

    @classmethod
    def _load(cls, folder: ModelFolder) -> "ProgressiveTextToImage":
        config = cls.config_of(folder)
        tokenizer = TextTokenizer.from_pretrained(folder.path)
        refuse_outside(config.trunk.text, folder.path)
        generator = load_model(lambda: SynthesisGenerator(config, text_space(tokenizer)), folder.path)
        return cls(generator.eval(), tokenizer)

    @staticmethod
    def config_of(folder: ModelFolder) -> SynthesisConfig:
        """The network's settings in a model folder, without its weights. Raises what `from_pretrained` raises."""
        return validate(SynthesisConfig, folder.config.get("model") or {}, str(folder))
