"""Pretrained text models as one finds them, but tiny and with random weights: folders that transformers wrote."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    GPT2Tokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from tests.tiny import CAPTIONS

_WORDS = sorted({word for caption in CAPTIONS for word in caption.split() if len(word) > 1})
_LETTERS = list(string.ascii_lowercase)
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_bert(folder: Path) -> Path:
    """With the head that it was trained with, which nobody wants here, and without a pooler."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokens), max_position_embeddings=32, **sizes)
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    return _written(folder, lambda: BertForMaskedLM(config), tokenizer)


def write_t5(folder: Path) -> Path:
    """With its decoder. The network has room for more tokens than there are, as the published ones."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in _WORDS] + [(letter, -6.0) for letter in _LETTERS]
    config = T5Config(
        vocab_size=len(pieces) + 7, d_model=24, d_kv=12, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return _written(folder, lambda: T5ForConditionalGeneration(config), T5Tokenizer(vocab=pieces, extra_ids=0))


def write_clip(folder: Path) -> Path:
    """Both sides. Padding and the end of text are one token."""
    tokens = [*_BYTES, *(f"{byte}</w>" for byte in _BYTES), "<|startoftext|>", "<|endoftext|>"]
    start, end = len(tokens) - 2, len(tokens) - 1
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 24, "bos_token_id": start, "eos_token_id": end}
    config = CLIPConfig(
        text_config=sizes | text | {"pad_token_id": end},
        vision_config=sizes | {"image_size": 8, "patch_size": 4},
        projection_dim=16,
    )
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    return _written(folder, lambda: CLIPModel(config), tokenizer)


def write_gpt2_tokenizer(folder: Path) -> Path:
    """No special token at either end: an empty text has no ids."""
    tokens = [*_BYTES, "<|endoftext|>"]
    GPT2Tokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {"bert": write_bert, "t5": write_t5, "clip": write_clip}
"""Text models with an encoder."""


def _written(folder: Path, network: Callable[[], Any], tokenizer: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        network().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
