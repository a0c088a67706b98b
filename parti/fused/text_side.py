"""The text side: BertEmbeddings and BertLayers of transformers' own, random or with the weights of a BERT.

A BERT folder's layers are taken in the drawing's order, layer i by the trunk's i-th row; rows beyond the last layer get
copies of it (bert-base has 12, the drawing 14). Of its positions the first T are kept.

Any text vocabulary of `parti.text` serves. Behind its ids comes one more, that of the hidden token: a learned
vocabulary has none, and a BERT's own may not be spelt out in a caption. It starts as the BERT's [MASK], padding as its
[PAD].

Legend: B batch, T text positions, D text width, V vocabulary, the hidden token included.
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
from parti.text.transformers_folder import SAFE_WEIGHTS, SAFELY
from vqgan.config.schema import Config, ConfigError
from vqgan.hub.model_folder import ModelFolderError
from vqgan.system.torchvision_ops import declare_missing_torchvision_ops

_BERT_STD, _BERT_WIDTH = 0.02, 768
"""BERT's initial weights (arXiv 1810.04805, published code), which are of that width."""


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
    """Folder or Hub name (owner/name) of a BERT whose weights the text side starts from; the sizes above are then
    its own, and text.kind is pretrained with text.name the same. null: random weights."""

    @model_validator(mode="after")
    def _check_heads(self) -> "TextSideConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        return self


class TextSpace(NamedTuple):
    """What the text side reads: `vocab_size` ids, `length` positions T, and which ids are padding and hidden."""

    vocab_size: int
    length: int
    pad_id: int
    mask_id: int

    def seen(self, ids: Tensor) -> Tensor:
        """Where there is text."""
        return ids != self.pad_id


def refuse_outside(config: TextSideConfig, folder: Path) -> None:
    """Raises ModelFolderError where the config of a saved model names weights that are not in its folder."""
    if config.bert is not None:
        raise ModelFolderError(
            f"{folder} names a BERT outside of the folder ({config.bert[:80]!r}), where a saved model has its weights; "
            f"set bert to null in its config.json"
        )


def text_space(tokenizer: TextTokenizer) -> TextSpace:
    """The ids of a vocabulary, and behind them the hidden token."""
    return TextSpace(tokenizer.vocab_size + 1, tokenizer.length, tokenizer.pad_id, tokenizer.vocab_size)


class TextEmbeddings(nn.Module):
    """Ids (B, T) to the first states (B, T, D): words, positions, LayerNorm."""

    def __init__(self, config: TextSideConfig, tokens: TextSpace) -> None:
        super().__init__()
        declare_missing_torchvision_ops()
        from transformers.models.bert.modeling_bert import BertEmbeddings

        self.bert = BertEmbeddings(_architecture(config, tokens))
        _initialize(self, config.width)

    def forward(self, ids: Tensor) -> Float[Tensor, "B T D"]:
        return self.bert(ids)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        """The words' table, to which heads that tell words are tied."""
        return self.bert.word_embeddings.weight


class TextLayer(nn.Module):
    """One BertLayer; nobody attends to padding."""

    def __init__(self, config: TextSideConfig) -> None:
        super().__init__()
        declare_missing_torchvision_ops()
        from transformers.models.bert.modeling_bert import BertLayer

        self.bert = BertLayer(_architecture(config))
        _initialize(self, config.width)

    def forward(self, states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """`mask` is true where there is text."""
        hidden = torch.zeros(mask.shape, dtype=states.dtype, device=states.device).masked_fill_(~mask, -torch.inf)
        return self.bert(states, hidden[:, None, None])


def start_from_bert(
    embeddings: TextEmbeddings,
    layers: Sequence[TextLayer],
    config: TextSideConfig,
    tokens: TextSpace,
    passed_over: int = 0,
) -> None:
    """Fill both with the weights of the BERT that `config` names, if it names one; its first layers may be passed over.

    Raises ConfigError where it cannot be had, is no BERT, has other sizes, or reads other ids than `tokens` has.
    """
    if config.bert is None:
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
            f"the BERT {config.bert!r} reads {own.max_position_embeddings} positions, text.length is {tokens.length}; "
            "set it to that at most"
        )
    state = bert.embeddings.state_dict()
    words = state["word_embeddings.weight"]
    special = words[[own.pad_token_id or 0, mask_id]]
    state["word_embeddings.weight"] = torch.cat([words[: tokens.vocab_size - 2], special])
    state["position_embeddings.weight"] = state["position_embeddings.weight"][: tokens.length]
    embeddings.bert.load_state_dict(state)
    for number, layer in enumerate(layers, start=passed_over):
        layer.bert.load_state_dict(bert.encoder.layer[min(number, own.num_hidden_layers - 1)].state_dict())


def _load(name: str) -> tuple[Any, int]:
    """The BERT in fp32, and the id of its [MASK]."""
    folder = find_checkpoint(name, [*WEIGHT_FILES])
    find_checkpoint(name, TOKENIZER_FILES)
    declare_missing_torchvision_ops()  # transformers may import torchvision, and takes seconds: imported on use
    from transformers import AutoConfig, AutoTokenizer, BertModel
    from transformers.utils import logging

    family: Any = BertModel
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists the heads that a file has besides
    try:
        config = AutoConfig.from_pretrained(folder, **SAFELY)
        if config.model_type != "bert":
            raise ConfigError(f"{name!r} is a {config.model_type}, not a BERT; give one of its family")
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
    except Exception as error:  # whatever the files of others lead to
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"transformers reads no BERT from {name!r}: {reason}") from None
    finally:
        logging.set_verbosity(level)
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(f"the weights in {name!r} are not of a BERT: {missing[0]} is missing")
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
    # By the width: 0.02 is BERT's at 768.
    std = _BERT_STD * (_BERT_WIDTH / width) ** 0.5
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=_BERT_STD)
