"""Model folders: `config.json` beside `model.safetensors`, nothing that can execute code.

`SHA256SUMS` says what they were when they were written: reading notices every byte that changed since.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.hub.construction import TooLargeError, within_file
from vqgan.hub.huggingface import NotOnHubError, fetch_model, is_hub_name
from vqgan.hub.missing_folder import no_such_folder
from vqgan.hub.weights_header import WeightsHeaderError, stored_sizes
from vqgan.system.bounded_file import RefusedFileError, read_bounded
from vqgan.system.checksums import SUMS_FILE, add_checksums, changed_since_written, noted_files

ModuleT = TypeVar("ModuleT", bound=nn.Module)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_LARGEST_CONFIG = 4 << 20
"""Bytes of a config.json."""
_DATA_FILES = ("*.json", "*.safetensors", f"*{SUMS_FILE}")
"""What a model folder is made of, the image tokenizer's in a stage-2 folder included: the Hub's patterns look into
folders."""


class ModelFolderError(UserError, ValueError):
    """A folder that does not hold the expected model."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was found, with its parsed config.json."""

    path: Path
    config: dict[str, Any]

    @property
    def kind(self) -> str | None:
        """The kind of model that config.json names, by itself or in its `model` section; None where it names none."""
        model = self.config.get("model")
        kind = self.config.get("kind", model.get("kind") if isinstance(model, dict) else None)
        return kind if isinstance(kind, str) else None

    def __str__(self) -> str:
        """Returns the path."""
        return str(self.path)


def open_model_folder(folder: "str | Path | ModelFolder") -> ModelFolder:
    """Finds a model folder and reads its config.json; one that is open already is returned as it is.

    Raises what `find_model_folder` and `read_model_config` raise.
    """
    if isinstance(folder, ModelFolder):
        return folder
    path = find_model_folder(folder)
    return ModelFolder(path, read_model_config(path))


def find_model_folder(folder: str | Path) -> Path:
    """`folder` itself if it is a model folder, else its `model/`: run folders may be given for models.

    A string that is no path here and has the form owner/name or owner/name@revision is looked up on the Hugging Face
    Hub (vqgan/hub/huggingface.py), unless it begins like a path; a Path never is. Raises ModelFolderError where such a
    name gives no model.
    """
    found = Path(folder).expanduser()
    if isinstance(folder, str) and is_hub_name(folder) and not found.exists():
        try:
            return fetch_model(folder, [WEIGHTS_FILE], beside=_DATA_FILES)
        except NotOnHubError as error:
            raise ModelFolderError(str(error)) from None
    if not (found / CONFIG_FILE).is_file() and (found / "model" / CONFIG_FILE).is_file():
        return found / "model"
    return found


def save_model_folder(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write both files and their checksums; the folder is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / WEIGHTS_FILE)
    add_checksums(folder, (CONFIG_FILE, WEIGHTS_FILE))


def read_model_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json.

    Raises ModelFolderError when the folder or file is not there, not a regular file, too large or not a JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        values = json.loads(read_bounded(path, _LARGEST_CONFIG))
    except RefusedFileError as error:
        raise ModelFolderError(f"{path} is not a model's config: {error}") from None
    except OSError:
        near = "give a model folder" if folder.exists() else no_such_folder(str(folder))
        raise ModelFolderError(f"no model in {folder}: {CONFIG_FILE} is missing; {near}") from None
    except (ValueError, RecursionError) as error:  # a whole number of too many digits is a ValueError
        raise _no_json(path, error) from None
    if not isinstance(values, dict):
        raise ModelFolderError(f"{path} holds a {type(values).__name__}, not a mapping; it is not a model's config")
    return values


def load_model(build: Callable[[], ModuleT], folder: Path) -> ModuleT:
    """What `build` makes of the folder's config, with the folder's weights.

    A config whose sizes are not those of the weights is refused before it takes memory. Raises ModelFolderError:
    weights that are missing, truncated, or of other names or shapes.
    """
    path = folder / WEIGHTS_FILE
    try:
        tensors, numbers = stored_sizes(path)
        module = within_file(build, tensors, numbers)
    except OSError:
        raise ModelFolderError(f"no weights in {folder}: {WEIGHTS_FILE} is missing") from None
    except WeightsHeaderError as error:
        raise ModelFolderError(f"{path} {error}") from None
    except TooLargeError as error:
        raise ModelFolderError(f"{path} does not fit its {CONFIG_FILE}: {error}") from None
    load_weights(module, folder)
    return module


def check_unchanged(folder: Path, name: str) -> None:
    """Raises ModelFolderError where a file of the folder is not what was written."""
    if damage := changed_since_written(folder, name):
        raise ModelFolderError(
            f"{folder / name} is damaged or was edited: {damage}; take it again from where the model came from, or "
            f"remove {folder / SUMS_FILE} if it was changed on purpose"
        )


def check_all_unchanged(folder: Path) -> None:
    """`check_unchanged` of every file that was noted. Raises ModelFolderError."""
    for name in noted_files(folder) or [WEIGHTS_FILE]:
        check_unchanged(folder, name)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The folder's weights, whose config has been read. Raises ModelFolderError: missing, truncated, or not as they
    were written."""
    weights = _weights(folder)
    _check_both(folder)
    return weights


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill `module` from the folder's weights. Raises what `read_weights` raises, and ModelFolderError for other names
    or shapes."""
    weights = _weights(folder)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelFolderError(f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {reason[:500]}") from None
    _check_both(folder)  # last: whatever else is wrong says more


def _weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ModelFolderError(f"no weights in {folder}: {WEIGHTS_FILE} is missing")
    try:
        stored_sizes(path)
        return load_file(path)
    except WeightsHeaderError as error:
        raise ModelFolderError(f"{path} {error}") from None
    except SafetensorError as error:
        raise ModelFolderError(f"{path} is damaged or truncated: {error}") from None


def _check_both(folder: Path) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        check_unchanged(folder, name)


def _no_json(path: Path, error: Exception) -> ModelFolderError:
    return ModelFolderError(f"{path} is not valid JSON: {' '.join(str(error).split())[:200]}")
