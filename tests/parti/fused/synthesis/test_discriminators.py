"""The discriminators' side as one network: what it reads of captions, and what it answers."""

import pytest
import torch

from parti.fused.synthesis.discriminators import Discriminators, DiscriminatorsConfig, SentenceReader
from parti.fused.synthesis.scale_discriminator import ScaleDiscriminatorConfig
from tests.parti.fused.synthesis.tiny_synthesis import TEXT, TOKENS

pytestmark = pytest.mark.slow_threads

IDS = torch.tensor([[3, 4, 5, 0, 0, 0], [7, 8, 9, 3, 0, 0], [4, 3, 5, 0, 0, 0]])
CONFIG = DiscriminatorsConfig(scale=ScaleDiscriminatorConfig(base_channels=4, sentence_width=6), sentence_layers=1)


def images(batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, side, side, generator=generator) for side in (8, 16)]


def discriminators(matching: bool = True) -> Discriminators:
    torch.manual_seed(0)
    return Discriminators(CONFIG, TEXT, TOKENS, (8, 16), matching)


def test_the_reader_minds_words_and_their_order_but_no_padding() -> None:
    torch.manual_seed(0)
    reader = SentenceReader(TEXT, TOKENS, 2, 6)
    sentences = reader(IDS)
    assert (sentences[0] - sentences[1]).abs().max() > 1e-3
    assert (sentences[0] - sentences[2]).abs().max() > 1e-4, "the same words in another order"
    padding = reader.embeddings.bert.word_embeddings.weight
    with torch.no_grad():
        padding[TOKENS.pad_id] += 1.0
    torch.testing.assert_close(reader(IDS), sentences, atol=1e-5, rtol=1e-4)


def test_wrong_is_the_image_with_the_caption_of_the_one_before() -> None:
    network = discriminators().eval()
    opinions = network(images(), IDS, wrong=True)
    moved = network(images(), IDS.roll(1, 0))
    assert len(opinions.scales) == len(moved.scales) == 2
    for one, other in zip(opinions.scales, moved.scales, strict=True):
        assert other.wrong is None
        torch.testing.assert_close(one.wrong, other.conditional, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.unconditional, other.unconditional)
        assert not torch.allclose(one.conditional, other.conditional)


@pytest.mark.parametrize("matching", [True, False])
def test_every_weight_is_used_for_what_is_asked(matching: bool) -> None:
    """Data-parallel training takes no weight that plays no part."""
    network = discriminators(matching)
    opinions = network(images(), IDS, wrong=True)
    total = torch.stack([logits.sum() for one in opinions.scales for logits in one[:3]]).sum()
    if matching:
        found = torch.stack([(one.embedding * opinions.sentence).sum() for one in opinions.scales])
        total = total + network.matching_scale() * found.sum()
        assert all(one.embedding.norm(dim=1).sub(1).abs().max() < 1e-5 for one in opinions.scales)
    total.backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


def test_the_matching_scale_stays_below_clips() -> None:
    network = discriminators()
    with torch.no_grad():
        network.log_scale.fill_(10.0)
    network.limit_matching_scale()
    assert network.matching_scale().item() == pytest.approx(100.0)
