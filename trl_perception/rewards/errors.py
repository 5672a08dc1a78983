"""What goes wrong in a reward function."""


class RewardError(RuntimeError):
    """A reward function raised, or did not return in time. What it raised is the cause of this error."""
