"""The largest number of tokens that a pretrained text network can read.

`max_position_embeddings` does not give it: RoBERTa and related models start positions after that of padding, so two are
never used; relative positions (T5) have no bound, and some configs say -1 for that (XLNet).
"""

from torch import Tensor, nn

_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
"""transformers' names of position embeddings."""


def usable_length(network: nn.Module) -> int | None:
    """Returns the length of the longest text, special tokens included; None without a bound."""
    bounds = [
        len(weight) - _first(module)
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in _TABLES and isinstance(weight := getattr(module, "weight", None), Tensor)
    ]
    declared = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    if isinstance(declared, int) and declared > 0:
        bounds.append(declared)
    return min(bounds, default=None)


def _first(table: nn.Module) -> int:
    """Returns the position of the first token: after that of padding, if padding has one."""
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1
