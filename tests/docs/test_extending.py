"""The examples of docs/extending.md, taken from the page: they train, quantize, deliver and measure."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from vqgan.config.schema import validate
from vqgan.data.source import Source
from vqgan.training.run_folder import RunFolder

_PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
_FILES = ("denoise", "denoise_run", "sign", "stripes", "charbonnier")


def blocks() -> dict[str, str]:
    found = re.findall(r"^```python\n(.*?)^```$", _PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return dict(zip(_FILES, found, strict=True))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    folder = tmp_path_factory.mktemp("examples")
    for name, code in blocks().items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield {name: importlib.import_module(name) for name in _FILES}
    for name in _FILES:
        sys.modules.pop(name, None)


def run_of(module: ModuleType, folder: Path, **loop: Any) -> Any:
    values = {
        "run_dir": str(folder),
        "data": {
            "source": {"kind": "shapes", "train_size": 16, "val_size": 4},
            "transform": {"image_size": 16},
            "batch_size": 4,
        },
        "task": {"optimizer": {"learning_rate": 1e-2}, "ema": {"decay": 0.5}},
        "loop": {"steps": 12, "log_every": 4, "evaluate_every": 4, "preview_every": 6, "save_every": 6} | loop,
    }
    return validate(module.DenoisingConfig, values, "test")


def test_the_objective_is_short_and_trains(examples: dict[str, ModuleType], tmp_path: Path) -> None:
    assert len(blocks()["denoise"].splitlines()) <= 60
    assert examples["denoise_run"].train(run_of(examples["denoise_run"], tmp_path / "run"))
    errors = [record["mse"] for record in RunFolder(tmp_path / "run").read_metrics() if "mse" in record]
    assert len(errors) == 3
    assert errors[-1] < errors[0]
    assert (tmp_path / "run" / "model" / "denoiser.pt").is_file()


def test_the_objective_has_what_every_objective_has(examples: dict[str, ModuleType], tmp_path: Path) -> None:
    """Micro-batches and fp16, without a line of its own."""
    config = run_of(examples["denoise_run"], tmp_path / "run", gradient_accumulation_steps=2)
    config = config.model_copy(update={"task": config.task.model_copy(update={"precision": "fp16"})})
    assert examples["denoise_run"].train(config)
    (first, *_) = [record for record in RunFolder(tmp_path / "run").read_metrics() if "loss_scale" in record]
    assert first["loss"] > 0


def test_the_quantizer_keeps_its_promises(examples: dict[str, ModuleType]) -> None:
    quantizer = examples["sign"].SignQuantizer(examples["sign"].SignConfig(bits=4))
    latents = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    quantized = quantizer(latents)
    assert torch.equal(quantized.codes, quantizer.encode(latents))
    assert torch.equal(quantized.latents, quantizer.embed(quantized.codes))
    assert torch.equal(quantizer.encode(quantizer.embed(torch.arange(16)[None])), torch.arange(16)[None])
    quantized.latents.sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().min() > 0


def test_the_dataset_is_a_source(examples: dict[str, ModuleType]) -> None:
    stripes = examples["stripes"].Stripes(9)
    assert isinstance(stripes, Source)
    samples = [stripes[index] for index in range(len(stripes))]
    assert len({sample.caption for sample in samples}) == 8
    assert samples[0].image.tobytes() == stripes[0].image.tobytes() != samples[1].image.tobytes()
    assert next(iter(DataLoader(stripes, batch_size=None))).caption == "red stripes, upright"


def test_the_loss_is_its_formula(examples: dict[str, ModuleType]) -> None:
    one, other = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    loss = examples["charbonnier"].charbonnier(one, other, epsilon=0.5)
    assert loss.item() == pytest.approx((0.25 + 0.25) ** 0.5)
