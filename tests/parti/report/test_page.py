"""The report is one file that asks for nothing, escapes what it shows, and shows everything it was given."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from parti.evaluation import CheckedImage
from parti.next_token.train_next_token import TrainPartiConfig
from parti.report.page import Report, render
from vqgan.metrics.shapes_checker import Verdict
from vqgan.report.html import data_uri, duration
from vqgan.report.records import curves, images_per_second, training_seconds
from vqgan.train_tokenizer import TrainVQGANConfig

METRICS = {
    "psnr": 28.76,
    "codebook_usage": 0.654,
    "codebook_perplexity": 321.4,
    "codebook_size": 1024,
    "reconstruction_accuracy": 0.987,
    "reconstructions_checked": 512,
    "prompt_accuracy": 0.934,
    "prompts_checked": 256,
    "random_pairing_accuracy": 0.012,
    "seconds_stage1": 185.0,
    "seconds_stage2": 312.4,
    "seconds_evaluation": 11.0,
    "seconds_total": 508.4,
    "resumed": False,
}
VQGAN_RECORDS = [
    {"step": 50, "split": "train", "loss": 0.5, "loss_l1": 0.3, "loss_perceptual": 0.2, "seconds": 10.0},
    {"step": 100, "split": "train", "loss_l1": 0.1, "loss_perceptual": 0.01, "real_accuracy": 0.5, "seconds": 20.0},
    {"step": 100, "split": "val", "psnr": 28.76, "codebook_usage": 0.654, "reconstruction_accuracy": 0.987},
]
PARTI_RECORDS = [
    {"step": 100, "split": "train", "loss": 1.25, "seconds": 40.0},
    {"step": 100, "split": "val", "nats_per_code": 1.5, "prompt_accuracy": 0.934},
]
IMAGE = Image.new("RGB", (16, 16), "red")
RIGHT, WRONG = Verdict(True, ()), Verdict(False, ("the first object is <blue>, not red", "a second & last reason"))


class Page(HTMLParser):
    """Collects the elements with their attributes, and the text; checks that what opens is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def report(**changes: object) -> Report:
    values = {
        "metrics": METRICS,
        "samples": [
            CheckedImage(IMAGE, "a <b>bold</b> \"cat\" & 'dog'", RIGHT),
            CheckedImage(IMAGE, "a hat", WRONG),
        ],
        "reconstructions": [(IMAGE, CheckedImage(IMAGE, "an <i>original</i>", RIGHT))],
        "vqgan": TrainVQGANConfig(run_dir="runs/<tag>", seed=3),
        "vqgan_records": VQGAN_RECORDS,
        "parti": TrainPartiConfig(image_tokenizer="runs/<tag>"),
        "parti_records": PARTI_RECORDS,
        "machine": {"CPU": "2 <cores>"},
    }
    return Report(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def html() -> str:
    return render(report())


def test_it_asks_for_nothing(html: str) -> None:
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|@font-face", html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "embed"})
    sources = page.attributes("src")
    assert len(sources) == 4
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    assert page.attributes("href") == ["data:,"]  # an empty icon: browsers would ask for one
    assert page.attributes("srcset") == []


def test_what_it_shows_is_escaped(html: str) -> None:
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("b") == tags.count("i") == tags.count("li")  # those of the legends alone
    assert "tag" not in tags
    assert "cores" not in tags
    assert "blue" not in tags
    for text in ("a <b>bold</b> \"cat\" & 'dog'", "an <i>original</i>", "is <blue>, not red", "2 <cores>"):
        assert text in page.text
    assert "a <b>bold</b> \"cat\" & 'dog'" in page.attributes("alt")
    assert page.text.count("runs/<tag>") == 2


def test_every_metric_is_there(html: str) -> None:
    text = Page(html).text
    for metric in ("93.4%", "1.2%", "98.7%", "28.8 dB", "65.4%", "321"):
        assert metric in text
    for metric in ("of 256 validation prompts", "of 512 validation images", "of the 1,024 codes"):
        assert metric in text
    for time in ("3 min 05 s", "5 min 12 s", "11 s", "8 min 28 s"):
        assert time in text
    assert "Wall time" in text


def test_verdicts_and_all_their_reasons_are_there(html: str) -> None:
    page = Page(html)
    assert page.attributes("aria-label").count("right") == 2
    assert page.attributes("aria-label").count("wrong") == 1
    assert re.search(r"The first 2 of the 256 prompts.*1\s+right and 1\s+wrong", page.text, re.DOTALL)
    assert "a second & last reason" in page.text


def test_every_curve_is_generated_where_its_metrics_are(html: str) -> None:
    page = Page(html)
    charts = [
        "Loss terms",
        "Discriminator",
        "PSNR in dB",
        "Codes and checker",
        "Nats per image code",
        "Prompt accuracy",
    ]
    assert [label for label in page.attributes("aria-label") if label not in ("right", "wrong")] == charts
    names = ("l1", "perceptual", "real", "codebook usage", "reconstruction accuracy", "training", "held out")
    assert all(re.search(rf">{name} <b>", re.sub(r"<i [^>]*></i>", ">", html)) for name in names)

    without = Page(render(report(vqgan_records=[], parti_records=PARTI_RECORDS[:1])))
    assert [label for label in without.attributes("aria-label") if label not in ("right", "wrong")] == charts[4:5]


def test_a_resumed_run_says_what_its_times_are() -> None:
    text = Page(render(report(metrics=METRICS | {"resumed": True}))).text
    assert "Training was resumed" in text
    assert "Wall time" not in text


def test_curves_and_rates_come_from_the_records() -> None:
    assert curves(VQGAN_RECORDS, "train")["loss_l1"] == [(50, 0.3), (100, 0.1)]
    assert curves(VQGAN_RECORDS, "val")["psnr"] == [(100, 28.76)]
    assert training_seconds(VQGAN_RECORDS) == 20
    assert images_per_second(VQGAN_RECORDS, batch_size=64) == 100 * 64 / 20
    assert training_seconds([]) == images_per_second([], batch_size=64) == 0


def test_a_image_in_the_page_is_the_image() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    with Image.open(io.BytesIO(base64.b64decode(data_uri(noise).partition(",")[2]))) as again:
        assert np.array_equal(again, noise)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 00 s"), (485.2, "8 min 05 s")])
def test_durations_are_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
