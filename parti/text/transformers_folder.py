"""Checks a model folder before transformers reads it.

Such a folder is untrusted, and transformers runs code that it names: its own classes (`auto_map`), attention kernels
from the Hub, libraries of quantized weights and of adapters. A text encoder, a tokenizer or a CLIP needs none of that,
so a folder that asks for it is refused, regardless of the caller and the environment. Files must also be regular, of
bounded size, and must not refer to files elsewhere on this machine.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from vqgan.hub.construction import TooLargeError, check_sizes
from vqgan.hub.weights_header import WeightsHeaderError, stored_sizes
from vqgan.system.bounded_file import check_regular

SAFELY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of every call of transformers' `from_pretrained`: no network, no remote code."""
SAFE_WEIGHTS: dict[str, Any] = SAFELY | {"use_safetensors": True}
"""The same for loading weights: nothing is unpickled."""

_LARGEST_CONFIG, _LARGEST_FILE = 4 << 20, 128 << 20
"""Largest sizes in bytes of a settings file and of a vocabulary; the largest published vocabulary has 33 MB."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "*.index.json")
"""Files whose keys are words of a vocabulary or names of weights."""
_CODE = {
    "auto_map": "classes of its author",
    "custom_pipelines": "classes of its author",
    "quantization_config": "a library for quantized weights",
    "gguf_file": "a file of another kind",
    "tokenizer_object": "an object",
    "kernel_config": "kernels of others",
}
"""Settings that make transformers run code or read other files."""
_COUNTS, _MOST = ("num_labels", "extra_ids", "_num_labels"), 100_000
"""Settings of which transformers builds a list of that length."""
_IMPLEMENTATION = "_implementation"
"""Endings of settings that select the implementation of attention or of experts: a word for transformers' own,
owner/name for a kernel from the Hub."""


class UnsafeFolderError(ValueError):
    """An unsafe model folder; the message is one line."""


def check_transformers_folder(folder: Path) -> None:
    """Raises UnsafeFolderError if the folder names code or files elsewhere, or has unexpected content."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        try:
            size = check_regular(path)
        except OSError as error:
            raise UnsafeFolderError(f"{path} cannot be read: {error.strerror}; remove it") from None
        if path.name == "adapter_config.json":
            raise UnsafeFolderError(
                f"{folder} holds an adapter for another model; merge it into the model, and save that"
            )
        if path.suffix != ".json" and path.suffix not in (".txt", ".model"):
            continue
        is_vocabulary = path.suffix != ".json" or any(path.match(pattern) for pattern in _VOCABULARIES)
        limit = _LARGEST_FILE if is_vocabulary else _LARGEST_CONFIG
        if size > limit:
            raise UnsafeFolderError(f"{path} has {size} bytes, at most {limit} are read of such a file")
        if path.name.endswith(".index.json"):
            _check_index(path)
        elif path.suffix == ".json" and not is_vocabulary:
            check_settings(_read(path), str(path))


def check_settings(settings: Any, where: str) -> None:
    """Raises UnsafeFolderError if settings for transformers name code, or a file of this machine."""
    for key, value in _entries(settings):
        if value is None or value == {}:
            continue
        if key in _CODE:
            raise UnsafeFolderError(
                f"{where}: the key {key} asks transformers for {_CODE[key]}, and nothing that a model folder names is "
                "run; give a model of transformers' own classes, in safetensors"
            )
        if key in _COUNTS and not (isinstance(value, int) and value <= _MOST):
            raise UnsafeFolderError(f"{where}: {key} is {str(value)[:80]}, at most {_MOST} is possible")
        named = value.values() if isinstance(value, dict) else [value]
        if _IMPLEMENTATION in key and not all(text is None or _is_word(text) for text in named):
            raise UnsafeFolderError(f"{where}: {key} {str(value)[:80]!r} is code of others; remove the key")
        # Many published files contain the path where their author saved them; such a path does not exist here.
        if key.endswith("_file") and isinstance(value, str) and _leads_elsewhere(value):
            raise UnsafeFolderError(f"{where}: {key} names {value[:80]!r}, a file of this machine; remove the key")


def check_weights(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Raises UnsafeFolderError where the folder's settings, of which `build` makes a network, are not of its weights.

    To be called before transformers reads them: `num_hidden_layers: 2147483648` takes all memory.
    """
    tensors = numbers = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            more = stored_sizes(path)
        except WeightsHeaderError as error:
            raise UnsafeFolderError(f"{path} {error}") from None
        tensors, numbers = tensors + more[0], numbers + more[1]
    try:
        check_sizes(build, tensors, numbers)
    except TooLargeError as error:
        raise UnsafeFolderError(f"{folder}: {error}") from None


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Yields each key and its value, at any depth."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.replace("_", "").isalnum()


def _leads_elsewhere(value: str) -> bool:
    path = Path(value)
    try:
        return (path.is_absolute() or ".." in path.parts) and path.exists()
    except (OSError, ValueError):
        return True


def _check_index(path: Path) -> None:
    """Checks that the shards of the weights are beside their index."""
    content = _read(path)
    names = content.get("weight_map", {}) if isinstance(content, dict) else {}
    for name in names.values() if isinstance(names, dict) else [None]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsafeFolderError(f"{path} names {str(name)[:80]!r}, which is no safetensors file beside it")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsafeFolderError(f"{path} is not valid JSON: {' '.join(str(error).split())[:100]}") from None
