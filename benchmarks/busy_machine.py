"""A small transformer's training step beside busy processes, with threads that sleep while they wait and without.

    python benchmarks/busy_machine.py

Parti at the size of configs/parti/shapes.yaml on random codes, bf16, AdamW. Every contender is a process of its own,
because OpenMP reads its settings once: `shipped` imports parti before torch, as our commands do (see vqgan/openmp.py);
`torch's default` imports torch first; `spins N` (--spin N) spins N times before it sleeps. They take turns of a few
seconds, each time from another one on, while the others wait for their turn asleep, so that whatever else the machine
does slows all alike; a ratio is taken within a round before their median is. Rounds: beside no busy process, one, and
--busy of them (four a core), each an endless loop.

Claims, which decide the exit code on a quiet machine: `shipped` costs less than 3% beside nothing, and keeps at least
45% of the default's idle speed beside one busy process. Takes about two and a half minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from measure import Timing

DEFAULT, SHIPPED = "torch's default", "shipped"
MOST_IDLE_COST, LEAST_BESIDE_ONE = 0.03, 0.45
MOST_ELSEWHERE = 0.05
_OPENMP = ("OMP_", "GOMP_", "KMP_")
_ROOT = Path(__file__).parents[1]


def main(argv: list[str]) -> int:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=4 * cores, help="processes of the last part")
    parser.add_argument("--rounds", type=int, default=20, help="beside nothing; beside busy processes a third of it")
    parser.add_argument("--turn", type=float, default=1.0, help="seconds of a turn; beside busy processes three times")
    parser.add_argument("--spin", type=int, action="append", default=[], help="another contender; may stand repeatedly")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path, help="file for the metrics")
    parser.add_argument("--train", choices=("torch", "parti"), help=argparse.SUPPRESS)  # a contender's process
    arguments = parser.parse_args(argv)
    if arguments.train:
        return train(arguments.train, arguments.threads, arguments.batch)
    if arguments.threads < 2:
        raise SystemExit("one thread waits for nobody; run this with two cores or more")

    elsewhere = busy_share(1.0)
    results: dict[str, dict[str, Timing]] = {}
    with ExitStack() as stack:
        baselines = {
            name: stack.enter_context(baseline(first, variables, arguments.threads, arguments.batch))
            for name, first, variables in [
                (DEFAULT, "torch", {}),
                (SHIPPED, "parti", {}),
                *((f"spins {spin}", "torch", {"GOMP_SPINCOUNT": str(spin)}) for spin in arguments.spin),
            ]
        }
        print(f"{arguments.threads} threads on {cores} cores, of which others take {elsewhere:.0%}")
        print(f"{'':18}{'steps/s':>10}{'of default':>12}{'spread':>9}{'of its idle':>13}")
        for busy in (0, 1, arguments.busy):
            rounds = arguments.rounds if not busy else max(2, arguments.rounds // 3)
            with busy_processes(busy):
                timings = in_rounds(baselines, rounds, arguments.turn * (3 if busy else 1))
            results[str(busy)] = timings
            print(f"beside {busy} busy")
            for name, timing in timings.items():
                of_idle = results["0"][name].median / timing.median
                print(
                    f"  {name:16}{1 / timing.median:10.2f}{timings[DEFAULT].ratio(timing):12.3f}{timing.spread:9.3f}"
                    f"{of_idle:13.1%}",
                    flush=True,
                )
    cost = results["0"][SHIPPED].ratio(results["0"][DEFAULT]) - 1
    kept = results["0"][DEFAULT].median / results["1"][SHIPPED].median
    holds = cost < MOST_IDLE_COST and kept >= LEAST_BESIDE_ONE
    print(f"idle, shipped takes {cost:+.1%} of the default's time (less than {MOST_IDLE_COST:.0%} is claimed)")
    print(f"beside one, shipped keeps {kept:.0%} of the default's idle speed (at least {LEAST_BESIDE_ONE:.0%})")
    print("both hold" if holds else "not both hold")
    if elsewhere > MOST_ELSEWHERE:
        print(f"this machine was not quiet (others took {elsewhere:.0%} of it): idle metrics say nothing")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        seconds = {busy: {name: t.seconds for name, t in timings.items()} for busy, timings in results.items()}
        metrics = {"threads": arguments.threads, "elsewhere": elsewhere, "idle_cost": cost, "kept_beside_one": kept}
        arguments.json.write_text(json.dumps(metrics | {"seconds_a_step": seconds}, indent=1) + "\n")
    return 0 if holds else 1


class Baseline:
    """A process that trains when it is told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._answer()  # that it is ready

    def seconds_a_step(self, seconds: float) -> float:
        """Train for so long, at least one step."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with exit code {self._process.wait()}")
        return line


@contextmanager
def baseline(first: str, variables: dict[str, str], threads: int, batch: int) -> Iterator[Baseline]:
    """A contender that imports `first` first, without any setting of OpenMP but `variables`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OPENMP)}
    environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--train", first, "--threads", str(threads), "--batch", str(batch)]
    with subprocess.Popen(
        command, env=environment | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Baseline(process)
        finally:
            process.kill()


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many endless loops."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def busy_share(seconds: float) -> float:
    """Share of all cores' time that is used while this process sleeps."""
    before = cpu_times()
    time.sleep(seconds)
    spent = [now - then for now, then in zip(cpu_times(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / max(sum(spent), 1)  # idle, and waiting for a disk


def cpu_times() -> list[int]:
    """Ticks of all cores by what they did; Linux."""
    return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def in_rounds(baselines: dict[str, Baseline], rounds: int, seconds: float) -> dict[str, Timing]:
    """Seconds a step of every contender, one entry a round."""
    names = list(baselines)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(baselines[name].seconds_a_step(seconds))
    return {name: Timing(tuple(values)) for name, values in found.items()}


def train(first: str, threads: int, batch: int) -> int:
    """A contender: a line of seconds on standard input is answered with the seconds a step took."""
    if first == "parti":
        import parti  # noqa: F401  as a command or a notebook does
    import torch

    from parti.models import EncoderDecoder, EncoderDecoderConfig, TokenSpace
    from vqgan.system.host_memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    size = EncoderDecoderConfig(encoder_depth=2, decoder_depth=4, width=128, heads=4, mlp_width=512, dropout=0.0)
    model = EncoderDecoder(
        size, TokenSpace(text_vocab_size=400, text_length=16, image_vocab_size=1024, image_grid=(8, 8))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    text, codes = torch.randint(2, 400, (batch, 16)), torch.randint(1024, (batch, 64))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(text, codes).image
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
        optimizer.step()

    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        start, done = time.monotonic(), 0
        while not done or time.monotonic() - start < float(line):
            step()
            done += 1
        print((time.monotonic() - start) / done, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
