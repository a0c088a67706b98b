"""What a captioner is worth on validation pairs: while it trains, and when `tools/evaluate.py captioner` measures
it."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from parti.fused.captioning.captioner import Captioner
from parti.fused.captioning.decoding import ROWS, DecodingConfig, decode
from parti.fused.captioning.encode_captions import read_captions
from parti.fused.captioning.losses import word_nats
from parti.fused.captioning.metrics import can_compare_texts, compare_texts, describes
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.metrics.caption_checkers import Judge
from vqgan.metrics.sums import MetricSums
from vqgan.training.parallel.distributed import all_gather_object

_STEP = 0
"""Validation captions have the drafts of this step, at every evaluation."""


@torch.no_grad()
def evaluate_captioner(
    captioner: Captioner,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    rounds: int,
    seed: int,
    check_image: Judge | None = None,
) -> dict[str, float]:
    """Nats per word behind each row, and what the captions are worth.

    `exact_row_K`: share of the images whose caption, told behind row K without refinement, describes them;
    `exact_round_R`: behind row 14 after R rounds. Words are compared after the last round. `batches` are this
    process's share; the metrics are those of all processes. Raises ValueError where no process has an image.
    """
    captioner.eval()
    sums = MetricSums(accelerator)
    sums.add("images", torch.zeros((), device=next(captioner.parameters()).device))
    pairs: list[tuple[str, str]] = []
    for batch in batches:
        device = batch.images.device
        sums.add("images", torch.tensor(float(len(batch)), device=device))
        captions = read_captions(captioner.tokens, batch, seed, _STEP, len(batch), 0)
        asked = captioner.tokens.predicted(captions.ids)
        sums.add("words", asked.sum())
        lesson = captioner(batch.images, captions.ids, captions.noise)
        for row, logits in zip(ROWS, lesson.logits, strict=True):
            sums.add(f"nats_row_{row}", word_nats(logits, captions.ids, asked))
        predicted = predicted_captions(captioner, batch.images, rounds)
        for name, right in checked_captions(check_image, batch.images, predicted).items():
            sums.add(name, torch.tensor(float(sum(right)), device=device))
        pairs += [pair for pair in zip(predicted[last_metric(rounds)], batch.texts(), strict=True) if pair[1]]
    totals = {name: total.item() for name, total in sums.totals().items()}
    images, words = totals.pop("images"), totals.pop("words", 0.0)
    if not images:
        raise ValueError("no validation image to evaluate on; give at least one batch")
    metrics = {name: total / (words if name.startswith("nats") else images) for name, total in totals.items()}
    everyone = all_gather_object(accelerator, pairs)
    if everyone and can_compare_texts():
        metrics |= compare_texts([caption for caption, _ in everyone], [[truth] for _, truth in everyone])
    return metrics


def predicted_captions(captioner: Captioner, images: Float[Tensor, "B 3 H W"], rounds: int) -> dict[str, list[str]]:
    """The captions of each row, and of each round behind the last row, by the name of their metric."""
    context = captioner.context(images)
    predicted = {}
    for row in ROWS:
        config = DecodingConfig(exit_row=row, rounds=rounds if row == ROWS[-1] else 0)
        for number, stage in enumerate(decode(context, captioner.tokens, config).stages):
            name = f"exact_round_{number}" if number else f"exact_row_{row}"
            predicted[name] = captioner.tokens.texts(stage.ids)
    return predicted


def checked_captions(
    check_image: Judge | None, images: Float[Tensor, "B 3 H W"], predicted: Mapping[str, Sequence[str]]
) -> dict[str, list[bool]]:
    """Which captions describe their images; nothing where nobody can tell."""
    if check_image is None:
        return {}
    judged: dict[str, list[bool]] = {name: [] for name in predicted}
    for number, image in enumerate(to_pil(images)):
        # Rows and rounds mostly agree, and to read an image takes longer than to tell it.
        verdicts = {
            caption: describes(check_image, image, caption)
            for caption in {captions[number] for captions in predicted.values()}
        }
        for name, captions in predicted.items():
            judged[name].append(verdicts[captions[number]])
    return judged


def last_metric(rounds: int) -> str:
    """The metric of the captions after all rounds."""
    return f"exact_round_{rounds}" if rounds else f"exact_row_{ROWS[-1]}"
