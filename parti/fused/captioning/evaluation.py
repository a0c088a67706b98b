"""Evaluates a captioner on validation pairs, during training and in `tools/evaluate.py captioner`."""

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
from vqgan.metrics.caption_checkers import CaptionChecker
from vqgan.metrics.sums import MetricSums
from vqgan.training.parallel.distributed import all_gather_object

_STEP = 0
"""Every evaluation drafts its captions with the noise of this step."""


@torch.no_grad()
def evaluate_captioner(
    captioner: Captioner,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    rounds: int,
    seed: int,
    check_image: CaptionChecker | None = None,
) -> dict[str, float]:
    """Returns the nats per word after each row, and how good the captions are.

    `exact_row_K`: fraction of the images that their caption, decoded after row K without refinement, describes;
    `exact_round_R`: the same after row 14 and R rounds. Text metrics are computed after the last round. `batches` are
    those of this process; the metrics are those of all processes. Raises ValueError if no process has an image.
    """
    captioner.eval()
    sums = MetricSums(accelerator)
    sums.add("images", torch.zeros((), device=next(captioner.parameters()).device))
    pairs: list[tuple[str, str]] = []
    for batch in batches:
        device = batch.images.device
        sums.add("images", torch.tensor(float(len(batch)), device=device))
        captions = read_captions(captioner.tokens, batch, seed, _STEP, len(batch), 0)
        targets = captioner.tokens.predicted(captions.ids)
        sums.add("words", targets.sum())
        output = captioner(batch.images, captions.ids, captions.noise)
        for row, logits in zip(ROWS, output.logits, strict=True):
            sums.add(f"nats_row_{row}", word_nats(logits, captions.ids, targets))
        predicted = predicted_captions(captioner, batch.images, rounds)
        for name, correct in checked_captions(check_image, batch.images, predicted).items():
            sums.add(name, torch.tensor(float(sum(correct)), device=device))
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
    """Returns the captions of each row, and of each round after the last row, by the name of their metric."""
    context = captioner.context(images)
    predicted = {}
    for row in ROWS:
        config = DecodingConfig(exit_row=row, rounds=rounds if row == ROWS[-1] else 0)
        for number, stage in enumerate(decode(context, captioner.tokens, config).stages):
            name = f"exact_round_{number}" if number else f"exact_row_{row}"
            predicted[name] = captioner.tokens.texts(stage.ids)
    return predicted


def checked_captions(
    check_image: CaptionChecker | None, images: Float[Tensor, "B 3 H W"], predicted: Mapping[str, Sequence[str]]
) -> dict[str, list[bool]]:
    """Returns which captions describe their images; empty without a checker for the data set."""
    if check_image is None:
        return {}
    checked: dict[str, list[bool]] = {name: [] for name in predicted}
    for number, image in enumerate(to_pil(images)):
        # Rows and rounds mostly agree, and checking a caption takes longer than decoding it.
        verdicts = {
            caption: describes(check_image, image, caption)
            for caption in {captions[number] for captions in predicted.values()}
        }
        for name, captions in predicted.items():
            checked[name].append(verdicts[captions[number]])
    return checked


def last_metric(rounds: int) -> str:
    """Returns the name of the metric of the captions after all rounds."""
    return f"exact_round_{rounds}" if rounds else f"exact_row_{ROWS[-1]}"
