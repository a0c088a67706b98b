"""Decoding steps as a CUDA graph: a step of a small model is some hundred kernels of microseconds, which a GPU runs
faster than Python can launch them.

With a tensor position the shapes of all steps are equal (`parti.layers.kv_cache`), so a step is captured once and
replayed for every code. Logits are the same as without the graph.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from parti.models.generator import DecodingState, Generator


class GraphedStep:
    """`model.step` for one batch on its CUDA device, captured with `state`; a call overwrites the result of the
    previous one."""

    def __init__(self, model: Generator, state: DecodingState, batch: int) -> None:
        device = model.device
        self._previous = torch.full((batch,), model.start_code, device=device)
        self._position = torch.zeros((), dtype=torch.int64, device=device)
        # Libraries set themselves up and pick kernels in the first calls, which a capture does not allow. These are
        # true first steps, so that what they leave in the caches is what belongs there.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                model.step(self._previous, self._position, state)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = model.step(self._previous, self._position, state)

    def __call__(self, previous: Int64[Tensor, "B"], position: int) -> Float[Tensor, "B V"]:
        self._previous.copy_(previous)
        self._position.fill_(position)
        self._graph.replay()
        return self._logits
