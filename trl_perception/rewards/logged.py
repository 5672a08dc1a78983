"""Restricts the names under which a reward function may log."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

LOGS = ("log_extra", "log_metric")  # the arguments through which TRL lets a reward function log

# Names that TRL and transformers log, and the columns of TRL's table of completions.
RESERVED = frozenset(
    [
        "reward",
        "reward_std",
        "rewards",
        "frac_reward_zero_std",
        "loss",
        "policy_loss",
        "aux_loss",
        "kl",
        "entropy",
        "entropy_coef",
        "cispo_clip_ratio",
        "grad_norm",
        "learning_rate",
        "epoch",
        "step",
        "step_time",
        "num_tokens",
        "num_input_tokens_seen",
        "total_flos",
        "prompt",
        "completion",
        "completion_ids",
        "advantage",
        "advantages",
        "image",
        "images",
        "extra",
    ]
)
RESERVED_PREFIXES = (
    *("completions/", "clip_ratio/", "rewards/", "sampling/", "tools/", "vespo/", "profiling/", "eval_", "train_"),
    *("rewards_by_type/", "media/", "nonfinite/", "dynamic_sampling/", "frames/"),
    *("appo/", "attn_distill/", "ktr/", "pgpo/", "ral/"),
)


def with_free_names(arguments: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Return a reward function's arguments with `log_extra` and `log_metric` that reject names in use.

    Under a reserved name TRL would mix the values with its own, or replace a column of its table.

    Args: taken: more names to reject, those of the reward functions.
    """
    return {key: _guarded(key, value, taken) if key in LOGS else value for key, value in arguments.items()}


def silent(log: Callable) -> Callable:
    """Return a logging function that rejects the same names and writes nothing."""
    refuse = getattr(log, "refuse", lambda _: None)
    return lambda *args, **kwargs: refuse(_name(*args, **kwargs))


def _name(*args: Any, name: Any = None, column: Any = None, **_: Any) -> Any:
    """Return the name from the arguments of `log_metric(name, value)` or `log_extra(column, values)`."""
    return args[0] if args else column if name is None else name


def _guarded(which: str, log: Callable, taken: Collection[str]) -> Callable:
    def refuse(name: str) -> None:
        if name in RESERVED or name in taken or str(name).startswith(RESERVED_PREFIXES):
            raise ValueError(
                f"{which} was called with the name {name!r}, which the trainer uses itself. Choose another, such as "
                f"'my_{name}'."
            )

    def guarded(*args: Any, **kwargs: Any) -> None:
        refuse(_name(*args, **kwargs))
        log(*args, **kwargs)

    guarded.refuse = refuse
    return guarded
