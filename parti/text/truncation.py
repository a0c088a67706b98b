"""Messages about truncated texts: captions that a run trains on, and prompts."""

from collections.abc import Iterable, Sequence

import numpy as np

from parti.text import SavedTokenizerConfig, TextConfig, TextTokenizer

SAMPLE = 1000
"""Number of captions, from all over the training split, that a run checks when it starts."""
_SHOWN = 60


def about_cut_captions(captions: Iterable[str], tokenizer: TextTokenizer, text: TextConfig) -> list[str]:
    """Returns a line if some of `captions` are truncated: how many, what is lost, what helps."""
    captions = list(captions)
    if not captions:
        return []
    tokens = np.array([count.tokens for count in tokenizer.count_tokens(captions)])
    over = tokens - tokenizer.length
    cut = int((over > 0).sum())
    if not cut:
        return []
    # A typical example: the median of the truncated ones by the length that they lose.
    order = np.flatnonzero(over > 0)[np.argsort(over[over > 0], kind="stable")]
    example = captions[int(order[len(order) // 2])]
    lost = tokenizer.lost_text([example])[0]
    whole = int(np.quantile(tokens, 0.99, method="inverted_cdf"))
    if isinstance(text, SavedTokenizerConfig):
        remedy = f"a vocabulary with a larger text.length than that of {text.folder} ({whole} keeps 99% whole)"
    else:
        remedy = f"text.length {whole}" + (" keeps 99% of them whole" if whole < tokens.max() else " keeps all whole")
    return [
        f"{cut:,} of {len(captions):,} captions ({cut / len(captions):.0%}) are longer than the {tokenizer.length} "
        f"tokens that are read and lose their end, {over[over > 0].mean():.1f} tokens on average and {over.max()} at "
        f"most: of {_short(example)!r} the last {_words(lost)} ({lost[:_SHOWN]!r}) never reach the model; {remedy}, in "
        "a new run_dir"
    ]


def about_cut_prompts(prompts: Sequence[str], tokenizer: TextTokenizer) -> list[str]:
    """Returns a line for each distinct prompt that is truncated, with the lost words."""
    different = list(dict.fromkeys(prompts))
    return [
        f"the model reads {tokenizer.length} tokens (its text.length), so the last {_words(lost)} of this prompt, "
        f"{lost!r}, are not seen: {prompt}"
        for prompt, lost in zip(different, tokenizer.lost_text(different), strict=True)
        if lost
    ]


def _words(text: str) -> str:
    count = len(text.split())
    return "word" if count == 1 else f"{count} words"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"
