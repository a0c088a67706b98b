"""The text tokenizer of an earlier run, for runs that start from its weights."""

from typing import Literal

from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import Config
from vqgan.hub.model_folder import find_model_folder


class SavedTokenizerConfig(Config, fixed=("kind", "folder")):
    """A saved tokenizer of any kind, with its length."""

    kind: Literal["saved"] = "saved"
    """Read from the folder of another run; the run stores its own copy."""
    folder: str
    """Run or model folder that holds text_tokenizer.json: of a text encoder's warm-up, or of stage 2."""


def load_saved_tokenizer(config: SavedTokenizerConfig) -> TextTokenizer:
    """Loads the tokenizer. Raises ModelFolderError if there is none."""
    return TextTokenizer.from_pretrained(find_model_folder(config.folder))
