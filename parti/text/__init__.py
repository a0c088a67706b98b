"""Text tokenizers and text encoders."""

from collections.abc import Callable, Iterable
from typing import Annotated

from pydantic import Field

from parti.text.pretrained_tokenizer import PretrainedTokenizerConfig, load_pretrained_tokenizer
from parti.text.saved_tokenizer import SavedTokenizerConfig, load_saved_tokenizer
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig, UnigramConfig

TextConfig = Annotated[
    TextTokenizerConfig | UnigramConfig | PretrainedTokenizerConfig | SavedTokenizerConfig,
    Field(discriminator="kind"),
]


def build_text_tokenizer(config: TextConfig, captions: Callable[[int], Iterable[str]]) -> TextTokenizer:
    """Returns the text tokenizer of a config; `captions` returns the given number of captions to train a vocabulary on.

    Raises ConfigError for a pretrained one that cannot be loaded, ModelFolderError for a saved one that does not exist.
    """
    if isinstance(config, PretrainedTokenizerConfig):
        return load_pretrained_tokenizer(config)
    if isinstance(config, SavedTokenizerConfig):
        return load_saved_tokenizer(config)
    return TextTokenizer.train(captions(config.training_captions), config)


__all__ = [
    "PretrainedTokenizerConfig",
    "SavedTokenizerConfig",
    "TextConfig",
    "TextTokenizer",
    "TextTokenizerConfig",
    "UnigramConfig",
    "build_text_tokenizer",
]
