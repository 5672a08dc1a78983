"""TW-GRPO: more credit at the positions where the completions of a group disagree about what comes next."""

import textwrap

from torch import Tensor

from ..batch import Group
from ..modeling import log_probs
from ..objectives import TokenWeights, tw_token_weights
from .grpo_video_trainer import GRPOVideoTrainer
from .policy_reader import PolicyReads
from .tw_grpo_config import TWGRPOConfig


class TWGRPOTrainer(GRPOVideoTrainer):
    """Token-weighted GRPO (arXiv:2505.24718) on [`GRPOVideoTrainer`].

    One forward of the policy that sampled, the update's own where it follows the rollout directly, gives the next-token
    distributions of the group, which `tw_token_weights` compares position by position. It reads no media, so that prompts
    of every kind are weighted. The paper's multi-level reward is `accuracy(partial_credit=True)`.

    Metrics: `tw_grpo/...` of [`tw_token_weights`].
    Source: arXiv:2505.24718; release longmalongma/TW-GRPO aa529ff.
    """

    _tag_names = ["trl", "tw-grpo", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "TW-GRPO"
    _paper = {  # noqa: RUF012
        "title": "Reinforcing Video Reasoning with Focused Thinking",
        "id": "2505.24718",
        "citation": textwrap.dedent("""\
            @article{dang2025twgrpo,
                title     = {{Reinforcing Video Reasoning with Focused Thinking}},
                author    = {Jisheng Dang and Jingze Wu and Teng Wang and Xuanhui Lin and Nannan Zhu and
                             Hongbo Chen and Wei-Shi Zheng and Meng Wang and Tat-Seng Chua},
                year      = 2025,
                eprint    = {arXiv:2505.24718},
            }"""),
    }
    method = "tw_grpo"
    config_class = TWGRPOConfig
    reinforces = (
        "Credit grows on the positions where the completions of a group disagree most about what comes next, for all of them "
        "alike; every other token keeps weight 1."
    )

    def setup_method(self) -> None:
        self.policy_reads = PolicyReads(states=True)

    def token_weights(self, group: Group) -> TokenWeights | None:
        if self.args.alpha == 1:
            return None
        states = self.read(group, states=True).states
        head = self.head_of(self.model)

        def log_probs_at(g_index: Tensor, t_index: Tensor) -> Tensor:
            return log_probs(head, states[g_index, t_index], self.temperature)

        return tw_token_weights(group.completion_mask, log_probs_at, alpha=self.args.alpha, padding=self.args.padding)
