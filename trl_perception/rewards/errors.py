"""The error of a reward function."""


class RewardError(RuntimeError):
    """A reward function raised an exception, which is this error's `__cause__`, or exceeded its timeout."""
