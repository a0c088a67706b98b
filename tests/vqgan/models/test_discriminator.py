"""Discriminators: sizes of the papers, the same function as the formulas written out, contiguous groups."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional
from pydantic import TypeAdapter
from torch import Tensor, nn

from vqgan.config.schema import Config, ConfigError, dump_config, validate
from vqgan.losses.adversarial import r1_penalty
from vqgan.models.discriminator import (
    DISCRIMINATORS,
    DiscriminatorConfig,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    StyleGAN2Discriminator,
    StyleGAN2DiscriminatorConfig,
    build_discriminator,
    minibatch_stddev,
)

pytestmark = pytest.mark.threads

TINY = StyleGAN2DiscriminatorConfig(channels=(4, 6, 8))


def tiny() -> StyleGAN2Discriminator:
    """16x16 images; biases not zero, so that their scaling shows."""
    torch.manual_seed(0)
    network = StyleGAN2Discriminator(TINY, 16)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return network


def images(batch: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def written_out(network: StyleGAN2Discriminator, x: Tensor) -> Tensor:
    """StyleGAN2's formulas one by one, without factors folded into weights; for B no larger than the group."""
    weights = {key: value.double() for key, value in network.state_dict().items()}
    conv2d, pad = torch.nn.functional.conv2d, torch.nn.functional.pad

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        weight = weights[f"{name}.weight"]
        bias = weights.get(f"{name}.bias")
        return conv2d(x, weight / math.sqrt(weight[0].numel()), bias, stride, padding)

    def linear(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        return x @ weight.T / math.sqrt(weight.shape[1]) + weights[f"{name}.bias"]

    def activate(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)

    def blur(x: Tensor, padding: int) -> Tensor:
        x = pad(x, (padding,) * 4)
        for dim in (2, 3):
            size = x.shape[dim] - 3
            x = sum(w / 8 * x.narrow(dim, i, size) for i, w in enumerate((1, 3, 3, 1)))  # type: ignore[assignment]
        return x

    x = activate(conv(x.double(), "from_rgb"))
    for i in range(len(network.blocks)):
        y = activate(conv(x, f"blocks.{i}.conv1", padding=1))
        y = activate(conv(blur(y, 2), f"blocks.{i}.conv2", stride=2))
        x = (y + conv(blur(x, 1), f"blocks.{i}.skip", stride=2)) / math.sqrt(2)
    stddev = (((x - x.mean(0)) ** 2).mean(0) + 1e-8).sqrt().mean()
    x = torch.cat([x, stddev.expand(len(x), 1, 4, 4)], dim=1)
    x = activate(conv(x, "final_conv", padding=1))
    return linear(activate(linear(x.flatten(1), "hidden")), "to_logit")[:, 0]


def test_default_has_the_papers_size() -> None:
    channels = (128, 256, 512, 512, 512, 512, 512)  # 256, 128, ..., 4
    expected = 3 * 128 + 128
    for width, out in pairwise(channels):
        expected += (9 * width * width + width) + (9 * width * out + out) + width * out
    expected += 9 * 513 * 512 + 512  # 3x3 after the minibatch statistic
    expected += 8192 * 512 + 512 + 512 + 1
    assert expected == 28_864_129  # 28.86M
    with torch.device("meta"):
        assert count(StyleGAN2Discriminator(StyleGAN2DiscriminatorConfig(), 256)) == expected


@pytest.mark.parametrize(
    ("multiplier", "channels"),
    [(2.0, [128, 256, 512, 512, 512, 512, 512]), (1.0, [64, 128, 256, 512, 512, 512, 512])],
)
def test_widths_follow_the_table(multiplier: float, channels: list[int]) -> None:
    with torch.device("meta"):
        network = StyleGAN2Discriminator(StyleGAN2DiscriminatorConfig(channel_multiplier=multiplier), 256)
    state = network.state_dict()
    assert [len(state["from_rgb.weight"])] + [len(state[f"blocks.{i}.skip.weight"]) for i in range(6)] == channels


def test_patchgan_has_the_papers_size_and_patches() -> None:
    with torch.device("meta"):
        network = PatchDiscriminator(PatchDiscriminatorConfig(), 256)
    assert count(network) == 2_765_633  # 2.766M
    assert network(torch.empty(2, 3, 256, 256, device="meta")).shape == (2, 30, 30)


def test_a_patch_sees_70_pixels() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(PatchDiscriminatorConfig(base_channels=4), 96).eval()
    image = images(1, 96).requires_grad_()
    logits = network(image)
    (gradient,) = torch.autograd.grad(logits[0, 5, 5], image)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_stylegan2_is_the_formulas_written_out(batch: int) -> None:
    network = tiny()
    logits = network(images(batch))
    assert logits.shape == (batch,)
    torch.testing.assert_close(logits.double(), written_out(network, images(batch)), rtol=1e-4, atol=1e-5)


def test_a_batch_dealt_out_in_contiguous_parts_gives_the_same_logits() -> None:
    network, batch = tiny(), images(8)
    batch[:4] *= 0.1  # the groups differ in spread
    torch.testing.assert_close(network(batch), torch.cat([network(batch[:4]), network(batch[4:])]))
    # The statistic does matter: an image's logit depends on its group.
    assert not torch.allclose(network(batch[2:6])[:2], network(batch)[2:4], rtol=1e-3)


def test_minibatch_stddev_by_hand() -> None:
    features = torch.tensor([0.0, 2.0, 5.0, 5.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    stddev = minibatch_stddev(features, 2)
    assert stddev.shape == (4, 1, 3, 3)
    assert stddev[:, 0, 0, 0].tolist() == pytest.approx([1.0, 1.0, 1e-4, 1e-4])
    assert minibatch_stddev(features[:3], 2)[:, 0, 0, 0].tolist() == pytest.approx([1e-4] * 3)  # 3 groups of 1
    assert minibatch_stddev(features, 100)[0, 0, 0, 0].item() == pytest.approx(math.sqrt(4.5))  # one group of 4
    torch.testing.assert_close(minibatch_stddev(images(6), 4), minibatch_stddev(images(6), 3))


def test_outputs_have_unit_scale_at_initialisation() -> None:
    """What equalized learning rate, sqrt(2) and 1/sqrt(2) are for."""
    torch.manual_seed(0)
    network = StyleGAN2Discriminator(StyleGAN2DiscriminatorConfig(channels=(16, 24, 32, 48, 64)), 64)
    scales: list[float] = []
    for block in network.blocks:
        block.register_forward_hook(
            lambda _module, _inputs, output: scales.append(output.square().mean().sqrt().item())
        )
    network(torch.randn(8, 3, 64, 64))
    assert len(scales) == 4
    assert all(0.2 < scale < 2 for scale in scales)


@pytest.mark.parametrize("config", [TINY, PatchDiscriminatorConfig(base_channels=4, layers=2)])
def test_bf16_autocast_and_double_backward(config: DiscriminatorConfig) -> None:
    torch.manual_seed(0)
    network = build_discriminator(config, 16)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = network(images(4))
        (lowered.float().mean() + r1_penalty(network, images(4))).backward()
    torch.testing.assert_close(lowered.float(), network(images(4)), rtol=0.1, atol=0.1)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_r1_derivative_of_the_whole_network() -> None:
    """Autograd's second derivative against a difference quotient along its own direction, in fp64."""
    network = tiny().double()
    network.stddev_group = 1  # the statistic is fp32, too coarse for the quotient; alone, an image's is constant
    image = images(4).double().requires_grad_()
    weights = [parameter for name, parameter in network.named_parameters() if name.endswith("weight")]

    def penalty() -> Tensor:
        (gradient,) = torch.autograd.grad(network(image).sum(), image, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()

    gradients = torch.autograd.grad(penalty(), weights)
    step = 1e-6
    values = []
    for shift in (step, -2 * step):
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += shift * gradient
        values.append(penalty().item())
    expected = sum(gradient.square().sum().item() for gradient in gradients)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-4)


def test_state_dict_holds_parameters_alone() -> None:
    network = tiny()
    assert list(network.state_dict()) == [name for name, _ in network.named_parameters()]


class Owner(Config):
    """A configuration with a discriminator in it."""

    discriminator: DiscriminatorConfig = StyleGAN2DiscriminatorConfig()
    """Either kind."""


def test_variants_are_chosen_by_kind_and_survive_yaml() -> None:
    assert set(DISCRIMINATORS) == {"stylegan2", "patchgan"}
    for values, network in (
        ({"kind": "stylegan2", "channels": [4, 6, 8]}, StyleGAN2Discriminator),
        ({"kind": "patchgan", "layers": 2}, PatchDiscriminator),
    ):
        config = TypeAdapter(DiscriminatorConfig).validate_python(values)
        assert isinstance(build_discriminator(config, 16), network)
    owner = validate(Owner, {"discriminator": {"kind": "stylegan2", "channels": [4, 6, 8]}}, "test")
    assert owner.discriminator == TINY
    assert "channels:\n  - 4\n" in dump_config(owner)
    with pytest.raises(ConfigError, match="did you mean patchgan"):
        validate(Owner, {"discriminator": {"kind": "patchgam"}}, "test")


def test_sizes_that_do_not_fit_are_explained() -> None:
    with pytest.raises(ConfigError, match="power of two"):
        build_discriminator(StyleGAN2DiscriminatorConfig(), 48)
    with pytest.raises(
        ConfigError,
        match=r"task\.adversarial\.discriminator\.channels: 3 widths received for the 5 resolutions "
        r"\[64, 32, 16, 8, 4\] .* or null for the default widths",
    ):
        build_discriminator(TINY, 64)
    with pytest.raises(ConfigError, match="needs 24 pixels"):
        build_discriminator(PatchDiscriminatorConfig(), 16)
    assert build_discriminator(PatchDiscriminatorConfig(base_channels=1), 24)(images(2, 24)).shape == (2, 1, 1)
    with pytest.raises(ValueError, match="built for 16x16 images and received 32x32"):
        tiny()(images(1, 32))
