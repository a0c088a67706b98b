"""TextToImage: generates images from prompts, from one model folder.

model = TextToImage.from_pretrained("runs/parti-shapes")  # or a name on the Hugging Face Hub
images = model("a small red circle above a large blue square", num_images=4, seed=0).images

Completion of an image, of which the codes of a mask are kept:

model("a small red circle above a large blue square", image=image, keep=keep_top(model.image_tokenizer.grid, 0.5))

With a larger decoder of the same codes (configs/vqgan/vit_vqgan_second_phase.yaml):

TextToImage.from_pretrained("runs/parti", image_tokenizer="runs/vit-vqgan-second-phase")
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor, nn

from parti.base_pipeline import GeneratedImage, OnRows, Pipeline, Requests, SampleOptions, TextToImageOutput
from parti.completion import Completion
from parti.layers.lora import merge_lora
from parti.model_card import text_to_image_card
from parti.models import GENERATORS, Generator, GeneratorConfig, TokenSpace
from parti.pairs import token_space
from parti.sampling.generate import SamplingConfig, generate_codes
from parti.text.encoders import PretrainedTextEncoderConfig
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import Config, validate
from vqgan.data.images.transforms import to_pil
from vqgan.hub.model_folder import ModelFolder, ModelFolderError, load_model, open_model_folder
from vqgan.hub.pretrained import PushToHubMixin
from vqgan.image_tokenizer import CodesFingerprint, ImageTokenizer

IMAGE_TOKENIZER = "image_tokenizer"
_CODES = "codes_fingerprint"
"""Key in config.json of the fingerprint of the codes that the generator was trained on."""


class _Stored(Config):
    """The generator's part of a model folder's config.json."""

    model: GeneratorConfig
    """The generator."""


class TextToImage(PushToHubMixin, Pipeline):
    """A stage-2 model with both of its tokenizers, and the sampling settings that it recommends."""

    kinds = tuple(GENERATORS)
    folder_holds = ("text-to-image model", "give the folder of a stage-2 run")
    unsupported: ClassVar[Mapping[str, str]] = {"all_scales": "generates images of one size"}
    unit = "code"

    generator: Generator
    image_tokenizer: ImageTokenizer
    sampling: SamplingConfig

    def __init__(
        self,
        generator: Generator,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 - frozen
    ) -> None:
        self.generator = generator
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer
        self.sampling = sampling

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num_images: int = 1,
        seed: int = 0,
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        precision: str | None = None,
        cuda_graph: bool | None = None,
        image: Image.Image | None = None,
        keep: Bool[Tensor, "h w"] | None = None,
        on_rows: OnRows | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> TextToImageOutput:
        """Generates `num_images` images for each prompt; image j has the seed `seed` + j.

        A setting that is None is taken from `self.sampling`; a value switches it off (guidance_scale 1, temperature 1,
        top_k 0, top_p 1). An image depends on prompt, seed and settings only, not on its batch. A truncated prompt
        gives a warning. With `image` and `keep`, a mask on the code grid, the codes of `image` are kept where `keep` is
        true. `on_rows` is called for each batch whenever a row of codes is complete.
        Raises ConfigError for settings out of range, ValueError for a blank prompt, no image, or a `keep` that does
        not fit.
        """
        settings = self.sampling.overridden(
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            precision=precision,
            cuda_graph=cuda_graph,
        )
        if (image is None) != (keep is None):
            raise ValueError("image and keep go together: an image, and which of its codes stay")
        completion = None if image is None or keep is None else Completion(image, keep)
        options = SampleOptions(settings, completion, on_rows)
        return self._generate_all(prompts, num_images, seed, options, batch_size, progress)

    @property
    def image_size(self) -> int:
        return self.image_tokenizer.image_size

    @property
    def steps_per_image(self) -> int:
        return self.generator.tokens.image_length

    @property
    def next_token_generator(self) -> Generator:
        return self.generator

    def _generate_batch(
        self, requests: Requests, options: SampleOptions, advance: Callable[[], object]
    ) -> list[Image.Image]:
        on_codes = partial(self._on_codes, requests, advance, options.on_rows)
        settings = options.sampling or self.sampling
        return to_pil(self.generate(requests, settings, completion=options.completion, on_codes=on_codes))

    def generate(
        self,
        requests: Requests,
        settings: SamplingConfig,
        *,
        completion: Completion | None = None,
        on_codes: Callable[[Int64[Tensor, "B n"]], None] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Generates images in [-1, 1] of (prompt, seed) pairs as one batch; `on_codes` gets the codes so far after each
        step."""
        device = self.generator.device
        text_ids = self.text_tokenizer.encode([prompt for prompt, _ in requests]).to(device)
        given = None if completion is None else completion.given(self.image_tokenizer, len(requests), device)
        codes = generate_codes(
            self.generator,
            text_ids,
            self.text_tokenizer.null_ids,
            [seed for _, seed in requests],
            settings,
            given=given,
            on_codes=on_codes,
        )
        return self.image_tokenizer.decode(codes)

    def decode_partial(self, codes: Int64[Tensor, "B n"]) -> Float[Tensor, "B 3 H W"]:
        """Images whose first rows of codes are there, gray below. The last row may still change a little: a decoder
        looks around, and what comes below is not known yet."""
        height, width = self.image_tokenizer.grid
        rows = codes.shape[1] // width
        known = codes[:, : rows * width]
        rest = known[:, -width:].repeat(1, height - rows)  # fill with the last known row
        images = self.image_tokenizer.decode(torch.cat([known, rest], dim=1))
        images[:, :, rows * images.shape[2] // height :] = 0
        return images

    def _on_codes(
        self, requests: Requests, advance: Callable[[], object], on_rows: OnRows | None, codes: Int64[Tensor, "B n"]
    ) -> None:
        advance()
        rows, rest = divmod(codes.shape[1], self.image_tokenizer.grid[1])
        if on_rows is not None and not rest:
            on_rows(partial(self._unfinished, requests, codes), rows)

    def _unfinished(self, requests: Requests, codes: Int64[Tensor, "B n"]) -> list[GeneratedImage]:
        images = to_pil(self.decode_partial(codes))
        return [GeneratedImage(image, *pair) for image, pair in zip(images, requests, strict=True)]

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        config = {
            "model": self.generator.config.model_dump(mode="json"),
            "tokens": self.generator.tokens.model_dump(mode="json"),
            "sampling": self.sampling.model_dump(mode="json"),
            _CODES: str(self.image_tokenizer.codes_fingerprint()),
        }
        return config, self.generator

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes one folder that samples: weights, config, recommended sampling and both tokenizers."""
        super().save_pretrained(folder)
        self.image_tokenizer.save_pretrained(Path(folder) / IMAGE_TOKENIZER)

    def model_card(self, name: str) -> str:
        """Returns README.md of the model on the Hub: kind, sizes, sampling settings and how to use it."""
        return text_to_image_card(name, self.generator, self.image_size, self.sampling)

    def load_lora_weights(self, folder: str | Path) -> "TextToImage":
        """Adds the LoRA adapters in `folder`, or those of a run that trained some (task.lora), to the generator.

        Returns the pipeline itself. Raises ModelFolderError where there are none, or where they belong to another
        generator.
        """
        self.generator = merge_lora(self.generator, folder)
        return self

    @classmethod
    def open_folder(cls, folder: str | Path | ModelFolder) -> ModelFolder:
        found = super().open_folder(folder)
        if not all(isinstance(found.config.get(section), dict) for section in ("model", "tokens")):
            raise ModelFolderError(f"{found} holds no text-to-image model; give the folder of a stage-2 run")
        return found

    @classmethod
    def sampling_in(cls, folder: ModelFolder) -> SamplingConfig:
        """Returns the settings that a folder recommends; plain ones where it has none. Raises ConfigError."""
        return validate(SamplingConfig, folder.config.get("sampling") or {}, f"{folder}: sampling")

    @classmethod
    def image_size_in(cls, folder: ModelFolder) -> int:
        return ImageTokenizer.image_size_in(open_model_folder(folder.path / IMAGE_TOKENIZER))

    @classmethod
    def _load(cls, folder: ModelFolder) -> "TextToImage":
        return cls._load_with(folder, None)

    @classmethod
    def _load_with(cls, folder: ModelFolder, image_tokenizer: str | Path | None) -> "TextToImage":
        text_tokenizer = TextTokenizer.from_pretrained(folder.path)
        tokenizer = ImageTokenizer.from_pretrained(image_tokenizer or folder.path / IMAGE_TOKENIZER)
        tokens = validate(TokenSpace, folder.config["tokens"], str(folder))
        _check_codes(folder, tokenizer, image_tokenizer)
        given = token_space(text_tokenizer, tokenizer)
        if tokens != given:
            raise ModelFolderError(
                f"{folder}: the generator was built for ({tokens}), its tokenizers give ({given}); "
                "the folder mixes files of different runs"
            )
        config = validate(_Stored, {"model": folder.config["model"]}, str(folder)).model
        encoder = getattr(config, "text_encoder", None)
        if isinstance(encoder, PretrainedTextEncoderConfig) and encoder.architecture is None:
            raise ModelFolderError(
                f"{folder} names a text encoder outside of the folder ({encoder.name[:80]!r}), where a saved model has "
                "its architecture; save it again"
            )
        generator = load_model(lambda: GENERATORS[config.kind](config, tokens), folder.path)
        return cls(generator.eval(), text_tokenizer, tokenizer, cls.sampling_in(folder))


def _check_codes(folder: ModelFolder, tokenizer: ImageTokenizer, given: str | Path | None) -> None:
    """Raises ModelFolderError where the generator in `folder` learned other codes than those of the tokenizer."""
    learned, own = CodesFingerprint.parse(folder.config.get(_CODES)), folder.path / IMAGE_TOKENIZER
    if learned is None:  # an earlier version's, which does not say
        if given is None:
            return
        learned = ImageTokenizer.from_pretrained(own).codes_fingerprint()
    if differing := learned.differs_from(tokenizer.codes_fingerprint()):
        whose = f"the image tokenizer {given}" if given is not None else f"the one in {own}"
        raise ModelFolderError(
            f"{folder}: the generator learned the codes of another image tokenizer; {whose} differs from it in "
            f"{differing}; give the one that it was trained with (--image-tokenizer), or one whose codes_from that is"
        )
