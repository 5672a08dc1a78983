"""Credit that knows the evidence, or knows nothing: upper bounds and controls for the methods of a study, not methods.

Rows need `evidence`, the seconds of their video that hold the answer, as those of `make_synthetic_dataset` have.
"""

import torch
from torch import Tensor

from ..batch import Group
from ..media import PreparedPrompt
from ..media.frames import token_frames
from ..modeling import View, seeded
from ..objectives import TokenWeights
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
        generator = seeded(self.args.seed, self.state.global_step, group.prompt.input_ids)
        drawn = torch.randperm(len(selected), generator=generator)[: int(selected.sum())]
        return torch.zeros(len(selected), dtype=torch.bool).index_fill(0, drawn, True).to(selected.device)


class EvidenceFramesTrainer(APPOTrainer):
    """APPO with the frames that show evidence, where it selects any: an upper bound for its choice.

    A row without evidence keeps the frames that APPO selects.
    """

    _name = "APPO, evidence frames"

    def choose(self, group: Group, selected: Tensor) -> Tensor:
        shown = evidence_frames(group.prompt)
        return selected if shown is None or not selected.any() else shown.to(selected.device)
