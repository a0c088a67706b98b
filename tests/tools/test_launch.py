"""`accelerate launch` starts the tools, with one process and with two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launch(processes: int, tmp_path: Path) -> None:
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", f"--num_processes={processes}"]
    small = "{depth: 1, width: 16, heads: 2, mlp_width: 32}"
    settings = {
        "run_dir": tmp_path / "run",
        "data.source.heldout_size": 8,
        "data.batch_size": 8,
        "model.encoder": small,
        "model.decoder": small,
        "loop.steps": 2,
        "loop.log_every": 1,
    }
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [*launch, "tools/train_vqgan.py", "--config", "configs/vqgan/shapes.yaml", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["split"] == "train"] == [1, 2]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
