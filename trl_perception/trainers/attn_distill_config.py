"""Configuration of On-Policy Attention Distillation."""

from dataclasses import dataclass
from typing import Any

from ..options import documented, require_choice, require_positive, require_range
from .ral_config import AttentionPolicyConfig


@documented
@dataclass
class AttnDistillConfig(AttentionPolicyConfig):
    """
    Configuration of [`AttnDistillTrainer`]: every field of [`AttentionPolicyConfig`], and the following. Defaults are the
    paper's (arXiv:2602.04884) where it gives any. Neutral (GRPO): `gkd_weight=0`, `attn_distill_weight=0`.

    Parameters:
        teacher_model_name_or_path (`str`, *optional*):
            The teacher: name, path or an embedded model. `None` with an adapter takes the policy's base model.
        teacher_model_revision (`str`, *optional*):
            Its revision on the Hub.
        teacher_model_init_kwargs (`dict`, *optional*):
            Keyword arguments of its `from_pretrained` (`dtype`, `attn_implementation`, `device_map`, ...).
        teacher_load_in_4bit, teacher_load_in_8bit (`bool`, *optional*, defaults to `False`):
            Load the teacher quantised, with bitsandbytes.
        grpo_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the GRPO loss with its KL term. 0 is pure distillation. An entropy bonus (`entropy_coef`) and the
            auxiliary loss of experts keep their own coefficients.
        gkd_weight (`float`, *optional*, defaults to `1.0`):
            mu, weight of the divergence of next-token distributions.
        gkd_mix (`float`, *optional*, defaults to `1.0`):
            0 forward KL(teacher || student), 1 reverse KL(student || teacher), between generalised JSD.
        gkd_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of both distributions in that divergence.
        attn_distill_weight (`float`, *optional*, defaults to `0.5`):
            gamma, weight of the attention term.
        attn_reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` over the tokens of the optimisation step, or the paper's `"sum"` over the tokens of a completion, averaged
            over the completions of the step.
    """

    teacher_model_name_or_path: str | None = None
    teacher_model_revision: str | None = None
    teacher_model_init_kwargs: dict[str, Any] | str | None = None
    teacher_load_in_4bit: bool = False
    teacher_load_in_8bit: bool = False
    grpo_weight: float = 1.0
    gkd_weight: float = 1.0
    gkd_mix: float = 1.0
    gkd_temperature: float = 1.0
    attn_distill_weight: float = 0.5
    attn_reduction: str = "mean"

    _VALID_DICT_FIELDS = [*AttentionPolicyConfig._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]  # noqa: RUF012

    def __post_init__(self):
        super().__post_init__()
        for name in ("grpo_weight", "gkd_weight", "attn_distill_weight"):
            require_range(self, name, 0.0, None)
        require_range(self, "gkd_mix", 0.0, 1.0)
        require_positive(self, "gkd_temperature")
        require_choice(self, "attn_reduction", ("mean", "sum"))
        if self.grpo_weight == self.gkd_weight == self.attn_distill_weight == 0:
            raise ValueError("grpo_weight, gkd_weight and attn_distill_weight are all 0: nothing would be learned.")
        if self.teacher_load_in_4bit and self.teacher_load_in_8bit:
            raise ValueError("teacher_load_in_4bit and teacher_load_in_8bit are both set. Choose one.")
