"""The paper configs' head comments: commands that parse, plans that the planner confirms; and their papers' metrics."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from parti.models import GENERATORS, TokenSpace
from parti.objectives import choose_objective
from tools.plan import main as plan
from vqgan.config.schema import load_config
from vqgan.models import build_autoencoder

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
PLANNED = sorted(path for path in CONFIGS.rglob("*.yaml") if "# Plan:" in path.read_text(encoding="utf-8"))
OTHERS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "accelerate" and path not in PLANNED)
PAPERS = {
    *(f"vqgan/vit_vqgan_{size}" for size in ("small", "base", "large", "mixed", "second_phase")),
    *("vqgan/cnn_vqgan_f16", "vqgan/cnn_vqgan_f8", "vqgan/dvae", "upsampler/parti_512"),
    *(f"parti/parti_{size}" for size in ("350m", "750m", "3b", "20b")),
    *(f"mim/{method}_base" for method in ("mae", "simmim", "beit", "mpp")),
    *("parti/dalle_12b", "parti/fused_inpainting", "parti/fused_captioning", "parti/fused_synthesis"),
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def head_of(path: Path) -> str:
    """The head comment, with lines that go on joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return re.sub(r" \\\n#\s*", " ", "\n".join(lines))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_every_paper_config_has_a_plan() -> None:
    assert {name_of(path) for path in PLANNED if not path.stem.startswith("images_")} == PAPERS


@pytest.mark.parametrize("path", PLANNED, ids=name_of)
def test_the_training_command_is_parsed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^#   (accelerate launch .*tools/train_.*)$", head_of(path), re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command.split(" --start_from ")[0])
        if "--config_file" in words:
            assert Path(words[words.index("--config_file") + 1]).is_file()
        start = next(index for index, word in enumerate(words) if word.startswith("tools/"))
        tool = importlib.import_module(words[start].removesuffix(".py").replace("/", "."))
        assert tool.main([*words[start + 1 :], "--print-config"]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("path", PLANNED, ids=name_of)
def test_the_plan_is_what_the_planner_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command, at_a_time, gigabytes), *others = re.findall(
        r"# Plan: (python .*)\n#   (\d+) at a time, ([\d.]+) GB on each", head_of(path)
    )
    assert not others
    assert f"--config {path.relative_to(ROOT)}" in command
    assert plan([*shlex.split(command)[2:], "--row"]) == 0, "it fits"
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")]
    assert (cells[3], cells[10]) == (at_a_time, gigabytes)


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=name_of)
def test_every_other_config_is_planned_too_and_fits_a_small_gpu(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(["--config", str(path), "--gpu-memory", "8"]) == 0
    assert "of 8: fits" in capsys.readouterr().out


DALLE_CROP = {"image_size": 256, "crop": "dalle_tokenizer", "flip": True}
VIT = {
    "data.transform": DALLE_CROP,
    "data.batch_size": 256,
    "model.patch_size": 8,
    "model.quantizer": {"codebook_size": 8192, "code_dim": 32, "l2_normalize": True},
    "task.l2_weight": 1.0,
    "task.perceptual.weight": 0.1,
    "task.adversarial": {"weight": 0.1, "adaptive": False, "start": 0},
    "task.adversarial.discriminator.kind": "stylegan2",
    "task.optimizer": {"kind": "adamw", "learning_rate": 1e-4, "betas": (0.9, 0.99), "weight_decay": 1e-4},
    "loop.steps": 500_000,
}
LAPLACE = {"task.logit_laplace_weight": 0.1, "model.output": "logit_laplace"}
SMALL = {"depth": 8, "width": 512, "heads": 8, "mlp_width": 2048, "dropout": 0.0}
BASE = {"depth": 12, "width": 768, "heads": 12, "mlp_width": 3072, "dropout": 0.0}
LARGE = {"depth": 32, "width": 1280, "heads": 16, "mlp_width": 5120, "dropout": 0.0}
CNN = {"base_channels": 128, "residual_blocks": 2, "latent_channels": 256, "image_size": 256}

METRICS: dict[str, dict[str, Any]] = {
    # papers.md A.1, A.3 and A.4 (2110.04627)
    "vqgan/vit_vqgan_small": VIT | LAPLACE | {"model.encoder": SMALL, "model.decoder": SMALL},
    "vqgan/vit_vqgan_base": VIT | LAPLACE | {"model.encoder": BASE, "model.decoder": BASE},
    "vqgan/vit_vqgan_large": VIT | LAPLACE | {"model.encoder": LARGE, "model.decoder": LARGE},
    "vqgan/vit_vqgan_mixed": VIT | LAPLACE | {"model.encoder": SMALL, "model.decoder": LARGE},
    # papers.md D.5 (2206.10789): no sigmoid, no logit-Laplace term
    "vqgan/vit_vqgan_second_phase": VIT
    | {"model.encoder": SMALL, "model.decoder": LARGE, "task.logit_laplace_weight": 0.0, "model.output": "rgb"}
    | {"codes_from": "runs/vit-vqgan-small"},
    # papers.md B (2012.09841): 12 images a GPU at 4.5e-6 each; the weight of l1 is twice the code's, which is in [-1,
    # 1]
    "vqgan/cnn_vqgan_f16": {
        "data.transform": {"image_size": 256, "crop": "random", "smallest_crop": 1.0, "flip": True},
        "model": CNN | {"channel_multipliers": (1, 1, 2, 2, 4), "attention_resolutions": (16,)},
        "model.quantizer": {"codebook_size": 1024, "code_dim": 256, "l2_normalize": False},
        "task": {"l1_weight": 2.0, "l2_weight": 0.0},
        "task.perceptual": {"weight": 1.0, "backbone": "vgg"},
        "task.adversarial": {"weight": 0.8, "adaptive": True, "loss": "hinge", "start": 250_000, "r1_gamma": 0.0},
        "task.adversarial.discriminator.kind": "patchgan",
        "task.optimizer": {"learning_rate": 96 * 4.5e-6, "betas": (0.5, 0.9), "weight_decay": 0.0},
    },
    # LlamaGen's VQ-8 (2406.06525): its tokenizer's training script and random crop
    "vqgan/cnn_vqgan_f8": {
        "data.transform": {"image_size": 256, "crop": "random", "smallest_crop": 0.8, "flip": True},
        "data.batch_size": 128,
        "model": CNN | {"channel_multipliers": (1, 2, 2, 4)},
        "model.quantizer": {"codebook_size": 16_384, "code_dim": 8, "l2_normalize": True},
        "task.perceptual.weight": 1.0,
        "task.adversarial": {"weight": 0.5, "loss": "hinge", "start": 20_000, "r1_gamma": 0.0},
        "task.adversarial.discriminator.kind": "patchgan",
        "task.optimizer": {"learning_rate": 1e-4, "betas": (0.9, 0.95), "clip_norm": 1.0},
    },
    # papers.md C.1 (2102.12092)
    "vqgan/dvae": {
        "data.transform": DALLE_CROP,
        "data.batch_size": 512,
        "model": {"hidden": 256, "blocks_per_group": 2, "decoder_width": 128, "output": "logit_laplace"},
        "model.quantizer.temperature": {"start": 1.0, "end": 1 / 16, "over": 150_000},
        "model.quantizer.kl_weight": {"start": 0.0, "end": 6.6, "over": 5_000},
        "task.codebook_weight": 1 / 192,
        "task.optimizer": {"learning_rate": 1e-4, "betas": (0.9, 0.999), "weight_decay": 1e-4},
        "task.optimizer.schedule": {"shape": "cosine", "decay_until": 1_200_000, "final_ratio": 1.25e-6 / 1e-4},
        "task.ema.decay": 0.999,
        "loop.steps": 3_000_000,
    },
    # papers.md C.2
    "parti/dalle_12b": {
        "data.transform": {"image_size": 256, "crop": "dalle_transformer", "flip": False},
        "data.batch_size": 1024,
        "text": {"kind": "bpe", "vocab_size": 16_384, "length": 256, "dropout": 0.1},
        "model": {"depth": 64, "width": 3968, "heads": 62, "mlp_width": 4 * 3968, "attention": "sparse", "kernel": 11},
        "task.optimizer": {"kind": "adamw", "learning_rate": 4.5e-4, "betas": (0.9, 0.96), "weight_decay": 4.5e-2},
        "task.optimizer.clip_norm": 4.0,
        "task.optimizer.schedule": {"warmup": 5000, "final_ratio": 1 / 32},
        "task.text_loss_share": 1 / 8,
        "loop.steps": 430_000,
    },
    # papers.md D.5
    "upsampler/parti_512": {
        "model": {"scale": 2, "blocks": 12, "channels": 128, "expansion": 4},
        "task.l2_weight": 1.0,
        "task.perceptual.weight": 0.1,
        "task.adversarial.weight": 0.1,
    },
}


def value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("name", METRICS)
def test_the_metrics_are_the_papers(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    config = load_config(choose_objective(path).config_type, path)
    for key, wanted in METRICS[name].items():
        found = value_of(config, key)
        if isinstance(wanted, dict):
            own = {field: getattr(found, field) for field in wanted}
            for field, value in wanted.items():
                assert own[field] == (pytest.approx(value) if isinstance(value, float) else value), (key, field)
        else:
            assert found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), key


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # papers.md 0, in the counts that the head comments state
        ("vqgan/cnn_vqgan_f16", 72.14),
        ("vqgan/cnn_vqgan_f8", 70.11),
        ("vqgan/dvae", 97.62),
        ("parti/dalle_12b", 12_292.84),
    ],
)
def test_the_number_of_parameters(name: str, millions: float) -> None:
    path = CONFIGS / f"{name}.yaml"
    config: Any = load_config(choose_objective(path).config_type, path)
    with torch.device("meta"):
        if path.parent.name == "vqgan":
            model: torch.nn.Module = build_autoencoder(config.model)
        else:
            tokens = TokenSpace(text_vocab_size=16_384, text_length=256, image_vocab_size=8192, image_grid=(32, 32))
            model = GENERATORS[config.model.kind](config.model, tokens)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("path", PLANNED, ids=name_of)
def test_r1_is_the_papers_or_declared(path: Path) -> None:
    config: Any = load_config(choose_objective(path).config_type, path)
    adversarial = getattr(config.task, "adversarial", None)
    if adversarial is not None and adversarial.weight and adversarial.r1_gamma:
        assert "R1" in head_of(path), "no paper here prints R1: say where it is from"
