"""Starting from another fused model: every part of the same row, nothing else, and only what fits."""

from pathlib import Path

import pytest
import torch
from torch import nn

from parti.fused.fusion import TextToImageFusion
from parti.fused.rows import TrunkConfig
from parti.fused.transfer import load_shared_rows
from parti.fused.trunk import RowParts, Trunk
from tests.parti.fused.tiny_trunk import TEXT, TOKENS, TRUNK
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError, save_model_folder

DEEPER = TrunkConfig(image_size=16, deepest_row=4, channels=(8, 12, 16, 16), text=TEXT)


class Captioner(nn.Module):
    """Parts of some rows, a one-way fusion in row 3, and something of its own."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.parts = RowParts(config, TOKENS, range(1, 12), range(4, 15), range(4, 12))
        self.parts.fusions["3"] = TextToImageFusion(config.width(3), TEXT.width, TEXT.heads)
        self.own = nn.Linear(2, 2)


def saved(folder: Path, config: TrunkConfig = DEEPER, kind: str = "fused_inpainting") -> Trunk:
    torch.manual_seed(1)
    trunk = Trunk(config, TOKENS)
    for parameter in trunk.parameters():
        nn.init.normal_(parameter)
    save_model_folder(folder / "model", {"kind": kind}, {f"trunk.{k}": v for k, v in trunk.state_dict().items()})
    return trunk


def test_every_part_of_the_same_row_is_taken(tmp_path: Path) -> None:
    theirs = saved(tmp_path).parts.state_dict()
    torch.manual_seed(2)
    model = Captioner(DEEPER)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    taken = load_shared_rows(model, str(tmp_path))
    state = model.state_dict()
    assert set(taken) == {name for name in state if name.startswith("parts.")}
    assert {name.split(".")[2] for name in taken if name.startswith("parts.image.")} == {"1", "2", "3", "4", "11"}
    assert {name.split(".")[2] for name in taken if name.startswith("parts.text.")} == {"4", "11", "12", "13", "14"}
    assert all(torch.equal(state[name], theirs[name.removeprefix("parts.")]) for name in taken)
    # The one-way fusion takes the image's half of the two-way one.
    assert any(name.startswith("parts.fusions.3.image_last") for name in taken)
    assert all(torch.equal(state[name], before[name]) for name in state if name.startswith("own."))


def test_a_row_that_the_other_does_not_have_stays(tmp_path: Path) -> None:
    saved(tmp_path, TRUNK)
    model = Captioner(DEEPER)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    taken = load_shared_rows(model, tmp_path)
    left = [name for name in before if name not in taken]
    assert {name.split(".")[2] for name in left if name.startswith("parts.image.")} == {"4", "11"}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in left)


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    wider = DEEPER.model_copy(update={"channels": (8, 12, 16, 32)})
    with pytest.raises(ConfigError, match=r"start_from: image\.4\.0\.weight .* set model\.trunk to that model's sizes"):
        load_shared_rows(Captioner(wider), tmp_path)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, kind="upsampler")
    with pytest.raises(ModelFolderError, match="holds no fused model to start from"):
        load_shared_rows(Captioner(DEEPER), tmp_path)
    with pytest.raises(ModelFolderError, match=r"config\.json is missing"):
        load_shared_rows(Captioner(DEEPER), tmp_path / "nowhere")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "config.json").write_text('{"kind": "fused_inpainting"}')
    with pytest.raises(ModelFolderError, match="is missing"):
        load_shared_rows(Captioner(DEEPER), tmp_path)
