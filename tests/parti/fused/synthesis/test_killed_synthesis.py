"""The fused GAN, which has two optimizers too: kill -9 at any moment, and the run that was never killed goes on."""

import random
from pathlib import Path

import pytest

from tests.killed_runs import assert_equal, command_server, contents
from tests.parti.fused.synthesis.tiny_synthesis import tiny_run


@pytest.mark.slow
def test_killed_at_ten_moments(tmp_path: Path) -> None:
    keep = {"loop.keep_best": {"metric": "diversity", "mode": "lower"}, "loop.save_every": 2}
    moments = random.Random(0)
    with command_server() as commands:
        straight = commands.run(tiny_run(tmp_path / "straight", **keep))
        assert straight.code == 0, straight.said
        expected = contents(tmp_path / "straight")
        state = expected["checkpoints/step-0000006/state.pt"]
        assert state.keys() >= {"generator", "ema", "optimizer", "discriminators", "discriminator_optimizer"}
        assert any("r1_penalty" in record for record in expected["metrics.jsonl"])
        for number in range(5):
            config = tiny_run(tmp_path / str(number), **keep)
            commands.run(config, kill_after=moments.uniform(0.0, straight.seconds))
            commands.run(config, kill_at=moments.randint(1, straight.changes // 2))
            ending = commands.run(config)
            assert ending.code == 0, ending.said
            assert_equal(contents(tmp_path / str(number)), expected)
