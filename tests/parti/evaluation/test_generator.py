"""The metrics of a text-to-image model: what their definitions give by hand, and null where weights are missing."""

import json
import math
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from parti.base_pipeline import SampleOptions
from parti.evaluation import generator as evaluation
from parti.evaluation.clip_score import ClipScoreMeter, open_backbone
from parti.evaluation.generated_set import FIDMeter, PromptAccuracyMeter, levels, wanted_images
from parti.evaluation.generator import GeneratorEvaluationConfig, measure_generator
from parti.evaluation.likelihood import LikelihoodMeter
from parti.models import DecoderOnly, DecoderOnlyConfig
from parti.pairs import token_space
from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig
from tests.tiny import pairs, tiny_image_tokenizer, tiny_text_to_image, tiny_text_tokenizer
from vqgan.config.schema import ConfigError
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import TransformConfig, to_pil
from vqgan.data.sources.folder import FolderConfig
from vqgan.data.sources.shapes import Shapes, ShapesConfig
from vqgan.hub.model_folder import ModelFolderError
from vqgan.metrics.inception import GeneratedInceptionMeter, frechet_distance
from vqgan.metrics.protocol import Metric
from vqgan.metrics.reference_set import ReferenceSetConfig

pytestmark = pytest.mark.slow_threads

CPU = torch.device("cpu")


class TinyInception:
    """Stands for InceptionV3: mean color and contrast of an image."""

    source = {"evaluator": "tiny 1.0"}  # noqa: RUF012 - the protocol's attribute
    warning = ""

    def __init__(self, weights: str = "", device: torch.device = CPU) -> None:
        pass

    def __call__(self, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = levels.float() / 64
        features = torch.cat([pixels.mean((2, 3)), pixels.std((1, 2, 3)).unsqueeze(1)], 1)
        return features, features


def save_clip(folder: Path) -> Path:
    """A random CLIP, as transformers writes it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 54, "max_position_embeddings": 12, "bos_token_id": 52, "eos_token_id": 53}
    vision = tower | {"image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_text_to_image().save_pretrained(folder)
    return folder


def named(metrics: Iterator[Metric] | list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


@torch.no_grad()
def test_nats_are_the_cross_entropy_by_hand() -> None:
    pipeline, batch = tiny_text_to_image(), pairs(8)
    meter = LikelihoodMeter(pipeline)
    for rows in (slice(0, 5), slice(5, 8)):
        meter.add(Batch(batch.images[rows], batch.captions[rows], batch.names[rows]))
    metrics = named(meter.metrics())
    assert list(metrics) == ["nats_per_code"]
    nats = metrics["nats_per_code"]

    codes = pipeline.image_tokenizer.encode(batch.images)
    logits = pipeline.generator(pipeline.text_tokenizer.encode(batch.texts()), codes).image.double()
    by_hand = [
        -math.log(math.exp(logits[row, place, code]) / logits[row, place].exp().sum().item())
        for row in range(8)
        for place, code in enumerate(codes[row].tolist())
    ]
    assert nats.value == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-6)
    assert nats.value != pytest.approx(math.log(32), rel=0.01), "this model is far from a uniform guess"
    assert (nats.unit, nats.details["codes"], nats.details["pairs"]) == ("nats", 8 * 16, 8)
    assert nats.details["uniform_guess"] == pytest.approx(math.log(32))
    means = torch.tensor(by_hand).view(8, 16).mean(1)
    assert nats.details["standard_error"] == pytest.approx((means.std() / 8**0.5).item(), rel=1e-5)


@torch.no_grad()
def test_a_model_that_learns_the_text_has_its_nats_too() -> None:
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    torch.manual_seed(1)
    config = DecoderOnlyConfig(depth=1, width=32, heads=2, mlp_width=64, dropout=0.0)
    generator = DecoderOnly(config, token_space(text, image)).eval()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch, meter = pairs(6), LikelihoodMeter(TextToImage(generator, text, image))
    meter.add(batch)
    metrics = named(meter.metrics())
    ids = text.encode(batch.texts())
    logits = generator(ids, image.encode(batch.images)).text
    assert logits is not None
    chosen = logits.double().log_softmax(-1).gather(2, ids[..., None]).squeeze(2)
    real = ids != text.pad_id
    assert metrics["nats_per_text_token"].value == pytest.approx(-chosen[real].mean().item(), rel=1e-5)
    assert metrics["nats_per_text_token"].details["tokens"] == int(real.sum())


def test_fid_of_a_set_to_itself_is_nothing_and_grows_with_the_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 200, (12, 3, 16, 16), dtype=torch.uint8, generator=generator)
    found = []
    for generated in (real, real + 5, real + 50):
        inception = GeneratedInceptionMeter(TinyInception())
        inception.add_real(real)
        meter = FIDMeter(inception, CPU)
        images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in generated]
        meter.add(images[:7], ["a"] * 7)
        meter.add(images[7:], ["a"] * 5)
        metrics = named(list(meter.metrics()))
        found.append(metrics["fid"])
        wanted = frechet_distance(TinyInception()(generated)[0], TinyInception()(real)[0])
        assert metrics["fid"].value == pytest.approx(wanted, abs=1e-6)
    same, near, far = (metric.value or 0.0 for metric in found)
    assert same == pytest.approx(0, abs=1e-6)
    assert 1e-3 < near < far
    assert found[0].warning == "12 images: published metrics have 30000, and FID falls as sets grow"


def test_images_are_measured_as_their_files_hold_them(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image_list = to_pil(images)
    image_list[0].save(tmp_path / "0.png")
    with Image.open(tmp_path / "0.png") as reopened:
        assert torch.equal(levels([reopened])[0], levels(image_list)[0])
    assert torch.equal(levels(image_list), ((images + 1) * 127.5).round().to(torch.uint8))


@torch.no_grad()
def test_clip_score_is_a_hundred_times_the_cosine_of_transformers(clip: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    images = torch.rand(5, 3, 20, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    prompts = ["a red cat", "a blue dog", "a hat", "a jug", "a red cat"]
    inputs = CLIPProcessor.from_pretrained(clip)(
        text=prompts, images=to_pil(images), padding=True, truncation=True, return_tensors="pt"
    )
    found = CLIPModel.from_pretrained(clip).eval()(**inputs)
    cosines = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)

    backbone = open_backbone(str(clip), CPU)
    meter = ClipScoreMeter(backbone)
    meter.add(to_pil(images)[:3], prompts[:3])
    meter.add(to_pil(images)[3:], prompts[3:])
    (metric,) = meter.metrics()
    assert metric.name == f"clip_score({clip})"
    assert cosines.mean().abs() > 0.01
    assert metric.value == pytest.approx(max(100 * cosines.mean().item(), 0), abs=1e-3)
    assert backbone.scores(to_pil(images), prompts) == pytest.approx((100 * cosines).tolist(), abs=1e-3)
    assert backbone.metric([-3.0, -1.0]).value == 0, "as torchmetrics: never below 0"
    assert metric.details["images"] == 5
    assert metric.details["scale"] == "max(100 cos, 0)"
    assert len(metric.details["weights_sha256"]) == 64


def test_a_clip_folder_that_is_there_and_wrong_is_an_error(model: Path) -> None:
    with pytest.raises(ModelFolderError, match="no model in"):
        open_backbone(str(model), CPU)


def test_accuracy_by_the_judge_and_by_other_prompts() -> None:
    source = Shapes(ShapesConfig(), "val", 64)
    samples = [source[index] for index in range(12)]
    images, prompts = [sample.image for sample in samples], [str(sample.caption) for sample in samples]
    blank = Image.new("RGB", (64, 64), "white")
    check_image = evaluation.caption_checker(ShapesConfig())
    assert check_image is not None
    meter = PromptAccuracyMeter(check_image, prompts)
    meter.add([blank, *images[1:5]], prompts[:5])
    meter.add(images[5:], prompts[5:])
    metrics = named(meter.metrics())
    assert metrics["prompt_accuracy"].value == pytest.approx(11 / 12)
    assert metrics["prompt_accuracy"].details["standard_error"] == pytest.approx((11 / 144 / 12) ** 0.5)
    assert metrics["random_pairing_accuracy"].value == 0.0
    assert metrics["random_pairing_accuracy"].details["images"] == 12

    alike = PromptAccuracyMeter(check_image, prompts[:1])
    alike.add(images[:1], prompts[:1])
    metrics = named(alike.metrics())
    assert metrics["prompt_accuracy"].value == 1.0
    assert "needs captions of two meanings" in metrics["random_pairing_accuracy"].missing


def test_captions_come_again_with_other_seeds() -> None:
    wanted = wanted_images(["a", "b", "c"], 7, 10)
    assert wanted == [("a", 10), ("b", 11), ("c", 12), ("a", 13), ("b", 14), ("c", 15), ("a", 16)]
    assert wanted_images(["a", "b", "c"], 2, 0) == [("a", 0), ("b", 1)]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, two of them without a caption."""
    folder = tmp_path_factory.mktemp("captioned")
    for number, image in enumerate(to_pil(torch.cat([pairs(8, seed).images for seed in (0, 1)])[:12])):
        image.save(folder / f"{number:02}.png")
        if number not in (3, 7):
            (folder / f"{number:02}.txt").write_text(f"a red cat {number}", encoding="utf-8")
    return folder


def settings(model: Path, captioned: Path, out: Path, **given: object) -> GeneratorEvaluationConfig:
    source = FolderConfig(path=str(captioned))
    data = ReferenceSetConfig(source=source, transform=TransformConfig(image_size=16), batch_size=4)
    values = {"model": str(model), "out": str(out / "metrics.json"), "data": data, "split": "all", "device": "cpu"}
    return GeneratorEvaluationConfig(**(values | {"clip": ()} | given))  # type: ignore[arg-type]


def test_every_metric_of_a_set_with_its_protocol(
    model: Path, captioned: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "InceptionV3", TinyInception)
    config = settings(model, captioned, tmp_path, clip=(str(clip),), samples=13, seed=5, batch_size=4)
    report = measure_generator(config)
    names = ["nats_per_code", "fid", "inception_score", "inception_score_std", f"clip_score({clip})"]
    metrics = report.as_json()["metrics"]
    assert list(metrics) == names
    assert not [name for name, metric in metrics.items() if metric["value"] is None]
    captions = [f"a red cat {number}" for number in range(12) if number not in (3, 7)]
    for metric in metrics.values():
        protocol = metric["protocol"]
        assert protocol["reference"]["images"] == 10
        assert protocol["model"]["weights_sha256"] == report.model["weights_sha256"]
        assert protocol["model"]["image_tokenizer_sha256"] != protocol["model"]["weights_sha256"]
    generated = metrics["fid"]["protocol"]["generated"]
    assert (generated["images"], generated["captions"], generated["first_seed"]) == (13, 10, 5)
    assert generated["sampling"] == SamplingConfig().model_dump(mode="json")
    assert "13 images generated" in report.text()

    # The images and the metric are those of drawing them in one go.
    pipeline = TextToImage.from_pretrained(model)
    reference = evaluation.ReferenceSet(config.data, "all", 0, require_captions=True)
    batches = list(reference.batches())
    texts = [text for batch in batches for text in batch.texts()]
    assert sorted(texts) == sorted(captions)
    wanted = wanted_images(texts, 13, 5)
    made = levels([generated.image for generated in pipeline.stream(wanted, SampleOptions(SamplingConfig()))])
    real = torch.cat([((batch.images + 1) * 127.5).round() for batch in batches])
    distance = frechet_distance(TinyInception()(made)[0], TinyInception()(real)[0])
    assert metrics["fid"]["value"] == pytest.approx(distance, rel=1e-4)

    other = settings(model, captioned, tmp_path, reference=ShapesConfig(train_size=3, val_size=11), samples=10)
    metrics = measure_generator(other).as_json()["metrics"]
    assert metrics["fid"]["protocol"]["reference"]["source"]["kind"] == "shapes"
    assert metrics["fid"]["protocol"]["reference"]["images"] == 11
    assert metrics["nats_per_code"]["protocol"]["reference"]["source"]["kind"] == "folder"
    assert metrics["fid"]["value"] != pytest.approx(distance, rel=0.1)


def test_no_images_where_none_are_wanted(model: Path, captioned: Path, tmp_path: Path) -> None:
    report = measure_generator(settings(model, captioned, tmp_path, samples=0, clip=()))
    assert [metric.name for metric in report.metrics] == ["nats_per_code"]
    json.dumps(report.as_json())


def test_settings_that_cannot_be_met(model: Path, captioned: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing to measure on"):
        settings(model, captioned, tmp_path, data=None)
    with pytest.raises(ValueError, match="clip names a model twice: a/b, a/b"):
        settings(model, captioned, tmp_path, clip=("a/b", "a/b"))
    config = settings(model, captioned, tmp_path)
    assert config.data is not None
    other = config.data.model_copy(update={"transform": TransformConfig(image_size=64)})
    with pytest.raises(ConfigError, match=r"image_size is 64, the model in .* draws 16"):
        measure_generator(config.model_copy(update={"data": other}))
    with pytest.raises(ConfigError, match="device: nonsense cannot be used here"):
        measure_generator(config.model_copy(update={"device": "nonsense"}))


def test_damaged_weights_are_no_metrics(captioned: Path, tmp_path: Path) -> None:
    pipeline = tiny_text_to_image()
    for parameter in pipeline.generator.parameters():
        parameter.data.fill_(torch.nan)
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelFolderError, match="no finite numbers"):
        measure_generator(settings(tmp_path / "model", captioned, tmp_path, samples=0))
