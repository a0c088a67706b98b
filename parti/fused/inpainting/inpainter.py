"""Inpainter: a trained network of the pretraining task with its vocabulary, which completes images and captions."""

from pathlib import Path
from typing import Any, NamedTuple

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
from vqgan.hub.model_folder import ModelFolder, load_model
from vqgan.hub.pretrained import PretrainedMixin

KIND = "fused_inpainting"
"""`kind` in the config.json of such a folder."""


class Inpainted(NamedTuple):
    """Completed images (B, 3, H, W) in [-1, 1] and ids (B, T)."""

    images: Float[Tensor, "B 3 H W"]
    ids: Int64[Tensor, "B T"]


class Inpainter(PretrainedMixin):
    """Fills holes from the caption and masked words from the image, in one pass; frozen by `from_pretrained`."""

    kinds = (KIND,)
    folder_holds = ("inpainting model", "give the folder of a run of configs/parti/fused_inpainting*.yaml")

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

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        trunk = self.network.trunk.config.model_dump(mode="json")
        trunk["text"]["bert"] = None  # its weights are in the folder
        return {"kind": KIND, "trunk": trunk}, self.network

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and text_tokenizer.json."""
        super().save_pretrained(folder)
        self.tokenizer.save_pretrained(Path(folder))

    @classmethod
    def _load(cls, folder: ModelFolder) -> "Inpainter":
        tokenizer = TextTokenizer.from_pretrained(folder.path)
        config = validate(TrunkConfig, folder.config.get("trunk") or {}, str(folder))
        refuse_outside(config.text, folder.path)
        network = load_model(lambda: InpaintingNetwork(config, text_space(tokenizer)), folder.path)
        return cls(network.eval().requires_grad_(False), tokenizer)

    def to(self, device: torch.device) -> "Inpainter":
        """Moves the network."""
        self.network.to(device)
        return self
