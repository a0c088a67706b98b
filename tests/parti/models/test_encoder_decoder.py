"""Parti's encoder-decoder: contracts, causality, masks, cached steps against the full forward, the paper's sizes."""

import math

import pytest
import torch
import torch.nn.functional as F

from parti.models import EncoderDecoder, EncoderDecoderConfig, TokenSpace
from tests.stepping import stepped
from tests.tiny import GENERATOR, TOKENS, codes, text_ids, tiny_generator
from vqgan.training.optim.optimizer import hidden_matrices

pytestmark = pytest.mark.threads

NULL_IDS = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])


def test_logits_are_fp32_of_every_code_also_under_autocast() -> None:
    model, text, image = tiny_generator(), text_ids(3), codes(3)
    assert model(text, image).image.shape == (3, 16, 32)
    assert model(text, image).image.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert model(text, image).image.dtype == torch.float32


def test_a_fresh_model_is_uniform_over_the_codes() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(GENERATOR, TOKENS)
    image = codes(4)
    loss = F.cross_entropy(model(text_ids(4), image).image.flatten(0, 1), image.flatten())
    assert loss.item() == pytest.approx(math.log(32), abs=1e-6)


def test_all_parameters_get_a_gradient() -> None:
    model = tiny_generator()
    image = codes(4)
    F.cross_entropy(model(text_ids(4), image).image.flatten(0, 1), image.flatten()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_training_sees_what_evaluation_sees() -> None:
    # With gradients another attention kernel may run.
    model, text, image = tiny_generator(), text_ids(5), codes(5)
    with torch.no_grad():
        expected = model(text, image).image
    torch.testing.assert_close(model.train()(text, image).image, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("changed", range(16))
def test_a_code_is_not_seen_at_its_own_position_or_before(changed: int) -> None:
    model, text, image = tiny_generator(), text_ids(2), codes(2)
    other = image.clone()
    other[:, changed] = (other[:, changed] + 1) % TOKENS.image_vocab_size
    before, after = model(text, image).image, model(text, other).image
    torch.testing.assert_close(after[:, : changed + 1], before[:, : changed + 1], rtol=0, atol=0)
    if changed < 15:
        # The very next position reads it, and so does the last.
        assert (after - before)[:, changed + 1].abs().amax(-1).min() > 1e-3
        assert (after - before)[:, 15].abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_padding_is_never_attended_to() -> None:
    text, image = text_ids(8), codes(8)
    before = tiny_generator()(text, image).image

    model = tiny_generator()
    model.text_encoder.embedding.weight[0].normal_(std=10)
    torch.testing.assert_close(model(text, image).image, before, rtol=0, atol=0)

    model = tiny_generator()
    model.text_encoder.positions[3:].normal_(std=10)
    short = (text != 0).sum(1) <= 3
    assert short.any()
    assert not short.all()
    after = model(text, image).image
    torch.testing.assert_close(after[short], before[short], rtol=0, atol=0)
    assert (after - before)[~short].abs().amax((1, 2)).min() > 1e-3


@torch.no_grad()
def test_more_room_for_padding_changes_nothing() -> None:
    model, text, image = tiny_generator(), text_ids(4), codes(4)
    wide = EncoderDecoder(GENERATOR, TOKENS.model_copy(update={"text_length": 12}))
    weights = model.state_dict()
    name = "text_encoder.positions"
    weights[name] = torch.cat([weights[name], torch.randn(4, 32)])
    wide.load_state_dict(weights)
    torch.testing.assert_close(wide(F.pad(text, (0, 4)), image).image, model(text, image).image, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_is_the_token_that_the_token_space_names() -> None:
    model, text, image = tiny_generator(), text_ids(4), codes(4)
    other = EncoderDecoder(GENERATOR, TOKENS.model_copy(update={"text_pad_id": 19})).eval()
    weights = model.state_dict()
    name, rows = "text_encoder.embedding.weight", torch.arange(20)
    rows[[0, 19]] = rows[[19, 0]]
    weights[name] = weights[name][rows]
    other.load_state_dict(weights)
    torch.testing.assert_close(other(rows[text], image).image, model(text, image).image, rtol=0, atol=0)


@torch.no_grad()
def test_the_text_matters() -> None:
    model, image = tiny_generator(), codes(1).repeat(4, 1)
    logits = model(text_ids(4), image).image
    assert (logits[1:] - logits[:1]).abs().amax((1, 2)).min() > 1e-2


@torch.no_grad()
def test_cached_steps_give_the_logits_of_the_full_forward() -> None:
    model, text, image = tiny_generator(), text_ids(5), codes(5)
    torch.testing.assert_close(stepped(model, text, image), model(text, image).image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_cached_steps_under_guidance_give_the_logits_of_both_sides() -> None:
    model, text, image = tiny_generator(), text_ids(3), codes(3)
    both = stepped(model, torch.cat([text, NULL_IDS.expand(3, -1)]), image.repeat(2, 1))
    torch.testing.assert_close(both[:3], model(text, image).image, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[3:], model(NULL_IDS.expand(3, -1), image).image, rtol=0, atol=1e-5)


def test_another_text_length_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="reads 8 text positions, received 7; encode the captions with"):
        tiny_generator()(text_ids(1)[:, :7], codes(1))


def test_width_and_heads_must_fit() -> None:
    with pytest.raises(ValueError, match="width 32 does not divide into 5 heads"):
        EncoderDecoderConfig(width=32, heads=5)


# Parti, table 1: encoder and decoder depth, width, feed-forward width, heads. Then millions of parameters: all of
# them, and those in the blocks' matrices, which is what the paper's names count.
SIZES = {
    "350M": ((12, 12, 1024, 4096, 16), 387.07, 352.3),
    "750M": ((12, 36, 1024, 4096, 16), 790.19, 755.0),
    "3B": ((12, 36, 2048, 8192, 32), 3090.32, 3019.9),
    "20B": ((16, 64, 4096, 16384, 64), 20544.32, 20401.1),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_sizes(name: str) -> None:
    (encoder_depth, decoder_depth, width, mlp_width, heads), everything, matrices = SIZES[name]
    config = EncoderDecoderConfig(
        encoder_depth=encoder_depth, decoder_depth=decoder_depth, width=width, mlp_width=mlp_width, heads=heads
    )
    tokens = TokenSpace(text_vocab_size=16_000, text_length=128, image_vocab_size=8192, image_grid=(32, 32))
    with torch.device("meta"):
        model = EncoderDecoder(config, tokens)

    total = sum(weight.numel() for weight in model.parameters())
    assert total / 1e6 == pytest.approx(everything, abs=0.005)
    in_blocks = sum(weight.numel() for weight in hidden_matrices(model)) - model.head.weight.numel()
    assert in_blocks / 1e6 == pytest.approx(matrices, abs=0.05)

    blocks = encoder_depth * (12 * width**2 + 13 * width) + decoder_depth * (16 * width**2 + 19 * width)
    embeddings = (16_000 + 128) * width + (8193 + 1024) * width
    assert total == blocks + embeddings + 8192 * width + 8192 + 4 * width


def test_the_default_is_the_350m_model() -> None:
    (encoder_depth, decoder_depth, width, mlp_width, heads), *_ = SIZES["350M"]
    assert EncoderDecoderConfig() == EncoderDecoderConfig(
        encoder_depth=encoder_depth, decoder_depth=decoder_depth, width=width, mlp_width=mlp_width, heads=heads
    )
