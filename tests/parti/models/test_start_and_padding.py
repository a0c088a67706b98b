"""What stands before the first code is none of the codes, and padding is no target of the text's loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parti.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, Generator
from parti.next_token.next_token_task import NextTokenTask, NextTokenTaskConfig
from parti.pairs import PairTokenizer, token_space
from tests.tiny import CAPTIONS, GENERATOR, TOKENS, codes, pairs, text_ids, tiny_image_tokenizer, tiny_text_tokenizer
from vqgan.data.batch import Batch
from vqgan.training.parallel.distributed import build_accelerator

SMALL = DecoderOnlyConfig(depth=2, width=32, heads=2, mlp_width=64, kernel=3)


def generator(kind: str) -> Generator:
    torch.manual_seed(0)
    model: Generator = EncoderDecoder(GENERATOR, TOKENS) if kind == "encoder_decoder" else DecoderOnly(SMALL, TOKENS)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["encoder_decoder", "decoder_only"])
def test_the_start_is_none_of_the_codes(kind: str) -> None:
    """No code's embedding changes what is said of the first code, the last code's neither; the start's own does."""
    model = generator(kind)
    assert model.start_code == TOKENS.image_vocab_size
    table = next(
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and len(module.weight) == TOKENS.image_vocab_size + 1
    )
    text, image = text_ids(2), codes(2).clamp(max=TOKENS.image_vocab_size - 2)
    before = model(text, image).image
    table.weight[TOKENS.image_vocab_size - 1] = torch.randn(32)
    assert torch.equal(model(text, image).image, before)
    table.weight[model.start_code] = torch.randn(32)
    assert not torch.allclose(model(text, image).image[:, 0], before[:, 0])


def test_padding_is_no_target_of_the_texts_loss() -> None:
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    model = DecoderOnly(SMALL, token_space(text, image))
    nn.init.normal_(model.text_head.weight, std=0.5)
    nn.init.normal_(model.text_head.bias, std=0.5)
    captions: list[str | None] = [caption if row % 2 else "a" for row, caption in enumerate(CAPTIONS)]
    batch = Batch(pairs().images, captions, pairs().names)
    config = NextTokenTaskConfig(precision="fp32", caption_dropout=0.0)
    task = NextTokenTask(config, model.train(), PairTokenizer(text, image), build_accelerator(), 10, 0)
    ids = text.encode(batch.texts())
    with torch.no_grad():
        logits = model(ids, image.encode(batch.images)).text
    assert logits is not None
    nats = [
        F.cross_entropy(logits[row, place], ids[row, place]).item()
        for row in range(8)
        for place in range(text.length)
        if ids[row, place] != text.pad_id
    ]
    assert len(nats) < 8 * text.length
    assert task.train_step([batch], 0)["loss_text"].item() == pytest.approx(sum(nats) / len(nats), rel=1e-5)
