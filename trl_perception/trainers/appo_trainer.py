"""APPO: more credit for the tokens that look at the frames which matter and disagree about them."""

import textwrap

import torch
from torch import Tensor

from ..batch import Group
from ..media.frames import token_frames
from ..modeling import log_probs, pooled_rows
from ..objectives import TokenWeights
from ..objectives.appo import select_frames, weights_of_frames
from ..objectives.checks import refuse
from .appo_config import APPOConfig
from .grpo_video_trainer import GRPOVideoTrainer
from .policy_reader import PolicyReads
from .rewards import name_of_accuracy


class APPOTrainer(GRPOVideoTrainer):
    """Attention-guided Perception Policy Optimization (arXiv:2602.23823) on [`GRPOVideoTrainer`].

    One forward of the policy that sampled, the update's own where it follows the rollout directly, tells the attention of
    completion tokens to frames in the last layers, and the distributions of the tokens that attend most to the selected
    frames; `appo_token_weights` makes credit of them.
    A prompt without media, and a group for which no frame is selected, keep weight 1.

    Metrics: `appo/...` of [`appo_token_weights`].
    Source: arXiv:2602.23823; release GeWu-Lab/APPO 9225180 behind `preset="release"`. Differs from the release: it reads
        attention while it samples, and of a prompt's media the cells of its first video alone are frames; here every cell of
        every video and every image is one. Its weights carry gradient, see [`appo_token_weights`].
    Errors: ValueError where it is not clear which reward is the accuracy, or does not apply to a row with media.
    """

    _tag_names = ["trl", "appo", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "APPO"
    _paper = {  # noqa: RUF012
        "title": "APPO: Attention-guided Perception Policy Optimization for Video Reasoning",
        "id": "2602.23823",
        "citation": textwrap.dedent("""\
            @inproceedings{du2026appo,
                title     = {{APPO: Attention-guided Perception Policy Optimization for Video Reasoning}},
                author    = {Henghui Du and Chang Zhou and Xi Chen and Di Hu},
                booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
                year      = 2026,
                eprint    = {arXiv:2602.23823},
            }"""),
    }
    method = "appo"
    config_class = APPOConfig
    reinforces = (
        "Credit grows on the tokens that look most at the frames which successful completions look at, where the group "
        "disagrees about what to say next; every other token keeps weight 1."
    )

    def setup_method(self) -> None:
        self.accuracy_name = name_of_accuracy(self)
        self.policy_reads = PolicyReads(attention_layers=self.args.attention_layers, states=True)

    def token_weights(self, group: Group) -> TokenWeights | None:
        if not group.visual.visual_tokens:
            return None
        accuracy, width, options = self._accuracy_of(group), group.completion_ids.size(1), self.args
        shown = token_frames(group.visual)
        shown = torch.cat([shown, shown.new_full((width,), -1)])

        def to_frames(layers, mask):  # from the positions that predict the completion's tokens
            return pooled_rows(layers, slice(-width - 1, -1), mask, shown)

        reading = self.read(group, attention=to_frames, layers=options.attention_layers, states=True)
        head, seen = self.head_of(self.model), (reading.attention, accuracy, group.completion_mask)
        selected = select_frames(
            *seen,
            top_tokens=options.top_tokens,
            top_frames=options.top_frames,
            reward_threshold=options.reward_threshold,
            strategy=options.strategy,
        )
        frames = self.choose(group, selected)
        self.log_signal(group, "frame_attention", reading.attention, "GTF")
        self.log_signal(group, "selected_frames", frames, "F")
        return weights_of_frames(
            *seen,
            lambda g, t: log_probs(head, reading.states[g, t], self.temperature),
            frames,
            tokens_per_frame=options.tokens_per_frame,
            reward_threshold=options.reward_threshold,
            alpha=options.alpha,
            divergence=options.divergence,
            normalizer=options.normalizer,
            missing_ranks=options.missing_ranks,
        )

    def choose(self, group: Group, selected: Tensor) -> Tensor:
        """Return (F,) bool, the frames whose tokens get credit: those that APPO selects, (F,) bool. A subclass may choose others."""
        return selected

    def _accuracy_of(self, group: Group) -> Tensor:
        error = ValueError(
            f"{group.visual.sample}: the reward {self.accuracy_name!r} returned None, and APPO needs it to tell successes "
            "from failures. Let it score every row with media, or set accuracy_reward to a reward that does."
        )
        refuse(group.rewards[self.accuracy_name].isnan(), lambda: error)
        return group.rewards[self.accuracy_name]
