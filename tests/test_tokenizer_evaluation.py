"""evaluate_tokenizer: its figures are those of the whole set, however it is divided into batches."""

import pytest
import torch
from PIL import Image
from tiny import pairs, tiny_image_tokenizer

from vqgan.data.batch import Batch
from vqgan.evaluation import evaluate_tokenizer
from vqgan.training.distributed import build_accelerator


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.images[rows], batch.captions[rows], batch.names[rows])


def test_figures_are_means_and_counts_over_all_pictures() -> None:
    tokenizer, batch = tiny_image_tokenizer(), pairs(8)
    figures = evaluate_tokenizer(tokenizer, [part(batch, slice(0, 5)), part(batch, slice(5, 8))], build_accelerator())

    codes = tokenizer.encode(batch.images)
    levels = [((images.clamp(-1, 1) + 1) * 127.5).round() for images in (tokenizer.decode(codes), batch.images)]
    error = (levels[0] - levels[1]).square().flatten(1).mean(1)
    assert figures["psnr"] == pytest.approx((10 * torch.log10(255**2 / error)).mean().item(), abs=1e-4)
    counts = torch.bincount(codes.flatten(), minlength=32).double()
    assert figures["codebook_usage"] == pytest.approx((counts > 0).double().mean().item())
    share = counts[counts > 0] / counts.sum()
    assert figures["codebook_perplexity"] == pytest.approx((-(share * share.log()).sum()).exp().item(), rel=1e-5)
    assert "reconstruction_accuracy" not in figures


def test_the_judge_sees_each_reconstruction_with_its_own_caption() -> None:
    seen: list[tuple[tuple[int, int], str]] = []

    def judge(picture: Image.Image, caption: str) -> bool:
        seen.append((picture.size, caption))
        return "red" in caption

    batch = pairs(8)
    halves = [part(batch, slice(0, 4)), part(batch, slice(4, 8))]
    figures = evaluate_tokenizer(tiny_image_tokenizer(), halves, build_accelerator(), judge)
    assert seen == [((16, 16), caption) for caption in batch.texts()]
    assert figures["reconstruction_accuracy"] == 0.5


def test_nothing_to_evaluate_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no held-out picture"):
        evaluate_tokenizer(tiny_image_tokenizer(), [], build_accelerator())
