"""Where a pretrained text model's files are: a folder as it is; a Hub name in the local cache, else downloaded.

Either is looked through before transformers reads it (`parti.text.transformers_folder`).
"""

from collections.abc import Sequence
from pathlib import Path

from parti.text.transformers_folder import UnsafeFolderError, check_transformers_folder
from vqgan.config.schema import ConfigError
from vqgan.hub.huggingface import NotOnHubError, fetch_model

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
"""What a tokenizer or an encoder is read from, beside config.json. Weights are never unpickled."""


def find_checkpoint(name: str, files: Sequence[str]) -> Path:
    """The folder that holds `files` (patterns, of which one must be there) and config.json of model `name`.

    Raises ConfigError, one line that says what to fetch, or what the folder asks for that no model needs.
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
