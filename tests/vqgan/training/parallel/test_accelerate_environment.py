"""No variable of accelerate changes what a run computes: each is refused in one line, used by us, or without effect."""

import re
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest

from vqgan.config.schema import ConfigError
from vqgan.training.parallel.accelerate_environment import (
    READ_BY_SHARDING,
    REFUSED,
    REFUSED_PREFIXES,
    WITHOUT_EFFECT,
    check_environment,
)
from vqgan.training.parallel.distributed import build_accelerator

_NAMES = re.compile(r"""["']((?:ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_[A-Z0-9_]*[A-Z0-9])["']""")
_FOREIGN = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_DEBUG_MODE": "false",
    "OMP_NUM_THREADS": "1",
}
"""What `accelerate launch` sets of its own accord."""


def test_every_variable_that_accelerate_reads_is_decided_on() -> None:
    """A new version of accelerate with a new variable fails here."""
    sources = Path(accelerate.__file__).parent.rglob("*.py")
    named = {name for source in sources for name in _NAMES.findall(source.read_text())}
    assert len(named) > 40
    prefixes = tuple(REFUSED_PREFIXES)
    exact = {*REFUSED, *READ_BY_SHARDING}
    for names in WITHOUT_EFFECT.values():
        prefixes += tuple(name for name in names if name.endswith("_"))
        exact |= {name for name in names if not name.endswith("_")}
    assert {name for name in named if name not in exact and not name.startswith(prefixes)} == set()


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "loop.gradient_accumulation_steps"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "many", "loop.gradient_accumulation_steps"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "clip_norm"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "task.precision"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "task.precision"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "task.precision"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "task.compile_layers"),
        ("ACCELERATE_FP8_BACKEND", "TE", "task.precision"),
        ("ACCELERATE_FP8_FORMAT", "E4M3", "task.precision"),
        ("ACCELERATE_DOWNCAST_BF16", "true", "task.precision"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "fsdp2.yaml"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "fsdp2.yaml"),
        ("FSDP_IGNORED_MODULES", "head.*", "fsdp_ignored_modules"),
        ("PARALLELISM_CONFIG_TP_SIZE", "2", "set this size to 1"),
    ],
)
def test_what_would_change_a_run_beside_its_config_is_one_line(
    name: str, value: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other, harmless in _FOREIGN.items():
        monkeypatch.setenv(other, harmless)
    build_accelerator()
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name) as raised:
        build_accelerator()
    assert remedy in str(raised.value)
    assert value in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_accelerate_cannot_read_is_one_line() -> None:
    """In a process of its own: accelerate reads this once."""
    program = (
        "from vqgan.config.schema import ConfigError\n"
        "from vqgan.training.parallel.distributed import build_accelerator\n"
        "try: build_accelerator()\n"
        "except ConfigError as error: print('one line:', error)\n"
    )
    environment = {"ACCELERATE_USE_CPU": "perhaps", "PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.startswith("one line: accelerate cannot use its environment"), done.stdout + done.stderr


def test_the_gradient_is_the_losss_whatever_the_environment_says_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", raising=False)
    assert build_accelerator().gradient_accumulation_steps == 1
    check_environment({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": " 1 "})
