"""Probes: closed forms against their definitions, and that they tell what is there and no more."""

import math

import pytest
import torch
import torch.nn.functional as F

from parti.evaluation.image_labels import SHAPES_CLASSES, CaptionClasses, shapes_attributes
from parti.evaluation.probes import NEIGHBORS, Ridge, interval, nearest_neighbors, probe, standardized
from vqgan.data.sources.shapes import Shapes, ShapesConfig
from vqgan.errors import ConfigError


def data(seed: int = 0, count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return torch.randn(count, 5, generator=generator) + labels[:, None] * torch.tensor([2.0, 0, 0, -1, 0]), labels


def test_ridge_solves_its_own_problem() -> None:
    features, labels = data()
    features = standardized(features, features)[0]
    weights = Ridge(features).weights(labels, 3, 0.1)
    targets = F.one_hot(labels, 3).double()
    found = weights.clone().requires_grad_()
    residual = features.double() @ found - (targets - targets.mean(0))
    loss = residual.square().sum() / len(labels) + 0.1 * found.square().sum()
    loss.backward()
    assert found.grad is not None
    assert found.grad.abs().max() < 1e-9


def test_standardized_features_and_constant_ones() -> None:
    features, _ = data()
    features[:, 2] = 7.0
    seen, asked = standardized(features, features * 2)
    assert torch.allclose(seen.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(seen.std(0)[[0, 1, 3, 4]], torch.ones(4), atol=1e-5)
    assert seen[:, 2].abs().max() == asked[:, 2].abs().max() == 0


def test_neighbors_by_a_loop() -> None:
    train, labels = data()
    test, _ = data(1, 20)
    found = nearest_neighbors(train, labels, 3, test)
    for row, features in enumerate(test):
        cosines = torch.stack([F.cosine_similarity(features, other, dim=0) for other in train])
        votes = [0.0, 0.0, 0.0]
        for place in cosines.argsort(descending=True)[:NEIGHBORS]:
            votes[labels[place]] += math.exp(cosines[place].item() / 0.07)
        assert found[row] == votes.index(max(votes))


def test_the_layer_is_chosen_without_the_test_images() -> None:
    (train, labels), (test, asked) = data(), data(1)
    noise = torch.randn(300, 5, generator=torch.Generator().manual_seed(2))
    found = probe([noise, train], [test, test], {"a": labels}, {"a": asked}, {"a": 3})
    assert found.layer == 1
    assert found.linear["a"] > 0.7
    assert found.neighbors["a"] > 0.7
    chance = probe([noise], [torch.randn(300, 5)], {"a": labels}, {"a": asked}, {"a": 3})
    assert chance.linear["a"] < 0.5


def test_intervals() -> None:
    assert interval(0.5, 1024) == pytest.approx(1.96 * 0.5 / 32, rel=1e-2)
    assert 0 < interval(1.0, 1024) < interval(0.9, 1024)


def test_attributes_are_those_that_can_be_seen() -> None:
    same = shapes_attributes(
        ["a small red circle above a large blue square", "a large blue square below a small red circle"]
    )
    assert {name: values.tolist() for name, values in same.items()} == {
        "axis": [0, 0],
        "color_a": [0, 0],
        "shape_a": [0, 0],
        "size_a": [0, 0],
        "color_b": [2, 2],
        "shape_b": [1, 1],
        "size_b": [1, 1],
    }
    source = Shapes(ShapesConfig(), "val", 64)
    labels = shapes_attributes([source.captions(index)[0] for index in range(500)])
    for name, classes in SHAPES_CLASSES.items():
        counts = labels[name].bincount(minlength=classes) / 500
        assert counts.shape == (classes,)
        assert (counts - 1 / classes).abs().max() < 0.1, "no label is the rule"


def test_captions_that_are_no_classes_are_one_clear_error() -> None:
    number = CaptionClasses(["cat", "dog", "cat", "dog"])
    assert number(["dog", "cat", "bird"]).tolist() == [1, 0, -1]
    with pytest.raises(ConfigError, match="4 different captions, which is no set of classes"):
        CaptionClasses(["a cat", "a dog", "cats", "dogs"])
