"""benchmarks/sampling.py: fair turns, the sum over sampled steps, the bytes of a step, peers set up right."""

import importlib
import importlib.util
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ["measure", "interleave", "bandwidth", "generator_baselines", "sampling_baselines", "sampling"]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script: it imports its neighbors by name
    threads = torch.get_num_threads()
    yield {name: importlib.import_module(name) for name in MODULES}
    torch.set_num_threads(threads)


def sizes(modules: dict[str, ModuleType], batch: int = 2) -> Any:
    return modules["generator_baselines"].Sizes(
        width=32, depth=2, heads=2, mlp_width=128, text_tokens=8, image_tokens=16, codes=64, batch=batch
    )


def ticking_clock(costs: list[float]) -> Callable[[], float]:
    """A clock on which only what the contenders put in `costs` takes time."""
    return lambda: sum(costs)


def test_chunks_cover_the_image(modules: dict[str, ModuleType]) -> None:
    interleave = modules["interleave"]
    assert interleave.chunk_ends(10, 3) == [3, 6, 10]
    assert interleave.chunk_ends(4, 4) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="fewer"):
        interleave.chunk_ends(3, 4)
    assert [interleave.midpoint(0, 1), interleave.midpoint(0, 5), interleave.midpoint(4, 8)] == [0, 2, 5]


def test_whole_and_sampled_drawings_cost_the_same(modules: dict[str, ModuleType]) -> None:
    """A step at position p costs 3 + 2p: what is drawn whole sums it, what is sampled comes to the same."""
    interleave = modules["interleave"]
    costs: list[float] = []

    def draw(tick: Callable[[], None]) -> None:
        for position in range(15):
            costs.append(3 + 2 * position)
            tick()

    baselines = {
        "whole": interleave.Whole(draw),
        "sampled": interleave.Sampled(lambda position: costs.append(3 + 2 * position)),
    }
    timings = interleave.interleave(baselines, interleave.chunk_ends(15, 5), ticking_clock(costs))
    brute_force = [sum(3 + 2 * p for p in range(start, start + 3)) for start in range(0, 15, 3)]
    assert timings["whole"].seconds == pytest.approx(brute_force)
    assert timings["sampled"].seconds == pytest.approx(brute_force)


@pytest.mark.parametrize(("positions", "at_most"), [(256, 0.01), (1024, 0.003)])
def test_a_quadratic_cost_is_hardly_underrated(modules: dict[str, ModuleType], positions: int, at_most: float) -> None:
    interleave = modules["interleave"]
    costs: list[float] = []
    sampled = interleave.Sampled(lambda position: costs.append(float(position**2)))
    timing = interleave.interleave({"x": sampled}, interleave.chunk_ends(positions, 16), ticking_clock(costs))["x"]
    share = sum(timing.seconds) / sum(p**2 for p in range(positions))
    assert 1 - at_most < share < 1


def test_rounds_are_interleaved_and_each_starts_with_another(modules: dict[str, ModuleType]) -> None:
    interleave = modules["interleave"]
    events: list[str] = []
    running = threading.Lock()

    def drawing(name: str) -> Any:
        def draw(tick: Callable[[], None]) -> None:
            for _ in range(4):
                assert running.acquire(blocking=False)  # never two at once
                events.append(name)
                running.release()
                tick()

        return interleave.Whole(draw)

    timings = interleave.interleave(
        {"a": drawing("a"), "b": drawing("b")}, [2, 4], time.perf_counter, between=lambda: events.append("|")
    )
    assert "".join(events) == "aa" + "bb" + "|aabb" + "|bbaa"  # the first four are the warm-up
    assert all(len(timing.seconds) == 2 for timing in timings.values())


def test_what_a_drawing_raises_arrives_and_a_wrong_count_is_an_error(modules: dict[str, ModuleType]) -> None:
    interleave = modules["interleave"]

    def fail(_: Any) -> None:
        raise ZeroDivisionError("from inside")

    with pytest.raises(ZeroDivisionError, match="from inside"):
        interleave.interleave({"x": interleave.Whole(fail)}, [2, 4], time.perf_counter)
    lazy = interleave.Whole(lambda tick: [tick() for _ in range(3)])
    with pytest.raises(RuntimeError, match="4 positions were to be drawn and 3"):
        interleave.interleave({"x": lazy}, [2, 4], time.perf_counter)


def test_ratios_are_of_the_whole_image_and_of_chunks(modules: dict[str, ModuleType]) -> None:
    interleave, timing = modules["interleave"], modules["measure"].Timing
    own, its = timing((2.0, 4.0, 30.0)), timing((1.0, 1.0, 10.0))
    assert interleave.whole_ratio(own, its) == 3
    assert own.ratio(its) == 3
    assert interleave.spread_of_ratios(own, its) == pytest.approx(0.5 / 3)  # ratios 2, 4, 3


def test_bytes_of_a_step_are_those_of_the_model(modules: dict[str, ModuleType]) -> None:
    """By hand, and against the parameters of the models that are timed."""
    built = modules["generator_baselines"]
    own = sizes(modules)
    step = own.encoder_decoder_step()
    # A layer: 6 matrices of 32 x 32 and 2 of 32 x 128; the head 32 x 64.
    assert step.layer_weights == 2 * (6 * 1024 + 2 * 4096) == 28_672
    assert step.head_weights == 2048
    # Keys and values of 2 layers, 32 wide: 4 rows at (1 + ... + 16) / 16 = 8.5 positions, 3 captions of 8 tokens.
    assert step.cached(rows=4, captions=3, start=0, end=16) == 2 * 2 * 32 * (4 * 8.5 + 3 * 8) == 7424
    assert step.bytes("fp32", 4, 3, 0, 16) == 4 * (28_672 + 2048 + 7424)
    assert step.bytes("bf16", 4, 3, 0, 16) == 2 * 28_672 + 4 * (2048 + 7424)
    assert step.bytes("int8", 4, 3, 0, 16) == 28_672 + 4 * (2048 + 7424)
    # The first step reads one position, its own; the parts of an image come to the whole.
    assert step.cached(rows=1, captions=0, start=0, end=1) == 2 * 2 * 32
    parts = [4 * step.bytes("fp32", 4, 3, start, start + 4) for start in range(0, 16, 4)]
    assert sum(parts) == 16 * step.bytes("fp32", 4, 3, 0, 16)

    def matrices(model: torch.nn.Module) -> dict[str, int]:
        linear = [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
        return {name: part.weight.numel() for name, part in linear}

    of_text = ("text_encoder.", "text_head")
    encoder_decoder = matrices(built.our_encoder_decoder(own))
    once = {name for name in encoder_decoder if name.startswith(of_text) or name.endswith("cross_attention.key_value")}
    read = sum(count for name, count in encoder_decoder.items() if name not in once)
    assert read == step.layer_weights + step.head_weights
    decoder_only, its = matrices(built.our_decoder_only(own)), own.decoder_only_step()
    read = sum(count for name, count in decoder_only.items() if not name.startswith(of_text))
    assert read == its.layer_weights + its.head_weights


def test_bandwidth_is_bytes_over_seconds(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    bandwidth = modules["bandwidth"]
    passes = {"slow": (1000, lambda: None), "fast": (3000, lambda: None)}
    monkeypatch.setattr(bandwidth, "products", lambda *_: passes)
    ticks = itertools.count()
    meter = bandwidth.Bandwidth(1, 8, clock=lambda: next(ticks) * 0.5)
    meter.measure()
    meter.measure()
    assert meter.rates() == {"slow": 2000, "fast": 6000}
    assert meter.best() == [6000, 6000]


def test_the_share_of_the_floor_is_the_median_of_rounds(modules: dict[str, ModuleType]) -> None:
    sampling, own = modules["sampling"], sizes(modules)
    entry, size = sampling.ENTRIES["ours, encoder-decoder, bf16"], own.encoder_decoder_step()
    first, second = (8 * size.bytes("bf16", 4, 3, start, start + 8) for start in (0, 8))
    # At 100 and 200 bytes a second the floor of the chunks is reached to a half and to a tenth.
    timing = modules["measure"].Timing((first / 100 / 0.5, second / 200 / 0.1))
    meter = SimpleNamespace(best=lambda: [100, 200])
    assert sampling.of_floor(entry, own, 4, 3, timing, meter) == pytest.approx(0.3)


def test_products_stream_what_they_say(modules: dict[str, ModuleType]) -> None:
    bandwidth = modules["bandwidth"]
    for name, (size, product) in bandwidth.products(rows=2, megabytes=9).items():
        assert size == 2 * 1024**2 * (2 if "bf16" in name else 4)
        product()


def test_without_peers_ours_remain_and_rates_are_tokens_over_seconds(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if name == "parti" else None)
    out = tmp_path / "new" / "metrics.json"
    assert modules["sampling"].main(["--quick", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["setting"]["codes"] == 64
    assert [case["guided"] for case in record["bandwidth"]] == [True, False]
    own = [name for name in modules["sampling"].ENTRIES if name.startswith("ours")]
    assert [row["who"] for row in record["rows"]] == own * 2
    for row in record["rows"]:
        assert row["tokens_per_second"] == pytest.approx(2 * 16 / row["seconds"])
        assert row["times_ours"] == 1 or "fp32" not in row["who"]
        assert row["of_floor"] > 0
        assert row["parameters"] > 0
    printed = capsys.readouterr().out
    assert "dalle-pytorch not installed, left out" in printed
    assert all(printed.count(name) == 2 for name in own)


def test_peers_are_set_against_ours_of_their_kind_and_precision(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = modules["sampling"]
    monkeypatch.setattr(sampling, "installed", lambda _: True)
    assert sampling.baselines_of(sampling.KINDS, guided=True) == list(sampling.ENTRIES)
    assert "dalle-pytorch, fp32" in sampling.baselines_of(["decoder-only"], guided=True)
    assert "dalle-pytorch, fp32" not in sampling.baselines_of(["decoder-only"], guided=False)
    for name, entry in sampling.ENTRIES.items():
        reference = sampling.ENTRIES[entry.ours]
        assert (entry.ours.startswith("ours"), reference.kind) == (True, entry.kind)
        assert entry.package == "ours" or reference.precision == entry.precision
        for guided in (True, False):
            names = sampling.baselines_of([entry.kind], guided)
            assert name not in names or entry.ours in names


def test_t5_draws_whole_images_and_both_halves_go_on_alike(modules: dict[str, ModuleType]) -> None:
    pytest.importorskip("transformers")
    own = sizes(modules)
    for guided in (True, False):
        torch.manual_seed(0)
        drawer = modules["sampling_baselines"].sample_t5(own, guided, dtype=torch.float32)
        ticks: list[int] = []
        generated = drawer.baseline.draw(lambda ticks=ticks: ticks.append(1))[:, 1:]
        assert len(ticks) == own.image_tokens
        assert generated.shape == (own.batch * (2 if guided else 1), own.image_tokens)
        if guided:
            assert torch.equal(*generated.chunk(2))


def test_parti_pytorch_draws_by_this_step(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that is timed is the one that its `generate` runs: the same calls of the network, in number and size."""
    pytest.importorskip("parti_pytorch")
    own = sizes(modules)
    drawing = modules["sampling_baselines"]
    model = drawing.parti_pytorch(own).eval()
    monkeypatch.setattr(drawing, "parti_pytorch", lambda _: model)
    lengths: list[int] = []
    model.to_logits.register_forward_hook(lambda _, __, logits: lengths.append(logits.shape[1]))
    model.encode_texts = lambda *_, **__: (torch.randn(2, 8, 32), torch.ones(2, 8, dtype=torch.bool))
    model.vae = None
    assert model.generate(["", ""]).shape == (2, 4, 4)
    by_generate = lengths.copy()
    lengths.clear()
    step = drawing.sample_parti_pytorch(own, True).baseline.step
    for position in range(own.image_tokens):
        assert step(position).shape == (2, position + 1)
    assert lengths == by_generate


def test_dalle_pytorch_draws_whole_images_with_its_cache(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("axial_positional_embedding")
    pytest.importorskip("rotary_embedding_torch")
    if importlib.util.find_spec("dalle_pytorch") is None:  # importing it fails without the stand-ins
        pytest.skip("dalle_pytorch is not installed")
    own = sizes(modules)
    before = set(sys.modules)
    drawing = modules["sampling_baselines"]
    model = drawing.dalle_pytorch(own)
    assert not {"taming", "omegaconf", "pkg_resources"} & (set(sys.modules) - before)
    lengths: list[int] = []
    model.to_logits.register_forward_hook(lambda _, __, logits: lengths.append(logits.shape[1]))
    monkeypatch.setattr(drawing, "dalle_pytorch", lambda _: model)
    drawer = drawing.sample_dalle_pytorch(own, True)
    ticks: list[int] = []
    generated = drawer.baseline.draw(lambda: ticks.append(1))
    assert generated.shape == (2, 16)
    assert len(ticks) == 16
    assert lengths == [9, 9] + [1, 1] * 15  # the text and its start token, then one position at a time
