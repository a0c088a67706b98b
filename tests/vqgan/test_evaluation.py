"""evaluate_tokenizer and measure_tokenizer: metrics of the whole set, however it is divided into batches."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.fake_clock import FakeClock
from tests.tiny import pairs, tiny_image_tokenizer
from tests.tiny_runs import untrained_tokenizer
from vqgan import evaluation
from vqgan.config.schema import ConfigError
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.evaluation import ThroughputMeter, TokenizerEvaluationConfig, evaluate_tokenizer, measure_tokenizer
from vqgan.hub.model_folder import ModelFolderError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.losses.perceptual import PerceptualConfig, PerceptualLoss
from vqgan.metrics.fidelity import psnr, ssim
from vqgan.metrics.inception import frechet_distance
from vqgan.metrics.reference_set import ReferenceSet, ReferenceSetConfig
from vqgan.training.parallel.distributed import build_accelerator


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.images[rows], batch.captions[rows], batch.names[rows])


def test_metrics_are_means_and_counts_over_all_images() -> None:
    tokenizer, batch = tiny_image_tokenizer(), pairs(8)
    metrics = evaluate_tokenizer(tokenizer, [part(batch, slice(0, 5)), part(batch, slice(5, 8))], build_accelerator())

    codes = tokenizer.encode(batch.images)
    levels = [((images.clamp(-1, 1) + 1) * 127.5).round() for images in (tokenizer.decode(codes), batch.images)]
    error = (levels[0] - levels[1]).square().flatten(1).mean(1)
    assert metrics["psnr"] == pytest.approx((10 * torch.log10(255**2 / error)).mean().item(), abs=1e-4)
    counts = torch.bincount(codes.flatten(), minlength=32).double()
    assert metrics["codebook_usage"] == pytest.approx((counts > 0).double().mean().item())
    share = counts[counts > 0] / counts.sum()
    assert metrics["codebook_perplexity"] == pytest.approx((-(share * share.log()).sum()).exp().item(), rel=1e-5)
    assert "reconstruction_accuracy" not in metrics


def test_the_judge_sees_each_reconstruction_with_its_own_caption() -> None:
    seen: list[tuple[tuple[int, int], str]] = []

    def check_image(image: Image.Image, caption: str) -> bool:
        seen.append((image.size, caption))
        return "red" in caption

    batch = pairs(8)
    halves = [part(batch, slice(0, 4)), part(batch, slice(4, 8))]
    metrics = evaluate_tokenizer(tiny_image_tokenizer(), halves, build_accelerator(), check_image)
    assert seen == [((16, 16), caption) for caption in batch.texts()]
    assert metrics["reconstruction_accuracy"] == 0.5


def test_nothing_to_evaluate_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no validation image"):
        evaluate_tokenizer(tiny_image_tokenizer(), [], build_accelerator())


class TinyInception:
    """Stands for InceptionV3: mean color and contrast of an image."""

    def __init__(self, weights: str, device: torch.device) -> None:
        self.source = {"evaluator": "tiny 1.0", "weights": weights, "device": str(device)}
        self.warning = ""

    def __call__(self, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = levels.float() / 64
        features = torch.cat([pixels.mean((2, 3)), pixels.std((1, 2, 3)).unsqueeze(1)], 1)
        return features, features


@pytest.fixture
def tiny_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "InceptionV3", TinyInception)


SQUEEZE = PerceptualConfig(backbone="squeeze", weights="random")


def settings(folder: Path, batch_size: int, lpips: tuple[PerceptualConfig, ...] = ()) -> TokenizerEvaluationConfig:
    data = ReferenceSetConfig(
        source=ShapesConfig(train_size=4, val_size=12),
        transform=TransformConfig(image_size=32),
        batch_size=batch_size,
    )
    return TokenizerEvaluationConfig(
        model=str(untrained_tokenizer(folder / "tokenizer")),
        out=str(folder / "metrics.json"),
        data=data,
        lpips=lpips,
        inception_weights="random",
        device="cpu",
    )


@pytest.mark.usefixtures("tiny_inception")
def test_one_pass_measures_what_the_parts_measure(tmp_path: Path) -> None:
    config = settings(tmp_path, 12, (SQUEEZE,))
    metrics = {metric.name: metric for metric in measure_tokenizer(config).metrics}
    (batch,) = ReferenceSet(config.data, "val", 0).batches()
    images = batch.images
    tokenizer = ImageTokenizer.from_pretrained(config.model)
    made = tokenizer.decode(tokenizer.encode(images))
    rounded = ((made + 1) * 127.5).round() / 127.5 - 1
    assert metrics["psnr"].value == pytest.approx(psnr(made, images).mean().item())
    assert metrics["ssim"].value == pytest.approx(ssim(made, images).mean().item())
    assert metrics["lpips_squeeze"].value == pytest.approx(PerceptualLoss(SQUEEZE)(rounded, images).item(), rel=1e-4)
    assert metrics["lpips_squeeze"].warning == "untrained network: compares with nothing"
    features = [TinyInception("", torch.device("cpu"))(((part + 1) * 127.5).round())[0] for part in (made, images)]
    assert metrics["rfid"].value == pytest.approx(frechet_distance(*features), rel=1e-5)
    assert metrics["codebook_usage"].value == len(tokenizer.encode(images).unique()) / 32


@pytest.mark.usefixtures("tiny_inception")
def test_the_batch_size_changes_the_rate_alone(tmp_path: Path) -> None:
    whole, parts = (measure_tokenizer(settings(tmp_path, size, (SQUEEZE,))) for size in (12, 5))
    assert whole.shared["reference"] == parts.shared["reference"]
    for one, other in zip(whole.metrics, parts.metrics, strict=True):
        assert (one.name, one.missing) == (other.name, other.missing)
        if one.value is not None and one.name != "images_per_second":
            assert one.value == pytest.approx(other.value, rel=1e-4), one.name


def test_the_rate_is_images_over_seconds_without_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("vqgan.evaluation.time.perf_counter", clock)

    class Slow(ImageTokenizer):
        """Half a second to start, then 40 ms a batch."""

        calls = 0

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def encode(self, images: torch.Tensor, *, check_range: bool = True) -> torch.Tensor:  # noqa: ARG002
            Slow.calls += 1
            clock.pass_by(0.04 if Slow.calls > 1 else 0.5)
            return torch.zeros(len(images), 1, dtype=torch.int64)

        def decode(self, codes: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:  # noqa: ARG002
            return torch.zeros(len(codes), 3, 8, 8)

    rate = ThroughputMeter(Slow(), torch.device("cpu"), 4)
    for count in (4, 4, 2):
        rate.reconstruct(torch.zeros(count, 3, 8, 8))
    assert Slow.calls == 4
    (metric,) = rate.metrics()
    assert metric.value == pytest.approx(10 / 0.12), "10 images in 120 ms"
    assert metric.details["batch_size"] == 4


@pytest.mark.usefixtures("tiny_inception")
def test_damaged_weights_are_no_metrics(tmp_path: Path) -> None:
    config = settings(tmp_path, 12)
    tokenizer = ImageTokenizer.from_pretrained(config.model)
    for parameter in tokenizer.autoencoder.parameters():
        parameter.data.fill_(torch.nan)
    tokenizer.save_pretrained(config.model)
    with pytest.raises(ModelFolderError, match="no finite numbers"):
        measure_tokenizer(config)


def test_settings_that_cannot_be_met(tmp_path: Path) -> None:
    config = settings(tmp_path, 12)
    other_size = config.data.model_copy(update={"transform": TransformConfig(image_size=64)})
    with pytest.raises(ConfigError, match=r"data\.transform\.image_size is 64, the tokenizer in .* reads 32"):
        measure_tokenizer(config.model_copy(update={"data": other_size}))
    with pytest.raises(ConfigError, match="device: nonsense cannot be used here"):
        measure_tokenizer(config.model_copy(update={"device": "nonsense"}))
    with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
        measure_tokenizer(config.model_copy(update={"out": str(tmp_path)}))
    with pytest.raises(ValueError, match="lpips names a backbone twice: squeeze, squeeze"):
        settings(tmp_path, 12, (SQUEEZE, SQUEEZE))
