"""PGPO: credit moves to the tokens that would have been said otherwise without the media."""

import textwrap

from torch import Tensor

from ..batch import Group
from ..modeling import View, divergence, media_masked
from ..objectives import TokenWeights, pgpo_token_weights, visual_dependency
from .grpo_video_trainer import GRPOVideoTrainer
from .pgpo_config import PGPOConfig
from .policy_reader import PolicyReads


class PGPOTrainer(GRPOVideoTrainer):
    """Perception-Grounded Policy Optimization (arXiv:2604.01840) on [`GRPOVideoTrainer`].

    The group is scored with its media (by the update's own forward where it follows the rollout directly) and media-masked (their
    tokens masked, positions kept); how far the two differ at a token is its visual dependency, from which
    `pgpo_token_weights` makes credit. A prompt without media keeps weight 1.

    Metrics: `pgpo/...` of [`pgpo_token_weights`].
    """

    _tag_names = ["trl", "pgpo", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "PGPO"
    _paper = {  # noqa: RUF012
        "title": "Not All Tokens See Equally: Perception-Grounded Policy Optimization for Large Vision-Language Models",
        "id": "2604.01840",
        "citation": textwrap.dedent("""\
            @article{ye2026pgpo,
                title     = {{Not All Tokens See Equally: Perception-Grounded Policy Optimization for Large Vision-Language Models}},
                author    = {Zekai Ye and Qiming Li and Xiaocheng Feng and Ruihan Chen and Ziming Li and Haoyu
                             Ren and Kun Chen and Dandan Tu and Bing Qin},
                year      = 2026,
                eprint    = {arXiv:2604.01840},
            }"""),
    }
    method = "pgpo"
    config_class = PGPOConfig
    reinforces = (
        "Credit moves to the tokens that the policy would have said otherwise without the video: the more a token depends on "
        "what is seen, the more it weighs, and the others weigh less in turn."
    )

    def setup_method(self) -> None:
        self.policy_reads = PolicyReads(states=self.args.dependency == "kl")

    def token_weights(self, group: Group) -> TokenWeights | None:
        if not group.visual.visual_tokens:
            return None
        options = self.args
        exact = options.dependency == "kl"
        dependency = self._exact_dependency(group) if exact else self._sampled_dependency(group)
        self.log_signal(group, "visual_dependency", dependency)
        return pgpo_token_weights(
            dependency,
            group.completion_mask,
            threshold=options.dependency_threshold,
            visual_boost=options.visual_boost,
            threshold_mode=options.threshold_mode,
            weight_floor=options.weight_floor,
            conserve_mass=options.conserve_mass,
            max_weight=options.max_weight,
        )

    def _media_masked(self, group: Group) -> View:
        return media_masked(self.model, group.prompt_ids, group.visual, group.completion_ids.size(1))

    def _sampled_dependency(self, group: Group) -> Tensor:
        """k3 from the sampled tokens: (G,T)."""
        sighted_logps, _ = self.score(group)
        blind_logps, _ = self.score(group, self._media_masked(group))
        bound = self.args.dependency_clamp
        return visual_dependency(sighted_logps, blind_logps, clamp=None if bound is None else (0.0, bound))

    def _exact_dependency(self, group: Group) -> Tensor:
        """KL(with media || without) over the vocabulary: (G,T)."""
        with_media, without = (self.read(group, view, states=True).states for view in (None, self._media_masked(group)))
        head = self.head_of(self.model)
        return divergence(head, with_media, head, without, mix=1.0, temperature=self.temperature)
