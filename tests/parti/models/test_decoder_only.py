"""DALL-E's decoder-only transformer: who reads whom, cached steps against the full forward, the paper's sizes."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from parti.layers.sparse_masks import MaskKind, image_mask
from parti.models.decoder_only import DecoderOnly, DecoderOnlyConfig
from parti.models.token_space import TokenSpace
from parti.sampling.generate import SamplingConfig, generate_codes
from tests.stepping import stepped
from tests.tiny import TOKENS, codes, text_ids
from vqgan.training.optim.optimizer import hidden_matrices

pytestmark = pytest.mark.threads

CONFIG = DecoderOnlyConfig(depth=4, width=32, heads=2, mlp_width=64, kernel=3)
NULL_IDS = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])
KINDS: list[MaskKind] = ["row", "column", "convolution", "full"]
GRIDS = [(4, 4), (2, 8), (8, 2), (5, 3)]
SLOPE = torch.linspace(-1, 1, 32)
"""What is added to an embedding to see who reads it: layer norms take no notice of a constant."""


def tiny(grid: tuple[int, int] = (4, 4), seed: int = 0, **changes: Any) -> DecoderOnly:
    """A model with opinions: its heads are random, where those of a fresh one are zero. In evaluation mode."""
    torch.manual_seed(seed)
    tokens = TOKENS.model_copy(update={"image_grid": grid})
    model = DecoderOnly(CONFIG.model_copy(update=changes), tokens)
    for head in (model.text_head, model.image_head):
        nn.init.normal_(head.weight, std=0.5)
        nn.init.normal_(head.bias, std=0.5)
    for table in (model.text_embedding.weight, model.image_embedding.weight, model.pad_embeddings):
        nn.init.normal_(table, std=0.5)
    return model.eval()


def with_masks(model: DecoderOnly, kind: MaskKind) -> DecoderOnly:
    """The same weights with one mask in all layers."""
    model.layer_kinds = [kind] * len(model.layer_kinds)
    return model


def image_codes(model: DecoderOnly, batch: int) -> Tensor:
    return codes(batch)[:, : model.tokens.image_length]


def losses(model: DecoderOnly, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the text tokens and of the codes."""
    logits = model(text, image)
    assert logits.text is not None
    return (
        F.cross_entropy(logits.text.flatten(0, 1), text.flatten(), ignore_index=model.tokens.text_pad_id),
        F.cross_entropy(logits.image.flatten(0, 1), image.flatten()),
    )


def changed(before: Tensor, after: Tensor) -> list[int]:
    """Positions at which the logits of any row differ at all."""
    return (before != after).any(-1).any(0).nonzero()[:, 0].tolist()


def test_logits_are_fp32_of_every_token_also_under_autocast() -> None:
    model, text, image = tiny(), text_ids(3), codes(3)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(text, image)
        assert logits.image.shape == (3, 16, 32)
        assert logits.text.shape == (3, 8, 20)
        assert logits.image.dtype == logits.text.dtype == torch.float32


def test_a_fresh_model_is_uniform_over_both_alphabets() -> None:
    torch.manual_seed(0)
    of_text, of_image = losses(DecoderOnly(CONFIG, TOKENS), text_ids(4), codes(4))
    assert of_text.item() == pytest.approx(math.log(20), abs=1e-6)
    assert of_image.item() == pytest.approx(math.log(32), abs=1e-6)


@pytest.mark.parametrize("attention", ["sparse", "full"])
def test_all_parameters_get_a_gradient(attention: str) -> None:
    model = tiny(attention=attention)
    sum(losses(model, text_ids(4), codes(4))).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_the_image_loss_alone_leaves_only_the_text_head_untouched() -> None:
    model = tiny()
    losses(model, text_ids(4), codes(4))[1].backward()
    untouched = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert untouched == ["text_head.weight", "text_head.bias"]


@torch.no_grad()
def test_any_id_may_be_the_padding() -> None:
    text, image = text_ids(4).masked_fill(text_ids(4) == 19, 18), codes(4)
    before, model = tiny()(text, image), tiny()
    model.tokens = TOKENS.model_copy(update={"text_pad_id": 19})
    assert torch.equal(model(text.masked_fill(text == 0, 19), image).image, before.image)
    assert (model(text, image).image != before.image).any()


def test_training_sees_what_evaluation_sees() -> None:
    # With gradients another attention kernel may run.
    model, text, image = tiny(), text_ids(5), codes(5)
    with torch.no_grad():
        expected = model(text, image)
    found = model.train()(text, image)
    torch.testing.assert_close(found.image, expected.image, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text, expected.text, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_reads_the_image_states_of_its_mask_and_no_others(kind: MaskKind, grid: tuple[int, int]) -> None:
    # In one layer, what the state of code j - 1 (state j) changes is exactly the mask's column j.
    model = with_masks(tiny(grid, depth=1), kind)
    text, image = text_ids(2), image_codes(model, 2)
    before, mask = model(text, image), image_mask(kind, grid, CONFIG.kernel)
    for state in range(1, len(mask)):
        other = image.clone()
        other[:, state - 1] = (other[:, state - 1] + 1) % TOKENS.image_vocab_size
        after = model(text, other)
        assert changed(before.image, after.image) == mask[:, state].nonzero()[:, 0].tolist(), state
        assert changed(before.text, after.text) == []


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sparse", "full"])
def test_a_code_is_not_seen_at_its_own_position_or_before(attention: str) -> None:
    model, text, image = tiny(attention=attention), text_ids(2), codes(2)
    before = model(text, image)
    for code in range(15):
        other = image.clone()
        other[:, code] = (other[:, code] + 1) % TOKENS.image_vocab_size
        after = model(text, other)
        assert min(changed(before.image, after.image)) == code + 1
        if attention == "full":
            assert changed(before.image, after.image) == list(range(code + 1, 16))
        assert changed(before.text, after.text) == []


@torch.no_grad()
def test_a_text_token_is_seen_by_the_text_after_it_and_by_every_image_state() -> None:
    model, image = tiny(), codes(2)
    text = torch.tensor([[5, 2, 9, 4, 11, 3, 7, 6], [8, 3, 2, 2, 5, 4, 3, 10]])
    before = model(text, image)
    for slot in range(8):
        other = text.clone()
        other[:, slot] += 1
        after = model(other, image)
        assert changed(before.text, after.text) == list(range(slot + 1, 8))
        # The last slot is predicted and never read.
        assert changed(before.image, after.image) == (list(range(16)) if slot < 7 else [])


@torch.no_grad()
def test_each_slots_padding_is_read_and_has_an_embedding_of_its_own() -> None:
    text, image = torch.tensor([[5, 2, 9, 4, 0, 0, 0, 0], [5, 2, 9, 4, 7, 3, 2, 0]]), codes(2)
    before = tiny()(text, image)
    for slot in range(7):
        model = tiny()
        model.pad_embeddings[slot] += SLOPE
        after = model(text, image)
        differ = (after.image != before.image).all(1).any(-1)  # at every image state
        assert differ.tolist() == [slot >= 4, False], slot
        assert changed(before.text, after.text) == (list(range(slot + 1, 8)) if slot >= 4 else [])
    model = tiny()
    model.text_embedding.weight[0] += SLOPE
    assert torch.equal(model(text, image).image, before.image), "the pad id's row of the text table is never read"


@torch.no_grad()
def test_positions_are_those_of_the_predicted_tokens() -> None:
    text, image = text_ids(2), codes(2)
    before = with_masks(tiny((2, 8)), "full")(text, image)
    for position in range(8):
        model = with_masks(tiny((2, 8)), "full")
        model.text_positions[position] += SLOPE
        after = model(text, image)
        assert changed(before.text, after.text) == list(range(position, 8))
        assert changed(before.image, after.image) == list(range(16))

        model = with_masks(tiny((2, 8)), "full")
        model.column_positions[position] += SLOPE
        assert changed(before.image, model(text, image).image) == list(range(position, 16))
    model = with_masks(tiny((2, 8)), "full")
    model.row_positions[1] += SLOPE
    assert changed(before.image, model(text, image).image) == list(range(8, 16))


@torch.no_grad()
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_steps_give_the_logits_of_the_full_forward(kind: MaskKind, grid: tuple[int, int]) -> None:
    model = with_masks(tiny(grid, depth=3), kind)
    text, image = text_ids(3), image_codes(model, 3)
    torch.testing.assert_close(stepped(model, text, image), model(text, image).image, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (4, 16)])
def test_cached_steps_with_the_papers_order_and_kernel(grid: tuple[int, int]) -> None:
    model = tiny(grid, depth=6, kernel=11)
    assert model.layer_kinds == ["row", "column", "row", "row", "row", "convolution"]
    image = torch.randint(32, (2, 64), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stepped(model, text_ids(2), image), model(text_ids(2), image).image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_cached_steps_at_all_1024_positions_of_the_papers_grid() -> None:
    model = tiny((32, 32), depth=3, kernel=11)
    image = torch.randint(32, (1, 1024), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stepped(model, text_ids(1), image), model(text_ids(1), image).image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_cached_steps_under_guidance_give_the_logits_of_both_sides() -> None:
    model, text, image = tiny(), text_ids(3), codes(3)
    both = stepped(model, torch.cat([text, NULL_IDS.expand(3, -1)]), image.repeat(2, 1))
    torch.testing.assert_close(both[:3], model(text, image).image, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[3:], model(NULL_IDS.expand(3, -1), image).image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_guided_image_is_that_of_a_slow_sampler_without_a_cache() -> None:
    model, text = tiny((5, 3)), text_ids(2)
    generated = generate_codes(model, text, NULL_IDS, [0, 1], SamplingConfig(guidance_scale=2.0, temperature=0.0))
    slow = torch.zeros(2, 15, dtype=torch.int64)
    for position in range(15):
        conditional = model(text, slow).image[:, position]
        unconditional = model(NULL_IDS.expand(2, -1), slow).image[:, position]
        slow[:, position] = (unconditional + 2 * (conditional - unconditional)).argmax(-1)
    assert torch.equal(generated, slow)
    assert not torch.equal(generated[0], generated[1])


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others() -> None:
    model, text, image = tiny(), text_ids(4), codes(4)
    together, steps = model(text, image), stepped(model, text, image)
    for row in range(4):
        alone = model(text[row : row + 1], image[row : row + 1])
        torch.testing.assert_close(alone.image[0], together.image[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.text[0], together.text[row], rtol=0, atol=1e-5)
    other_text, other_image = text.flip(0), image.flip(0)
    other_text[0], other_image[0] = text[0], image[0]
    assert torch.equal(model(other_text, other_image).image[0], together.image[0])
    assert torch.equal(stepped(model, other_text, other_image)[0], steps[0])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_give_the_same_gradients_from_twice_the_passes(dropout: float) -> None:
    text, image = text_ids(4), codes(4)
    gradients: list[list[Tensor]] = []
    for checkpointed in (False, True):
        model = tiny(checkpoint_activations=checkpointed, dropout=dropout).train()
        passes: list[int] = []
        for block in model.blocks:
            block.mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        torch.manual_seed(1)
        sum(losses(model, text, image)).backward()
        assert len(passes) == len(model.blocks) * (2 if checkpointed else 1)
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    plain, again = gradients
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_it_learns_pairs_by_heart_and_draws_them_again() -> None:
    model, text, image = tiny(depth=2).train(), text_ids(4), codes(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(40):
        of_text, of_image = losses(model, text, image)
        optimizer.zero_grad()
        (of_text / 8 + of_image * 7 / 8).backward()
        optimizer.step()
    assert of_image.item() < 0.05
    # More than 0: a first token cannot be known.
    assert of_text.item() < 0.5
    generated = generate_codes(model, text, NULL_IDS, [0, 1, 2, 3], SamplingConfig(temperature=0.0))
    assert torch.equal(generated, image)


def test_state_dict_keys_stay() -> None:
    block = [
        *("attention_norm.weight", "attention_norm.bias", "attention.qkv.weight", "attention.qkv.bias"),
        *("attention.out.weight", "attention.out.bias", "mlp_norm.weight", "mlp_norm.bias"),
        *("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"),
    ]
    assert set(tiny(depth=2).state_dict()) == {
        *("text_embedding.weight", "pad_embeddings", "text_positions", "image_embedding.weight"),
        *("row_positions", "column_positions", "norm.weight", "norm.bias"),
        *("text_head.weight", "text_head.bias", "image_head.weight", "image_head.bias"),
        *(f"blocks.{index}.{name}" for index in range(2) for name in block),
    }


# Width of the paper's three sizes; billions of parameters in the matrices of their 64 blocks.
SIZES = {1920: 2.83, 2688: 5.55, 3968: 12.09}


@pytest.mark.parametrize("width", SIZES)
def test_the_papers_sizes(width: int) -> None:
    config = DecoderOnlyConfig(width=width, heads=width // 64, mlp_width=4 * width)
    tokens = TokenSpace(text_vocab_size=16_384, text_length=256, image_vocab_size=8192, image_grid=(32, 32))
    with torch.device("meta"):
        model = DecoderOnly(config, tokens)
    heads = (16_384 + 8192) * width
    in_blocks = sum(weight.numel() for weight in hidden_matrices(model)) - heads
    assert in_blocks == 12 * 64 * width**2
    assert in_blocks / 1e9 == pytest.approx(SIZES[width], abs=0.005)
    blocks = 64 * (12 * width**2 + 13 * width)
    embeddings = (16_385 + 255 + 256 + 8193 + 32 + 32) * width
    assert sum(weight.numel() for weight in model.parameters()) == (
        blocks + embeddings + 2 * width + heads + 16_384 + 8192
    )


def test_the_default_is_the_12b_model() -> None:
    assert DecoderOnlyConfig() == DecoderOnlyConfig(depth=64, width=3968, heads=62, mlp_width=4 * 3968, kernel=11)
    assert DecoderOnlyConfig().width // DecoderOnlyConfig().heads == 64


def test_another_text_length_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="reads 8 text positions, received 7; encode the captions with"):
        tiny()(text_ids(1)[:, :7], codes(1))


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match="width 32 does not divide into 5 heads"):
        DecoderOnlyConfig(width=32, heads=5)
    with pytest.raises(ValidationError, match="centered on its state, so odd; received 4, use 5"):
        DecoderOnlyConfig(kernel=4)
    with pytest.raises(ValueError, match=r"text.length is at least 2, received 1; with one slot"):
        DecoderOnly(CONFIG, TOKENS.model_copy(update={"text_length": 1}))
