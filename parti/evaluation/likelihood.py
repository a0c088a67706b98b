"""Nats per image code of validation pairs: the metric that compares stage-2 models on codes of the same tokenizer.

It does not give bits per pixel: a tokenizer loses detail, so the likelihood of the codes is not that of the image.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parti.base_pipeline import Pipeline
from parti.pairs import PairTokenizer
from vqgan.data.batch import Batch
from vqgan.metrics.protocol import Metric


class LikelihoodMeter:
    """Mean cross-entropy of the codes given their caption and the previous codes; also of the text if the model
    predicts it. Without caption dropout or guidance."""

    def __init__(self, model: Pipeline) -> None:
        if model.next_token_generator is None or model.image_tokenizer is None:
            raise ValueError(f"{type(model).__name__} predicts no code from those before it; it has no likelihood")
        self._generator = model.next_token_generator
        self._tokenizers = PairTokenizer(model.text_tokenizer, model.image_tokenizer)
        self._nats: list[Tensor] = []  # (B,) float64: mean over the codes of each image
        self._text_nats = 0.0
        self._text_tokens = 0
        self._codes_per_image = 0
        self._cut = 0

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Adds pairs, which are on the model's device."""
        tokens = self._tokenizers(batch)
        logits = self._generator(tokens.text_ids, tokens.codes)
        nats = F.cross_entropy(logits.image.transpose(1, 2), tokens.codes, reduction="none")  # (B, N)
        self._nats.append(nats.double().mean(1).cpu())
        self._codes_per_image = tokens.codes.shape[1]
        self._cut += round(tokens.truncated_fraction * len(batch))
        if logits.text is not None:
            pad = self._generator.tokens.text_pad_id  # padding is read, but not a target
            text = F.cross_entropy(logits.text.transpose(1, 2), tokens.text_ids, ignore_index=pad, reduction="none")
            self._text_nats += text.double().sum().item()
            self._text_tokens += int((tokens.text_ids != pad).sum())

    def metrics(self) -> Iterator[Metric]:
        """Yields the metrics of all pairs so far."""
        nats = torch.cat(self._nats)
        tokens, pairs = self._generator.tokens, len(nats)
        details: dict[str, Any] = {"pairs": pairs, "cut_captions": self._cut, "averaged": "over codes"}
        details |= {"codes": pairs * self._codes_per_image, "uniform_guess": math.log(tokens.image_vocab_size)}
        if pairs > 1:
            details["standard_error"] = (nats.std() / math.sqrt(pairs)).item()
        method = "mean cross-entropy of image codes given caption and codes before; compares on one tokenizer"
        yield Metric("nats_per_code", nats.mean().item(), "nats", method, details)
        if self._text_tokens:
            method = "mean cross-entropy of each text token given those before, padding left out"
            guess = math.log(tokens.text_vocab_size)
            details = {"pairs": pairs, "tokens": self._text_tokens, "cut_captions": self._cut, "uniform_guess": guess}
            yield Metric("nats_per_text_token", self._text_nats / self._text_tokens, "nats", method, details)
