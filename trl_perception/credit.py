"""Credit: token weights and signals of each group become part of the batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .batch import Group, MicroBatch
from .objectives import Penalty, TokenWeights
from .objectives.checks import refuse

Groups = Sequence[tuple[slice, Group]]  # with their rows


def validate_token_weights(group: Group, credit: TokenWeights | None) -> TokenWeights | None:
    """What `token_weights` returned, once it can be what it is taken for: another shape would be spread over the group, a
    negative weight would turn an advantage round.

    Errors: TypeError, ValueError with what was found and what is wanted. NaN is found in the loss.
    """
    if credit is None:
        return None
    wanted = tuple(group.completion_ids.shape)
    if not isinstance(credit, TokenWeights):
        raise TypeError(
            f"token_weights returned a {type(credit).__name__}; TokenWeights(weights {wanted}, metrics) is wanted, or None to "
            "leave the group alone."
        )
    if tuple(credit.weights.shape) != wanted:
        raise ValueError(
            f"token_weights returned weights of shape {tuple(credit.weights.shape)}; {wanted} is wanted, one for each "
            "completion and token."
        )
    refuse(
        credit.weights < 0,
        lambda: ValueError(
            f"token_weights returned {credit.weights.min().item():g}; weights of at least 0 are wanted. A term that "
            "penalises belongs into penalty()."
        ),
    )
    return credit


def shaped_rewards(group: Group, shaped: Tensor | None) -> Tensor:
    """The rewards (G,K) of a group after `shape_rewards`. Errors: ValueError for another shape, or an infinite reward."""
    rewards = torch.stack([*group.rewards.values()], dim=1)
    if shaped is None:
        return rewards

    def error(found: str) -> ValueError:
        return ValueError(
            f"shape_rewards returned {found}; finite rewards {tuple(rewards.shape)} are wanted, one for each completion and "
            "reward function, NaN where one does not apply."
        )

    if shaped.shape != rewards.shape:
        raise error(f"shape {tuple(shaped.shape)}")
    refuse(shaped.isinf(), lambda: error("an infinite reward"))
    return shaped.to(rewards)


def weigh_sequences(group: Group, credit: TokenWeights | None, factors: Tensor | None) -> TokenWeights | None:
    """Token weights (G,T) times the factors (G,) that `sequence_weights` returned.

    Errors: ValueError for another shape, or a factor below 0.
    """
    if factors is None:
        return credit

    def error(found: object) -> ValueError:
        return ValueError(
            f"sequence_weights returned {found}; weights {tuple(group.advantages.shape)} of at least 0 are wanted, one for each "
            "completion."
        )

    if factors.shape != group.advantages.shape:
        raise error(tuple(factors.shape))
    refuse(factors < 0, lambda: error(f"{factors.min().item():g}"))
    if credit is None:
        credit = TokenWeights(group.completion_mask.float())
    return replace(credit, weights=credit.weights * factors.to(credit.weights)[:, None])


def validate_penalty(penalty: Penalty) -> None:
    """Errors: TypeError where `penalty` returned something else than a Penalty with one number."""
    if isinstance(penalty, Penalty) and penalty.loss.dim() == 0:
        return
    is_one = isinstance(penalty, Penalty)
    found = f"a loss of shape {tuple(penalty.loss.shape)}" if is_one else type(penalty).__name__
    raise TypeError(f"penalty returned {found}; Penalty(loss, metrics) with a scalar is wanted, or None.")


def weigh_tokens(
    output: MicroBatch, groups: Groups, credits: Sequence[TokenWeights | None], *, drops_unweighted: bool
) -> None:
    """Multiply advantages by token weights: advantages (B,) become advantages[b] * weights[b,t], (B,T).

    Args:
        output: the rollout or the micro-batch, changed in place; it gets `token_weights` as well.
        credits: a group's weights (G,T) each; None leaves weight 1. Nothing changes where all are None.
        drops_unweighted: whether tokens of weight 0 leave the loss, with their KL term and their part of the denominator.
    """
    if all(credit is None for credit in credits):
        return
    weights = torch.ones_like(output["completion_ids"], dtype=torch.float32)
    for (rows, _), credit in zip(groups, credits, strict=True):
        if credit is not None:
            weights[rows] = credit.weights.to(weights)
    output["token_weights"] = weights
    output["advantages"] = output["advantages"].unsqueeze(1) * weights
    if drops_unweighted:
        output.keep_in_loss(weights > 0)


def attach_signals(output: MicroBatch, groups: Groups, signals: Callable[[Group], dict[str, Tensor]]) -> None:
    """Put each group's signals into the rollout: a list a name, so that rows of different shape travel together."""
    for rows, group in groups:
        for name, values in signals(group).items():
            output.setdefault(name, [None] * len(output["row"]))[rows] = list(values)


def host_values(metrics: Sequence[dict[str, float | Tensor]]) -> list[dict[str, float]]:
    """Metrics as numbers: the host waits once for all of them."""
    tensors = [value for of_one in metrics for value in of_one.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack([value.detach().double().reshape(()) for value in tensors]).tolist() if tensors else ())
    return [
        {key: next(numbers) if isinstance(value, Tensor) else float(value) for key, value in of_one.items()}
        for of_one in metrics
    ]


def averaged_credit(trainer: str, loss_type: str, importance_sampling_level: str) -> str | None:
    """Returns a warning where a completion has one importance ratio, or None.

    The gradient of each of its tokens then has the mean of their weights, so that weights of mean 1 do nothing. Losses of
    log-probabilities (cispo, vespo) weigh tokens beside that ratio.
    """
    if importance_sampling_level != "sequence" or loss_type in ("cispo", "vespo"):
        return None
    return (
        f"importance_sampling_level is 'sequence' and loss_type {loss_type!r}: a completion's tokens share one ratio, and of the "
        f"token weights of {trainer} the gradient has their mean over the completion alone. For credit to tokens set "
        "importance_sampling_level='token', or loss_type 'cispo' or 'vespo'."
    )
