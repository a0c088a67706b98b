"""What a captioner is worth on held-out pairs: while it trains, and when `tools/evaluate.py captioner` measures it."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from parti.fused.captioning.caption_decoding import ROWS, DecodingConfig, decode
from parti.fused.captioning.caption_metrics import can_compare_texts, compare_texts, describes
from parti.fused.captioning.captioner import Captioner
from parti.fused.captioning.captioning_losses import word_nats
from parti.fused.captioning.read_captions import read_captions
from vqgan.data.batch import Batch
from vqgan.data.transforms import to_pil
from vqgan.metrics.judge import Judge
from vqgan.metrics.sums import MetricSums
from vqgan.training.distributed import gather_things

_STEP = 0
"""Held-out captions have the drafts of this step, at every evaluation."""


@torch.no_grad()
def evaluate_captioner(
    captioner: Captioner,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    rounds: int,
    seed: int,
    judge: Judge | None = None,
) -> dict[str, float]:
    """Nats per word behind each row, and what the captions are worth.

    `exact_row_K`: share of the pictures whose caption, told behind row K without refinement, describes them;
    `exact_round_R`: behind row 14 after R rounds. Words are compared after the last round. `batches` are this
    process's share; the figures are those of all processes. Raises ValueError where no process has a picture.
    """
    captioner.eval()
    sums = MetricSums(accelerator)
    sums.add("pictures", torch.zeros((), device=next(captioner.parameters()).device))
    pairs: list[tuple[str, str]] = []
    for batch in batches:
        device = batch.images.device
        sums.add("pictures", torch.tensor(float(len(batch)), device=device))
        captions = read_captions(captioner.tokens, batch, seed, _STEP, len(batch), 0)
        asked = captioner.tokens.told(captions.ids)
        sums.add("words", asked.sum())
        lesson = captioner(batch.images, captions.ids, captions.noise)
        for row, logits in zip(ROWS, lesson.logits, strict=True):
            sums.add(f"nats_row_{row}", word_nats(logits, captions.ids, asked))
        told = told_captions(captioner, batch.images, rounds)
        for name, right in judged_captions(judge, batch.images, told).items():
            sums.add(name, torch.tensor(float(sum(right)), device=device))
        pairs += [pair for pair in zip(told[last_figure(rounds)], batch.texts(), strict=True) if pair[1]]
    totals = {name: total.item() for name, total in sums.totals().items()}
    pictures, words = totals.pop("pictures"), totals.pop("words", 0.0)
    if not pictures:
        raise ValueError("no held-out picture to evaluate on; give at least one batch")
    figures = {name: total / (words if name.startswith("nats") else pictures) for name, total in totals.items()}
    everyone = gather_things(accelerator, pairs)
    if everyone and can_compare_texts():
        figures |= compare_texts([caption for caption, _ in everyone], [[truth] for _, truth in everyone])
    return figures


def told_captions(captioner: Captioner, images: Float[Tensor, "B 3 H W"], rounds: int) -> dict[str, list[str]]:
    """The captions of each row, and of each round behind the last row, by the name of their figure."""
    view = captioner.view(images)
    told = {}
    for row in ROWS:
        config = DecodingConfig(exit_row=row, rounds=rounds if row == ROWS[-1] else 0)
        for number, stage in enumerate(decode(view, captioner.tokens, config).stages):
            name = f"exact_round_{number}" if number else f"exact_row_{row}"
            told[name] = captioner.tokens.texts(stage.ids)
    return told


def judged_captions(
    judge: Judge | None, images: Float[Tensor, "B 3 H W"], told: Mapping[str, Sequence[str]]
) -> dict[str, list[bool]]:
    """Which captions describe their pictures; nothing where nobody can tell."""
    if judge is None:
        return {}
    judged: dict[str, list[bool]] = {name: [] for name in told}
    for number, picture in enumerate(to_pil(images)):
        # Rows and rounds mostly agree, and to read a picture takes longer than to tell it.
        verdicts = {
            caption: describes(judge, picture, caption) for caption in {captions[number] for captions in told.values()}
        }
        for name, captions in told.items():
            judged[name].append(verdicts[captions[number]])
    return judged


def last_figure(rounds: int) -> str:
    """The figure of the captions after all rounds."""
    return f"exact_round_{rounds}" if rounds else f"exact_row_{ROWS[-1]}"
