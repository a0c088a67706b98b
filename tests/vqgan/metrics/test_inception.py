"""FID and inception score: against their formulas, and against torch-fidelity's own run over two folders."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

from vqgan.config.schema import ConfigError
from vqgan.metrics.fidelity import to_float
from vqgan.metrics.inception import (
    GENERATED_METRICS,
    GeneratedInceptionMeter,
    InceptionMeter,
    InceptionV3,
    frechet_distance,
    inception_score,
)
from vqgan.metrics.protocol import Metric, Reconstructions

pytestmark = pytest.mark.slow_threads

CPU = torch.device("cpu")


class TinyNet:
    """Four features: the channels' means and their product."""

    source = {"evaluator": "tiny 1.0"}  # noqa: RUF012 - the protocol's attribute
    warning = ""

    def __call__(self, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = levels.float().mean((2, 3)) / 64
        features = torch.cat([means, means.prod(1, keepdim=True)], 1)
        return features, 2 * features


def features(count: int, seed: int, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator) + seed


def levels(count: int, seed: int, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def measured(
    meter: InceptionMeter, originals: torch.Tensor, made: torch.Tensor, batch_size: int = 4
) -> dict[str, Metric]:
    for one, other in zip(originals.split(batch_size), made.split(batch_size), strict=True):
        codes = torch.zeros(len(one), 1, dtype=torch.int64)
        meter.add(Reconstructions(to_float(one), to_float(other), one, other, codes))
    return {metric.name: metric for metric in meter.metrics()}


def test_frechet_distance_is_the_formula() -> None:
    one, other = features(40, 0), features(60, 1)
    x, y = one.double().numpy(), other.double().numpy()
    root = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
    spread = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root.real)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + spread
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-8)


def test_frechet_distance_of_a_set_to_itself_and_moved() -> None:
    one = features(40, 0)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    # The mean is taken in float64: float32 would lose the thousandths.
    assert frechet_distance(one.double() + 1e4, one.double() + 1e4 + 0.01) == pytest.approx(5e-4, rel=1e-3)


def test_inception_score_is_the_formula() -> None:
    logits = 3 * features(45, 2, width=7)
    order = np.random.RandomState(2020).permutation(45)
    p = logits.double().softmax(1).numpy()[order]
    scores = []
    for split in range(10):
        part = p[split * 45 // 10 : (split + 1) * 45 // 10]
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)))
    assert inception_score(torch.zeros(20, 7)) == pytest.approx((1, 0))


def test_the_meter_compares_reconstructions_with_originals() -> None:
    originals, made = levels(12, 0), levels(12, 1)
    metrics = measured(InceptionMeter(TinyNet()), originals, made)
    net = TinyNet()
    assert metrics["rfid"].value == pytest.approx(frechet_distance(net(made)[0], net(originals)[0]))
    score, spread = inception_score(net(made)[1])
    assert (metrics["inception_score"].value, metrics["inception_score_std"].value) == pytest.approx((score, spread))
    assert metrics["rfid"].details["evaluator"] == "tiny 1.0"
    assert metrics["rfid"].warning == "12 images: published metrics have 50000, and FID falls as sets grow"


def test_small_sets_are_never_measured_silently() -> None:
    few = measured(InceptionMeter(TinyNet()), levels(3, 0), levels(3, 1))
    assert "singular covariance: 3 images for 4 features" in few["rfid"].warning
    assert few["inception_score"].value is None
    assert few["inception_score_std"].missing == "needs 10 images at least, one a split, received 3"
    one = measured(InceptionMeter(TinyNet()), levels(1, 0), levels(1, 1))
    assert one["rfid"].missing == "needs 2 images at least, received 1"


def test_generated_images_are_compared_with_a_real_set_of_another_size() -> None:
    real, generated, net = levels(9, 0), levels(14, 1), TinyNet()
    meter = GeneratedInceptionMeter(net)
    for part in real.split(4):
        meter.add_real(part)
    for part in generated.split(5):
        meter.add_generated(part)
    metrics = {metric.name: metric for metric in meter.metrics()}
    assert tuple(metrics) == GENERATED_METRICS
    assert metrics["fid"].value == pytest.approx(frechet_distance(net(generated)[0], net(real)[0]))
    assert metrics["inception_score"].value == pytest.approx(inception_score(net(generated)[1])[0])
    assert metrics["fid"].warning == "14 images: published metrics have 30000, and FID falls as sets grow"
    few = GeneratedInceptionMeter(net)
    few.add_real(real[:3])
    few.add_generated(generated)
    assert "singular covariance: 3 images for 4 features" in next(few.metrics()).warning


def test_without_weights_the_error_says_what_to_do(offline: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        InceptionV3("pretrained", CPU)
    name = "weights-inception-2015-12-05-6726825d.pth"
    for needed in (f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{name}", str(offline / name)):
        assert needed in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"no file 'nowhere\.pth'; fetch https"):
        InceptionV3("nowhere.pth", CPU)


class _RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must not run",))


def test_a_wrong_file_is_named_and_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    for content in (b"<html>not found</html>", pickle.dumps(_RunsCode(), protocol=2)):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is not a file of tensors"):
            InceptionV3(str(path), CPU)
    torch.save({"fc.weight": _RunsCode()}, path)
    with pytest.raises(ConfigError, match="is not a file of tensors"):
        InceptionV3(str(path), CPU)
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match="does not fit torch-fidelity's InceptionV3"):
        InceptionV3(str(path), CPU)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_equals_torch_fidelity_on_two_folders(tmp_path: Path) -> None:
    import torch_fidelity

    weights = tmp_path / "inception.pth"
    torch.save(InceptionV3("random", CPU)._network.state_dict(), weights)
    network = InceptionV3(str(weights), CPU)
    assert network.warning == "not the released weights: compares with nothing published"
    buffer = io.BytesIO(weights.read_bytes())
    assert network.source["weights"] == "inception.pth"
    assert torch.load(buffer, weights_only=True).keys() == network._network.state_dict().keys()

    sets = {"originals": levels(10, 0), "made": levels(10, 1)}
    for name, pixels in sets.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{number:02}.png")
    wanted = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "made"),
        input2=str(tmp_path / "originals"),
        fid=True,
        isc=True,
        cuda=False,
        batch_size=5,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
        feature_extractor_weights_path=str(weights),
    )
    metrics = measured(InceptionMeter(network), sets["originals"], sets["made"], batch_size=5)
    assert metrics["rfid"].value == pytest.approx(wanted["frechet_inception_distance"], rel=1e-4)
    assert metrics["inception_score"].value == pytest.approx(wanted["inception_score_mean"], rel=1e-6)
    assert metrics["inception_score_std"].value == pytest.approx(wanted["inception_score_std"], rel=1e-4, abs=1e-8)
    assert wanted["frechet_inception_distance"] > 0.01
