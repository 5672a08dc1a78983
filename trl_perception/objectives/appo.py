"""APPO: find the frames that good completions look at, then lift the tokens on which completions disagree."""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import (
    check_choice,
    check_count,
    check_finite,
    check_float,
    check_mask,
    check_range,
    check_shape,
    working_dtype,
)
from .masked import masked_mean, masked_min_max, masked_top
from .rank_divergence import rank_divergences
from .results import TokenWeights

STRATEGIES = ("hard", "soft", "all", "soft_or_all")
ROUNDING = 1e-6  # relative; divergences closer than this differ by rounding only


class FramesIrrelevantWarning(UserWarning):
    """tokens_per_frame covers every token, so that the choice of frames no longer decides anything."""


@functools.cache  # once a run: by itself Python repeats a warning whenever another library touches the filters
def _warn_frames_irrelevant(tokens_per_frame: int) -> None:
    warnings.warn(
        f"tokens_per_frame={tokens_per_frame} covers whole completions: every token is a perception token and the "
        "frames decide nothing. Lower tokens_per_frame, or let completions be longer.",
        FramesIrrelevantWarning,
        stacklevel=4,
    )


@torch.no_grad()
def select_frames(
    frame_attention: Tensor,
    rewards: Tensor,
    completion_mask: Tensor,
    *,
    top_tokens: int,
    top_frames: int,
    reward_threshold: float,
    strategy: str,
) -> Tensor:
    """Select frames from the attention of completions with high and with low reward.

    Attn(o_i,f) = mean of the K1 largest A[i,j,f] over valid tokens j
    psi(i)      = the K2 frames with the largest Attn(o_i,f), ties to the earlier frame
    S1 = {i : r_i >= tau},  S2 = {i : r_i < tau};   psi_S1, psi_S2 = unions of psi(i) over them
    "hard": psi_S1 \\ psi_S2        "soft": psi_S1        "all": psi_S1 U psi_S2
    "soft_or_all": psi_S1, or psi_S2 where S1 is empty

    S1 empty gives no frame for hard and soft; S2 empty gives hard = psi_S1. A completion without tokens has no psi.

    Args:
        frame_attention: (G,T,F) A, attention from token j to frame f, >= 0, anything on padding.
        rewards: (G,) accuracy reward alone, unscaled.
        completion_mask: (G,T) bool, True on completion tokens.
        top_tokens: K1 >= 1, clamped to each completion's length.
        top_frames: K2 >= 1, clamped to F.
        reward_threshold: tau.
        strategy: "hard", "soft", "all" or "soft_or_all".
    Returns: (F,) bool.
    Errors: ValueError for wrong shapes or settings, or a reward or valid attention that is not finite.
    Source: arXiv:2602.23823, frame selection. Differs: the release (GeWu-Lab/APPO 9225180) has no set difference; its
        names are "hard" for soft, "soft" for soft_or_all and "force-all" for all; its S1 is r_i > 0, which is a tau of
        the smallest positive number.
    """
    valid = _check_group(frame_attention, rewards, completion_mask)
    check_count("top_tokens", top_tokens)
    check_count("top_frames", top_frames)
    check_choice("strategy", strategy, STRATEGIES)

    attention = frame_attention.to(working_dtype(frame_attention)).transpose(1, 2)  # (G,F,T)
    on_frames = valid.unsqueeze(1).expand_as(attention)
    looked = masked_mean(attention, masked_top(attention, on_frames, top_tokens), dim=-1)  # (G,F)
    chosen = masked_top(looked, valid.any(-1, keepdim=True).expand_as(looked), top_frames)
    high = rewards >= reward_threshold
    by_high, by_low = ((chosen & of_set[:, None]).any(0) for of_set in (high, ~high))
    if strategy == "soft_or_all":
        return torch.where(by_high.any(), by_high, by_low)
    return {"hard": by_high & ~by_low, "soft": by_high, "all": by_high | by_low}[strategy]


@torch.no_grad()
def appo_token_weights(
    frame_attention: Tensor,
    rewards: Tensor,
    completion_mask: Tensor,
    log_probs_at: Callable[[Tensor, Tensor], Tensor],
    *,
    top_tokens: int = 15,
    top_frames: int = 3,
    tokens_per_frame: int = 64,
    reward_threshold: float = 0.5,
    strategy: str = "soft",
    alpha: float = 0.7,
    divergence: str = "kl",
    normalizer: str = "groups",
    missing_ranks: str = "skip",
) -> TokenWeights:
    """Token weights of APPO: above 1 for perception tokens of the selected frames, largest where completions disagree.

    For each selected frame k, completion i holds its K3 valid tokens with the largest A[i,j,k], ranked n = 0.. by
    position. Rank n of frame k is compared across the completions i that have one:
        m       = mean_i p[i],  D[k,n] = mean_i KL(p[i] || m)                                  nats, 0 <= D <= ln G
        d[k,n]  = min-max of D[k,:] over its ranks, 0 where they are all equal (up to rounding: 1e-6 relative)
        w[i,j]  = 1 + alpha * mean of d[k,n] over the (k,n) that contain token (i,j);          1 where none does
    A rank that fewer than two completions have gets D = d = 0 and is left out of the min-max.
    No frame selected: every weight is 1. Neutral: `alpha=0`, and `tokens_per_frame=1`, whose only rank has d = 0.

    The weight is >= 1 for every reward: it enlarges positive and negative advantages.

    Args:
        frame_attention: (G,T,F) A[i,j,f], >= 0, anything on padding; the row that PREDICTS token j, one group of
            completions of one prompt.
        rewards: (G,) accuracy reward alone, unscaled; it enters through the choice of frames only.
        completion_mask: (G,T) bool, True on completion tokens.
        log_probs_at: (g_index (M,), t_index (M,)) -> (M,N) log-probabilities, -inf allowed, of the policy that
            sampled. Asked once for each token that is needed, for at most 64 tokens a call. How often depends on the
            data, so it must not communicate between processes: gather the head before. A row is held from the first to
            the last comparison that reads it, in the dtype it came in.
        top_tokens, top_frames, reward_threshold, strategy: K1, K2, tau and the choice of frames, see `select_frames`.
        tokens_per_frame: K3 >= 1. At or above the longest completion every token is a perception token, so that the
            selected frames have no effect: FramesIrrelevantWarning, once per run.
        alpha: largest extra weight, >= 0.
        divergence: "kl" as above, or "release": with c = clamp(mean_i ln p[i] - ln p[i], -11, 11),
            D = mean_i sum_v (exp(c) - c - 1), which is no KL and follows the noise of the tail.
        normalizer: "groups" divides by the number of (k,n) that contain the token, "frames" by that of selected frames.
        missing_ranks: a completion of fewer than n tokens has no rank n. "skip" compares the others, as above; "uniform"
            (release) gives it the uniform distribution 1/N there, so that every rank is compared over all G completions.
    Returns: weights (G,T) float32, >= 1, detached, 0 on padding. Metrics: appo/weight_mean, appo/weight_max,
        appo/perception_frac (share of valid tokens in some frame's K3), appo/frames_selected (how many),
        appo/no_frame (1 where none is selected), appo/high_reward_frac (share of S1), appo/divergence_mean and
        appo/divergence_max (of D over compared ranks).
    Errors: ValueError for wrong shapes or settings, for a reward, valid attention or divergence that is not finite.
    Source: arXiv:2602.23823; release GeWu-Lab/APPO 9225180. Differs: alpha is 0.7 where the paper prints 1.7, the
        release's maximum weight; the paper's 1/K is `normalizer="frames"`; missing ranks are skipped (the release's
        "uniform" inflates D there). Not reproduced: the release multiplies the loss by weights with gradient, which adds
        -A[i] grad w[i,j] to the gradient of each token; here weights are detached. The two agree where all completions
        have the rank, for d[k,n] is shared and a group's advantages sum to zero. It rounds weights to bfloat16.
    """
    frames = select_frames(
        frame_attention,
        rewards,
        completion_mask,
        top_tokens=top_tokens,
        top_frames=top_frames,
        reward_threshold=reward_threshold,
        strategy=strategy,
    )
    return weights_of_frames(
        frame_attention,
        rewards,
        completion_mask,
        log_probs_at,
        frames,
        tokens_per_frame=tokens_per_frame,
        reward_threshold=reward_threshold,
        alpha=alpha,
        divergence=divergence,
        normalizer=normalizer,
        missing_ranks=missing_ranks,
    )


@torch.no_grad()
def weights_of_frames(
    frame_attention: Tensor,
    rewards: Tensor,
    completion_mask: Tensor,
    log_probs_at: Callable[[Tensor, Tensor], Tensor],
    frames: Tensor,
    *,
    tokens_per_frame: int,
    reward_threshold: float,
    alpha: float,
    divergence: str,
    normalizer: str,
    missing_ranks: str,
) -> TokenWeights:
    """[`appo_token_weights`] for frames that are selected already. Args: frames: (F,) bool; the others as there."""
    valid = _check_group(frame_attention, rewards, completion_mask)
    frames = check_mask("frames", frames, "F", frame_attention.shape[2:])
    check_count("tokens_per_frame", tokens_per_frame)
    check_range("alpha", alpha, 0.0)
    check_choice("divergence", divergence, ("kl", "release"))
    check_choice("normalizer", normalizer, ("groups", "frames"))
    check_choice("missing_ranks", missing_ranks, ("skip", "uniform"))
    longest = int(valid.sum(-1).max()) if valid.numel() else 0
    if 0 < longest <= tokens_per_frame:
        _warn_frames_irrelevant(tokens_per_frame)

    attention = frame_attention.to(working_dtype(frame_attention)).permute(2, 0, 1)  # (F,G,T)
    # The other frames stay, without a token, so that no shape depends on values.
    on_chosen = valid & frames[:, None, None]
    perception = masked_top(attention, on_chosen, tokens_per_frame)
    rank = perception.cumsum(-1) - 1  # n of each perception token
    disagreement, compared = rank_divergences(perception, rank, log_probs_at, divergence, missing_ranks)  # (K,R)
    credit = _rescale(disagreement, compared)  # d

    ranks = credit.shape[1]
    token_credit = credit.unsqueeze(1).expand(-1, valid.shape[0], -1).gather(-1, rank.clamp(0, ranks - 1))
    contained = perception.sum(0) if normalizer == "groups" else frames.sum()
    mean_credit = torch.where(perception, token_credit, 0.0).sum(0) / contained.clamp(min=1)
    weights = torch.where(valid, 1 + alpha * mean_credit, 0.0).float()

    metrics = {
        "appo/weight_mean": masked_mean(weights, valid),
        "appo/weight_max": weights.max() if weights.numel() else weights.sum(),
        "appo/perception_frac": masked_mean(perception.any(0).float(), valid),
        "appo/frames_selected": frames.sum().float(),
        "appo/no_frame": (~frames.any()).float(),
        "appo/high_reward_frac": masked_mean((rewards >= reward_threshold).float(), valid.any(-1)),
        "appo/divergence_mean": masked_mean(disagreement, compared),
        "appo/divergence_max": disagreement.max() if disagreement.numel() else disagreement.sum(),
    }
    return TokenWeights(weights, metrics)


def _check_group(frame_attention: Tensor, rewards: Tensor, completion_mask: Tensor) -> Tensor:
    """Refuse what is not one group of completions; the completion mask as bool."""
    check_float("frame_attention", frame_attention, "GTF")
    valid = check_mask("completion_mask", completion_mask, "GT", like=frame_attention.shape[:2])
    check_shape("rewards", rewards, "G", like=frame_attention.shape[:1])
    check_finite("rewards", rewards, valid.any(-1))
    check_finite("frame_attention", frame_attention, valid.unsqueeze(-1))
    return valid


def _rescale(disagreement: Tensor, compared: Tensor) -> Tensor:
    """d[k,n]: min-max of each frame's compared ranks, 0 elsewhere and where they differ by rounding only."""
    low, high = masked_min_max(disagreement, compared)
    differ = high - low > ROUNDING * high.clamp(min=1)
    scaled = (disagreement - low) / torch.where(differ, high - low, 1.0)
    return torch.where(differ & compared, scaled, 0.0)
