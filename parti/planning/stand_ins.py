"""Placeholders for files and downloads in a plan: a vocabulary of the run's size, a BERT without its weights."""

from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers

from parti.text import SavedTokenizerConfig, TextConfig, TextTokenizer, TextTokenizerConfig, UnigramConfig
from parti.text.saved_tokenizer import load_saved_tokenizer
from parti.text.vocabulary import NULL_TOKEN, PAD_TOKEN
from vqgan.config.schema import ConfigError

KNOWN_VOCABULARIES = {
    "google-bert/bert-base-uncased": 30_522,
    "google-bert/bert-large-uncased": 30_522,
    "google-bert/bert-base-cased": 28_996,
    "google-bert/bert-base-multilingual-cased": 119_547,
}
"""Vocabulary sizes of common models by their published `config.json`: a plan downloads nothing."""


class TextSizes(NamedTuple):
    """Tokens of a vocabulary, and text positions."""

    vocab_size: int
    length: int


def text_sizes(text: TextConfig) -> TextSizes:
    """Returns the sizes of a run's vocabulary. Raises ConfigError if it is on the Hub and not known here,
    ModelFolderError if a saved one is not in its folder."""
    if isinstance(text, TextTokenizerConfig | UnigramConfig):
        return TextSizes(text.vocab_size, text.length)
    if isinstance(text, SavedTokenizerConfig):
        saved = load_saved_tokenizer(text)
        return TextSizes(saved.vocab_size, saved.length)
    if text.name in KNOWN_VOCABULARIES:
        return TextSizes(KNOWN_VOCABULARIES[text.name] + 1, text.length)  # plus padding
    raise ConfigError(
        f"text.name {text.name!r}: its vocabulary is not in the config; plan with --text '{{kind: bpe, vocab_size: N, "
        "length: T}', with the tokens and the length that it has, and without the weights to start from"
    )


def blank_vocabulary(text: TextConfig) -> TextTokenizer:
    """Placeholder tokenizer with the run's number of tokens. Raises the errors of `text_sizes`."""
    vocab_size, length = text_sizes(text)
    words = [PAD_TOKEN, NULL_TOKEN, *(f"word{number}" for number in range(2, vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return TextTokenizer(tokenizer, length, PAD_TOKEN)


def full_caption(length: int) -> str:
    """Returns a caption that fills the text positions."""
    return " ".join(["word2"] * length)


def without_starts(config: Any) -> Any:
    """Returns the config without pretrained weights, which do not affect shapes."""
    changes: dict[str, Any] = {"start": None} if "start" in type(config).model_fields else {}
    for path in (("model", "text"), ("model", "trunk", "text")):
        if _value(config, path) is not None and getattr(_value(config, path), "bert", None) is not None:
            changes |= {"model": _replaced(config.model, [*path[1:], "bert"], None)}
    return config.model_copy(update=changes)


def _value(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = getattr(config, key, None)
    return config


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    key, *rest = path
    return config.model_copy(update={key: _replaced(getattr(config, key), rest, value) if rest else value})
