"""Initializes one fused model from another: every part that both have, by its row number.

According to the diagrams, rows 3 to 11 and BertLayers 1 to 11 go from the pretraining trunk to synthesis, convolutions
1 to 11 and BertLayers 4 to 14 to captioning.
"""

from pathlib import Path
from typing import TypeVar

from torch import nn

from parti.text import TextConfig
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError, find_model_folder, read_model_config, read_weights

KIND_PREFIX = "fused_"
"""Prefix of `kind` in the config.json of a fused model: fused_inpainting, fused_captioning, fused_synthesis."""
_PARTS = "parts."

T = TypeVar("T")


def load_shared_rows(model: nn.Module, start: str | Path) -> list[str]:
    """Loads the weights below modules called `parts` (a `RowParts`) from the same names in the model folder `start`.

    Returns the names of the weights that were loaded. Raises ModelFolderError if the folder holds no fused model,
    ConfigError if a part of the same name has another size.
    """
    folder = find_model_folder(start)
    if not str(read_model_config(folder).get("kind", "")).startswith(KIND_PREFIX):
        raise ModelFolderError(f"{folder} holds no fused model to start from; give the folder of such a run")
    theirs = _by_part(read_weights(folder))
    state = model.state_dict()
    loaded = []
    for part, name in _by_part({name: name for name in state}).items():
        if part not in theirs:
            continue
        if theirs[part].shape != state[name].shape:
            raise ConfigError(
                f"start_from: {part} in {folder} has the shape {tuple(theirs[part].shape)}, this model's has "
                f"{tuple(state[name].shape)}; set model.trunk to that model's sizes"
            )
        state[name].copy_(theirs[part])
        loaded.append(name)
    return loaded


def start_rows_from(model: nn.Module, source: str | Path) -> list[str]:
    """`load_shared_rows`, with a line for a person."""
    loaded, all_of_it = load_shared_rows(model, source), model.state_dict()
    weights = sum(all_of_it[name].numel() for name in loaded)
    total = sum(value.numel() for value in all_of_it.values())
    return [
        f"start_from {source}: {len(loaded)} of {len(all_of_it)} tensors, the rows that both have ({weights:,} of "
        f"{total:,} weights)"
    ]


def _by_part(named: dict[str, T]) -> dict[str, T]:
    """Indexes by the name after "parts.": two models may hold their parts under different attributes."""
    return {name.partition(_PARTS)[2]: value for name, value in named.items() if _PARTS in name}


def check_vocabulary(text: TextConfig, start: str | None, bert: str | None, bert_key: str) -> None:
    """Checks the vocabulary of a run that starts from the folder `start` or from `bert`, whose key is `bert_key`.

    Raises ValueError if weights would read ids that they were not trained on.
    """
    name, folder = getattr(text, "name", None), getattr(text, "folder", None)
    if start is not None and folder != start:
        raise ValueError(
            f"start_from {start!r} was trained with its own vocabulary, but text is {text.kind} {folder or ''}; "
            f"set text.kind to saved and text.folder to {start!r}"
        )
    if start is not None and bert is not None:
        raise ValueError(f"start_from {start!r} and {bert_key} {bert!r} both initialize the text side; set one to null")
    if bert is not None and name != bert:
        raise ValueError(
            f"{bert_key} {bert!r} was trained with its own tokenizer, but text is {text.kind} "
            f"{name or ''}; set text.kind to pretrained and text.name to {bert!r}"
        )
