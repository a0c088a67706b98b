"""LPIPS: equal to the package's, frozen, deterministic, and clear about weights that it cannot find."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from vqgan.config.schema import ConfigError
from vqgan.losses.perceptual import Backbone, PerceptualConfig, PerceptualLoss, _normalize

pytestmark = pytest.mark.threads

SQUEEZE_FILE = "squeezenet1_1-b8a52dc0.pth"


def images(seed: int, size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_loss(backbone: Backbone = "squeeze", seed: int = 0) -> PerceptualLoss:
    return PerceptualLoss(PerceptualConfig(backbone=backbone, weights="random", seed=seed))


def package_loss(backbone: str) -> Any:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def squeezenet() -> dict[str, torch.Tensor]:
    """A state dict as torchvision's file holds it, untrained."""
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(5)
        return torchvision.models.squeezenet1_1(weights=None).state_dict()


@pytest.mark.parametrize("backbone", ["squeeze", "alex"])
def test_equals_the_package_with_the_same_weights(backbone: Backbone) -> None:
    loss, reference = random_loss(backbone), package_loss(backbone)
    reference.net.load_state_dict(loss.backbone.state_dict())
    value = loss(images(0), images(1))
    assert value.shape == ()
    assert value.item() > 0
    torch.testing.assert_close(value, reference(images(0), images(1)).mean())


def test_identical_images_are_at_distance_zero() -> None:
    assert random_loss()(images(0), images(0)).item() == 0.0


def test_frozen_and_in_eval_mode_with_a_gradient_for_the_image() -> None:
    loss = random_loss()
    assert not any(module.training for module in loss.modules()), "as built"
    loss.train()
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    # Flat images: their features can be all zero at a place, where a norm has no gradient.
    for reconstruction in (images(0), torch.full((2, 3, 64, 64), -1.0), torch.ones(2, 3, 64, 64)):
        reconstruction.requires_grad_()
        loss(reconstruction, images(1)).backward()
        assert reconstruction.grad is not None
        assert reconstruction.grad.isfinite().all()
        assert reconstruction.grad.abs().sum() > 0


def test_comparison_is_fp32_under_autocast() -> None:
    loss = random_loss()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(images(0), images(1))
        features = [loss.backbone(loss.scaling(batch)) for batch in (images(0), images(1))]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(images(0), images(1)).item(), rel=0.05)
    assert features[0][0].dtype == torch.bfloat16, "or else the comparison would see no low precision"
    differences = ((_normalize(one) - _normalize(other)).square() for one, other in zip(*features, strict=True))
    expected = sum(linear(part).mean() for linear, part in zip(loss.linears, differences, strict=True))
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_features_as_short_as_the_epsilon_are_divided_as_in_the_package() -> None:
    import lpips

    features = torch.randn(2, 5, 3, 3) * torch.logspace(-12, 1, 9).view(3, 3)
    torch.testing.assert_close(_normalize(features), lpips.normalize_tensor(features))


def test_random_weights_come_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = random_loss(seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    again, other = random_loss(seed=3), random_loss(seed=4)
    assert torch.equal(first(images(0), images(1)), again(images(0), images(1)))
    assert not torch.equal(first(images(0), images(1)), other(images(0), images(1)))


def test_weights_load_from_a_path(
    squeezenet: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(squeezenet, tmp_path / "any name.pth")
    loss = PerceptualLoss(PerceptualConfig(backbone="squeeze", weights="~/any name.pth"))
    reference = package_loss("squeeze")
    for part in (getattr(reference.net, f"slice{i}") for i in range(1, 8)):
        for index, layer in part.named_children():
            prefix = f"features.{index}."
            layer.load_state_dict(
                {key.removeprefix(prefix): value for key, value in squeezenet.items() if key.startswith(prefix)}
            )
    torch.testing.assert_close(loss(images(0), images(1)), reference(images(0), images(1)).mean())


def test_pretrained_is_the_default_and_reads_the_cache(squeezenet: dict[str, torch.Tensor], offline: Path) -> None:
    assert PerceptualConfig() == PerceptualConfig(backbone="vgg", weights="pretrained")
    offline.mkdir(parents=True)
    torch.save(squeezenet, offline / SQUEEZE_FILE)
    loss = PerceptualLoss(PerceptualConfig(backbone="squeeze"))
    assert torch.equal(loss.backbone.state_dict()["slice1.0.weight"], squeezenet["features.0.weight"])


def test_missing_file_is_fetched_into_the_cache(
    squeezenet: dict[str, torch.Tensor], offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    def download(url: str, target: str, hash_prefix: str) -> None:
        requests.append((url, hash_prefix))
        torch.save(squeezenet, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    PerceptualLoss(PerceptualConfig(backbone="squeeze"))
    PerceptualLoss(PerceptualConfig(backbone="squeeze"))
    assert requests == [(f"https://download.pytorch.org/models/{SQUEEZE_FILE}", "b8a52dc0")]
    (offline / SQUEEZE_FILE).unlink()
    PerceptualLoss(PerceptualConfig(backbone="squeeze"))
    assert len(requests) == 2, "fetched again, into a folder that is there already"
    assert (offline / SQUEEZE_FILE).is_file()


def test_without_weights_the_error_says_what_to_do(offline: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        PerceptualLoss(PerceptualConfig(backbone="squeeze"))
    message = str(caught.value)
    for needed in (
        f"https://download.pytorch.org/models/{SQUEEZE_FILE}",
        str(offline / SQUEEZE_FILE),
        "perceptual.weights",
        "'random'",
    ):
        assert needed in message
    assert "\n" not in message


def test_a_wrong_file_is_named(squeezenet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def build(path: Path) -> None:
        PerceptualLoss(PerceptualConfig(backbone="squeeze", weights=str(path)))

    with pytest.raises(ConfigError, match="no file"):
        build(tmp_path / "absent.pth")

    path = tmp_path / "weights.pth"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ConfigError, match="not a file of tensors"):
        build(path)

    torch.save([1, 2], path)
    with pytest.raises(ConfigError, match="holds a list"):
        build(path)

    torch.save({key: value for key, value in squeezenet.items() if "features.3." not in key}, path)
    with pytest.raises(ConfigError, match=r"features\.3\.squeeze\.weight must have .* missing"):
        build(path)

    torch.save({**squeezenet, "features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"features\.0\.weight must have the shape \(64, 3, 3, 3\) and .* \(1,\)"):
        build(path)


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_pickled_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"features.0.weight": _RunsCode()}, path)
    with pytest.raises(
        ConfigError, match=r"not a file of tensors: Weights only load failed.*; fetch it again$"
    ) as caught:
        PerceptualLoss(PerceptualConfig(backbone="squeeze", weights=str(path)))
    assert "\n" not in str(caught.value), "of torch's paragraphs the first line"
    assert capsys.readouterr().out == ""
