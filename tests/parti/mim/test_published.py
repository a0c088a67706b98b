"""Files in the layouts of the papers' repositories become networks of ours with the same weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parti.cli.import_checkpoint import main
from parti.mim.networks import load_network
from parti.mim.published import import_published
from tests.parti.mim.tiny_mim import tiny_network
from vqgan.config.schema import ConfigError
from vqgan.config.yaml_dialect import dump
from vqgan.foreign.reading import ForeignCheckpointError


def _simmim(name: str) -> str:
    parts = name.replace("head.", "decoder.0.").split(".")
    if parts[1:2] == ["layers"] and parts[3] == "downsample":
        parts[2] = str(int(parts[2]) - 1)
    return ".".join(parts) if name != "mask_token" else "encoder.mask_token"


LAYOUTS: dict[str, Callable[[str], str]] = {
    "mae": lambda name: name.removeprefix("encoder."),
    "beit": lambda name: (
        "lm_head" + name.removeprefix("head") if name.startswith("head.") else name.removeprefix("encoder.")
    ),
    "simmim": _simmim,
}


def published(name: str, folder: Path, without: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], Path, Path]:
    """Our weights, a file of theirs, and a config."""
    network = tiny_network(name)
    weights = network.state_dict()
    theirs = {LAYOUTS[name](key): weight for key, weight in weights.items() if not key.startswith(without or ("?",))}
    theirs["layers.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.long)
    torch.save({"model": theirs, "epoch": 799, "optimizer": {"state": {}}}, folder / "file.pth")
    (folder / "run.yaml").write_text(dump({"objective": name, "model": network.config.model_dump(mode="json")}))
    return weights, folder / "file.pth", folder / "run.yaml"


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_weights_arrive_and_the_command_writes_them(name: str, tmp_path: Path) -> None:
    weights, file, config = published(name, tmp_path)
    words = ["--format", name, "--checkpoint", str(file), "--config", str(config), "--out", str(tmp_path / "model")]
    assert main(words) == 0
    found = load_network(tmp_path / "model").state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weight) for key, weight in weights.items())


def test_an_encoder_alone_is_read_and_said(tmp_path: Path) -> None:
    weights, file, config = published("mae", tmp_path, ("decoder_", "mask_token"))
    lines: list[str] = []
    found = import_published("mae", file, config, lines.append).state_dict()
    assert all(torch.equal(found[key], weights[key]) for key in weights if key.startswith("encoder."))
    assert "holds the encoder alone" in lines[0]


def test_what_does_not_fit_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file, config = published("beit", tmp_path)
    with pytest.raises(ConfigError, match="is of objective 'beit'; give a config of mae"):
        import_published("mae", file, config)
    (tmp_path / "other").mkdir()
    _, _, of_mae = published("mae", tmp_path / "other")
    with pytest.raises(ForeignCheckpointError, match=r"lacks decoder_pos_embed .* give the config of its size"):
        import_published("mae", file, of_mae)
    _, file, _ = published("mae", tmp_path, ("encoder.blocks.1.norm1",))
    with pytest.raises(ForeignCheckpointError, match=r"lacks encoder.blocks.1.norm1.weight and 1 more"):
        import_published("mae", file, of_mae)
    assert main(["--format", "mae", "--checkpoint", str(file), "--out", str(tmp_path / "m")]) != 0
    assert "--config is missing" in capsys.readouterr().err
