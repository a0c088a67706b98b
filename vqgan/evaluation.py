"""How good an image tokenizer is, measured on pictures that it was not trained on."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator

from vqgan.data.batch import Batch
from vqgan.data.transforms import to_pil
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.codebook import perplexity, usage
from vqgan.metrics.fidelity import psnr
from vqgan.metrics.judge import Judge
from vqgan.metrics.sums import MetricSums


@torch.no_grad()
def evaluate_tokenizer(
    tokenizer: ImageTokenizer, batches: Iterable[Batch], accelerator: Accelerator, judge: Judge | None = None
) -> dict[str, float]:
    """Mean PSNR in dB, codebook usage and perplexity; with a judge the share of reconstructions that are still right.

    `batches` are this process's share, on the tokenizer's device; the figures are those of all processes, over the
    whole set. Raises ValueError where no process has a picture.
    """
    sums = MetricSums(accelerator)
    sums.add("pictures", torch.zeros((), device=accelerator.device))
    for batch in batches:
        codes = tokenizer.encode(batch.images)
        reconstructions = tokenizer.decode(codes)
        sums.add("pictures", torch.tensor(float(len(batch)), device=codes.device))
        sums.add("psnr", psnr(reconstructions, batch.images).sum())
        sums.add("codes", torch.bincount(codes.flatten(), minlength=tokenizer.vocab_size))
        if judge is not None:
            right = sum(map(judge, to_pil(reconstructions), batch.texts()))
            sums.add("right", torch.tensor(float(right), device=codes.device))
    totals = sums.totals()
    pictures = totals["pictures"].item()
    if not pictures:
        raise ValueError("no held-out picture to evaluate on; give at least one batch")
    counts = totals["codes"].long()
    figures = {
        "psnr": totals["psnr"].item() / pictures,
        "codebook_usage": usage(counts).item(),
        "codebook_perplexity": perplexity(counts).item(),
    }
    if "right" in totals:
        figures["reconstruction_accuracy"] = totals["right"].item() / pictures
    return figures
