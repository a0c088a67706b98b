"""Detects overfitting: validation metrics get worse while the training loss still falls."""

from collections.abc import Mapping

from vqgan.training.checkpoints.best_tracker import BestTracker

_WORSE_BY, _FALLEN_BY = 0.03, 0.05
"""Shares of the values at the best evaluation: beyond the noise of an evaluation, and of a mean over a log line."""
_OF_PIXELS = ("loss_l1", "loss_l2", "loss_logit_laplace")


def training_loss(metrics: Mapping[str, float]) -> float | None:
    """Returns what a log line says of how well training data is fitted; None where it says nothing of that.

    Of tokenizers the terms over pixels alone: the whole loss falls and rises with a discriminator's moods.
    """
    terms = [metrics[name] for name in _OF_PIXELS if name in metrics]
    return sum(terms) if terms else metrics.get("loss")


def about_memorizing(best: BestTracker, loss: float | None) -> list[str]:
    """Returns the finding, where the last evaluation was worse than the best one and training went on to improve since.

    It goes into the metrics and the checkpoints, so it says nothing of where the run folder lies.
    """
    then = best.training_loss
    if not best.step or best.config is None or loss is None or then is None or best.step == best.last_step:
        return []
    if not (best.worsened_share() > _WORSE_BY and loss < then - _FALLEN_BY * abs(then)):
        return []
    return [
        f"the training images are being learned by heart: held out, {best.config.metric} was best at step "
        f"{best.step:,} ({best.value:.4g}) and is {best.last_value:.4g} at step {best.last_step:,}, while the training "
        f"loss went on from {then:.4g} to {loss:.4g}. The best model is in best/ of the run folder. What helps: fewer "
        f"steps (loop.steps {best.step}) or loop.patience 3, which ends a run by itself; more images; "
        "data.transform.crop random, and data.transform.flip where no caption says left or right; a smaller model."
    ]
