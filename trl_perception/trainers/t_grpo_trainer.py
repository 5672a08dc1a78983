"""T-GRPO: correct answers earn more where they are likelier with the frames in order than out of order."""

import textwrap

import torch
from torch import Tensor

from ..batch import Group
from ..media import PreparedPrompt
from ..objectives import t_grpo_bonus
from ..views import View, frames_shuffled, seeded
from .grpo_video_trainer import GRPOVideoTrainer
from .rewards import name_of_accuracy
from .t_grpo_config import TGRPOConfig


class TGRPOTrainer(GRPOVideoTrainer):
    """Temporal GRPO of Video-R1 (arXiv:2503.21776) on [`GRPOVideoTrainer`].

    For each prompt with a video of two temporal cells or more, a second and smaller group is sampled on its frames in random
    order. It is scored by the same rewards and not trained on; `t_grpo_bonus` compares the accuracies. Other prompts get no
    bonus. The paper's length bonus is the reward `length_window`.

    Metrics: `t_grpo/ordered_accuracy`, `t_grpo/shuffled_accuracy`, `t_grpo/bonus_frac` (completions with the bonus), over the
        prompts with a second group. The logged accuracy reward contains the bonus.
    Source: arXiv:2503.21776; release tulerfeng/Video-R1 59d65c3. Differs: the random order is never the order itself.
    Errors: ValueError where it is not clear which reward is the accuracy.
    """

    _tag_names = ["trl", "t-grpo", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "T-GRPO"
    _paper = {  # noqa: RUF012
        "title": "Video-R1: Reinforcing Video Reasoning in MLLMs",
        "id": "2503.21776",
        "citation": textwrap.dedent("""\
            @inproceedings{feng2025videor1,
                title     = {{Video-R1: Reinforcing Video Reasoning in MLLMs}},
                author    = {Kaituo Feng and Kaixiong Gong and Bohao Li and Zonghao Guo and Yibing Wang and
                             Tianshuo Peng and Junfei Wu and Xiaoying Zhang and Benyou Wang and Xiangyu Yue},
                booktitle = {Advances in Neural Information Processing Systems},
                year      = 2025,
                eprint    = {arXiv:2503.21776},
            }"""),
    }
    method = "t_grpo"
    config_class = TGRPOConfig
    reinforces = (
        "Correct completions on a video earn a bonus where the policy is right about as often with the frames in order as with "
        "the frames shuffled, or more often."
    )

    def setup_method(self) -> None:
        self.accuracy_name = name_of_accuracy(self)

    def sample_counterfactuals(self) -> dict[str, list[Group | None]]:
        if not self.args.temporal_bonus:
            return {}
        return {"shuffled": self.sample_under(self._shuffled, self.args.shuffled_generations)}

    def shape_rewards(self, group: Group) -> Tensor | None:
        if "shuffled" not in group.counterfactuals:
            return None
        options, name = self.args, self.accuracy_name
        ordered, shuffled = group.rewards[name], group.counterfactuals["shuffled"].rewards[name]
        settings = {"margin": options.temporal_margin, "correct_above": options.correct_above}
        bonus = t_grpo_bonus(ordered, shuffled, bonus=options.temporal_bonus, **settings)
        shares = {"ordered_accuracy": ordered, "shuffled_accuracy": shuffled, "bonus_frac": (bonus > 0).float()}
        means = torch.stack([values.nanmean() for values in shares.values()]).tolist()  # one wait a group
        for metric, value in zip(shares, means, strict=True):
            self.log_metric(f"t_grpo/{metric}", value)
        rewards = {**group.rewards, name: ordered + bonus}
        return torch.stack([*rewards.values()], dim=1)

    def _shuffled(self, prompt: PreparedPrompt) -> View | None:
        generator = seeded(self.args.seed, self.state.global_step, prompt.input_ids)
        return frames_shuffled(prompt, generator)
