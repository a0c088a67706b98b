"""Fine-tuning on few labels: it learns, leaves the encoder as it was, and has the rates of the papers by depth."""

import pytest
import torch

from parti.evaluation.few_labels import LEARNING_RATE, Classifier, _groups, fine_tune, right
from tests.parti.mim.tiny_mim import NETWORKS, pixels, tiny_network


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns_what_can_be_seen(name: str) -> None:
    network = tiny_network(name)
    before = {key: weight.clone() for key, weight in network.state_dict().items()}
    labels = {"bright": torch.tensor([0, 1] * 20)}
    images = pixels(40) * 0.3 + torch.where(labels["bright"] > 0, 0.6, -0.6)[:, None, None, None]
    state = torch.get_rng_state()
    classifier = fine_tune(network, images, labels, {"bright": 2}, seed=0, epochs=4)
    assert right(classifier, images, labels)["bright"] >= 38
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(network.state_dict()[key], weight) for key, weight in before.items())
    again = fine_tune(network, images, labels, {"bright": 2}, seed=0, epochs=4)
    assert torch.equal(again(images)["bright"], classifier(images)["bright"])


def test_rates_grow_with_the_depth() -> None:
    classifier = Classifier(tiny_network("mae"), {"a": 2}, 32)
    rates = {id(group["params"][0]): group["rate"] for group in _groups(classifier, 0.5)}
    encoder = classifier.network.encoder
    assert rates[id(encoder.patch_embed.proj.weight)] == LEARNING_RATE / 8
    assert rates[id(encoder.blocks[0].attn.qkv.weight)] == LEARNING_RATE / 4
    assert rates[id(encoder.blocks[1].attn.qkv.weight)] == LEARNING_RATE / 2
    assert rates[id(classifier.heads["a"].weight)] == LEARNING_RATE
    assert id(encoder.pos_embed) not in rates, "fixed positions stay"
    assert all(id(weight) not in rates for weight in classifier.network.decoder_blocks.parameters())
    assert {group["rate"] for group in _groups(classifier, 1.0)} == {LEARNING_RATE}
