"""Finds the files of a pretrained text model: a folder, or a Hub name in the local cache or downloaded.

Either is checked before transformers reads it (`parti.text.transformers_folder`).
"""

from collections.abc import Sequence
from pathlib import Path

from parti.text.transformers_folder import UnsafeFolderError, check_transformers_folder
from vqgan.config.schema import ConfigError
from vqgan.hub.huggingface import NotOnHubError, fetch_model

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
"""Files of a tokenizer or an encoder, besides config.json. Weights are never unpickled."""


def find_checkpoint(name: str, files: Sequence[str]) -> Path:
    """Returns the folder that holds `files` (patterns, of which one must be there) and config.json of model `name`.

    Raises ConfigError, one line that says what to fetch, or what unsafe content the folder has.
    """
    folder = Path(name).expanduser()
    try:
        if not folder.is_dir():
            folder = fetch_model(name, files, beside=["config.json"])
        elif not any(True for pattern in files for _ in folder.glob(pattern)):
            raise ConfigError(f"{name!r} holds none of {', '.join(files)}; give the folder of a pretrained text model")
        check_transformers_folder(folder)
    except (NotOnHubError, UnsafeFolderError) as error:
        raise ConfigError(str(error)) from None
    return folder
