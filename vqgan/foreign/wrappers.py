"""A tokenizer's tensors out of what a file has around them: names in front, averages beside.

Data-parallel training puts `module.` in front of each name, compiling `_orig_mod.`, latent diffusion
`first_stage_model.`, Janus `gen_vision_model.`; latent diffusion keeps averages of the weights as
`model_ema.NAMEWITHOUTDOTS`. None of it is known by a list: where the format's first tensor is found, there is the rest.
"""

from collections.abc import Mapping

from torch import Tensor

from vqgan.foreign.reading import ForeignCheckpointError

_AVERAGES, _COUNTERS = "model_ema.", ("decay", "num_updates")
_TRAINING_ONLY = "loss."
_SECTIONS = ("state_dict", "ema", "model_ema", "model", "module", "generator", "net", "vqvae", "vae", "weights")
"""Where files keep their tensors; averages come before weights, as in LlamaGen's."""
_DEEPEST = 5


def section_of(content: Mapping[str, object], preferred: tuple[str, ...]) -> tuple[Mapping[str, object], str]:
    """The innermost mapping with tensors, by the names that files use, and its dotted name there ('' for all).

    `preferred` sections are looked into first.
    """
    path: list[str] = []
    while len(path) < _DEEPEST and not any(isinstance(value, Tensor) for value in content.values()):
        found = [name for name in (*preferred, *_SECTIONS) if isinstance(content.get(name), dict) and content[name]]
        if not found:
            break
        path.append(found[0])
        content = content[found[0]]  # type: ignore[assignment]
    return content, ".".join(path)


def unwrapped(tensors: Mapping[str, Tensor], first: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tokenizer's tensors by its own names, and what was chosen, in lines; `first` is a name that it must have.

    Raises ForeignCheckpointError where a file holds several.
    """
    notes: list[str] = []
    fronts = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    if len(fronts) > 1 and "" not in fronts:
        averaged = [front for front in fronts if "ema" in front]
        if len(averaged) != 1:
            shown = ", ".join(fronts[:4])
            raise ForeignCheckpointError(
                f"the file holds {len(fronts)} tokenizers, under {shown}; save the one that is meant by itself"
            )
        fronts = averaged
    front = "" if "" in fronts or not fronts else fronts[0]
    inside = {name.removeprefix(front): tensor for name, tensor in tensors.items() if name.startswith(front)}
    if front:
        notes.append(f"of the file's {len(tensors)} tensors, the {len(inside)} under {front[:-1]} are read")
    averages = {name.removeprefix(_AVERAGES): value for name, value in inside.items() if name.startswith(_AVERAGES)}
    weights = {name: tensor for name, tensor in inside.items() if not name.startswith(_AVERAGES)}
    if averages:
        weights, note = _averaged(weights, averages)
        notes.append(note)
    return weights, notes


def _averaged(weights: dict[str, Tensor], averages: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The averages by the weights' names, where there is one of each; else the weights."""
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(_TRAINING_ONLY)}
    by_name = {name: averages.get(name.replace(".", ""), averages.get(name)) for name in own}
    lacking = [name for name, value in by_name.items() if value is None or value.shape != own[name].shape]
    count = sum(name not in _COUNTERS for name in averages)
    if lacking:
        return weights, f"the weights are read, not their {count} averages (model_ema): {lacking[0]} has none there"
    found = {name: value for name, value in by_name.items() if value is not None}
    return found, "the averages of the weights (model_ema) are read, not the weights of the last step"
