"""The vocabulary of a pretrained text model (T5, CLIP, BERT, GPT-2, ...), as transformers reads it.

The ids are the model's own, with special tokens. Padding gets an additional id after them: a model may use the same id
for the end of text and for padding (CLIP does), but here the id alone must identify padding.
"""

import json
from typing import Literal

from pydantic import Field
from tokenizers import Tokenizer, decoders

from parti.text.checkpoint import TOKENIZER_FILES, find_checkpoint
from parti.text.components import check_components, check_file, check_runs, is_panic
from parti.text.growth import LONGEST, check_growth
from parti.text.tokenizer import TextTokenizer
from parti.text.transformers_folder import SAFELY
from parti.text.vocabulary import NULL_TOKEN
from vqgan.config.schema import Config, ConfigError

_TOKENIZER_FILE = "tokenizer.json"
PAD_TOKEN = "<|caption-padding|>"


class PretrainedTokenizerConfig(Config, fixed=("kind", "name", "length")):
    """The vocabulary of a pretrained text model."""

    kind: Literal["pretrained"] = "pretrained"
    """Any tokenizer that transformers reads and the `tokenizers` library runs."""
    name: str
    """Folder, or name on the Hugging Face Hub (owner/name)."""
    length: int = Field(128, gt=1, le=LONGEST)
    """Text positions T, the model's special tokens included; longer captions are cut. CLIP has at most 77."""


def load_pretrained_tokenizer(config: PretrainedTokenizerConfig) -> TextTokenizer:
    """Loads the tokenizer. Raises ConfigError if there is none, or none that can be saved in one file."""
    folder = find_checkpoint(config.name, TOKENIZER_FILES)
    # It takes seconds: imported on use.
    from transformers import AutoTokenizer

    try:
        if (folder / _TOKENIZER_FILE).is_file():
            check_file((folder / _TOKENIZER_FILE).read_bytes())
        loaded = AutoTokenizer.from_pretrained(folder, **SAFELY)
    except BaseException as error:  # a damaged or foreign file may raise anything
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"text.name: transformers reads no tokenizer from {config.name!r}: {reason}") from None
    if not hasattr(loaded, "backend_tokenizer"):
        raise ConfigError(
            f"text.name: the tokenizer of {config.name!r} runs in Python alone ({type(loaded).__name__}); "
            "choose one that the tokenizers library runs (a tokenizer.json)"
        )
    # A copy: transformers replaces methods of some tokenizers.
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    try:
        check_growth(tokenizer.to_str(), config.length)
        check_components(json.loads(tokenizer.to_str()))
        check_runs(tokenizer)
    except ValueError as error:
        raise ConfigError(f"text.name: the tokenizer of {config.name!r} is refused: {error}") from None
    own = tokenizer.num_special_tokens_to_add(False)
    if own >= config.length:
        raise ConfigError(
            f"text.length is {config.length}, and {own} of these are special tokens of {config.name!r}; use more"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # If an empty text has no tokens, as with GPT-2, 'no caption' is an additional token.
    tokenizer.add_special_tokens([PAD_TOKEN] if tokenizer.encode("").ids else [PAD_TOKEN, NULL_TOKEN])
    suffix = getattr(tokenizer.model, "end_of_word_suffix", None)
    if suffix:  # CLIP's own decoder leaves it in the text
        tokenizer.decoder = decoders.Sequence([tokenizer.decoder, decoders.Replace(suffix, " ")])
    return TextTokenizer(tokenizer, config.length, PAD_TOKEN)
