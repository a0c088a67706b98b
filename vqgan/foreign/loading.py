"""Loading renamed foreign tensors into one of our autoencoders: all of them or an error in the file's own names."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.models.autoencoder import Autoencoder


def load_renamed(
    autoencoder: Autoencoder, renamed: Mapping[str, Tensor], original_names: Mapping[str, str] | None = None
) -> None:
    """Copy `renamed`, tensors by our names, into the autoencoder, which must have exactly these, of these shapes.

    `original_names` gives the file's name of one of ours, for errors; a tensor that has no name of ours keeps the
    file's. Values are converted to the autoencoder's precision. Raises ForeignCheckpointError.
    """
    own = autoencoder.state_dict()
    names = original_names or {}
    problems = [
        _listed("missing", (names.get(name, name) for name in own if name not in renamed)),
        _listed("not known", (names.get(name, name) for name in renamed if name not in own)),
        _listed(
            "of another shape",
            (
                f"{names.get(name, name)} {tuple(renamed[name].shape)}, must be {tuple(tensor.shape)}"
                for name, tensor in own.items()
                if name in renamed and renamed[name].shape != tensor.shape
            ),
        ),
    ]
    if any(problems):
        kind = type(autoencoder).__name__
        raise ForeignCheckpointError(
            f"the file's {len(renamed)} tensors are not those of this {kind}: {'; '.join(filter(None, problems))}; "
            "pass all of the tokenizer's weights and no others, with the config that they were trained with"
        )
    autoencoder.load_state_dict(renamed)


def _listed(problem: str, names: Iterable[str], shown: int = 3) -> str:
    """`2 missing (a, b)`; empty where there is nothing to list."""
    found = list(names)
    more = ", ..." if len(found) > shown else ""
    return f"{len(found)} {problem} ({', '.join(found[:shown])}{more})" if found else ""
