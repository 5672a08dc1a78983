"""RAL: reinforce where a good completion looked, and move away from where a bad one did."""

import textwrap
from dataclasses import replace

from torch import Tensor, nn
from trl.trainer.utils import use_adapter

from ..batch import Group, MicroBatch
from ..modeling import AttentionTap, attention_policy
from ..modeling.activation_checkpointing import refuse_reentrant
from ..modeling.adapters import require_untouched_base
from ..objectives import Penalty, jensen_shannon, ral_penalty
from .grpo_video_trainer import GRPOVideoTrainer
from .ral_config import RALConfig


class RALTrainer(GRPOVideoTrainer):
    """Reinforced Attention Learning (arXiv:2602.04884) on [`GRPOVideoTrainer`].

    loss = L_GRPO + attn_weight * mean_t A_t JSD(p_t || p_old_t), p the attention of completion tokens to earlier positions

    The mean is over the loss tokens of the optimisation step, of all micro-batches and processes.

    The rows of the update come from its own forward. Those of the rollout policy are taken from the first forward after
    the rollout while no optimisation step lies between (the policies are one, and the term is zero), and from a forward
    of the rollout where one does.

    Metrics: `ral/...` of [`ral_penalty`], `ral/visual_mass`, `ral/sink_mass`.
    Errors: ValueError for reentrant gradient checkpointing, under which the term would lose its gradient, and for dropout,
        which the term would measure.
    """

    _tag_names = ["trl", "ral", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "RAL"
    _paper = {  # noqa: RUF012
        "title": "Reinforced Attention Learning",
        "id": "2602.04884",
        "citation": textwrap.dedent("""\
            @article{li2026ral,
                title     = {{Reinforced Attention Learning}},
                author    = {Bangzheng Li and Jianmo Ni and Chen Qu and Ian Miao and Liu Yang and Xingyu Fu
                             and Muhao Chen and Derek Zhiyuan Cheng},
                year      = 2026,
                eprint    = {arXiv:2602.04884},
            }"""),
    }
    method = "ral"
    config_class = RALConfig
    reinforces = (
        "Where a completion looked is learned beside what it said: good completions hold their attention in place, bad ones "
        "are moved to look elsewhere. Tokens share their sequence's credit."
    )

    def setup_method(self) -> None:
        refuse_reentrant(self.args, type(self).__name__)
        if self.args.attn_weight > 0 and self._drops_out:
            raise ValueError(
                "RAL compares the attention of two forwards, and this model drops out in training, so that the term would "
                "measure dropout. Leave disable_dropout=True, and set attention_dropout of the model's configuration to 0."
            )
        if self.args.attn_weight > 0:
            self.taps = (AttentionTap(self.model, lambda *caught: caught, layers=self.args.attn_layers),)
        adapter = hasattr(self.accelerator.unwrap_model(self.model), "peft_config")
        if self.args.attn_reference == "ref" and self.ref_model is None and not adapter:
            raise ValueError(
                "attn_reference='ref' needs a reference model, and TRL keeps one only for beta > 0 or with an adapter. Set "
                "beta above 0, or pass a peft_config."
            )
        if self.args.attn_reference == "ref":
            require_untouched_base(self.model, "attn_reference='ref'")

    def rollout_signals(self, group: Group) -> dict[str, Tensor]:
        options = self.args
        if not self.taps:
            return {}
        if options.attn_reference == "ref":
            if self.ref_model is not None:
                return {"reference_policy": self._policy_on(group, self.ref_model)}
            policy = self.accelerator.unwrap_model(self.model)
            with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
                return {"reference_policy": self._policy_on(group, self.model)}
        # A micro-batch that is first visited after an optimisation step must find the rollout policy's rows.
        first_visits_come_late = options.gradient_accumulation_steps % options.steps_per_generation != 0
        return {"reference_policy": self._policy_on(group, self.model)} if first_visits_come_late else {}

    def penalty(self, inputs: MicroBatch) -> Penalty | None:
        if not self.taps or not self.model.training:
            return None
        options, width = self.args, inputs["completion_ids"].size(1)
        (layers, mask), visual = self.taps[0].take()[-1], attention_policy.visual_keys(inputs)
        policy = attention_policy.policy_of(layers, mask, width, visual, **options.attn_rows)
        if options.attn_reference == "old" and self.policy_is_the_one_that_sampled():
            reference = policy.detach()
            inputs["reference_policy"] = list(attention_policy.kept(reference, options.attn_rows_dtype))
        else:
            reference = attention_policy.padded(inputs.signal("reference_policy"), policy)
        counted, tokens, weight = inputs.loss_mask, inputs["tokens_per_micro_batch"], options.attn_weight
        self.log_signal(inputs, "attention_shift", lambda: jensen_shannon(policy.detach(), reference))
        self.log_signal(inputs, "frame_attention", lambda: attention_policy.frame_mass(policy.detach(), inputs), "GTF")
        result = ral_penalty(policy, reference, inputs["advantages"], counted, weight=weight, num_tokens=tokens)
        metrics = attention_policy.attention_metrics("ral", policy, visual, counted, mask, tokens)
        return replace(result, metrics={**result.metrics, **metrics})

    def _policy_on(self, group: Group, model: nn.Module) -> Tensor:
        """(G,T,P+T) attention policy of a model on a group, P without padding, as it is kept."""
        reduce = attention_policy.group_policy(group.visual, group.completion_ids.size(1), **self.args.attn_rows)
        policy = self.read(group, attention=reduce, layers=self.args.attn_layers, model=model).attention
        return attention_policy.kept(policy, self.args.attn_rows_dtype)
