"""benchmarks/generator_training.py runs, prints right rates, and all sides predict the same tokens."""

import importlib
import importlib.util
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--width=32", "--depth=1", "--heads=2", "--mlp-width=128", "--text-tokens=8", "--codes=64"]
SMALL += ["--tokens", "16", "--batch=2", "--rounds=2"]


@pytest.fixture
def benchmark_(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script: it imports its neighbors by name
    threads = torch.get_num_threads()
    yield importlib.import_module("generator_training")
    torch.set_num_threads(threads)


def sizes(module: ModuleType) -> Any:
    return module.Sizes(width=32, depth=2, heads=2, mlp_width=128, text_tokens=8, image_tokens=16, codes=64, batch=2)


def test_without_peers_ours_remain(
    benchmark_: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if name == "parti" else None)
    out = tmp_path / "new" / "metrics.json"
    assert benchmark_.main([*SMALL, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    rows = record["rows"]
    kinds = itertools.product(["encoder-decoder", "encoder-decoder, text given", "decoder-only"], ["fp32", "bf16"])
    assert [(row["comparison"], row["precision"]) for row in rows] == list(kinds)
    for row in rows:
        assert row["who"].startswith("ours")
        assert row["times_ours"] == 1
        assert row["tokens_per_second"] == pytest.approx(2 * 16 / row["seconds"])
    printed = capsys.readouterr().out
    assert "x-transformers not installed, left out" in printed
    assert len(printed.splitlines()) == 3 + len(rows)


def test_sizes_that_peers_cannot_have_are_refused(benchmark_: ModuleType) -> None:
    good = vars(sizes(benchmark_))
    with pytest.raises(ValueError, match="no square"):
        benchmark_.Sizes(**good | {"image_tokens": 15})
    with pytest.raises(ValueError, match="128 at width 32, received 96"):
        benchmark_.Sizes(**good | {"mlp_width": 96})


@pytest.mark.parametrize("build", ["our_encoder_decoder", "our_decoder_with_text_given", "our_decoder_only"])
def test_ours_learns_and_starts_at_a_uniform_guess(benchmark_: ModuleType, build: str) -> None:
    torch.manual_seed(0)
    model, loss = benchmark_.our_loss(getattr(benchmark_, build), sizes(benchmark_))
    assert loss().item() == pytest.approx(math.log(64))
    trainer = benchmark_.train(model, loss, nullcontext)
    for _ in range(3):
        trainer.step()
    assert loss().item() < math.log(64) - 0.01


PEERS = {
    "t5_loss": ("transformers", "lm_head", (2, 16)),
    "x_transformers_loss": ("x_transformers", "decoder.net.to_logits", (2, 16 + 1)),  # the last of them is not used
    "parti_pytorch_loss": ("parti_pytorch", "to_logits", (2, 16)),
    "dalle_pytorch_loss": ("dalle_pytorch", "to_logits", (2, 8 + 16)),
}
"""By builder: the package, the output layer, and the batch and number of tokens that it predicts."""


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # x-transformers, when it is imported
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_predicts_as_many_tokens_and_learns(benchmark_: ModuleType, name: str) -> None:
    package, head, predictions = PEERS[name]
    if importlib.util.find_spec(package) is None:  # importing is for the builder, which some need help with
        pytest.skip(f"{package} is not installed")
    torch.manual_seed(0)
    model, loss = getattr(benchmark_, name)(sizes(benchmark_))
    shapes: list[torch.Size] = []
    hook = model.get_submodule(head).register_forward_hook(lambda _, __, logits: shapes.append(logits.shape[:2]))
    before = loss().item()
    hook.remove()
    assert shapes == [predictions]
    trainer = benchmark_.train(model, loss, nullcontext)
    for _ in range(5):
        trainer.step()
    assert loss().item() < before
