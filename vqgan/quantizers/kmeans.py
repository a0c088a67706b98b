"""k-means: centers of clusters of vectors, by Lloyd's iterations from a k-means++ start (Arthur, Vassilvitskii 2007).

k-means++ samples one center at a time, with a probability proportional to the squared distance to the previous centers.
Here a round samples many at once from the distances at its start, and then accepts each with the ratio of its current
distance to that at the start (rejection sampling): the same distribution, but 8192 centers take about a hundred
searches instead of 8192 passes over all vectors.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vqgan.quantizers.search import nearest_codes

_ROUND_SHARE = 8
"""Number of existing centers per candidate of a round: more candidates would mostly be rejected."""

_NEVER_ZERO = 1e-12
"""Added to squared distances: if every vector is a center already, some are sampled twice."""


def kmeans(
    vectors: Float[Tensor, "M D"], clusters: int, iterations: int, generator: torch.Generator
) -> Float[Tensor, "V D"]:
    """Returns centers of `clusters` clusters. Empty clusters keep their center; `generator` is one of the CPU."""
    centers = _spread_out(vectors, clusters, generator)
    for _ in range(iterations):
        codes = nearest_codes(vectors, centers)
        counts = torch.bincount(codes, minlength=clusters)
        sums = torch.zeros_like(centers).index_add_(0, codes, vectors)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None], centers)
    return centers


def _spread_out(vectors: Float[Tensor, "M D"], count: int, generator: torch.Generator) -> Float[Tensor, "V D"]:
    """`count` of the vectors, far from one another; all of them, and some twice, where there are fewer."""
    added = torch.randint(len(vectors), (1,), generator=generator)
    chosen = added
    distances = torch.full((len(vectors),), torch.inf, device=vectors.device)
    while len(chosen) < count:
        fresh = vectors[added.to(vectors.device)]
        nearest = fresh[nearest_codes(vectors, fresh)]
        distances = torch.minimum(distances, (vectors - nearest).square().sum(-1))
        weights = distances.cpu() + _NEVER_ZERO
        generated = torch.multinomial(
            weights, max(1, len(chosen) // _ROUND_SHARE), replacement=True, generator=generator
        )
        points = vectors[generated.to(vectors.device)].cpu()
        luck = torch.rand(len(generated), generator=generator)
        added = generated[_kept(points, weights[generated], luck)][: count - len(chosen)]
        chosen = torch.cat([chosen, added])
    return vectors[chosen.to(vectors.device)]


def _kept(points: Float[Tensor, "K D"], weights: Float[Tensor, "K"], luck: Float[Tensor, "K"]) -> list[int]:
    """Returns the points, sampled by `weights`, that are accepted one after the other; each lowers the other
    weights."""
    between = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square() + _NEVER_ZERO
    threshold, by_now = luck * weights, weights
    kept = []
    for index in range(len(points)):
        if threshold[index] < by_now[index]:
            kept.append(index)
            by_now = torch.minimum(by_now, between[index])
    return kept
