"""The text tokenizer of a run: created once by the main process, stored in the run folder, never changed."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from parti.text import TextConfig, TextTokenizer, build_text_tokenizer
from parti.text.tokenizer import TEXT_TOKENIZER_FILE
from parti.text.truncation import SAMPLE, about_cut_captions
from vqgan.config.changes import changes, fixed_settings
from vqgan.config.schema import ConfigError, read_yaml, validate
from vqgan.data.loader import DataPipeline
from vqgan.data.source import DataError
from vqgan.hub.model_folder import ModelFolderError
from vqgan.system.atomic_files import writing
from vqgan.training.parallel.rank_zero_first import first_process_alone
from vqgan.training.run_folder import RunFolder

_SECONDS_BETWEEN_LINES = 10.0


def load_or_train_tokenizer(
    text: TextConfig, data: DataPipeline, run: RunFolder, accelerator: Accelerator, timeout_minutes: float = 10.0
) -> TextTokenizer:
    """Returns the text tokenizer of the run's folder, created when the run starts. All processes must call it.

    While the first process reads captions and trains the vocabulary it reports its progress, and the others wait for
    it; without a sign of life they give up after `timeout_minutes`.

    Raises ConfigError if the run was started with another one, or for one that cannot be loaded; DataError without a
    caption to train on.
    """
    recorded = run.path / "config.yaml"
    begun = recorded.is_file() or any(run.checkpoints.glob("step-*"))
    resuming = begun and (run.path / TEXT_TOKENIZER_FILE).is_file()
    if resuming and recorded.is_file():
        _check_same_text(text, recorded)
    with first_process_alone(accelerator, run.path, timeout_minutes) as to_be_made:
        # A run without a recorded config has not trained a step: its vocabulary may be that of another config.
        if to_be_made and not resuming:
            with vocabulary_progress(data.captions) as captions:
                tokenizer = build_text_tokenizer(text, captions)
            with writing(run.path):
                tokenizer.save_pretrained(run.path)
    return _read(run)


def notes_on_captions(
    text: TextConfig, data: DataPipeline, tokenizer: TextTokenizer, accelerator: Accelerator
) -> list[str]:
    """Returns the messages about truncated captions; only on the main process, empty on the others."""
    if not accelerator.is_main_process:
        return []
    return about_cut_captions(islice(data.captions(SAMPLE), SAMPLE), tokenizer, text)


@contextmanager
def vocabulary_progress(captions: Callable[[int], Iterable[str]]) -> Iterator[Callable[[int], list[str]]]:
    """Wraps `captions`, with a line every ten seconds on the progress of reading and then of training.

    The function raises DataError without a caption.
    """
    found: list[str] = []
    wanted, read = 0, False
    begin = time.monotonic()
    over = threading.Event()

    def all_of(count: int) -> list[str]:
        nonlocal wanted, read
        wanted = count
        for caption in captions(count):
            found.append(caption)  # one by one: `tell` reads their number
        if not found:
            raise DataError("no caption in the training split; stage 2 needs captions")
        read = True
        return found

    def tell() -> None:
        while not over.wait(_SECONDS_BETWEEN_LINES):
            seconds, count = time.monotonic() - begin, len(found)
            if read:
                _say(f"learning from {count:,} captions, {seconds:.0f} s so far")
                continue
            rate = count / seconds
            left = f", about {max(0, wanted - count) / rate:.0f} s left" if count else ""
            _say(f"{count:,} of up to {wanted:,} captions read, {rate:,.0f} a second{left}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield all_of
    finally:
        over.set()
        teller.join()


def _say(text: str) -> None:
    tqdm.write(f"vocabulary: {text}", file=sys.stderr)


def _read(run: RunFolder) -> TextTokenizer:
    """Raises ConfigError if the file has changed: the weights would mean nothing with other tokens."""
    try:
        return TextTokenizer.from_pretrained(run.path)
    except ModelFolderError as error:
        raise ConfigError(
            f"the vocabulary of this run: {error}; {run.model / TEXT_TOKENIZER_FILE} is a copy, once a model was saved"
        ) from None


def _check_same_text(text: TextConfig, recorded: Path) -> None:
    """Raises ConfigError if the run was started with another vocabulary."""
    try:
        values = read_yaml(recorded).get("text") or {}
        same = values.get("kind", "bpe") == text.kind  # the first version had no other kind
        same = same and not changes(fixed_settings(validate(type(text), values, str(recorded))), fixed_settings(text))
    except ConfigError:
        return  # damaged: the checkpoints have the same record, and are checked next
    if not same:
        raise ConfigError(
            f"text: the run in {recorded.parent} was started with {values}, this config has "
            f"{text.model_dump(mode='json')}; keep the run's, or choose another run_dir"
        )
