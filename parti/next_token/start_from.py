"""Fine-tuning: a generator that starts from the weights of another one, whatever fits.

Blocks are taken as they are; positions are resized to another grid of codes; rows of the text vocabulary are mapped
token by token; rows of the image codes are taken only where the codes are the same tokenizer's, because the same number
means another patch to another tokenizer.
"""

from pathlib import Path

from parti.models import Generator
from parti.pipeline import TextToImage
from parti.text.tokenizer import TextTokenizer
from vqgan.fine_tuning import about_other_settings
from vqgan.hub.initial_weights import Resizer, rows_by, take_weights
from vqgan.image_tokenizer import ImageTokenizer


def start_generator_from(
    generator: Generator, text: TextTokenizer, image: ImageTokenizer, source: str | Path
) -> list[str]:
    """Fills `generator`, which reads the tokens of `text` and `image`, from the stage-2 model in `source`: a run, a
    model folder or a Hub name.

    Returns lines for a person: what was taken, resized, mapped and left as initialized. Raises ModelFolderError where
    there is no such model, ConfigError where nothing of it fits.
    """
    name = str(source)
    model = TextToImage.from_pretrained(source)
    theirs = model.generator.state_dict()
    rows = _mapped_rows(model.text_tokenizer, text)
    remap: dict[str, Resizer] = {}
    lines = []
    if rows is not None:
        remap = dict.fromkeys(generator.text_rows(), rows_by(rows))
        lines.append(f"text vocabulary: {len(rows) - 1:,} of {text.vocab_size:,} tokens are in that of {name}")
    leave = {}
    if differing := model.image_tokenizer.codes_fingerprint().differs_from(image.codes_fingerprint()):
        leave = dict.fromkeys(generator.code_rows(), f"another image tokenizer: {differing} differ")
    report = take_weights(generator, theirs, name, remap=remap, leave=leave)
    return report.lines() + lines + about_other_settings(model.generator.config, generator.config)


def _mapped_rows(theirs: TextTokenizer, ours: TextTokenizer) -> dict[int, int] | None:
    """Our row -> their row, for tokens that both vocabularies spell alike; None where the two are one vocabulary.

    The row behind the last token, where there is one, is the start token's.
    """
    before, now = theirs.tokens(), ours.tokens()
    if before == now:
        return None
    rows = {row: before[token] for token, row in now.items() if token in before}
    return rows | {ours.vocab_size: theirs.vocab_size}
