"""Messages of a run when it starts, resumes and is complete."""

from accelerate import Accelerator
from torch import nn

from vqgan.data.loader import DataPipeline
from vqgan.data.unused import unused_lines
from vqgan.training.checkpoints.best_tracker import BestTracker
from vqgan.training.optim.optimizer import Optimizer
from vqgan.training.run_folder import RunFolder
from vqgan.training.task import Task


def complete_already(folder: RunFolder, done: int, steps: int) -> list[str]:
    """Returns the message of a run whose command is given again."""
    larger = "loop.steps" if done >= steps else "loop.patience"
    return [f"{folder.path} is complete at step {done}; a larger {larger} goes on from there"]


def how_it_begins(
    task: Task, data: DataPipeline, accelerator: Accelerator, folder: RunFolder, done: int, steps: int
) -> list[str]:
    """Returns the lines at the start of a run: networks and data, the step it resumes from, and changes of the
    config."""
    networks = [part for part in task.stateful().values() if isinstance(part, nn.Module)]
    weights = sum(weight.numel() for network in networks for weight in network.parameters())
    device = f"{accelerator.num_processes} x {accelerator.device.type}"
    lines = [f"{data.describe()}; {weights:,} weights in training, on {device}"]
    if (passes := data.describe_passes(steps)) is not None:
        lines.append(passes)
    lines += unused_lines(data.unused())
    if done:
        lines.append(f"resuming at step {done} of {steps} in {folder.path}")
        changes = folder.changed_settings()
        lines += [f"since this run began or was resumed, {change}" for change in changes]
        if any(change.startswith(("data.", "seed ")) for change in changes):
            lines.append("from here on the samples come in another order than an unbroken run's")
        lines += _about_held_rates(task, done)
    return lines


def _about_held_rates(task: Task, done: int) -> list[str]:
    """Returns the message about optimizers whose rate is held because the run was extended."""
    held = {
        name: factor
        for name, part in task.stateful().items()
        if isinstance(part, Optimizer) and (factor := part.learning_rate.held_down(done)) is not None
    }
    return [
        f"{name}: the learning rate had come down to {factor:.3g} of its full value and stays there, though the longer "
        "run's schedule would raise it; change the optimizer's schedule to set it anew"
        for name, factor in held.items()
    ]


def where_the_models_are(best: BestTracker, folder: RunFolder, given_up: bool) -> list[str]:
    """Returns the message of a complete run. `given_up`: early stopping ended it, and model/ holds the best model."""
    if given_up:
        return [f"complete; the model in {folder.model} is the best, {best.describe()}"]
    lines = [f"complete; the model is in {folder.model}"]
    if best.step and best.step != best.last_step:
        lines.append(
            f"that is the last one; the best by {best.describe()} is in {folder.best}, which stands wherever a model "
            "folder may"
        )
    return lines
