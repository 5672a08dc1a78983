"""VPPO: credit for the tokens, and the completions, that depend on the media."""

import textwrap
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..batch import Group, MicroBatch
from ..objectives import (
    Penalty,
    TokenWeights,
    entropy_penalty,
    mean_dependency,
    visual_dependency,
    vppo_sequence_weights,
    vppo_token_weights,
)
from .grpo_video_trainer import GRPOVideoTrainer
from .papo_trainer import masked_view
from .policy_reader import PolicyReads
from .vppo_config import VPPOConfig


class VPPOTrainer(GRPOVideoTrainer):
    """Visually-Perceptive Policy Optimization (arXiv:2510.09285) on [`GRPOVideoTrainer`].

    The group is scored with its media (by the update's own forward where it follows the rollout directly) and with random
    patches of them in black. The tokens that differ most keep their advantage, times a factor of their completion. A prompt
    without media keeps weight 1. With `statistics="global"` the factors need the whole rollout, and so a forward of its own.

    Metrics: `vppo/...` of [`vppo_token_weights`] and [`entropy_penalty`].
    Source: arXiv:2510.09285; release huaixuheqing/VPPO-RL a23c54b. Differs: see [`vppo_sequence_weights`].
    """

    _tag_names = ["trl", "vppo", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "VPPO"
    _paper = {  # noqa: RUF012
        "title": "Spotlight on Token Perception for Multimodal Reinforcement Learning",
        "id": "2510.09285",
        "citation": textwrap.dedent("""\
            @inproceedings{huang2026vppo,
                title     = {{Spotlight on Token Perception for Multimodal Reinforcement Learning}},
                author    = {Siyuan Huang and Xiaoye Qu and Yafu Li and Yun Luo and Zefeng He and Daizong Liu
                             and Yu Cheng},
                booktitle = {International Conference on Learning Representations},
                year      = 2026,
                eprint    = {arXiv:2510.09285},
            }"""),
    }
    method = "vppo"
    config_class = VPPOConfig
    reinforces = (
        "Only the tokens that change most when patches of the media are hidden learn, and more so in completions that depend "
        "more on the media."
    )

    def setup_method(self) -> None:
        self._weighs = self.args.keep_ratio < 1 or self.args.sequence_factor
        self._scores: WeakKeyDictionary[Group, Tensor] = WeakKeyDictionary()  # (G,) of each group
        self._factors: WeakKeyDictionary[Group, Tensor] = WeakKeyDictionary()
        in_groups = self.args.statistics == "group" or not self.args.sequence_factor
        self.policy_reads = PolicyReads() if in_groups else None

    def token_weights(self, group: Group) -> TokenWeights | None:
        view = masked_view(self, group) if self._weighs else None
        if view is None:
            return None
        dependency = visual_dependency(self.score(group)[0], self.score(group, view)[0])
        self.log_signal(group, "visual_dependency", dependency)
        self._scores[group] = mean_dependency(dependency, group.completion_mask)
        return vppo_token_weights(dependency, group.completion_mask, keep_ratio=self.args.keep_ratio)

    def gather_statistics(self, groups: Sequence[Group]) -> None:
        if not self.args.sequence_factor:
            return
        scored = [group for group in groups if group in self._scores]
        own = [self._scores[group] for group in scored]
        if self.args.statistics == "group":
            factors = [vppo_sequence_weights(scores, floor=self.args.factor_floor) for scores in own]
        else:
            everyone = gather_object([[scores.tolist() for scores in own]])  # lists of each process
            together = [torch.tensor(scores) for of_one in everyone for scores in of_one]
            whole = vppo_sequence_weights(torch.cat([torch.empty(0), *together]), floor=self.args.factor_floor)
            before = sum(len(of_one) for of_one in everyone[: self.accelerator.process_index])
            factors = whole.split([len(scores) for scores in together])[before : before + len(own)]
        self._factors.update(zip(scored, factors, strict=True))

    def sequence_weights(self, group: Group) -> Tensor | None:
        return self._factors.get(group)

    def penalty(self, inputs: MicroBatch) -> Penalty | None:
        weight = self.args.entropy_penalty
        if not weight or not self.model.training:
            return None
        tokens = inputs["tokens_per_micro_batch"]
        return entropy_penalty(inputs["logps"], inputs.loss_mask, weight=weight, num_tokens=tokens)
