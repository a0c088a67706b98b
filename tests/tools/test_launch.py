"""`accelerate launch` and `torchrun` start the tools; the processes of one launch make one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("launch", "processes"),
    [
        ("accelerate launch --cpu", 1),
        pytest.param("torchrun --nproc_per_node=2", 2, marks=pytest.mark.slow),  # two processes: test_sharding
    ],
)
def test_launch(launch: str, processes: int, tmp_path: Path) -> None:
    launcher, *arguments = launch.split()
    small = "{depth: 1, width: 16, heads: 2, mlp_width: 32}"
    settings = {
        "run_dir": tmp_path / "run",
        "data.source.val_size": 8,
        "data.batch_size": 8,
        "model.encoder": small,
        "model.decoder": small,
        "loop.steps": 2,
        "loop.log_every": 1,
    }
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name(launcher)),
            *arguments,
            "tools/train_vqgan.py",
            "--config",
            "configs/vqgan/shapes.yaml",
            *options,
        ],
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
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-0000002" / "state.pt", weights_only=True)
    assert state["loop"]["processes"] == processes, "every process took itself for the only one"
