"""The first batch of a run, drawn as its model sees it."""

from parti.data_check.check import Findings
from parti.data_check.targets import writing_target
from parti.text import TextTokenizer
from vqgan.contact_sheet import contact_sheet
from vqgan.data.loader import DataPipeline, Share
from vqgan.data.transforms import to_pil


def draw_first_batch(findings: Findings, path: str) -> bool:
    """The first pictures of a run's first batch, with the captions as its model reads them.

    False, and nothing is drawn, after an interrupted check or where no picture is usable. Raises CannotWriteError.
    """
    config = findings.config
    if findings.interrupted or not findings.splits["train"].looks:
        return False
    count = min(config.pictures, config.data.batch_size, findings.splits["train"].total or config.pictures)
    data = config.data.model_copy(update={"batch_size": count, "workers": 0, "lanes": 1})
    pipeline = DataPipeline(data, config.seed, require_captions=config.require_captions)
    ((batch,),) = pipeline.training_batches(0, 1, Share())
    sheet = contact_sheet(to_pil(batch.images), [_as_read(caption, findings.tokenizer) for caption in batch.captions])
    with writing_target("picture", path):
        sheet.save(path)
    return True


def _as_read(caption: str | None, tokenizer: TextTokenizer | None) -> str:
    if caption is None:
        return "(no caption)"
    if tokenizer is None or not tokenizer.is_cut([caption])[0]:
        return caption
    return f"{tokenizer.decode(tokenizer.encode([caption]))[0]} [cut]"
