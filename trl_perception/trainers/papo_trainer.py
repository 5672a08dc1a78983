"""PAPO: a penalty on completions that are as likely with most of their media hidden."""

import textwrap
from typing import Any

import torch

from ..batch import Group, MicroBatch
from ..objectives import Penalty, papo_penalty, visual_dependency
from ..views import View, patches_masked, seeded
from .grpo_video_trainer import GRPOVideoTrainer
from .papo_config import PAPOConfig


class PAPOTrainer(GRPOVideoTrainer):
    """Perception-Aware Policy Optimization (arXiv:2507.06448) on [`GRPOVideoTrainer`].

    The policy that sampled scores each group once more with random patches of its media in black; `papo_penalty` wants the
    two distributions apart, and both far from uniform. A prompt without media has the entropy term alone.

    Metrics: `papo/...` of [`papo_penalty`].
    Source: arXiv:2507.06448; release MikeWangWZHL/PAPO fb63bf4. Differs: videos, whose frames are masked one by one or alike.
    """

    _tag_names = ["trl", "papo", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "PAPO"
    _paper = {  # noqa: RUF012
        "title": "Perception-Aware Policy Optimization for Multimodal Reasoning",
        "id": "2507.06448",
        "citation": textwrap.dedent("""\
            @inproceedings{wang2026papo,
                title     = {{Perception-Aware Policy Optimization for Multimodal Reasoning}},
                author    = {Zhenhailong Wang and Xuehang Guo and Sofia Stoica and Haiyang Xu and Hongru Wang
                             and Hyeonjeong Ha and Xiusi Chen and Yangyi Chen and Ming Yan and Fei Huang and
                             Heng Ji},
                booktitle = {International Conference on Learning Representations},
                year      = 2026,
                eprint    = {arXiv:2507.06448},
            }"""),
    }
    method = "papo"
    config_class = PAPOConfig
    reinforces = (
        "Beside the reward, the policy is drawn away from what it would say with most of the media hidden, so that answers "
        "depend on what is shown."
    )

    def setup_method(self) -> None:
        options = self.args
        self._penalises = any((options.perception_weight, options.entropy_weight, options.masked_entropy_weight))

    def rollout_signals(self, group: Group) -> dict[str, Any]:
        """log p (G,T) on masked media, or, for a gradient through it, these media for each row."""
        view = masked_view(self, group) if self._penalises else None
        if view is None:
            return {}
        if self.args.masked_gradient:
            return {"masked_visual": [self.with_features(view.visual)] * len(group.completion_ids)}
        return {"masked_logps": self.score(group, view)[0]}

    def penalty(self, inputs: MicroBatch) -> Penalty | None:
        if not self._penalises or not self.model.training:
            return None
        options, logps = self.args, inputs["logps"]
        unmasked = logps.detach()  # of rows without media
        if options.masked_gradient and "visual_inputs" in inputs:
            masked = inputs.signal("masked_visual")
            visuals = [
                own if of_row is None else of_row for of_row, own in zip(masked, inputs["visual_inputs"], strict=True)
            ]
            has_media = torch.tensor([[of_row is not None] for of_row in masked], device=logps.device)
            # Every process runs the backward of this forward, whatever its media.
            masked_logps = torch.where(has_media, self.score_update(inputs, visuals), unmasked)
        else:
            rows = zip(inputs.signal("masked_logps"), unmasked, strict=True)
            masked_logps = torch.stack([own if of_row is None else of_row for of_row, own in rows])
        self.log_signal(inputs, "visual_dependency", lambda: visual_dependency(unmasked, masked_logps))
        return papo_penalty(
            logps,
            masked_logps,
            inputs.loss_mask,
            weight=options.perception_weight,
            entropy_weight=options.entropy_weight,
            masked_entropy_weight=options.masked_entropy_weight,
            num_tokens=inputs["tokens_per_micro_batch"],
        )


def masked_view(trainer: GRPOVideoTrainer, group: Group) -> View | None:
    """The masked media of a group, one draw for a prompt and rollout; None for a prompt without media."""
    if not group.visual.visual_tokens:
        return None
    generator = seeded(trainer.args.seed, trainer.state.global_step, group.prompt.input_ids)
    return patches_masked(group.prompt, trainer.args.mask_probability, generator, mask=trainer.args.mask)
