"""Scores how well an image fits a prompt: the cosine similarity of a contrastive model.

Any CLIP or SigLIP folder (or Hub name) that transformers reads works, including our own (`tools/train_reranker.py`).
Images and prompts are preprocessed by the folder's own processor.

A model that selects images must not also score them in an evaluation: its score rises with the number of candidates
even if the images do not get better. Report reranked metrics with that number, and with another model as scorer.

transformers is imported on use: it takes seconds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from parti.text.architecture import architecture_fingerprint
from parti.text.checkpoint import TOKENIZER_FILES, WEIGHT_FILES
from parti.text.transformers_folder import (
    SAFE_WEIGHTS,
    SAFELY,
    UnsafeFolderError,
    check_transformers_folder,
    check_weights,
)
from vqgan.data.images.transforms import to_pil
from vqgan.fingerprints import FrozenPart, network_fingerprint, settings_fingerprint
from vqgan.hub.huggingface import NotOnHubError, fetch_model
from vqgan.hub.model_folder import ModelFolderError, check_all_unchanged, find_model_folder
from vqgan.system.checksums import add_checksums

_AT_ONCE = 64
"""Images in one pass of the model."""
_FILES = (".json", ".safetensors")
"""Endings of the files of a model folder."""
_KNOWN = ("clip", "siglip", "siglip2", "chinese_clip", "metaclip_2", "altclip", "align")
"""transformers' contrastive models of images and texts, by `model_type`."""


class Scorer:
    """A contrastive model of transformers with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        positions = model.config.text_config.max_position_embeddings
        self.text_length = int(min(positions, processor.tokenizer.model_max_length))

    @torch.no_grad()
    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str]) -> Float[Tensor, "B"]:
        """Returns the cosine similarity of each image in [-1, 1] and its prompt; the same as for the saved 8-bit image.

        Raises ValueError unless there is one prompt for each image, and at least one image.
        """
        return self.score_images(to_pil(images), prompts)

    @torch.no_grad()
    def score_images(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, "B"]:
        """`score` for PIL images of any size."""
        if len(images) != len(prompts) or not images:
            raise ValueError(f"received {len(prompts)} prompts for {len(images)} images; give each image one")
        scores = []
        for start in range(0, len(images), _AT_ONCE):
            part = prompts[start : start + _AT_ONCE]
            row = {prompt: number for number, prompt in enumerate(dict.fromkeys(part))}  # each prompt is read once
            found = self.model(pixel_values=self.pixels(images[start : start + _AT_ONCE]), **self.tokens(list(row)))
            texts = found.text_embeds[[row[prompt] for prompt in part]]
            scores.append(F.cosine_similarity(found.image_embeds, texts, dim=-1))
        return torch.cat(scores).float()

    def pixels(self, images: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
        """Preprocesses images with the folder's processor; returns them on the model's device."""
        prepared = self.processor.image_processor(images=list(images), return_tensors="pt")
        return prepared["pixel_values"].to(self.model.device)

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Returns the text inputs of the model. Padded to its full length: SigLIP reads a text's embedding at the last
        one."""
        prepared = self.processor.tokenizer(
            list(prompts), padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        )
        return {name: values.to(self.model.device) for name, values in prepared.items()}

    def is_cut(self, prompts: Sequence[str]) -> list[bool]:
        """Returns which prompts are longer than the model reads."""
        ids = self.processor.tokenizer(list(prompts), verbose=False)["input_ids"]
        return [len(row) > self.text_length for row in ids]

    def as_frozen_part(self) -> FrozenPart:
        """Returns the model as a frozen part of a run: network, vocabulary and preprocessing."""
        prepared = self.processor.image_processor
        sizes = {name: str(getattr(prepared, name, None)) for name in ("size", "crop_size", "image_mean", "image_std")}
        vocabulary = self.processor.tokenizer.get_vocab() | {"length": self.text_length}
        return FrozenPart(
            {
                "weights": network_fingerprint(self.model),
                "architecture": architecture_fingerprint(self.model.config),
                "vocabulary": settings_fingerprint(vocabulary),
                "preparation": settings_fingerprint(sizes),
            }
        )

    def to(self, device: str | torch.device) -> "Scorer":
        """Moves the model to a device."""
        self.model.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that transformers reads."""
        with _without_progress():
            self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        add_checksums(Path(folder), [path.name for path in Path(folder).iterdir() if path.suffix in _FILES])

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Scorer":
        """Loads a model folder, a run folder with one in `model/`, or a name on the Hugging Face Hub (owner/name).

        What is in the Hub's cache is read without a connection; without either it fails within seconds. Raises
        ModelFolderError: no such folder or name, a damaged one, or another kind of model.
        """
        if isinstance(name, Path) or Path(name).expanduser().exists():
            folder = find_model_folder(Path(name).expanduser())
            scorer = _load(folder)
            check_all_unchanged(folder)
            return scorer
        try:
            return _load(fetch_model(name, WEIGHT_FILES, beside=[*TOKENIZER_FILES, "*.json"]))
        except NotOnHubError as error:
            raise ModelFolderError(f"no CLIP or SigLIP: {error}") from None


def _load(name: Path) -> Scorer:
    from transformers import AutoConfig, AutoModel, AutoProcessor

    try:
        check_transformers_folder(name)
    except UnsafeFolderError as error:
        raise ModelFolderError(str(error)) from None
    with _without_progress():
        config = _one_line(lambda: AutoConfig.from_pretrained(name, **SAFELY), f"no model in {name}")
        if config.model_type not in _KNOWN or not (hasattr(config, "text_config") and hasattr(config, "vision_config")):
            raise ModelFolderError(
                f"{name} holds a {config.model_type} model, which does not compare images with texts; "
                "give a CLIP or SigLIP model, or a run of tools/train_reranker.py"
            )
        _one_line(
            lambda: check_weights(name, lambda: AutoModel.from_config(config, trust_remote_code=False)),
            f"{name}: its weights are missing or damaged",
        )
        processor = _one_line(
            lambda: AutoProcessor.from_pretrained(name, **SAFELY), f"{name}: its processor is damaged"
        )
        # fp32 for any saved dtype: scores of one prompt's candidates differ in the third digit.
        model, report = _one_line(
            lambda: AutoModel.from_pretrained(
                name, config=config, dtype=torch.float32, output_loading_info=True, **SAFE_WEIGHTS
            ),
            f"{name}: its weights are missing or damaged",
        )
    if not (hasattr(model, "logit_scale") and hasattr(processor, "image_processor")):
        raise ModelFolderError(
            f"{name} holds a {config.model_type} model, not a contrastive one such as CLIP or SigLIP"
        )
    if report["missing_keys"]:
        raise ModelFolderError(f"{name}: its weights lack {', '.join(sorted(report['missing_keys']))[:300]}")
    return Scorer(model.eval(), processor)


def _one_line(read: Callable[[], Any], complaint: str) -> Any:
    try:
        return read()
    except Exception as error:  # transformers, tokenizers, safetensors and the Hub's client each raise their own kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelFolderError(f"{complaint}: {reason[:300]}") from None


@contextmanager
def _without_progress() -> Iterator[None]:
    """Hides transformers' progress bars, which appear even for fast operations."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
