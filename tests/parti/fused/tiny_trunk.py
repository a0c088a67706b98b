"""The smallest trunk that has every kind of row: 16 x 16 pixels down to 2 x 2, rows 1 2 3 and 12 13 14 (fusion 3)."""

import torch
from torch import Tensor

from parti.fused.rows import TrunkConfig
from parti.fused.text_side import TextSideConfig, TextSpace

TEXT = TextSideConfig(width=32, heads=2, mlp_width=48, dropout=0.0)
TRUNK = TrunkConfig(image_size=16, deepest_row=3, channels=(8, 12, 16), text=TEXT)
TOKENS = TextSpace(vocab_size=20, length=6, pad_id=0, mask_id=19)


def random_images(count: int, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def texts(lengths: list[int], seed: int = 0) -> Tensor:
    """Ids of texts with so many words, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, TOKENS.mask_id, (len(lengths), TOKENS.length), generator=generator)
    return ids.masked_fill(torch.arange(TOKENS.length) >= torch.tensor(lengths)[:, None], TOKENS.pad_id)


def with_opinions(module: torch.nn.Module, seed: int = 0) -> None:
    """Random weights in the layers that start at zero, so that fusions do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "_last" in name:
            with torch.no_grad():
                parameter.normal_(0.0, 0.2, generator=generator)
