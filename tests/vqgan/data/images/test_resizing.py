"""Lanczos by whichever library has it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from vqgan.data.images import resizing
from vqgan.data.images.resizing import resized, resizer

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 37, 3), dtype=np.uint8))


@pytest.fixture
def older_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One whose interpolate knows no lanczos."""
    interpolate = functional.interpolate

    def without_lanczos(*arguments: Any, mode: str, **settings: Any) -> torch.Tensor:
        if mode == "lanczos":
            raise NotImplementedError("unknown mode")
        return interpolate(*arguments, mode=mode, **settings)

    monkeypatch.setattr(functional, "interpolate", without_lanczos)
    resizing._torch_has_lanczos.cache_clear()
    yield
    resizing._torch_has_lanczos.cache_clear()


@pytest.mark.usefixtures("older_torch")
def test_an_older_torch_resizes_by_pillow() -> None:
    assert resizer() == "Pillow's Lanczos"
    found = resized(IMAGE, 32, 20).permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.asarray(IMAGE.resize((20, 32), Image.Resampling.LANCZOS)))
    assert np.array_equal(resized(IMAGE, 50, 37).permute(1, 2, 0).numpy(), np.asarray(IMAGE))


def test_both_agree_within_two_levels(request: pytest.FixtureRequest) -> None:
    name, found = resizer(), resized(IMAGE, 32, 20).int()
    request.getfixturevalue("older_torch")
    assert (resized(IMAGE, 32, 20).int() - found).abs().max() <= 2
    assert name in ("PyTorch's Lanczos", "Pillow's Lanczos")
