"""On-Policy Attention Distillation: on its own rollouts the student learns what a teacher would say and where it looks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from trl.trainer.utils import add_fused_lm_head, use_adapter

from ..batch import Group, MicroBatch
from ..modeling import (
    AttentionTap,
    HiddenTap,
    TokenStates,
    attention_policy,
    base_model,
    divergence,
    gather_lm_head,
    head_is_sharded,
    head_of,
)
from ..modeling.activation_checkpointing import refuse_reentrant
from ..modeling.adapters import require_untouched_base
from ..modeling.teacher import check_teacher, freeze_teacher, load_teacher
from ..objectives import Penalty, attn_distill_penalty, jensen_shannon
from .attn_distill_config import AttnDistillConfig
from .grpo_video_trainer import GRPOVideoTrainer
from .ral_trainer import RALTrainer


class AttnDistillTrainer(GRPOVideoTrainer):
    """On-Policy Attention Distillation (arXiv:2602.04884, section 4) on [`GRPOVideoTrainer`].

    loss = grpo_weight * L_GRPO + gkd_weight * mean_t D(student_t, teacher_t) + attn_distill_weight * mean_t JSD(p_t || q_t)

    over the student's rollouts; D compares next-token distributions, p and q are the attention policies of student and
    teacher. The means are over the loss tokens of the optimisation step, of all micro-batches and processes; with
    `attn_reduction="sum"` the second one is over its completions, of sums over their tokens. The teacher reads each rollout
    once: its hidden states and attention rows travel with it.

    Args:
        teacher_model: the teacher as an object; else `args.teacher_model_name_or_path` names it, or, with an adapter on
            the policy, its base model is the teacher.

    Metrics: `attn_distill/...` of [`attn_distill_penalty`], `attn_distill/gkd`, `attn_distill/visual_mass`,
    `attn_distill/sink_mass`.
    """

    _tag_names = ["trl", "attn-distill", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "On-Policy Attention Distillation"
    _paper = RALTrainer._paper  # its section 4
    method = "attn_distill"
    config_class = AttnDistillConfig
    reinforces = (
        "Beside the reward, the student is drawn to say what a teacher would say on its own completions, and to look where the "
        "teacher looks."
    )

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Callable | str | list | None = None,
        args: AttnDistillConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        teacher_model: PreTrainedModel | None = None,
    ):
        self._teacher_model = teacher_model
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )

    def setup_method(self) -> None:
        refuse_reentrant(self.args, type(self).__name__)
        options, policy = self.args, self.accelerator.unwrap_model(self.model)
        self.policy_loss_weight = options.grpo_weight
        self._base_teaches = self._teacher_model is None and not options.teacher_model_name_or_path
        if self._base_teaches and not hasattr(policy, "peft_config"):
            raise ValueError(
                "No teacher. Set teacher_model_name_or_path, pass teacher_model, or train an adapter (peft_config), whose "
                "base model then teaches."
            )
        if self._base_teaches:
            require_untouched_base(policy, "The distillation, without another teacher,")
            self.teacher = self.model  # with its adapter off
        else:
            teacher = self._teacher_model or load_teacher(options, policy, self._tokenizer)
            check_teacher(teacher, policy, self._tokenizer)
            add_fused_lm_head(teacher, temperature=self.temperature)
            self.teacher = self._sharding.place_frozen(freeze_teacher(teacher, options.position_rule), "the teacher")
            self.share_model(self.teacher)
            self.keeps_pixels = True
        if options.attn_distill_weight > 0:
            self.taps += (AttentionTap(self.model, lambda *caught: caught, layers=options.attn_layers),)
        if options.gkd_weight > 0:
            self.taps += (HiddenTap(self.model, lambda states: states),)

    def rollout_signals(self, group: Group) -> dict[str, Tensor]:
        """The teacher's hidden states (G,T,E) and attention policy (G,T,P+T) on the student's completions."""
        if not self.taps:
            return {}
        width, options = group.completion_ids.size(1), self.args
        reads = options.attn_distill_weight > 0, options.gkd_weight > 0
        to_policy = attention_policy.group_policy(group.visual, width, **options.attn_rows) if reads[0] else None
        with self._teaching():
            reading = self.read(
                group, attention=to_policy, layers=options.attn_layers, states=reads[1], model=self.teacher
            )
        signals = {"teacher_states": reading.states} if reads[1] else {}
        if reads[0]:
            signals["teacher_policy"] = attention_policy.kept(reading.attention, options.attn_rows_dtype)
        return signals

    def penalty(self, inputs: MicroBatch) -> Penalty | None:
        if not self.taps or not self.model.training:
            return None
        counted = inputs.loss_mask
        loss: Tensor | float = 0.0
        metrics: dict[str, Tensor | float] = {}
        for tap in self.taps:
            caught = tap.take()[-1]
            term = (
                self._attention(caught, inputs, counted)
                if isinstance(tap, AttentionTap)
                else self._gkd(caught, inputs, counted)
            )
            loss = loss + term.loss
            metrics.update(term.metrics)
        return Penalty(loss, metrics)

    def _attention(self, caught: tuple, inputs: MicroBatch, counted: Tensor) -> Penalty:
        layers, mask = caught
        options, visual = self.args, attention_policy.visual_keys(inputs)
        policy = attention_policy.policy_of(layers, mask, counted.size(1), visual, **options.attn_rows)
        teacher_policy = attention_policy.padded(inputs.signal("teacher_policy"), policy)
        student = policy.detach()
        self.log_signal(inputs, "distance_to_teacher", lambda: jensen_shannon(student, teacher_policy))
        self.log_signal(inputs, "frame_attention", lambda: attention_policy.frame_mass(student, inputs), "GTF")
        self.log_signal(inputs, "teacher_attention", lambda: attention_policy.frame_mass(teacher_policy, inputs), "GTF")
        tokens = inputs["tokens_per_micro_batch"]
        term = attn_distill_penalty(
            policy,
            teacher_policy,
            counted,
            weight=options.attn_distill_weight,
            reduction=options.attn_reduction,
            num_tokens=tokens,
            num_completions=inputs["completions_per_micro_batch"],
        )
        seen = attention_policy.attention_metrics("attn_distill", policy, visual, counted, mask, tokens)
        return Penalty(term.loss, {**term.metrics, **seen})

    def _gkd(self, states: TokenStates, inputs: MicroBatch, counted: Tensor) -> Penalty:
        width, options = counted.size(1), self.args
        predictors = states.at(slice(-width - 1, -1))
        with self._teaching():
            teacher = gather_lm_head(self.teacher) if head_is_sharded(self.teacher) else head_of(self.teacher)
        # Rows that the teacher did not read are not counted. They are run all the same, for with sharded parameters the
        # heads are asked for by all processes.
        unread = predictors.new_zeros(width, base_model(self.teacher).config.get_text_config().hidden_size)
        read = inputs.signal("teacher_states")
        values = divergence(
            head_of(self.model),
            predictors,
            teacher,
            torch.stack([unread if states_of_row is None else states_of_row for states_of_row in read]),
            mix=options.gkd_mix,
            temperature=options.gkd_temperature,
        )
        self.log_signal(inputs, "divergence_from_teacher", values)
        gkd = torch.where(counted, values, 0.0).sum() / inputs["tokens_per_micro_batch"]
        return Penalty(options.gkd_weight * gkd, {"attn_distill/gkd": gkd.detach()})

    def _teaching(self) -> AbstractContextManager:
        """Context manager in which the policy is the base model that teaches, where no other model does."""
        if not self._base_teaches:
            return nullcontext()
        return use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None)
