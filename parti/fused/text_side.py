"""The text side: BertEmbeddings and BertLayers of transformers' own, random or with the weights of a BERT.

Layer i of a BERT folder initializes the trunk's i-th row; rows beyond its last layer get copies of that layer
(bert-base has 12, the diagram 14). The first T position embeddings are used.

Any text vocabulary of `parti.text` works. One more id follows its own, that of the mask token: a learned vocabulary has
none, and a caption must not be able to spell out a BERT's. It is initialized with the BERT's [MASK], padding with its
[PAD].

Legend: B batch, T text positions, D text width, V vocabulary, the mask token included.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.text.checkpoint import TOKENIZER_FILES, WEIGHT_FILES, find_checkpoint
from parti.text.tokenizer import TextTokenizer
from parti.text.transformers_folder import SAFE_WEIGHTS, SAFELY, check_weights
from vqgan.config.schema import Config, ConfigError
from vqgan.hub.construction import is_only_sized
from vqgan.hub.model_folder import ModelFolderError

_BERT_STD, _BERT_WIDTH = 0.02, 768
"""Standard deviation of BERT's initial weights (arXiv 1810.04805, published code), and the width that it is for."""


class TextSideConfig(Config, fixed=("width", "heads", "mlp_width"), may_change=("dropout", "bert")):
    """The BertLayers; the defaults are bert-base."""

    width: int = Field(768, gt=0)
    """Width D of the text rows."""
    heads: int = Field(12, gt=0)
    """Attention heads."""
    mlp_width: int = Field(3072, gt=0)
    """Hidden width of each feed-forward."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of states and of attention."""
    bert: str | None = None
    """Folder or Hub name (owner/name) of a BERT that initializes the text side. The sizes above must be its own,
    text.kind pretrained and text.name the same. null: random weights."""

    @model_validator(mode="after")
    def _check_heads(self) -> "TextSideConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        return self


class TextSpace(NamedTuple):
    """Input of the text side: `vocab_size` ids, `length` positions T, and the ids of padding and of the mask token."""

    vocab_size: int
    length: int
    pad_id: int
    mask_id: int

    def seen(self, ids: Tensor) -> Tensor:
        """Returns the positions that are not padding."""
        return ids != self.pad_id


def refuse_outside(config: TextSideConfig, folder: Path) -> None:
    """Raises ModelFolderError if the config of a saved model names weights outside its folder."""
    if config.bert is not None:
        raise ModelFolderError(
            f"{folder} names a BERT outside its folder ({config.bert[:80]!r}), but a saved model holds its weights; "
            f"set bert to null in its config.json"
        )


def text_space(tokenizer: TextTokenizer) -> TextSpace:
    """Returns the ids of a vocabulary, followed by the mask token."""
    return TextSpace(tokenizer.vocab_size + 1, tokenizer.length, tokenizer.pad_id, tokenizer.vocab_size)


class TextEmbeddings(nn.Module):
    """Ids (B, T) to the first states (B, T, D): words, positions, LayerNorm."""

    def __init__(self, config: TextSideConfig, tokens: TextSpace) -> None:
        super().__init__()
        from transformers.models.bert.modeling_bert import BertEmbeddings

        self.bert = BertEmbeddings(_architecture(config, tokens))
        _initialize(self, config.width)

    def forward(self, ids: Tensor) -> Float[Tensor, "B T D"]:
        return self.bert(ids)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        """The word embeddings, to which word heads are tied."""
        return self.bert.word_embeddings.weight


class TextLayer(nn.Module):
    """One BertLayer; padding is never attended to."""

    def __init__(self, config: TextSideConfig) -> None:
        super().__init__()
        from transformers.models.bert.modeling_bert import BertLayer

        self.bert = BertLayer(_architecture(config))
        _initialize(self, config.width)

    def forward(self, states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Returns the new states; `mask` is false at padding."""
        hidden = torch.zeros(mask.shape, dtype=states.dtype, device=states.device).masked_fill_(~mask, -torch.inf)
        return self.bert(states, hidden[:, None, None])


def start_from_bert(
    embeddings: TextEmbeddings,
    layers: Sequence[TextLayer],
    config: TextSideConfig,
    tokens: TextSpace,
    first_layer: int = 0,
) -> None:
    """Loads the weights of the BERT that `config` names, if any; `layers[0]` gets its layer `first_layer`.

    Raises ConfigError if the BERT cannot be loaded, is not a BERT, has other sizes, or another vocabulary than
    `tokens`.
    """
    if config.bert is None or is_only_sized():
        return
    bert, mask_id = _load(config.bert)
    own = bert.config
    theirs = {"width": own.hidden_size, "heads": own.num_attention_heads, "mlp_width": own.intermediate_size}
    if wrong := [f"{name} {size}" for name, size in theirs.items() if getattr(config, name) != size]:
        raise ConfigError(f"the BERT {config.bert!r} has {', '.join(wrong)}; set these beside the key bert")
    if tokens.vocab_size - 2 > own.vocab_size or tokens.pad_id != tokens.vocab_size - 2:
        raise ConfigError(
            f"the BERT {config.bert!r} knows {own.vocab_size} tokens, the text vocabulary has {tokens.vocab_size - 2}; "
            f"set text.kind to pretrained and text.name to {config.bert!r}"
        )
    if tokens.length > own.max_position_embeddings:
        raise ConfigError(
            f"the BERT {config.bert!r} has {own.max_position_embeddings} positions, text.length is {tokens.length}; "
            f"set text.length to at most {own.max_position_embeddings}"
        )
    state = bert.embeddings.state_dict()
    words = state["word_embeddings.weight"]
    special = words[[own.pad_token_id or 0, mask_id]]
    state["word_embeddings.weight"] = torch.cat([words[: tokens.vocab_size - 2], special])
    state["position_embeddings.weight"] = state["position_embeddings.weight"][: tokens.length]
    embeddings.bert.load_state_dict(state)
    for number, layer in enumerate(layers, start=first_layer):
        layer.bert.load_state_dict(bert.encoder.layer[min(number, own.num_hidden_layers - 1)].state_dict())


def _load(name: str) -> tuple[Any, int]:
    """Loads a BERT in fp32; returns it and the id of its [MASK]."""
    folder = find_checkpoint(name, [*WEIGHT_FILES])
    find_checkpoint(name, TOKENIZER_FILES)
    # It takes seconds: imported on use.
    from transformers import AutoConfig, AutoTokenizer, BertModel
    from transformers.utils import logging

    family: Any = BertModel
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list the unused heads of the file
    try:
        config = AutoConfig.from_pretrained(folder, **SAFELY)
        if config.model_type != "bert":
            raise ConfigError(f"{name!r} is a {config.model_type}, not a BERT; give one of its family")
        check_weights(folder, lambda: family(config, add_pooling_layer=False))
        network, report = family.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            add_pooling_layer=False,
            **SAFE_WEIGHTS,
        )
        mask_id = AutoTokenizer.from_pretrained(folder, **SAFELY).mask_token_id
    except ConfigError:
        raise
    except Exception as error:  # a damaged or foreign file may raise anything
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"transformers cannot load a BERT from {name!r}: {reason}") from None
    finally:
        logging.set_verbosity(level)
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(f"the weights in {name!r} are not those of a BERT: {missing[0]} is missing")
    if mask_id is None:
        raise ConfigError(f"the tokenizer in {name!r} has no [MASK]; choose a BERT that has one")
    return network, mask_id


def _architecture(config: TextSideConfig, tokens: TextSpace | None = None) -> Any:
    from transformers import BertConfig

    settings: dict[str, Any] = {
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        # Plain products: captions are short, and the fused kernel's backward pass is slow on a CPU.
        "attn_implementation": "eager",
        "pad_token_id": None,
    }
    if tokens is not None:
        settings |= {"vocab_size": tokens.vocab_size, "max_position_embeddings": tokens.length}
    return BertConfig(**settings)


def _initialize(module: nn.Module, width: int) -> None:
    # Scaled by the width: 0.02 is BERT's value at 768.
    std = _BERT_STD * (_BERT_WIDTH / width) ** 0.5
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=_BERT_STD)
