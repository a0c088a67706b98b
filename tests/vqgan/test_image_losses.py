"""The weighted distances: each against its own function, and networks only where they have a weight."""

import pytest
import torch
from torch import Tensor

from vqgan.image_losses import ImageLosses, ImageLossesConfig, PerceptualTermConfig
from vqgan.losses.perceptual import PerceptualLoss

pytestmark = pytest.mark.threads

CPU = torch.device("cpu")
PERCEPTUAL = PerceptualTermConfig(weight=0.3, backbone="squeeze", weights="random")


def images(seed: int, count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_terms_are_the_distances_times_their_weights() -> None:
    generated, target = images(0), images(1)
    config = ImageLossesConfig(l1_weight=0.5, l2_weight=2.0, perceptual=PERCEPTUAL)
    terms = ImageLosses(config, CPU, "fp32")(generated, target)
    difference = ((generated - target) / 2).double()  # on the [0, 1] scale
    assert terms.keys() == {"l1", "l2", "perceptual"}
    assert terms["l1"].item() == pytest.approx(0.5 * difference.abs().mean().item())
    assert terms["l2"].item() == pytest.approx(2.0 * difference.square().mean().item())
    assert terms["perceptual"].item() == pytest.approx(
        0.3 * PerceptualLoss(PERCEPTUAL)(generated, target).item(), rel=1e-5
    )


def test_the_perceptual_network_sees_its_share_of_the_batch() -> None:
    generated, target = images(0), images(1)
    perceptual = PERCEPTUAL.model_copy(update={"batch_fraction": 0.25})
    terms = ImageLosses(ImageLossesConfig(perceptual=perceptual), CPU, "fp32")(generated, target)
    expected = 0.3 * PerceptualLoss(PERCEPTUAL)(generated[:1], target[:1])
    assert terms["perceptual"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_weight_no_term_and_no_network() -> None:
    # The default network would have to be downloaded.
    config = ImageLossesConfig(l1_weight=1.0, l2_weight=0.0, perceptual=PerceptualTermConfig(weight=0.0))
    losses = ImageLosses(config, CPU, "fp32")
    assert losses.perceptual is None
    assert losses(images(0), images(1)).keys() == {"l1"}


def test_bf16_leaves_terms_and_gradients_in_fp32() -> None:
    generated = images(0).requires_grad_()
    exact, rounded = (
        ImageLosses(ImageLossesConfig(perceptual=PERCEPTUAL), CPU, precision)(generated, images(1))
        for precision in ("fp32", "bf16")
    )
    assert rounded["l2"].item() == exact["l2"].item()
    assert rounded["perceptual"].item() == pytest.approx(exact["perceptual"].item(), rel=0.05)
    assert rounded["perceptual"].item() != exact["perceptual"].item()
    assert {term.dtype for term in rounded.values()} == {torch.float32}
    (gradient,) = torch.autograd.grad(torch.stack(list(rounded.values())).sum(), generated)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
