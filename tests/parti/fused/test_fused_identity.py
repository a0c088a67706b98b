"""What a fused run reads by a path, and the meaning of its weights, may not change while it goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from parti.fused.inpainting import train_inpainting as inpainting_train
from parti.fused.synthesis import train_synthesis as synthesis_train
from tests.parti.fused.fused_runs import DISCRIMINATOR
from tests.parti.fused.synthesis.tiny_synthesis import tiny_run
from tests.parti.fused.tiny_trunk import TRUNK
from tests.tiny_text_models import write_clip
from vqgan.config.schema import validate
from vqgan.training.checkpoints.store import CheckpointError

LOOP = {"steps": 2, "save_every": 1, "evaluate_every": 0, "preview_every": 0}


def squeezenet(path: Path, seed: int) -> None:
    import torchvision

    torch.manual_seed(seed)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)


def synthesis(folder: Path, steps: int, **changes: Any) -> bool:
    return synthesis_train.train(tiny_run(folder / "run", **{"loop": LOOP | {"steps": steps}} | changes))


def test_the_clip_that_judges(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    def write(size: int) -> None:
        write_clip(tmp_path / "clip")
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": 8, "width": 8}).save_pretrained(
            tmp_path / "clip"
        )

    judged = {"task.matching": {"kind": "clip", "folder": str(tmp_path / "clip")}}
    write(8)
    assert synthesis(tmp_path, 2, **judged)
    write(10)
    with pytest.raises(CheckpointError, match=r"task\.matching\.folder: the run in .*: preparation was "):
        synthesis(tmp_path, 3, **judged)
    write(8)
    model: Any = CLIPModel.from_pretrained(tmp_path / "clip")
    with torch.no_grad():
        model.logit_scale.add_(0.1)
    model.save_pretrained(tmp_path / "clip")
    with pytest.raises(CheckpointError, match=r"task\.matching\.folder: the run in .*: weights was "):
        synthesis(tmp_path, 3, **judged)
    write(8)
    assert synthesis(tmp_path, 3, **judged)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task.adversarial.loss": "hinge"}, r"task\.adversarial\.loss was logistic and is hinge"),
        ({"discriminators.scale.normalize": False}, r"discriminators\.scale\.normalize was True and is False"),
        ({"encoder": {"base_channels": 4, "most_channels": 8}}, "encoder was none and is given"),
        ({"model.trunk.text.heads": 4}, r"model\.trunk\.text\.heads was 2 and is 4"),
    ],
)
def test_settings_of_synthesis_that_no_tensor_shows(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert synthesis(tmp_path, 2)
    with pytest.raises(CheckpointError, match=said):
        synthesis(tmp_path, 3, **change)


def test_the_perceptual_weights_and_heads_of_inpainting(tmp_path: Path) -> None:
    squeezenet(tmp_path / "weights.pth", 0)
    model = TRUNK.model_dump(mode="json") | {"image_size": 32}  # squeezenet reads no smaller images

    def go_on(steps: int, heads: int = TRUNK.text.heads) -> bool:
        values: dict[str, Any] = {
            "run_dir": str(tmp_path / "run"),
            "data": {
                "source": {"kind": "shapes", "train_size": 40, "val_size": 8},
                "transform": {"image_size": 32},
                "batch_size": 4,
            },
            "text": {"vocab_size": 400, "length": 16, "training_captions": 20},
            "model": model | {"text": model["text"] | {"heads": heads}},
            "task": {
                "perceptual": {"weight": 0.1, "backbone": "squeeze", "weights": str(tmp_path / "weights.pth")},
                "adversarial": {
                    "weight": 0.1,
                    "loss": "hinge",
                    "discriminator": DISCRIMINATOR | {"channels": [8, 8, 8, 8]},
                    "r1_gamma": 0.0,
                },
                "precision": "fp32",
            },
            "loop": LOOP | {"steps": steps},
            "preview_images": 2,
        }
        return inpainting_train.train(validate(inpainting_train.TrainInpaintingConfig, values, "test"))

    assert go_on(2)
    with pytest.raises(CheckpointError, match=r"model\.text\.heads was "):
        go_on(3, heads=2 * TRUNK.text.heads)
    squeezenet(tmp_path / "weights.pth", 1)
    with pytest.raises(CheckpointError, match=r"task\.perceptual: the run in .*: weights was "):
        go_on(3)
