"""ProgressiveTextToImage: generates images at three scales from a prompt, in one pass and from one folder.

model = ProgressiveTextToImage.from_pretrained("runs/fused-synthesis-shapes")
images = model("a small red circle above a large blue square", num_images=4, seed=0).images
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from parti.base_pipeline import Pipeline, Requests, SampleOptions, TextToImageOutput
from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from parti.fused.synthesis.noise import seeded_noise
from parti.fused.synthesis.scales import side_by_side
from parti.fused.text_side import refuse_outside, text_space
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import validate
from vqgan.data.images.transforms import to_pil
from vqgan.hub.model_folder import ModelFolder, load_model

KIND = "fused_synthesis"
"""`kind` in the config.json of such a folder."""


class ProgressiveTextToImage(Pipeline):
    """A generator with its tokenizer. It has no sampling settings: an image depends on model, prompt and seed only."""

    kinds = (KIND,)
    folder_holds = (
        "progressive text-to-image model",
        "give the folder of a run of configs/parti/fused_synthesis*.yaml",
    )
    unsupported = dict.fromkeys(
        ("sampling", "completion", "on_rows", "image_tokenizer"),
        "generates whole images in one pass, without codes and without settings for sampling them",
    )

    generator: SynthesisGenerator

    def __init__(self, generator: SynthesisGenerator, text_tokenizer: TextTokenizer) -> None:
        self.generator = generator
        self.text_tokenizer = text_tokenizer

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the images in pixels, from the smallest to the largest."""
        return self.generator.config.sides

    @property
    def image_size(self) -> int:
        """Side of the largest images in pixels."""
        return self.sides[-1]

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
        options = SampleOptions(all_scales=all_scales)
        return self._generate_all(prompts, num_images, seed, options, batch_size, progress)

    def _generate_batch(
        self, requests: Requests, options: SampleOptions, advance: Callable[[], object]
    ) -> list[Image.Image]:
        scales = self.generate(requests)
        advance()
        return side_by_side(scales) if options.all_scales else to_pil(scales[-1])

    @torch.no_grad()
    def generate(self, requests: Requests) -> list[Float[Tensor, "B 3 _ _"]]:
        """Generates images in [-1, 1] of (prompt, seed) pairs at every scale, as one batch."""
        self.generator.eval()
        device = self.generator.constant.weight.device
        ids = self.text_tokenizer.encode([prompt for prompt, _ in requests]).to(device)
        noise = seeded_noise([(seed,) for _, seed in requests], self.generator.config.noise_shape).to(device)
        return list(self.generator(ids, noise))

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        model = self.generator.config.model_dump(mode="json")
        model["trunk"]["text"]["bert"] = None  # its weights are in the folder
        return {"kind": KIND, "model": model}, self.generator

    @classmethod
    def _load(cls, folder: ModelFolder) -> "ProgressiveTextToImage":
        config = _config_in(folder)
        tokenizer = TextTokenizer.from_pretrained(folder.path)
        refuse_outside(config.trunk.text, folder.path)
        generator = load_model(lambda: SynthesisGenerator(config, text_space(tokenizer)), folder.path)
        return cls(generator.eval(), tokenizer)

    @classmethod
    def sampling_in(cls, folder: ModelFolder) -> None:
        """Returns None: it has no settings."""

    @classmethod
    def image_size_in(cls, folder: ModelFolder) -> int:
        return _config_in(folder).sides[-1]


def _config_in(folder: ModelFolder) -> SynthesisConfig:
    return validate(SynthesisConfig, folder.config.get("model") or {}, str(folder))
