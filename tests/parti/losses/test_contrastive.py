"""The contrastive objective: CLIP's own loss, captions that repeat, and two processes as one."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parti.losses.contrastive import contrastive_loss, retrieval_accuracy
from tests.two_processes import run_in_processes
from vqgan.training.parallel.distributed import build_accelerator

pytestmark = pytest.mark.threads

IDS = torch.tensor([[1, 2], [3, 4], [5, 6], [1, 7], [3, 4], [8, 9]])
"""Pairs 1 and 4 share their caption."""


def units(seed: int) -> Tensor:
    return F.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(images: Tensor, texts: Tensor, ids: Tensor, scale: float) -> float:
    """Pair by pair, in float64."""
    logits = (scale * images @ texts.T).double()
    total = 0.0
    for one in range(len(ids)):
        others = [other for other in range(len(ids)) if other == one or not torch.equal(ids[other], ids[one])]
        total -= (logits[one, one] - logits[one, others].logsumexp(0)).item()
        total -= (logits[one, one] - logits[others, one].logsumexp(0)).item()
    return total / (2 * len(ids))


def test_the_loss_is_clips_own_where_captions_differ() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    images, texts, ids = units(0), units(1), torch.arange(12).view(6, 2)
    found = contrastive_loss(images, texts, ids, torch.tensor(4.0), build_accelerator())
    torch.testing.assert_close(found.loss, image_text_contrastive_loss(4.0 * texts @ images.T))
    assert found.loss.item() == pytest.approx(by_hand(images, texts, ids, 4.0), rel=1e-5)


def test_a_caption_that_repeats_is_no_negative_of_itself() -> None:
    images, texts = units(0), units(1)
    found = contrastive_loss(images, texts, IDS, torch.tensor(4.0), build_accelerator())
    assert found.loss.item() == pytest.approx(by_hand(images, texts, IDS, 4.0), rel=1e-5)
    perfect = contrastive_loss(units(0), units(0), IDS, torch.tensor(100.0), build_accelerator())
    assert perfect.accuracy == 1.0
    assert perfect.loss < 1e-3


def test_retrieval_counts_a_caption_that_repeats_as_right() -> None:
    texts = torch.eye(6)
    texts[4] = texts[1]
    assert retrieval_accuracy(texts, texts, IDS) == (1.0, 1.0)
    wrong = texts[[0, 1, 3, 2, 4, 5]]  # images 2 and 3 are exchanged
    assert retrieval_accuracy(wrong, texts, IDS) == pytest.approx((4 / 6, 4 / 6))


def one_of_two(folder: str) -> None:
    rank = int(os.environ["RANK"])
    given = torch.load(Path(folder, "given.pt"), weights_only=True)
    own = slice(3 * rank, 3 * rank + 3)
    images, texts = given["images"][own].requires_grad_(), given["texts"][own].requires_grad_()
    scale = torch.tensor(4.0, requires_grad=True)
    contrast = contrastive_loss(images, texts, given["text_ids"][own], scale, build_accelerator())
    contrast.loss.backward()
    gradients = [weight.grad for weight in (images, texts, scale)]
    found = {"loss": contrast.loss.detach(), "accuracy": contrast.accuracy, "gradients": gradients}
    torch.save(found, Path(folder, f"found-{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    images, texts = units(0), units(1)
    torch.save({"images": images, "texts": texts, "text_ids": IDS}, tmp_path / "given.pt")
    said = tmp_path / "said.txt"
    assert run_in_processes(one_of_two, tmp_path, said=said) == [0, 0], said.read_text()
    first, second = (torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in range(2))

    scale = torch.tensor(4.0, requires_grad=True)
    whole = contrastive_loss(images.requires_grad_(), texts.requires_grad_(), IDS, scale, build_accelerator())
    whole.loss.backward()
    for name in ("loss", "accuracy"):
        torch.testing.assert_close((first[name] + second[name]) / 2, getattr(whole, name).detach())
    # What data parallelism averages: each process's gradient of its own rows counts for half.
    for position, expected in enumerate((images.grad, texts.grad)):
        rows = torch.cat([first["gradients"][position], second["gradients"][position]]) / 2
        torch.testing.assert_close(rows, expected)
    torch.testing.assert_close((first["gradients"][2] + second["gradients"][2]) / 2, scale.grad)
