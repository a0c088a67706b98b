"""A training set that is learned by heart is said, with the best step; a discriminator's moods are not taken for it."""

from vqgan.training.checkpoints.best_tracker import BestTracker, KeepBestConfig
from vqgan.training.overfitting import about_memorizing, training_loss

NATS = KeepBestConfig(metric="nats_per_code", mode="lower")
PSNR = KeepBestConfig(metric="psnr", mode="higher")


def told(config: KeepBestConfig | None, evaluations: list[tuple[float, float | None]]) -> list[list[str]]:
    """The findings behind each (validation metric, training loss)."""
    best, found = BestTracker(config), []
    for number, (value, loss) in enumerate(evaluations, start=1):
        if config is not None:
            best.improved_by({config.metric: value}, 400 * number, loss)
        found.append(about_memorizing(best, loss))
    return found


def test_it_names_the_best_step_both_values_and_what_helps() -> None:
    first, second, third = told(NATS, [(2.12, 1.5), (2.9, 0.6), (3.57, 0.13)])
    assert first == []
    assert len(second) == 1
    for word in ("step 400 (2.12)", "3.57 at step 1,200", "from 1.5 to 0.13", "in best/ of", "loop.patience", "400)"):
        assert word in third[0], word
    assert told(PSNR, [(30.0, 0.1), (27.0, 0.05)])[1]


def test_no_finding_where_it_is_something_else() -> None:
    assert told(NATS, [(2.12, 1.5), (2.13, 0.6)]) == [[], []], "noise of an evaluation"
    assert told(NATS, [(2.12, 1.5), (2.9, 1.6)]) == [[], []], "training got worse as well: it diverges"
    assert told(NATS, [(2.12, 1.5), (2.0, 0.6), (1.9, 0.1)]) == [[], [], []]
    assert told(NATS, [(2.12, None), (2.9, 0.1)]) == [[], []]
    assert told(None, [(2.12, 1.5), (2.9, 0.1)]) == [[], []]
    assert told(PSNR, [(30.0, 0.1), (27.0, 0.12)]) == [[], []]


def test_a_tokenizers_training_loss_is_that_of_its_pixels() -> None:
    assert training_loss({"loss": -3.0, "loss_l1": 0.25, "loss_l2": 0.5, "loss_adversarial": -4.0}) == 0.75
    assert training_loss({"loss": 1.5, "loss_text": 9.0}) == 1.5
    assert training_loss({"images_per_second": 9.0}) is None
