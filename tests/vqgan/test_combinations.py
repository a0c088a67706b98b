"""Every encoder goes with every quantizer: ten steps on shapes make the loss fall, codes come back as they went."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from vqgan.config.schema import validate
from vqgan.data.loader import BatchShard, DataPipeline
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import AUTOENCODERS
from vqgan.quantizers import QUANTIZERS
from vqgan.train_tokenizer import TrainVQGANConfig, build_task

pytestmark = pytest.mark.slow_threads

STACK = {"depth": 1, "width": 32, "heads": 2, "mlp_width": 64}
CHANNELS = {"base_channels": 16, "channel_multipliers": [1, 1, 2, 2], "residual_blocks": 1, "groups": 8}
MODELS: dict[str, dict[str, Any]] = {
    "vit_vqgan": {"patch_size": 8, "encoder": STACK, "decoder": STACK},
    "enhancing_vit_vqgan": {"patch_size": 8, "encoder": STACK, "decoder": STACK},
    "cnn_vqgan": {**CHANNELS, "attention_resolutions": [4], "latent_channels": 16},
    "dvae": {"hidden": 16, "blocks_per_group": 1, "decoder_width": 16, "output": "rgb"},
}
QUANTISERS: dict[str, dict[str, Any]] = {
    "nearest": {"codebook_size": 32, "code_dim": 8},
    "nearest_ema": {"codebook_size": 32, "code_dim": 8},
    "gumbel": {"codebook_size": 32, "latent_dim": 16, "code_dim": 8},
    "finite_scalar": {"levels": [5, 5, 4]},
    "lookup_free": {"bits": 5},
    "residual": {"codebook_size": 16, "code_dim": 8, "depth": 2},
}


def config(model: str, quantizer: str, **task: Any) -> TrainVQGANConfig:
    values = {
        "data": {
            "source": {"kind": "shapes", "train_size": 16, "val_size": 4},
            "transform": {"image_size": 32},
            "batch_size": 8,
        },
        "model": {
            "kind": model,
            "image_size": 32,
            "quantizer": {"kind": quantizer, **QUANTISERS[quantizer]},
            **MODELS[model],
        },
        "task": {
            "l1_weight": 1.0,
            "perceptual": {"weight": 0.0},
            "adversarial": {"weight": 0.0},
            "optimizer": {"learning_rate": 1e-3, "clip_norm": 1.0, "schedule": {"shape": "constant"}},
            "precision": "fp32",
            "ema": {"decay": 0.0},
            **task,
        },
        "loop": {"steps": 10},
    }
    return validate(TrainVQGANConfig, values, "test")


def test_nothing_is_left_out() -> None:
    assert MODELS.keys() == AUTOENCODERS.keys()
    assert QUANTISERS.keys() == QUANTIZERS.keys()


@pytest.mark.parametrize("quantizer", QUANTISERS)
@pytest.mark.parametrize("model", MODELS)
def test_ten_steps_make_the_loss_fall(model: str, quantizer: str) -> None:
    settings = config(model, quantizer)
    torch.manual_seed(0)
    task = build_task(settings, Accelerator(cpu=True))
    data = DataPipeline(settings.data, seed=0)
    (batch,) = next(data.training_batches(0, 1, BatchShard()))
    pixels = [task.train_step([batch], step)["loss_l1"].item() for step in range(10)]
    assert pixels[-1] < 0.8 * pixels[0]
    assert torch.tensor(pixels).isfinite().all()

    tokenizer = ImageTokenizer(task.ema.module)
    codes = tokenizer.encode(batch.images)
    height, width = tokenizer.grid
    assert codes.shape == (8, height * width)
    assert 0 <= codes.min() <= codes.max() < tokenizer.vocab_size
    assert tokenizer.embed(codes).shape == (8, 16, tokenizer.latent_dim)
    with torch.no_grad():
        output = tokenizer.autoencoder(batch.images)
    assert torch.equal(tokenizer.embed(codes), output.quantized.latents), "codes say all that the decoder reads"
    # Convolutions may take another kernel for latents in another memory layout.
    torch.testing.assert_close(tokenizer.decode(codes), output.decoded.images.clamp(-1, 1), atol=1e-5, rtol=0)
