"""The vocabulary of a run: made once by the main process, kept in the run folder, the same ever after."""

from pathlib import Path

from accelerate import Accelerator

from parti.text import TextConfig, TextTokenizer, build_text_tokenizer
from parti.text.tokenizer import TEXT_TOKENIZER_FILE
from vqgan.config import ConfigError, read_yaml, validate
from vqgan.data.loader import DataPipeline
from vqgan.data.source import DataError
from vqgan.training.durable import writing
from vqgan.training.run_folder import RunFolder


def run_vocabulary(text: TextConfig, data: DataPipeline, run: RunFolder, accelerator: Accelerator) -> TextTokenizer:
    """The text tokenizer in the run's folder, where it is put when the run starts. All processes call it.

    Raises ConfigError where the run was started with another one, or for one that cannot be had; DataError where there
    is no caption to learn from.
    """
    recorded = run.path / "config.yaml"
    resuming = recorded.is_file() and (run.path / TEXT_TOKENIZER_FILE).is_file()
    if resuming:
        _check_same_text(text, recorded)
    accelerator.wait_for_everyone()

    def captions(count: int) -> list[str]:
        found = list(data.captions(count))
        if not found:
            raise DataError("no caption in the training split; stage 2 needs captions")
        return found

    # A run whose config was not recorded yet has trained no step: its vocabulary may be of another config.
    if accelerator.is_main_process and not resuming:
        tokenizer = build_text_tokenizer(text, captions)
        with writing(run.path):
            tokenizer.save_pretrained(run.path)
    accelerator.wait_for_everyone()
    return TextTokenizer.from_pretrained(run.path)


def _check_same_text(text: TextConfig, recorded: Path) -> None:
    """Raises ConfigError where the run was started with another vocabulary: its weights know no other."""
    values = read_yaml(recorded).get("text") or {}
    same_kind = values.get("kind", "bpe") == text.kind  # the first version had no other kind
    if not same_kind or validate(type(text), values, str(recorded)) != text:
        raise ConfigError(
            f"text: the run in {recorded.parent} was started with {values}, this config has "
            f"{text.model_dump(mode='json')}; keep the run's, or choose another run_dir"
        )
