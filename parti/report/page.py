"""What a demonstration gave, as one HTML page that needs nothing else: no network, no script, no other file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from parti.evaluation import CheckedImage
from parti.next_token.train_next_token import TrainPartiConfig
from vqgan.config.schema import dump_config
from vqgan.report.html import render_page
from vqgan.report.line_chart import LineChart, Points, line_chart
from vqgan.report.records import Records, curves, images_per_second
from vqgan.train_tokenizer import TrainVQGANConfig

_TEMPLATE = Path(__file__).with_name("demo.html.jinja")


@dataclass(frozen=True)
class Report:
    """What the page shows."""

    metrics: Mapping[str, float]
    """The metrics of metrics.json."""
    samples: Sequence[CheckedImage]
    """The first images of the evaluated prompts, in their order."""
    reconstructions: Sequence[tuple[Image.Image, CheckedImage]]
    """Validation originals, each with its reconstruction."""
    vqgan: TrainVQGANConfig
    vqgan_records: Records
    parti: TrainPartiConfig
    parti_records: Records
    machine: Mapping[str, str]
    """What it ran on: name and value, to show."""


@dataclass(frozen=True)
class Card:
    """A headline metric and what it means."""

    title: str
    value: str
    meaning: str


def render(report: Report) -> str:
    """The page."""
    sampling = report.parti.task.sampling.model_dump()
    return render_page(
        _TEMPLATE,
        report=report,
        metrics=report.metrics,
        cards=headline_cards(report.metrics),
        stage_1_charts=stage_1_charts(report.vqgan_records),
        stage_2_charts=stage_2_charts(report.parti_records, int(report.metrics["codebook_size"])),
        shown=_shown_side(report.samples[0].image.width),
        sampling=", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in sampling.items()),
        training_rates=[
            images_per_second(report.vqgan_records, report.vqgan.data.batch_size),
            images_per_second(report.parti_records, report.parti.data.batch_size),
        ],
        configurations={"Stage 1": dump_config(report.vqgan), "Stage 2": dump_config(report.parti)},
    )


def headline_cards(metrics: Mapping[str, float]) -> list[Card]:
    """The metrics of metrics.json, each with a sentence."""
    codes = int(metrics["codebook_size"])
    return [
        Card(
            "Prompt accuracy",
            f"{metrics['prompt_accuracy']:.1%}",
            f"of {metrics['prompts_checked']} validation prompts drawn right at the first try: both objects' color, "
            "shape and size, and the relation between them.",
        ),
        Card(
            "Random pairing",
            f"{metrics['random_pairing_accuracy']:.1%}",
            "of the same images pass when each is judged by another's prompt: for comparison, what chance gives.",
        ),
        Card(
            "Reconstruction accuracy",
            f"{metrics['reconstruction_accuracy']:.1%}",
            f"of {metrics['reconstructions_checked']} validation images are still right once they have been through "
            "the codes: what the image tokenizer alone loses of a given image. It is no ceiling of prompt accuracy: "
            "a drawn image was never encoded, and common codes decode more cleanly than rare ones.",
        ),
        Card(
            "PSNR",
            f"{metrics['psnr']:.1f} dB",
            "between validation images and their reconstructions, on average: higher is closer, and 100 is equal.",
        ),
        Card(
            "Codebook usage",
            f"{metrics['codebook_usage']:.1%}",
            f"of the {codes:,} codes occur in the validation images; at 100% none is wasted.",
        ),
        Card(
            "Codebook perplexity",
            f"{metrics['codebook_perplexity']:,.0f}",
            f"equally frequent codes would carry as much information; at most {codes:,}.",
        ),
    ]


def stage_1_charts(records: Records) -> list[LineChart]:
    """Losses, the discriminator's balance, and what the validation images said."""
    terms = {
        name.removeprefix("loss_").replace("_", " "): points
        for name, points in curves(records, "train").items()
        if name.startswith("loss_") and name != "loss_discriminator"
    }
    train, val = curves(records, "train"), curves(records, "val")
    return _present(
        line_chart("Loss terms", "Training: each with its weight, as they are added up.", terms),
        line_chart(
            "Discriminator",
            "Training: real images called real, reconstructions called fake; half of each is a draw.",
            _named(train, real_accuracy="real", fake_accuracy="fake"),
            percent=True,
        ),
        line_chart("PSNR in dB", "Validation images against their reconstructions.", _named(val, psnr="PSNR")),
        line_chart(
            "Codes and checker",
            "Held out: share of the codebook in use, and of the reconstructions that are still right.",
            _named(val, codebook_usage="codebook usage", reconstruction_accuracy="reconstruction accuracy"),
            percent=True,
        ),
    )


def stage_2_charts(records: Records, codes: int) -> list[LineChart]:
    """Cross-entropy on both splits, and right images of validation prompts."""
    train, val = curves(records, "train"), curves(records, "val")
    return _present(
        line_chart(
            "Nats per image code",
            f"Cross-entropy of the next code; a guess among {codes:,} costs {math.log(codes):.2f}.",
            _named(train, loss="training") | _named(val, nats_per_code="held out"),
        ),
        line_chart(
            "Prompt accuracy",
            "Validation prompts drawn right while it trained.",
            _named(val, prompt_accuracy="prompt accuracy"),
            percent=True,
        ),
    )


def _shown_side(side: int) -> int:
    """The multiple of an image's side that is nearest to 128."""
    return max(1, round(128 / side)) * side


def _named(metrics: Mapping[str, Points], **names: str) -> dict[str, Points]:
    return {shown: metrics[name] for name, shown in names.items() if name in metrics}


def _present(*charts: LineChart | None) -> list[LineChart]:
    return [one for one in charts if one is not None]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
