"""The contrastive term of synthesis by a frozen CLIP: its own preparation of images, with a gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from parti.fused.synthesis.matching import ClipMatcher
from parti.reranker.dual_encoder import DualEncoderConfig, TowerConfig, build_dual_encoder, build_processor
from parti.reranker.scorer import Scorer
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from vqgan.data.images.transforms import to_pil

pytestmark = pytest.mark.slow_threads

TOWER = TowerConfig(depth=1, width=16, heads=2, mlp_width=32)
SIZES = DualEncoderConfig(image_size=16, patch_size=8, image_encoder=TOWER, text_encoder=TOWER, embedding_width=8)
PROMPTS = ["a red cat", "a blue dog", "a green hat"]


def save(folder: Path, **preparation: Any) -> Scorer:
    torch.manual_seed(0)
    TextTokenizer.train(PROMPTS, TextTokenizerConfig(vocab_size=270, length=10)).save_pretrained(folder)
    processor = build_processor(SIZES, folder)
    if preparation:
        processor.image_processor = type(processor.image_processor)(**preparation)
    scorer = Scorer(build_dual_encoder(SIZES, processor).eval(), processor)
    scorer.save_pretrained(folder)
    return scorer


def smooth_images(side: int = 32) -> torch.Tensor:
    across = torch.linspace(-0.9, 0.9, side)
    return torch.stack(
        [across.expand(3, side, side), across[:, None].expand(3, side, side), -across.expand(3, side, side)]
    )


@pytest.mark.parametrize(
    "preparation",
    [
        {},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "image_mean": [0.4, 0.5, 0.6]},
    ],
    ids=["ours", "resized, cropped, another mean"],
)
def test_images_are_prepared_as_by_the_folders_own_processor(preparation: dict[str, Any], tmp_path: Path) -> None:
    scorer = save(tmp_path, **preparation)
    images = smooth_images()
    ours = ClipMatcher(str(tmp_path), torch.device("cpu")).pixels(images)
    theirs = scorer.pixels(to_pil(images))
    assert ours.shape == theirs.shape == (3, 3, 16, 16)
    assert (ours - theirs).abs().max() < 0.03, "one of 256 levels is 0.016 here or less"


def test_the_loss_is_clips_and_moves_the_images_alone(tmp_path: Path) -> None:
    scorer = save(tmp_path)
    matcher = ClipMatcher(str(tmp_path), torch.device("cpu"))
    images = smooth_images(16).requires_grad_()
    found = matcher(images, PROMPTS, Accelerator(cpu=True))
    with torch.no_grad():
        inputs = scorer.tokens(PROMPTS)
        logits = scorer.model(pixel_values=images, **inputs).logits_per_image
    target = torch.arange(3)
    expected = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    torch.testing.assert_close(found.loss.detach(), expected, atol=1e-5, rtol=1e-4)
    found.loss.backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in matcher._scorer.model.parameters())
