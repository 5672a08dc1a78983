"""Credit that knows the evidence, or knows nothing: upper bounds and controls for the methods of a study, not methods.

Rows need `evidence`, the seconds of their video that hold the answer, as those of `make_synthetic_dataset` have.
"""

import torch
from torch import Tensor

from ..batch import Group
from ..media import PreparedPrompt
from ..media.frames import token_frames
from ..modeling import View, log_probs, pooled_rows, seeded
from ..objectives import TokenWeights, appo_token_weights, select_frames
from ..reports.summary import shown_at
from ..trainers import APPOTrainer, PGPOTrainer
from ..views import frames_kept


def evidence_frames(prompt: PreparedPrompt) -> Tensor | None:
    """Return (F,) bool, whether a frame shows evidence; None for a row without evidence, or without one video alone."""
    spans = prompt.row.get("evidence")
    if not spans or len(prompt.frame_times) != 1:
        return None
    (times,), count = prompt.frame_times, int(token_frames(prompt.visual).max()) + 1
    if count != int(prompt.visual.video_grid_thw[0, 0]):  # images beside the video
        return None
    each = -(-len(times) // count)
    return torch.tensor([shown_at(spans, times[cell * each : (cell + 1) * each]) for cell in range(count)])


class OracleTrainer(PGPOTrainer):
    """PGPO whose dependency is that on the evidence: between the policy with the clip and without the frames that show evidence.

    What token weights by visual dependency could gain if they knew where to look. Where the whole clip is evidence, it is
    PGPO; a row without evidence keeps weight 1.
    """

    _name = "Oracle"

    def token_weights(self, group: Group) -> TokenWeights | None:
        return None if evidence_frames(group.prompt) is None else super().token_weights(group)

    def _media_masked(self, group: Group) -> View:
        others = (~evidence_frames(group.prompt)).nonzero()[:, 0].tolist()
        return frames_kept(group.prompt, others, self.model) if others else super()._media_masked(group)


class RandomFramesTrainer(APPOTrainer):
    """APPO with as many frames as it selects, drawn at random: whether its choice of frames matters."""

    _name = "APPO, random frames"

    def choose(self, group: Group, selected: Tensor) -> Tensor:
        """Return (F,) bool, the frames that get credit in place of those that APPO selects, (F,) bool."""
        generator = seeded(self.args.seed, self.state.global_step, group.prompt.input_ids)
        drawn = torch.randperm(len(selected), generator=generator)[: int(selected.sum())]
        return torch.zeros(len(selected), dtype=torch.bool).index_fill(0, drawn, True).to(selected.device)

    def token_weights(self, group: Group) -> TokenWeights | None:
        if not group.visual.visual_tokens:
            return None
        width, options = group.completion_ids.size(1), self.args
        frames = token_frames(group.visual)
        frames = torch.cat([frames, frames.new_full((width,), -1)])

        def to_frames(layers, mask):
            return pooled_rows(layers, slice(-width - 1, -1), mask, frames)

        reading = self.read(group, attention=to_frames, layers=options.attention_layers, states=True)
        head, mask, accuracy = self.head_of(self.model), group.completion_mask, group.rewards[self.accuracy_name]
        selected = select_frames(
            reading.attention,
            accuracy,
            mask,
            top_tokens=options.top_tokens,
            top_frames=options.top_frames,
            reward_threshold=options.reward_threshold,
            strategy=options.strategy,
        )
        chosen = self.choose(group, selected)
        self.log_signal(group, "frame_attention", reading.attention, "GTF")
        self.log_signal(group, "selected_frames", chosen, "F")
        if not chosen.any():
            return TokenWeights(mask.float())
        return appo_token_weights(
            reading.attention[:, :, chosen],
            accuracy,
            mask,
            lambda g, t: log_probs(head, reading.states[g, t], self.temperature),
            top_tokens=options.top_tokens,
            top_frames=int(chosen.sum()),  # with "all", every frame that is left
            reward_threshold=options.reward_threshold,
            strategy="all",
            tokens_per_frame=options.tokens_per_frame,
            alpha=options.alpha,
            divergence=options.divergence,
            normalizer=options.normalizer,
            missing_ranks=options.missing_ranks,
        )


class EvidenceFramesTrainer(RandomFramesTrainer):
    """APPO with the frames that show evidence, where a success or a vote selects any: an upper bound for its choice."""

    _name = "APPO, evidence frames"

    def choose(self, group: Group, selected: Tensor) -> Tensor:
        """Return (F,) bool, the frames that show evidence; none where APPO selects none, its own without evidence."""
        shown = evidence_frames(group.prompt)
        return selected if shown is None or not selected.any() else shown.to(selected.device)
