"""Configuration of RAL and of what it shares with attention distillation."""

from dataclasses import dataclass

from ..options import documented, require_choice, require_positive, require_range
from .grpo_video_config import GRPOVideoConfig


@documented
@dataclass
class AttentionPolicyConfig(GRPOVideoConfig):
    """
    What an attention policy reads: every field of [`GRPOVideoConfig`], and the following.

    Parameters:
        attn_layers (`int`, *optional*, defaults to `1`):
            Last full-attention layers whose rows are averaged. The paper reads the last one.
        attn_query (`str`, *optional*, defaults to `"token"`):
            Whose row: the completion `"token"`'s own, or its `"predictor"`'s, the position before it.
        attn_keys (`str`, *optional*, defaults to `"all"`):
            Over which keys a row is renormalised: `"all"` earlier ones, or the prompt's `"visual"` ones.
        attn_rows_dtype (`str`, *optional*, defaults to `"float32"`):
            Number format in which the rows that the term compares with, (G,T,P+T), wait for their updates: `"float32"` is
            exact, `"float16"` half as large (see docs/performance.md). Above 64 MiB a prompt they wait in host memory.
    """

    attn_layers: int = 1
    attn_query: str = "token"
    attn_keys: str = "all"
    attn_rows_dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "attn_layers")
        require_choice(self, "attn_query", ("token", "predictor"))
        require_choice(self, "attn_keys", ("all", "visual"))
        require_choice(self, "attn_rows_dtype", ("float32", "float16"))

    @property
    def attn_rows(self) -> dict[str, str]:
        """Which rows over which keys, as keyword arguments."""
        return {"query": self.attn_query, "keys": self.attn_keys}


@documented
@dataclass
class RALConfig(AttentionPolicyConfig):
    """
    Configuration of [`RALTrainer`]: every field of [`AttentionPolicyConfig`], and the following. Defaults are the paper's
    (arXiv:2602.04884).

    Parameters:
        attn_weight (`float`, *optional*, defaults to `1.0`):
            lambda, weight of the attention term. 0 is GRPO.
        attn_reference (`str`, *optional*, defaults to `"old"`):
            Attention that the term compares with: the policy's at rollout time (`"old"`), or the reference model's
            (`"ref"`), which acts from the first update.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            TRL's setting, on by default here: the term compares two forwards of one model, and would measure dropout.
    """

    attn_weight: float = 1.0
    attn_reference: str = "old"
    disable_dropout: bool = True

    def __post_init__(self):
        super().__post_init__()
        require_range(self, "attn_weight", 0.0, None)
        require_choice(self, "attn_reference", ("old", "ref"))
        accumulation, spread = self.gradient_accumulation_steps, self.steps_per_generation
        never_stale = accumulation % (spread * self.num_iterations) == 0
        if self.attn_weight > 0 and self.attn_reference == "old" and never_stale:
            raise ValueError(
                "RAL's term is zero while the policy is the one that sampled, and with this schedule it always is "
                f"(num_iterations {self.num_iterations}, steps_per_generation {spread}, gradient_accumulation_steps "
                f"{accumulation}): the term could never act. Set num_iterations to 2 or more, or steps_per_generation "
                "above gradient_accumulation_steps (or attn_reference='ref')."
            )
