"""A clock that goes on when it is told to: rates and shares of time can be asserted on a busy machine too."""


class FakeClock:
    """Stands for `time.perf_counter`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        """Stands for `time.sleep`."""
        self.seconds += seconds
