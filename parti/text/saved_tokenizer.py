"""The vocabulary of an earlier run: what its weights know, another run's weights can know too."""

from typing import Literal

from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import Config
from vqgan.hub.model_folder import find_model_folder


class SavedTokenizerConfig(Config, fixed=("kind", "folder")):
    """A vocabulary that is there already, of whatever kind. Its length is in it."""

    kind: Literal["saved"] = "saved"
    """Read from the folder of another run. A run keeps a copy of its own."""
    folder: str
    """Run or model folder that holds text_tokenizer.json: of a text encoder's warm-up, or of stage 2."""


def load_saved_tokenizer(config: SavedTokenizerConfig) -> TextTokenizer:
    """Raises ModelFolderError where there is none."""
    return TextTokenizer.from_pretrained(find_model_folder(config.folder))
