"""What frozen features say about an image's labels: a linear probe and nearest neighbors, in closed form.

Both are those of the papers at a small scale: features standardized as by MAE's batch norm without scale or shift and
a linear map on top (here ridge regression of one-hot labels, so nothing is trained step by step), and DINO's weighted
k-NN by cosine. What is chosen, the penalty and the layer, is chosen on a part of the training images.

Legend: N images, M others, D features, K classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

NEIGHBORS = 20
TEMPERATURE = 0.07
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the squared weights, in mean squared features."""
CHOSEN_ON = 0.2
"""Share of the training images on which penalty and layer are chosen."""
_INTERVAL = 1.96


def standardized(train: Float[Tensor, "N D"], test: Float[Tensor, "M D"]) -> tuple[Tensor, Tensor]:
    """Both with the mean and deviation of `train` taken out; a feature that is constant becomes 0."""
    mean, deviation = train.mean(0), train.std(0)
    deviation = torch.where(deviation > 1e-6, deviation, torch.inf)
    return (train - mean) / deviation, (test - mean) / deviation


class Ridge:
    """Ridge regression of labels on the features of `train`, with any penalties after one factorization."""

    def __init__(self, train: Float[Tensor, "N D"]) -> None:
        self._train = train.double()
        self._squares, self._axes = torch.linalg.eigh(self._train.T @ self._train / len(train))

    def weights(self, labels: Int64[Tensor, "N"], classes: int, penalty: float) -> Float[Tensor, "D K"]:
        """Of one-hot labels, which are centered."""
        targets = F.one_hot(labels, classes).double()
        moments = self._axes.T @ (self._train.T @ (targets - targets.mean(0)) / len(targets))
        return self._axes @ (moments / (self._squares.clamp(min=0) + penalty)[:, None])

    def predict(
        self, labels: Int64[Tensor, "N"], classes: int, penalty: float, test: Float[Tensor, "M D"]
    ) -> Int64[Tensor, "M"]:
        """The most likely class of each row of `test`."""
        shares = F.one_hot(labels, classes).double().mean(0)
        return (test.double() @ self.weights(labels, classes, penalty) + shares).argmax(1)


def nearest_neighbors(
    train: Float[Tensor, "N D"], labels: Int64[Tensor, "N"], classes: int, test: Float[Tensor, "M D"]
) -> Int64[Tensor, "M"]:
    """The class that the nearest training images vote for, each with exp(cosine / temperature) (iBOT's evaluation)."""
    count = min(NEIGHBORS, len(train))
    cosines, places = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(count)
    votes = torch.zeros(len(test), classes, dtype=test.dtype)
    return votes.scatter_add_(1, labels[places], (cosines / TEMPERATURE).exp()).argmax(1)


class Probed(NamedTuple):
    """The shares of test images whose label is predicted right, by label; `layer` is the one that was chosen."""

    linear: dict[str, float]
    neighbors: dict[str, float]
    layer: int


def probe(
    train: Sequence[Float[Tensor, "N D"]],
    test: Sequence[Float[Tensor, "M D"]],
    train_labels: dict[str, Int64[Tensor, "N"]],
    test_labels: dict[str, Int64[Tensor, "M"]],
    classes: dict[str, int],
) -> Probed:
    """Of features of several layers the best one's: chosen, as the penalty is, without the test images.

    The last fifth of the training images decides; neighbors are looked up in the same layer.
    """
    kept = len(train[0]) - round(len(train[0]) * CHOSEN_ON)
    best: tuple[float, int, dict[str, float]] = (-1.0, 0, {})
    for number, features in enumerate(train):
        fitted, held = standardized(features[:kept], features[kept:])
        ridge = Ridge(fitted)
        penalties, rights = {}, []
        for name, labels in train_labels.items():
            by_penalty = {
                penalty: _right(ridge.predict(labels[:kept], classes[name], penalty, held), labels[kept:])
                for penalty in PENALTIES
            }
            penalties[name] = max(by_penalty, key=lambda penalty: by_penalty[penalty])
            rights.append(by_penalty[penalties[name]])
        if (mean := sum(rights) / len(rights)) > best[0]:
            best = (mean, number, penalties)
    _, layer, penalties = best
    seen, asked = standardized(train[layer], test[layer])
    ridge = Ridge(seen)
    linear, neighbors = {}, {}
    for name, labels in train_labels.items():
        predicted = ridge.predict(labels, classes[name], penalties[name], asked)
        linear[name] = _right(predicted, test_labels[name])
        neighbors[name] = _right(nearest_neighbors(seen, labels, classes[name], asked), test_labels[name])
    return Probed(linear, neighbors, layer)


def interval(share: float, count: int) -> float:
    """Half of the width of the 95% interval of a share of `count` images: Wilson's, so that 0 and 1 have one too."""
    square = _INTERVAL**2
    inner = share * (1 - share) / count + square / (4 * count**2)
    return _INTERVAL * math.sqrt(inner) / (1 + square / count)


def _right(predicted: Int64[Tensor, "M"], labels: Int64[Tensor, "M"]) -> float:
    return (predicted == labels).double().mean().item()
