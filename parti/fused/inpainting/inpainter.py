"""Inpainter: a trained network of the pretraining task with its vocabulary, which completes images and captions."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from parti.fused.inpainting.corruption import mask_images
from parti.fused.inpainting.masked_captions import MaskedCaptionReader
from parti.fused.inpainting.network import InpaintingNetwork, composite
from parti.fused.rows import TrunkConfig
from parti.fused.text_side import refuse_outside, text_space
from parti.text.masked_tokens import Words
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import validate
from vqgan.hub.model_folder import ModelFolderError, find_model_folder, load_model, read_model_config, save_model_folder

KIND = "fused_inpainting"
"""`kind` in the config.json of such a folder."""


class Inpainted(NamedTuple):
    """Completed images (B, 3, H, W) in [-1, 1] and ids (B, T)."""

    images: Float[Tensor, "B 3 H W"]
    ids: Int64[Tensor, "B T"]


class Inpainter:
    """Fills holes from the caption and masked words from the image, in one pass."""

    def __init__(self, network: InpaintingNetwork, tokenizer: TextTokenizer) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.masked_captions = MaskedCaptionReader(tokenizer, text_space(tokenizer))
        self.words = Words(tokenizer)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.network.trunk.config.image_size

    @torch.no_grad()
    def fill(
        self,
        images: Float[Tensor, "B 3 H W"],
        holes: Bool[Tensor, "B 1 H W"],
        ids: Int64[Tensor, "B T"],
        masked_captions: Bool[Tensor, "B T"],
    ) -> Inpainted:
        """Fills `holes` of the images, and predicts the most probable word of the vocabulary where `masked_captions`
        is true."""
        self.network.eval()
        completed = self.network(mask_images(images, holes), ids, masked_captions)
        # Padding and the mask token are not words.
        logits = completed.logits.clone()
        logits[:, [self.tokenizer.pad_id, self.tokenizer.vocab_size]] = -torch.inf
        predicted = ids.clone()
        predicted[masked_captions] = logits.argmax(-1)
        return Inpainted(composite(completed.images, images, holes), predicted)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and text_tokenizer.json."""
        trunk = self.network.trunk.config.model_dump(mode="json")
        trunk["text"]["bert"] = None  # its weights are in the folder
        save_model_folder(Path(folder), {"kind": KIND, "trunk": trunk}, self.network.state_dict())
        self.tokenizer.save_pretrained(Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | None = None) -> "Inpainter":
        """Loads a model folder, or a run folder with one in `model/`; the weights are frozen.

        Raises ModelFolderError if the folder holds no such model or a damaged one, ConfigError if its config.json is
        invalid.
        """
        folder = find_model_folder(folder)
        values = read_model_config(folder)
        if values.get("kind") != KIND:
            raise ModelFolderError(
                f"{folder} holds no inpainting model; give the folder of a run of configs/parti/fused_inpainting*.yaml"
            )
        tokenizer = TextTokenizer.from_pretrained(folder)
        config = validate(TrunkConfig, values.get("trunk") or {}, str(folder))
        refuse_outside(config.text, folder)
        network = load_model(lambda: InpaintingNetwork(config, text_space(tokenizer)), folder)
        frozen: nn.Module = network.eval().requires_grad_(False)
        frozen.to(device or torch.device("cpu"))
        return cls(network, tokenizer)
