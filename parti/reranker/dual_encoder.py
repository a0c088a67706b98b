"""A dual encoder of any size: transformers' CLIPModel (CLIP, Radford et al., arXiv 2103.00020) with our vocabulary.

`Scorer.save_pretrained` writes a folder that transformers' `CLIPModel` and `CLIPProcessor` read, so our rerankers and
published ones are loaded in the same way. Its text is split by stage 2's byte-level BPE
(`parti.text.tokenizer`), between a start and an end token; CLIP takes a text's embedding at the end token. Its pixels
are those of our batches, in [-1, 1] (CLIP's own mean and deviation describe photographs).

transformers is imported on use: it takes seconds.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from parti.text.tokenizer import PAD_ID, TEXT_TOKENIZER_FILE, TextTokenizer
from vqgan.config.schema import Config

_PAD, _START, _END = "<pad>", "<start>", "<end>"


class TowerConfig(Config, fixed=("depth", "width", "heads", "mlp_width")):
    """One of the two transformers."""

    depth: int = Field(gt=0)
    """Layers."""
    width: int = Field(gt=0)
    """Width of the residual stream."""
    heads: int = Field(gt=0)
    """Attention heads; a divisor of the width."""
    mlp_width: int = Field(gt=0)
    """Hidden width of the MLP."""

    @model_validator(mode="after")
    def _check_heads(self) -> "TowerConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; use a multiple of the heads")
        return self


class DualEncoderConfig(Config, fixed=("image_size", "patch_size", "embedding_width")):
    """A vision transformer and a causal text transformer with a joint embedding. Defaults: CLIP's ViT-B/16."""

    image_size: int = Field(256, gt=0)
    """Height and width of the image encoder's input, in pixels."""
    patch_size: int = Field(16, gt=0)
    """Side of a patch in pixels."""
    image_encoder: TowerConfig = TowerConfig(depth=12, width=768, heads=12, mlp_width=3072)
    """The image encoder."""
    text_encoder: TowerConfig = TowerConfig(depth=12, width=512, heads=8, mlp_width=2048)
    """The text encoder."""
    embedding_width: int = Field(512, gt=0)
    """Width of the joint embedding."""

    @model_validator(mode="after")
    def _check_patches(self) -> "DualEncoderConfig":
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} does not divide into patches of {self.patch_size}; "
                "use a multiple of patch_size"
            )
        return self


def build_processor(config: DualEncoderConfig, vocabulary: Path) -> Any:
    """Returns the CLIPProcessor of a model: images to `image_size` and [-1, 1], captions to ids.

    `vocabulary` is the folder of a `TextTokenizer`; its length includes the start and the end token here. Raises
    ModelFolderError where there is none.
    """
    from tokenizers import Tokenizer, processors
    from transformers import CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerFast

    length = TextTokenizer.from_pretrained(vocabulary).length
    tokenizer = Tokenizer.from_file(str(vocabulary / TEXT_TOKENIZER_FILE))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([_START, _END])
    ids = [(token, tokenizer.token_to_id(token)) for token in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=ids)
    side = {"height": config.image_size, "width": config.image_size}
    return CLIPProcessor(
        CLIPImageProcessor(
            size={"shortest_edge": config.image_size}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=_START,
            eos_token=_END,
            pad_token=_PAD,
            model_max_length=length,
            model_input_names=["input_ids", "attention_mask"],
        ),
    )


def build_dual_encoder(config: DualEncoderConfig, processor: Any) -> Any:
    """Returns a CLIPModel with random weights for the vocabulary of `processor`."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = processor.tokenizer
    text = _tower(config.text_encoder) | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": PAD_ID,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = _tower(config.image_encoder) | {"image_size": config.image_size, "patch_size": config.patch_size}
    width = config.embedding_width
    vision["projection_dim"] = text["projection_dim"] = width
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def repeated_layers(model: Any) -> list[nn.Module]:
    """The transformer layers of both towers of a CLIPModel."""
    return [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]


def _tower(config: TowerConfig) -> dict[str, Any]:
    """Returns the settings under transformers' names."""
    return {
        "num_hidden_layers": config.depth,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": "gelu",
    }
