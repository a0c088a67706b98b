"""Draws the first batch of a run as its model sees it."""

from parti.data_check.check import DataReport
from parti.data_check.targets import writing_target
from parti.text import TextTokenizer
from vqgan.contact_sheet import contact_sheet
from vqgan.data.images.transforms import to_pil
from vqgan.data.loader import BatchShard, DataPipeline


def render_first_batch(findings: DataReport, path: str) -> bool:
    """Draws the first images of a run's first batch, with the captions as its model reads them.

    Returns False, and draws nothing, after an interrupted check or if no image is usable. Raises CannotWriteError.
    """
    config = findings.config
    if findings.interrupted or not findings.splits["train"].stats:
        return False
    count = min(config.images, config.data.batch_size, findings.splits["train"].total or config.images)
    data = config.data.model_copy(update={"batch_size": count, "workers": 0, "partitions": 1})
    pipeline = DataPipeline(data, config.seed, require_captions=config.require_captions)
    ((batch,),) = pipeline.training_batches(0, 1, BatchShard())
    sheet = contact_sheet(to_pil(batch.images), [_as_read(caption, findings.tokenizer) for caption in batch.captions])
    with writing_target("image", path):
        sheet.save(path)
    return True


def _as_read(caption: str | None, tokenizer: TextTokenizer | None) -> str:
    if caption is None:
        return "(no caption)"
    if tokenizer is None or not tokenizer.is_cut([caption])[0]:
        return caption
    return f"{tokenizer.decode(tokenizer.encode([caption]))[0]} [cut]"
