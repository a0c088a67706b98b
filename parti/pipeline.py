"""TextToImage: from a prompt to images, out of one folder.

model = TextToImage.from_pretrained("runs/parti-shapes")  # or a name on the Hugging Face Hub
images = model("a small red circle above a large blue square", num_images=4, seed=0).images

Given an image and what of it stays, the rest is drawn:

model("a small red circle above a large blue square", image=image, keep=keep_top(model.image_tokenizer.grid, 0.5))

With a larger decoder of the same codes (configs/vqgan/vit_vqgan_second_phase.yaml):

TextToImage.from_pretrained("runs/parti", image_tokenizer="runs/vit-vqgan-second-phase")
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from parti.completion import Completion
from parti.model_card import text_to_image_card
from parti.models import GENERATORS, Generator, GeneratorConfig, TokenSpace
from parti.pairs import token_space
from parti.sampling.generate import SamplingConfig, generate_codes
from parti.text.encoders import PretrainedTextEncoderConfig
from parti.text.tokenizer import TextTokenizer
from parti.text.truncation import about_cut_prompts
from vqgan.config.schema import Config, validate
from vqgan.data.images.transforms import to_pil
from vqgan.hub.huggingface import push_model
from vqgan.hub.model_folder import ModelFolderError, find_model_folder, load_model, read_model_config, save_model_folder
from vqgan.image_tokenizer import CodesFingerprint, ImageTokenizer

_IMAGE_TOKENIZER = "image_tokenizer"
_CODES = "codes_fingerprint"
"""In config.json: of the codes that the generator learned."""


class _Stored(Config):
    """What a model folder's config.json says of the generator."""

    model: GeneratorConfig
    """The generator."""


@dataclass(frozen=True)
class GeneratedImage:
    """One image with what it was drawn from."""

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
"""Gets what decodes a batch's images as far as they are drawn, which takes time, and how many rows of codes that
is."""


class TextToImage:
    """A stage-2 model with both of its tokenizers, and the sampling settings that it recommends."""

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
        """Draw `num_images` images of each prompt; sample j has seed `seed` + j.

        A setting that is None is the one in `self.sampling`; what switches it off is a value (guidance_scale 1,
        temperature 1, top_k 0, top_p 1). An image depends on prompt, seed and settings alone, not on what else is
        drawn. A prompt whose end the model does not read gives a warning.
        With `image` and `keep`, a mask on the code grid, the codes of `image` stay where `keep` is true.
        `on_rows` may look at each batch's images whenever a row of codes is complete.
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
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if num_images < 1 or not prompts:
            raise ValueError(f"nothing to draw: {len(prompts)} prompts with num_images {num_images}; give 1 or more")
        for line in about_cut_prompts(prompts, self.text_tokenizer):
            warnings.warn(line, stacklevel=2)
        wanted = [(prompt, seed + sample) for prompt in prompts for sample in range(num_images)]
        generated = self.stream(
            wanted, settings, completion=completion, on_rows=on_rows, batch_size=batch_size, progress=progress
        )
        return TextToImageOutput(list(generated))

    def stream(
        self,
        wanted: Sequence[tuple[str, int]],
        settings: SamplingConfig,
        *,
        completion: Completion | None = None,
        on_rows: OnRows | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Iterator[GeneratedImage]:
        """The images of (prompt, seed) pairs in their order, each as soon as its batch is done.

        With `completion` each is its image with the rest drawn anew.

        Raises ValueError for a blank prompt, a seed outside [0, 2**63) or an empty batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, received {batch_size}")
        for prompt, seed in wanted:
            if not prompt.strip():
                raise ValueError("a prompt is blank; give some text")
            if not 0 <= seed < 2**63:
                raise ValueError(f"a seed lies in [0, 2**63), received {seed}")
        length = self.generator.tokens.image_length
        with tqdm(total=len(wanted) * length, unit="code", disable=not progress, desc="sampling") as bar:
            for start in range(0, len(wanted), batch_size):
                part = wanted[start : start + batch_size]
                watch = partial(self._watch, part, bar, on_rows)
                images = self.generate(part, settings, completion=completion, on_codes=watch)
                for image, (prompt, seed) in zip(to_pil(images), part, strict=True):
                    yield GeneratedImage(image, prompt, seed)

    def generate(
        self,
        wanted: Sequence[tuple[str, int]],
        settings: SamplingConfig,
        *,
        completion: Completion | None = None,
        on_codes: Callable[[Int64[Tensor, "B n"]], None] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Images in [-1, 1] of (prompt, seed) pairs, as one batch; `on_codes` gets the codes so far, one by one."""
        device = self.generator.device
        text_ids = self.text_tokenizer.encode([prompt for prompt, _ in wanted]).to(device)
        given = None if completion is None else completion.given(self.image_tokenizer, len(wanted), device)
        codes = generate_codes(
            self.generator,
            text_ids,
            self.text_tokenizer.null_ids,
            [seed for _, seed in wanted],
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
        rest = known[:, -width:].repeat(1, height - rows)  # as if it went on like this
        images = self.image_tokenizer.decode(torch.cat([known, rest], dim=1))
        images[:, :, rows * images.shape[2] // height :] = 0
        return images

    def _watch(
        self,
        wanted: Sequence[tuple[str, int]],
        bar: "tqdm[Any]",
        on_rows: OnRows | None,
        codes: Int64[Tensor, "B n"],
    ) -> None:
        bar.update(len(wanted))
        done, unfinished = divmod(codes.shape[1], self.image_tokenizer.grid[1])
        if on_rows is not None and not unfinished:
            on_rows(partial(self._begun, wanted, codes), done)

    def _begun(self, wanted: Sequence[tuple[str, int]], codes: Int64[Tensor, "B n"]) -> list[GeneratedImage]:
        images = to_pil(self.decode_partial(codes))
        return [GeneratedImage(image, *pair) for image, pair in zip(images, wanted, strict=True)]

    def to(self, device: str | torch.device) -> "TextToImage":
        """Move both networks."""
        self.generator.to(device)
        self.image_tokenizer.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write one folder that samples: weights, configs, recommended sampling and both tokenizers."""
        folder = Path(folder)
        config = {
            "model": self.generator.config.model_dump(mode="json"),
            "tokens": self.generator.tokens.model_dump(mode="json"),
            "sampling": self.sampling.model_dump(mode="json"),
            _CODES: str(self.image_tokenizer.codes_fingerprint()),
        }
        save_model_folder(folder, config, self.generator.state_dict())
        self.text_tokenizer.save_pretrained(folder)
        self.image_tokenizer.save_pretrained(folder / _IMAGE_TOKENIZER)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload text-to-image model",
    ) -> str:
        """Upload the model folder and a card to the Hugging Face Hub as `name` (owner/name); returns the address.

        `private` matters for a new model; a card that is there stays. Raises what huggingface_hub raises.
        """

        def card(full_name: str) -> str:
            return text_to_image_card(full_name, self.generator, self.image_tokenizer.image_size, self.sampling)

        return push_model(name, self.save_pretrained, card, private=private, token=token, commit_message=commit_message)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, image_tokenizer: str | Path | None = None) -> "TextToImage":
        """Read a stage-2 model folder, the run folder that has one in `model/`, or a Hub name (owner/name[@revision]).

        `image_tokenizer`, a folder or Hub name too, draws in the place of the folder's own: one with the same codes and
        another decoder, such as that of Parti's second phase (`codes_from`).

        Raises ModelFolderError when there is none, it is damaged, its parts do not fit, or the image tokenizer has
        other codes; ConfigError when its config.json holds what no config admits.
        """
        folder = find_model_folder(folder)
        values = _read_config(folder)
        text_tokenizer = TextTokenizer.from_pretrained(folder)
        tokenizer = ImageTokenizer.from_pretrained(image_tokenizer or folder / _IMAGE_TOKENIZER)
        tokens = validate(TokenSpace, values["tokens"], str(folder))
        _check_codes(values, folder, tokenizer, image_tokenizer)
        given = token_space(text_tokenizer, tokenizer)
        if tokens != given:
            raise ModelFolderError(
                f"{folder}: the generator was built for ({tokens}), its tokenizers give ({given}); "
                "the folder mixes files of different runs"
            )
        kind = values["model"]["kind"]
        config = validate(_Stored, {"model": values["model"]}, str(folder)).model
        encoder = getattr(config, "text_encoder", None)
        if isinstance(encoder, PretrainedTextEncoderConfig) and encoder.architecture is None:
            raise ModelFolderError(
                f"{folder} names a text encoder outside of the folder ({encoder.name[:80]!r}), where a saved model has "
                "its architecture; save it again"
            )
        generator = load_model(lambda: GENERATORS[kind](config, tokens), folder)
        generator.eval()
        return cls(generator, text_tokenizer, tokenizer, _recommended(values, folder))


def _check_codes(values: dict[str, Any], folder: Path, tokenizer: ImageTokenizer, given: str | Path | None) -> None:
    """Raises ModelFolderError where the generator in `folder` learned other codes than those of the tokenizer."""
    learned = CodesFingerprint.parse(values.get(_CODES))
    if learned is None:  # an earlier version's, which does not say
        if given is None:
            return
        learned = ImageTokenizer.from_pretrained(folder / _IMAGE_TOKENIZER).codes_fingerprint()
    if differing := learned.differs_from(tokenizer.codes_fingerprint()):
        whose = f"the image tokenizer {given}" if given is not None else f"the one in {folder / _IMAGE_TOKENIZER}"
        raise ModelFolderError(
            f"{folder}: the generator learned the codes of another image tokenizer; {whose} differs from it in "
            f"{differing}; give the one that it was trained with (--image-tokenizer), or one whose codes_from that is"
        )


def recommended_sampling(folder: str | Path) -> SamplingConfig:
    """The settings in a stage-2 model or run folder, without reading its weights; plain ones where it has none.

    Raises ModelFolderError or ConfigError like `TextToImage.from_pretrained`.
    """
    folder = find_model_folder(folder)
    return _recommended(_read_config(folder), folder)


def _read_config(folder: Path) -> dict[str, Any]:
    values = read_model_config(folder)
    if not all(isinstance(values.get(section), dict) for section in ("model", "tokens")):
        raise ModelFolderError(f"{folder} holds no text-to-image model; give the folder of a stage-2 run")
    kind = values["model"].get("kind")
    if kind not in GENERATORS:
        raise ModelFolderError(f"{folder}: unknown model kind {kind!r}; known: {', '.join(GENERATORS)}")
    return values


def _recommended(values: dict[str, Any], folder: Path) -> SamplingConfig:
    return validate(SamplingConfig, values.get("sampling") or {}, f"{folder}: sampling")
