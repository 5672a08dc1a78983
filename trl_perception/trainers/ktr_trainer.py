"""Video-KTR: only key tokens learn: those that depend on the video, on the order of its frames, or that are uncertain."""

import textwrap
from dataclasses import replace

import torch

from ..batch import Group
from ..modeling import View, frames_shuffled, media_masked, media_masked_recomputed, seeded, shuffled, zeroed
from ..objectives import TokenWeights, ktr_token_weights
from .grpo_video_trainer import GRPOVideoTrainer
from .ktr_config import KTRConfig
from .policy_reader import PolicyReads


class KTRTrainer(GRPOVideoTrainer):
    """Video-KTR, key token attribution (arXiv:2601.19686), on [`GRPOVideoTrainer`].

    The group is scored as it was shown (by the update's own forward where it follows the rollout directly), with its media
    masked or zeroed, and with its videos shuffled; the largest differences and the largest entropies make the key tokens
    (`ktr_token_weights`). A prompt without video keeps entropy and, where it has images, the visual signal; a prompt without
    media keeps weight 1.

    Metrics: `ktr/...` of [`ktr_token_weights`].
    Source: arXiv:2601.19686; release zywang0104/Video-KTR 0162d46 behind `preset="release"`. Differs from the release: its
        KL term bounds the log-ratio to +-10 and it does not clip, which changes nothing at one update a rollout; its scoring
        forwards leave out second_per_grid_ts, so that time advances as at one cell a second; its permutation may be the
        identity; its length reward counts kept tokens; all of it is in the model's bfloat16.
    """

    _tag_names = ["trl", "video-ktr", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "Video-KTR"
    _paper = {  # noqa: RUF012
        "title": "Video-KTR: Reinforcing Video Reasoning via Key Token Attribution",
        "id": "2601.19686",
        "citation": textwrap.dedent("""\
            @inproceedings{wang2026videoktr,
                title     = {{Video-KTR: Reinforcing Video Reasoning via Key Token Attribution}},
                author    = {Ziyue Wang and Sheng Jin and Zhongrong Zuo and Jiawei Wu and Han Qiu and Qi She
                             and Hao Zhang and Xudong Jiang},
                booktitle = {International Conference on Learning Representations},
                year      = 2026,
                eprint    = {arXiv:2601.19686},
            }"""),
    }
    method = "ktr"
    config_class = KTRConfig
    reinforces = (
        "Only key tokens learn: those that change most without the video, those that change most when its frames are "
        "shuffled, and those the policy was least sure of. All other tokens get no credit."
    )

    def setup_method(self) -> None:
        options = self.args
        self.policy_reads = PolicyReads(entropies=True)
        # Tokens outside the mask leave the loss together with their KL and their place in the denominator.
        self.loss_counts_weighted_tokens_only = options.key_token_normalizer == "kept" and options.mask_kl
        self._only_the_denominator = options.key_token_normalizer == "kept" and not options.mask_kl

    def token_weights(self, group: Group) -> TokenWeights | None:
        if not group.visual.visual_tokens:
            return None
        options = self.args
        sighted_logps, entropies = self.score(group, entropy=True)
        visual_delta = temporal_delta = None
        if options.visual_keep_ratio:
            visual_delta = sighted_logps - self.score(group, self._media_masked(group))[0]
        if options.temporal_keep_ratio:
            view = self._shuffled(group)
            if view is not None:
                temporal_delta = sighted_logps - self.score(group, view)[0]
        if visual_delta is None and temporal_delta is None and not options.entropy_keep_ratio:
            return None  # none of the signals that are on applies to this prompt
        credit = ktr_token_weights(
            visual_delta,
            temporal_delta,
            entropies,
            group.completion_mask,
            visual_keep_ratio=options.visual_keep_ratio,
            temporal_keep_ratio=options.temporal_keep_ratio,
            entropy_keep_ratio=options.entropy_keep_ratio,
            preset=options.preset,
            weighting=options.weighting,
        )
        deltas = {"visual_delta": visual_delta, "temporal_delta": temporal_delta, "entropy": entropies}
        for name, values in deltas.items():
            if values is not None:
                self.log_signal(group, name, values)
        self.log_signal(group, "key_tokens", credit.weights > 0)
        if self._only_the_denominator:
            # mean over kept = mean over all, times all / kept
            kept = (credit.weights > 0).sum(1, keepdim=True).clamp(min=1)
            share = group.completion_mask.sum(1, keepdim=True) / kept
            credit = replace(credit, weights=credit.weights * share)
        return credit

    def _media_masked(self, group: Group) -> View:
        if self.args.visual_view == "zeroed":
            return zeroed(self.model, group.prompt_ids, group.visual)
        if self.args.masked_view_positions == "recompute":
            return media_masked_recomputed(group.prompt_ids, group.visual)
        return media_masked(self.model, group.prompt_ids, group.visual, group.completion_ids.size(1))

    def _shuffled(self, group: Group) -> View | None:
        generator: torch.Generator = seeded(self.args.seed, self.state.global_step, group.prompt.input_ids)
        if self.args.shuffle == "frames":
            return frames_shuffled(group.prompt, group.prompt_ids, self._prompt_preparer, generator)
        return shuffled(group.prompt_ids, group.visual, generator)
