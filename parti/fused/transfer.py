"""Starting one fused model from another: every part that both have, by its row's number.

What that is follows from the drawings: rows 3 to 11 and BertLayers 1 to 11 go from the pretraining trunk to synthesis,
convolutions 1 to 11 and BertLayers 4 to 14 to captioning.
"""

from pathlib import Path
from typing import TypeVar

from torch import nn

from parti.text import TextConfig
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError, find_model_folder, read_model_config, read_weights

KIND_PREFIX = "fused_"
"""How the `kind` in the config.json of a fused model begins: fused_inpainting, fused_captioning, fused_synthesis."""
_PARTS = "parts."

T = TypeVar("T")


def start_from(model: nn.Module, start: str | Path) -> list[str]:
    """Fill what `model` has below a module called `parts` (a `RowParts`) from the same names in the folder `start`.

    Returns the names of the weights that were taken. Raises ModelFolderError where there is no fused model in the
    folder, ConfigError where a part of the same name has another size.
    """
    folder = find_model_folder(start)
    if not str(read_model_config(folder).get("kind", "")).startswith(KIND_PREFIX):
        raise ModelFolderError(f"{folder} holds no fused model to start from; give the folder of such a run")
    theirs = _by_part(read_weights(folder))
    state = model.state_dict()
    taken = []
    for part, name in _by_part({name: name for name in state}).items():
        if part not in theirs:
            continue
        if theirs[part].shape != state[name].shape:
            raise ConfigError(
                f"start: {part} in {folder} has the shape {tuple(theirs[part].shape)}, this model's has "
                f"{tuple(state[name].shape)}; set model.trunk to that model's sizes"
            )
        state[name].copy_(theirs[part])
        taken.append(name)
    return taken


def _by_part(named: dict[str, T]) -> dict[str, T]:
    """By what stands behind "parts.": two models may keep theirs under different names."""
    return {name.partition(_PARTS)[2]: value for name, value in named.items() if _PARTS in name}


def check_vocabulary(text: TextConfig, start: str | None, bert: str | None, bert_key: str) -> None:
    """Of a run that starts from the folder `start` or takes the weights of `bert`, whose key is `bert_key`.

    Raises ValueError where weights would meet ids that they were not trained on.
    """
    name, folder = getattr(text, "name", None), getattr(text, "folder", None)
    if start is not None and folder != start:
        raise ValueError(
            f"start {start!r} was trained on the ids of its own vocabulary, but text is {text.kind} {folder or ''}; "
            f"set text.kind to saved and text.folder to {start!r}"
        )
    if start is not None and bert is not None:
        raise ValueError(f"start {start!r} and {bert_key} {bert!r} both give the text side; set one to null")
    if bert is not None and name != bert:
        raise ValueError(
            f"{bert_key} {bert!r} was trained on the ids of its own tokenizer, but text is {text.kind} "
            f"{name or ''}; set text.kind to pretrained and text.name to {bert!r}"
        )
