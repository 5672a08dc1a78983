"""Credit: when a method's token weights are asked for, from which forward, and how they reach the advantages."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from ..batch import Group
from ..objectives import Penalty, TokenWeights
from .policy_reader import CachedForward, PolicyReads, detached


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
    if (credit.weights < 0).any():
        raise ValueError(
            f"token_weights returned {credit.weights.min().item():g}; weights of at least 0 are wanted. What shall be "
            "penalised is a term of penalty()."
        )
    return credit


def validate_penalty(penalty: Penalty) -> None:
    """Errors: TypeError where `penalty` returned something else than a Penalty with one number."""
    if isinstance(penalty, Penalty) and penalty.loss.dim() == 0:
        return
    is_one = isinstance(penalty, Penalty)
    found = f"a loss of shape {tuple(penalty.loss.shape)}" if is_one else type(penalty).__name__
    raise TypeError(f"penalty returned {found}; Penalty(loss, metrics) with a scalar is wanted, or None.")


class Crediting(GRPOTrainer):
    """The way of the token weights and signals of [`GRPOVideoTrainer`]'s hooks into TRL's batch.

    After the rollout, or, where the forward of the update serves what a method reads, in the middle of that update.
    """

    policy_reads: PolicyReads | None = None
    loss_counts_weighted_tokens_only = False

    def _apply_token_weights(self, groups: list[tuple[slice, Group]], output: dict[str, Any]) -> None:
        """Multiply advantages (B,) by the weights of each group, where a subclass gives any: (B,T)."""
        with torch.no_grad(), self._collectives.section():
            credited = [
                (rows, group, validate_token_weights(group, self.token_weights(group))) for rows, group in groups
            ]
        self._show([(group, credit) for _, group, credit in credited])
        credited = [(rows, group, credit) for rows, group, credit in credited if credit is not None]
        self._record([credit.metrics for *_, credit in credited])
        if not credited:
            return
        weights = torch.ones_like(output["completion_ids"], dtype=torch.float32)
        for rows, group, credit in credited:
            weights[rows] = credit.weights.to(weights)
            self.log_signal(group, "token_weights", credit.weights)
        output["token_weights"] = weights
        output["advantages"] = output["advantages"].unsqueeze(1) * weights
        if self.loss_counts_weighted_tokens_only:
            # TRL's own mask for tokens outside the loss: it takes their KL and their place in the denominator with them.
            output["tool_mask"] = output.get("tool_mask", 1) * (weights > 0).long()

    def _update_serves_credit(self, output: dict[str, Any]) -> bool:
        """Whether the forward of the update is the rollout policy's and sees whole groups, so that credit can wait for it.

        Tokens that leave the loss altogether do so before it begins. With dropout its values are not those of any view.
        """
        return (
            self.policy_reads is not None
            and self._prepares_prompts
            and "old_per_token_logps" not in output
            and not self._drops_out
            and not self.loss_counts_weighted_tokens_only
            and self.args.per_device_train_batch_size % self.num_generations == 0
        )

    def _old_policy_forward(self, groups: list[tuple[slice, Group]], output: dict[str, Any]) -> CachedForward | None:
        """The forward in which TRL scored the policy that sampled, where it made one."""
        scored = self._rollout.scored
        if scored is None or self._drops_out or "old_per_token_logps" not in output:
            return None
        return CachedForward({id(group): rows for rows, group in groups}, *scored)

    @contextmanager
    def _reading_from(self, forward: CachedForward | None) -> Iterator[None]:
        self._cached_forward = forward
        try:
            yield
        finally:
            self._cached_forward = None

    def _give_credit(self, inputs: dict[str, Any], logps: Tensor, entropies: Tensor | None) -> None:
        """Apply token weights inside the forward of an update, between the policy's pass and the loss made of it.

        The groups are then taken out of `inputs`: a micro-batch that comes again within the step has its credit.
        """
        caught = {name: tap.take()[-1] for name, tap in self._credit_taps.items()}
        if "attention" in caught:
            caught["attention"] = detached(*caught["attention"])
        starts = range(0, len(logps), self.num_generations)
        of_rows = inputs.pop("group")
        groups = [(slice(start, start + self.num_generations), of_rows[start]) for start in starts]
        groups = [(rows, group) for rows, group in groups if group is not None]
        rows_of = {id(group): rows for rows, group in groups}
        with self._reading_from(CachedForward(rows_of, logps.detach(), entropies.detach(), **caught)):
            self._apply_token_weights(groups, inputs)

    def _attach_signals(self, groups: list[tuple[slice, Group]], output: dict[str, Any]) -> None:
        """Put the rows' signals into the output: a list a name, so that rows of different shape travel together."""
        with torch.no_grad(), self._collectives.section():
            for rows, group in groups:
                for name, values in self.rollout_signals(group).items():
                    output.setdefault(name, [None] * len(output["row"]))[rows] = list(values)
