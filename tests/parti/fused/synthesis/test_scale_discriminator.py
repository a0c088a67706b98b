"""The discriminators of the three scales: their sizes, what they read, and what they must not."""

import pytest
import torch

from parti.fused.synthesis.scale_discriminator import ScaleDiscriminator, ScaleDiscriminatorConfig

SMALL = ScaleDiscriminatorConfig(base_channels=4, sentence_width=6)


@pytest.mark.parametrize(
    ("channels", "millions"), [(64, (6.3, 19.4, 71.9)), (96, (13.3, 42.8, 160.8))], ids=["ndf 64", "ndf 96"]
)
def test_sizes_as_counted_from_attngan(channels: int, millions: tuple[float, ...]) -> None:
    for side, expected in zip((64, 128, 256), millions, strict=True):
        with torch.device("meta"):
            network = ScaleDiscriminator(ScaleDiscriminatorConfig(base_channels=channels), side)
        assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == expected


@pytest.mark.parametrize(("side", "width"), [(8, 4), (16, 8), (32, 16), (64, 32), (128, 32), (256, 32)])
def test_every_scale_comes_down_to_four_by_four(side: int, width: int) -> None:
    with torch.device("meta"):
        network = ScaleDiscriminator(SMALL, side)
        features = network(torch.zeros(2, 3, side, side))
        assert features.shape == (2, width, 4, 4)
        assert network.unconditional(features).shape == network.conditional(features, torch.zeros(2, 6)).shape == (2,)


@pytest.mark.parametrize("side", [4, 48])
def test_a_scale_that_cannot_be_halved_is_refused(side: int) -> None:
    with pytest.raises(ValueError, match=f"a power of two from 8 pixels on, received {side}"):
        ScaleDiscriminator(SMALL, side)


def test_only_the_conditional_logits_depend_on_the_sentence() -> None:
    torch.manual_seed(0)
    network = ScaleDiscriminator(SMALL, 16)
    sentences = torch.randn(3, 6, requires_grad=True)
    features = network(torch.randn(3, 3, 16, 16))
    (gradient,) = torch.autograd.grad(network.conditional(features, sentences).sum(), sentences, retain_graph=True)
    assert (gradient.abs().sum(1) > 0).all()
    assert torch.autograd.grad(network.unconditional(features).sum(), sentences, allow_unused=True) == (None,)


def test_batch_norm_is_everywhere_but_after_the_first_convolution_and_can_be_left_out() -> None:
    def norms(config: ScaleDiscriminatorConfig) -> list[str]:
        modules = ScaleDiscriminator(config, 64).named_modules()
        return [name for name, module in modules if isinstance(module, torch.nn.BatchNorm2d)]

    assert norms(SMALL) == ["features.1.1", "features.2.1", "features.3.1", "joint.1"]
    assert norms(SMALL.model_copy(update={"normalize": False})) == []
