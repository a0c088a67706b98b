"""What a notebook user finds behind `vqgan.` and `parti.`: names that exist, are documented, and load on use."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import parti
import vqgan
from parti.objectives import OBJECTIVES


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in (vqgan, parti) for name in package.__all__]
)
def test_every_public_name_is_documented(package: ModuleType, name: str) -> None:
    value = getattr(package, name)
    assert inspect.getdoc(value), f"{package.__name__}.{name} has no docstring"
    assert value.__module__.split(".")[0] in ("vqgan", "parti")
    assert name in dir(package)


def test_what_a_researcher_looks_for_is_there() -> None:
    assert {"ImageTokenizer", "load_tokenizer", "NearestQuantizer", "PerceptualLoss", "train"} <= set(dir(vqgan))
    assert {"TextToImage", "EncoderDecoder", "DecoderOnly", "TextTokenizer", "train", "evaluate"} <= set(dir(parti))
    with pytest.raises(AttributeError, match="module 'vqgan' has no attribute 'ImageTokeniser'"):
        vqgan.ImageTokeniser  # noqa: B018


def test_importing_a_package_loads_nothing_heavy() -> None:
    code = "import sys, parti, vqgan; dir(parti); dir(vqgan); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_train_takes_the_config_of_any_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = OBJECTIVES["image_tokenizer"]
    monkeypatch.setitem(OBJECTIVES, "image_tokenizer", chosen._replace(train=lambda config: config.run_dir == "here"))
    assert parti.train(vqgan.TrainVQGANConfig(run_dir="here"))
