"""Are the engine's log-probs those of the policy? What a wrong prompt, wrong weights or another type would show in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate.logging import get_logger
from torch import Tensor
from trl import GRPOConfig

from ..batch import MicroBatch

logger = get_logger(__name__)

# |log p of the engine - log p of the policy| of one token, past which a run stops. Rounding in float32 is 1e-5, and 4e-4 with
# placeholders suppressed; in half precision single tokens are off by some tenths.
TOLERANCES = {torch.float32: 0.1, torch.float64: 0.1}
HALF_TOLERANCE = 4.0
WARNS_FROM = 0.25  # of the tolerance
CAUSES = (
    "Likely causes, in their order: weights that the engine does not have (another model or revision), another dtype than the "
    "trainer's, options in generation_kwargs that change probabilities, a vLLM outside the versions that docs/vllm.md names"
)


@dataclass(frozen=True)
class LogProbCheck:
    """Compares log-probs of sampling with the policy's.

    Args:
        tolerance: largest difference of a token. decode: token ids -> text.
    """

    tolerance: float
    decode: Callable[[list[int]], str]

    def __call__(self, batch: MicroBatch, policys: Tensor, samples: Sequence[str]) -> None:
        """Warn of a difference of a quarter of the tolerance, and stop past it.

        Args:
            batch: with `sampling_per_token_logps` (B,T), NaN where the engine gave none.
            policys: (B,T) log-probs of the policy that sampled. samples: names of B rows.
        Errors: RuntimeError with the sample, the token, both values and the likely causes.
        """
        engines = batch["sampling_per_token_logps"]
        difference = ((engines - policys).abs() * batch.loss_mask).nan_to_num(0.0)
        worst = int(difference.argmax()) if difference.numel() else 0
        if not difference.numel() or difference.flatten()[worst] <= WARNS_FROM * self.tolerance:
            return
        row, token = divmod(worst, difference.size(1))
        found = (
            f"{samples[row]}: token {token} of its completion ({self.decode([int(batch['completion_ids'][row, token])])!r}) has "
            f"log-prob {engines[row, token]:.4g} in the engine and {policys[row, token]:.4g} in the policy. {CAUSES}."
        )
        if difference.flatten()[worst] > self.tolerance:
            raise RuntimeError(
                f"{found} The difference is past engine_logp_tolerance {self.tolerance:g}; raise it only where the cause is known."
            )
        logger.warning(found)


def forward_dtype(settings: GRPOConfig, weights: torch.dtype) -> torch.dtype:
    """Return the type of the trainer's forwards; `weights`: that of the policy's weights."""
    return torch.bfloat16 if settings.bf16 else torch.float16 if settings.fp16 else weights


def log_prob_check(settings: GRPOConfig, weights: torch.dtype, decode: Callable[[list[int]], str]) -> LogProbCheck:
    """Return the check with `engine_logp_tolerance`, or what fits the type of the forwards where it is None."""
    given = settings.engine_logp_tolerance
    fits = TOLERANCES.get(forward_dtype(settings, weights), HALF_TOLERANCE)
    return LogProbCheck(fits if given is None else given, decode)
