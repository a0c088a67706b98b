"""One stopwatch through a stage-1 training step: seconds by part, forward and backward.

It changes its label where a part is entered and left, and in a backward pass where the gradient reaches a part's
output. At any moment one label runs, so the parts sum to the step.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import vqgan.discriminator_trainer
from vqgan.autoencoder_task import AutoencoderTask

PARTS = (
    "encoder forward",
    "encoder backward",
    "quantizer forward",
    "quantizer backward",
    "decoder forward",
    "decoder backward",
    "perceptual net forward",
    "perceptual net backward",
    "other losses",
    "D on generated images forward",
    "D's gradient at generated images",
    "adaptive weight",
    "D on real images forward",
    "D's own backward",
    "D's blurs, all of them",
    "LeCam",
    "R1: gradient",
    "R1: its gradient in the weights",
    "autoencoder's optimizer",
    "D's optimizer",
    "EMA",
    "codebook maintenance and metrics",
    "moving unused codes",
    "rest",
)
"""In the order of the table. D is the discriminator; its blurs count there and not in its other parts."""


class Profiler:
    """Seconds by label; at any moment one label runs, the innermost."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = wait
        self._running = ["rest"]
        self._backward_depth = 0
        self._since = time.perf_counter()

    def _lap(self) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def enter(self, label: str) -> None:
        self._lap()
        self._running.append(label)

    def leave(self) -> None:
        self._lap()
        self._running.pop()

    @contextmanager
    def time(self, label: str) -> Iterator[None]:
        self.enter(label)
        yield
        self.leave()

    @contextmanager
    def backward(self) -> Iterator[None]:
        """A backward pass: until it is over, `reach` changes the label."""
        with self.time("other losses"):
            self._backward_depth = len(self._running)
            yield
            self._backward_depth = 0

    def reach(self, label: str) -> None:
        """From now on the backward pass works in `label`; a label entered within it keeps what it has begun."""
        if self._backward_depth == len(self._running):
            self._lap()
            self._running[-1] = label

    def reach_at(self, outputs: Any, label: str) -> None:
        """`reach` it when the gradient of one of `outputs`, a tensor or a tuple of them (nested), is there."""
        if isinstance(outputs, Tensor):
            if outputs.requires_grad:
                outputs.register_hook(lambda _: self.reach(label))
        elif isinstance(outputs, tuple):
            for output in outputs:
                self.reach_at(output, label)


class BlurWatch(TorchFunctionMode):
    """Times the grouped convolutions among what runs in it, in both passes: the discriminator's only ones are blurs."""

    def __init__(self, profiler: Profiler, label: str) -> None:
        super().__init__()
        self._stopwatch = profiler
        self._label = label

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d or kwargs.get("groups", 1) == 1:
            return func(*args, **kwargs)
        with self._stopwatch.time(self._label):
            output = func(*args, **kwargs)
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(lambda _: self._stopwatch.enter(self._label))
            output.grad_fn.register_hook(lambda *_: self._stopwatch.leave())
        return output


@contextmanager
def watched(task: AutoencoderTask, profiler: Profiler) -> Iterator[None]:
    """While this lasts, `task.train_step` moves the stopwatch."""
    with ExitStack() as stack:

        def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
            stack.enter_context(mock.patch.object(owner, name, partial(wrapper, getattr(owner, name))))

        def timed(label: str, backward: str | None, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with profiler.time(label):
                result = call(*args, **kwargs)
            if backward:
                profiler.reach_at(result, backward)
            return result

        def part(owner: Any, name: str, label: str, backward: str | None = None) -> None:
            wrap(owner, name, partial(timed, label, backward))

        def network(module: nn.Module, label: str) -> None:
            part(module, "forward", f"{label} forward", f"{label} backward")

        def backward_pass(call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
            with profiler.backward():
                call(*args, **kwargs)

        network(task.autoencoder.encoder, "encoder")
        network(task.autoencoder.quantizer, "quantizer")
        network(task.autoencoder.decoder, "decoder")
        part(task, "_losses", "other losses")
        part(task, "_observe", "codebook maintenance and metrics")
        part(task.maintenance, "step", "moving unused codes")
        part(task.optimizer, "step", "autoencoder's optimizer")
        part(task.ema, "update", "EMA")
        wrap(task.accelerator, "backward", backward_pass)
        if task.losses.perceptual is not None:
            network(task.losses.perceptual, "perceptual net")
        if task.discriminator_trainer is not None:

            def discriminate(call: Callable[..., Any], images: Tensor) -> Any:
                # The generator's loss wants the gradient at the images; the discriminator's own step shows real ones.
                label = "generated" if images.requires_grad else "real"
                with profiler.time(f"D on {label} images forward"), BlurWatch(profiler, "D's blurs, all of them"):
                    logits = call(images)
                profiler.reach_at(logits, "D's own backward")
                return logits

            def penalize(call: Callable[..., Any], discriminator: Callable[..., Any], images: Tensor) -> Any:
                # Not by the watched forward: all that R1 does is R1.
                with profiler.time("R1: gradient"), mock.patch.object(discriminator, "forward", unwatched):
                    penalty = call(discriminator, images)
                profiler.reach_at(penalty, "R1: its gradient in the weights")
                return penalty

            discriminator = task.discriminator_trainer.discriminator
            unwatched = discriminator.forward
            wrap(discriminator, "forward", discriminate)
            part(task.discriminator_trainer, "generator_loss", "D's gradient at generated images")
            wrap(vqgan.discriminator_trainer, "r1_penalty", penalize)
            part(vqgan.discriminator_trainer, "adaptive_weight", "adaptive weight")
            part(vqgan.discriminator_trainer, "lecam_penalty", "LeCam", "LeCam")
            part(task.discriminator_trainer._averages, "update", "LeCam")
            part(task.discriminator_trainer.optimizer, "step", "D's optimizer")
        yield
