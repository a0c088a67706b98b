"""Where a pretrained text model's files are: a folder as it is; a Hub name in the local cache, else downloaded."""

from collections.abc import Sequence
from pathlib import Path

from vqgan.config import ConfigError

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
"""What a tokenizer or an encoder is read from, beside config.json. Weights are never unpickled."""
_PATIENCE = 10.0
"""Seconds for the Hub to say that it is there."""


def find_checkpoint(name: str, files: Sequence[str]) -> Path:
    """The folder that holds `files` (patterns, of which one must be there) and config.json of model `name`.

    Raises ConfigError, one line that says what to fetch.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not _any_of(files, folder):
            raise ConfigError(f"{name!r} holds none of {', '.join(files)}; give the folder of a pretrained text model")
        return folder
    # Imported on use: it takes a second.
    from huggingface_hub import HfApi, snapshot_download

    reason = "no such model"
    for in_cache in (True, False):  # without a network, what was fetched before is found at once
        try:
            if not in_cache:  # a network that answers nothing would keep the download waiting for ever
                HfApi().model_info(name, timeout=_PATIENCE)
            folder = Path(snapshot_download(name, allow_patterns=["config.json", *files], local_files_only=in_cache))
        except Exception as error:  # of several libraries, down to the HTTP client
            reason = str(error).strip().partition("\n")[0]
            continue
        if _any_of(files, folder):
            return folder
        reason = f"it has none of {', '.join(files)}"
    raise ConfigError(
        f"{name!r} is no folder here, and the Hugging Face Hub does not give it ({reason[:200]}); give a folder, or "
        f"fetch it where there is a network: hf download {name}"
    )


def _any_of(files: Sequence[str], folder: Path) -> bool:
    return any(True for pattern in files for _ in folder.glob(pattern))
