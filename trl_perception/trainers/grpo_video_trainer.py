"""Video GRPO on TRL: the base of every method.

It and its rooms (`sampling`, `crediting`, `scoring`, `nonfinite`, `telling`, `checkpoints`) are the only places that touch TRL's private
names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import AutoProcessor, PreTrainedModel
from trl import GRPOTrainer

from ..assets import model_path
from ..batch import Group, Rollout, complete_groups, loss_counts, whole_groups
from ..callbacks.checkpoints import Checkpoints
from ..callbacks.nonfinite import NonFiniteGuard, samples
from ..callbacks.precision import MasterWeights
from ..callbacks.reporting import RolloutRecords, RolloutTracker
from ..data.columns import undecoded_videos
from ..media import (
    PromptPreparer,
    VisualInputs,
    check_placeholders,
    has_visual_grids,
)
from ..modeling import (
    AttentionTap,
    HiddenTap,
    View,
    apply_position_rule,
    feature_reuse_unsupported_reason,
    paused,
    pixels_of,
    same_frozen_tower,
    shared_prefill_unsupported_reason,
    with_media,
)
from ..modeling.activation_checkpointing import unify_checkpointing_names, without_checkpointing
from ..modeling.adapters import (
    check_adapters_of,
    drops_out,
    keeping_types,
    outside_frozen_parts,
    require_untouched_base,
    telling_of_missing_layers,
    without_dropout,
)
from ..modeling.freezing import freeze_vision
from ..modeling.quantization import require_quantised_training
from ..objectives import Penalty, TokenWeights
from ..reports.card import CardFacts, complete_card, require_card_template
from ..reports.card_facts import Origin
from .credit import Crediting, validate_penalty
from .dynamic_sampling import refill, refuse_dynamic_sampling
from .forward_selector import ForwardSelector
from .generation import Sampling
from .grpo_video_config import GRPOVideoConfig
from .policy_reader import AttentionReduce, CachedForward, ForwardOutput, PolicyReads, credit_taps, read_group
from .refusals import averaged_credit, check_datasets, refuse_vllm, require_prompts, require_trainable
from .scoring import Scoring
from .sharding import Sharding

logger = get_logger(__name__)

# Losses that average over rows: a row that is left out must not count in their denominator.
ROW_MEAN_LOSSES = ("grpo", "sapo", "dr_grpo", "luspo")


class GRPOVideoTrainer(Sampling, Crediting, Scoring, Sharding, Checkpoints):
    """GRPO, and every loss type of TRL's [`~trl.GRPOTrainer`], for prompts with videos, images and text in one batch.

    Rows are TRL's: a conversational `prompt` and columns `images`/`videos` (or `image`/`video`), or media inside the
    messages as qwen-vl-utils writes them. The visual tensors of a prompt are made once and are the same ones in
    rollout, old and reference log-probabilities and every update; in every forward the number of placeholder tokens
    must equal the number of visual features.

    A subclass gives credit through one of two hooks: [`token_weights`] or [`penalty`].

    Args:
        model: name or path (`"tiny"` is the model that ships with this package) or a `PreTrainedModel`.
        reward_funcs: as in TRL. A callable must return one finite float, or None, for each completion.
        args: a [`GRPOVideoConfig`].
        train_dataset, eval_dataset, processing_class, **kwargs: as in TRL.

    Errors: ValueError for media with a processor that does not describe them as grids, for vLLM, for videos with
    tools, environments or a `rollout_func`, and for bad rows (see `on_bad_media`).
    """

    _tag_names = ["trl", "grpo", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "GRPO"
    config_class = GRPOVideoConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass without a name and a paper has its class's name and no paper: it is not its parent's method."""
        super().__init_subclass__(**kwargs)
        if "_name" not in cls.__dict__:
            cls._name, cls._paper = cls.__name__.removesuffix("Trainer"), {}

    # For subclasses. What `token_weights` reads of the policy on the prompt as it is: where it says so, the forward of an
    # update that follows its rollout directly serves these readings, and `token_weights` is called there.
    policy_reads: PolicyReads | None = None
    # Whether another model than the policy and its reference is to see the media, with a vision tower of its own.
    keeps_pixels = False
    # Taps that are active in the forward of every update, for `penalty` to read; the factor of the policy term, its KL term
    # included (TRL's entropy bonus and the experts' loss have coefficients of their own); and whether tokens of weight 0 leave
    # the loss altogether (KL term and denominator too) instead of having no advantage.
    taps: tuple[AttentionTap | HiddenTap, ...] = ()
    policy_loss_weight = 1.0
    loss_counts_weighted_tokens_only = False

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Callable | str | list | None = None,
        args: GRPOVideoConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict | None = None,
        processing_class: Any = None,
        **kwargs,
    ):
        if isinstance(model, str):
            model = model_path(model)
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = self.config_class(f"{name.rstrip('/').split('/')[-1]}-{self._name}")
        if not isinstance(args, self.config_class):
            wanted = self.config_class.__name__
            raise TypeError(f"`args` is a {type(args).__name__}; {type(self).__name__} wants a {wanted}.")
        own_prompts = any(kwargs.get(name) for name in ("tools", "rollout_func", "environment_factory"))
        if args.use_vllm and not own_prompts:  # before the engine loads the model
            name = model if isinstance(model, str) else model.config._name_or_path
            refuse_vllm(
                processing_class or AutoProcessor.from_pretrained(name, trust_remote_code=args.trust_remote_code)
            )
        if kwargs.get("environment_factory") is None:  # an environment may write the prompts
            for dataset in (train_dataset, eval_dataset):
                require_prompts(dataset)
            if args.check_rows and not kwargs.get("tools") and kwargs.get("rollout_func") is None:
                check_datasets(args, reward_funcs, train_dataset, eval_dataset)
        frozen = {"tower": args.freeze_vision_tower, "merger": args.freeze_merger}
        kwargs["peft_config"] = outside_frozen_parts(kwargs.get("peft_config"), **frozen)
        self._rollout: Rollout | None = None
        self._step_begin = 0
        self._sampled_at_step: int | None = None
        self._visual_inputs: Sequence[VisualInputs | None] | None = None
        self._cached_forward: CachedForward | None = None
        self._awaiting_credit: dict[str, Any] | None = None
        self._credit_taps: dict[str, AttentionTap | HiddenTap] = {}
        with telling_of_missing_layers(kwargs["peft_config"], **frozen):
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=undecoded_videos(train_dataset),
                eval_dataset=undecoded_videos(eval_dataset),
                processing_class=processing_class,
                **kwargs,
            )
        for policy in (self.model, self.ref_model):
            if policy is not None:
                apply_position_rule(policy, args.position_rule)
        # TRL forces the reentrant kind for adapters under ZeRO-3, and writes the old name.
        unify_checkpointing_names(args, to_new=False)
        # Tools, environments and own rollouts write prompts that are not ours to prepare; TRL handles their images.
        self._prepares_prompts = has_visual_grids(self.processing_class) and not (
            self.tools or self.rollout_func or self.environment_factories
        )
        if self._prepares_prompts:
            self._prompt_preparer = args.prompt_preparer(self.processing_class)
            self._suppress_placeholders()
        check_adapters_of(self.model, **frozen)
        if args.freeze_vision_tower or args.freeze_merger:
            freeze_vision(self.model, **frozen)
        if args.beta > 0:
            require_untouched_base(self.model, "The KL term (beta above 0)")
        require_quantised_training(self.model, args)
        require_trainable(self.model)
        self.add_callback(MasterWeights(self.accelerator))
        self._drops_out = drops_out(self.model)
        self._share_what_can_be_shared()
        self.setup_distributed()
        if args.dynamic_sampling:
            refuse_dynamic_sampling(self.train_dataset, trl_prepares=self._is_vlm and not self._prepares_prompts)
        self._guard = NonFiniteGuard(self.accelerator, args, self.processing_class)
        self._set_up_reporting()

    def _share_what_can_be_shared(self) -> None:
        """What completions share is paid for once: their prompt in forwards and generation, their media in the tower."""
        options, trl_prepares = self.args, self._is_vlm and not self._prepares_prompts
        refusal = None
        if trl_prepares:
            refusal = "TRL prepares these prompts (tools, an environment or a processor without grids)"
        elif options.torch_compile:
            refusal = "torch_compile cannot trace a packed row's mask"
        self._forwards = ForwardSelector(self.model, options, refusal)
        elsewhere = trl_prepares or self.use_vllm or self.use_transformers_continuous_batching
        self._prefills = options.shared_prefill and not elsewhere
        if self._prefills and (reason := shared_prefill_unsupported_reason(self.model, self.generation_config)):
            self._prefills = False
            logger.warning(f"Every completion prefills its own copy of the prompt: {reason}.")
        frozen = self._prepares_prompts and feature_reuse_unsupported_reason(self.model) is None
        self._reuses_features = options.reuse_vision_features and frozen
        if self._reuses_features and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self._reuses_features = False
            logger.warning(
                "The frozen vision tower is run in every forward: under FSDP and DeepSpeed it is not run outside the model."
            )
        if self._reuses_features and self.ref_model is not None and not same_frozen_tower(self.model, self.ref_model):
            self._reuses_features = False
            logger.warning(
                "The frozen vision tower is run in every forward: the reference model's has other weights, and features of its own."
            )

    # The two hooks

    def token_weights(self, group: Group) -> TokenWeights | None:
        """Multiplicative credit for the tokens of one group: advantage[g,t] = advantage[g] * weights[g,t].

        Called once a rollout for each complete group, in training, without gradient: before any shuffle, or, for a subclass
        that names its `policy_reads`, in the forward of an update that follows its rollout directly. A subclass returns
        weights (G,T); None, the default, leaves every token its sequence's advantage.
        """
        return None

    def penalty(self, inputs: dict[str, Any]) -> Penalty | None:
        """A term with gradient that is added to the loss at every update; None, the default, adds nothing.

        Its loss is divided by the accumulation, and gradients are averaged over processes. A mean over the micro-batch's
        tokens would thus weigh a token by the micro-batch that it came in; their sum divided by
        `inputs["tokens_per_micro_batch"]` is the mean over the whole optimisation step.

        Args:
            inputs: the micro-batch: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`, `advantages`,
                `visual_inputs` and what a subclass put there; in training `tokens_per_micro_batch` and
                `completions_per_micro_batch`, tokens that the policy is trained on and completions that have any, means
                over the micro-batches of the step on all processes.
        """
        return None

    def rollout_signals(self, group: Group) -> dict[str, Tensor]:
        """What the updates on a group need of the policy that sampled it: name -> (G,...), travelling with its rows.

        Called once a rollout for each complete group, in training, without gradient; `inputs[name]` in [`penalty`].
        """
        return {}

    # What a subclass may ask for

    def score(
        self, group: Group, view: View | None = None, *, entropy: bool = False, model: nn.Module | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """log p of a group's completions, and entropies where asked for, under a view of its prompt: (G,T) each.

        At the sampling temperature, without dropout, along the path that the updates take, so that values of several
        views and of the updates can be compared.

        Args:
            view: what is shown, the prompt as it is by default.
            model: another model than the policy.
        """
        reading = self.read(group, view, entropy=entropy, model=model)
        return reading.logps, reading.entropies

    @torch.no_grad()
    def read(
        self,
        group: Group,
        view: View | None = None,
        *,
        entropy: bool = False,
        attention: AttentionReduce | None = None,
        layers: int = 1,
        states: bool = False,
        model: nn.Module | None = None,
    ) -> ForwardOutput:
        """Everything that one forward of a group tells (see [`score`]).

        Runs as one packed row, or in micro-batches of `per_device_train_batch_size`. The policy on the prompt as it is
        may be read from a forward that is made anyway (see `policy_reads`).

        Args:
            attention: (tapped layers, mask (rows,P+T)) -> a tensor with the rows first; P without padding.
            layers: how many last full-attention layers are tapped for it.
            states: whether the last hidden states at the positions that predict the completion are kept, (G,T,D).
        """
        served = self._cached_forward if view is None and model is None else None
        if served is not None and served.knows(group, entropy, attention, states):
            return served.read(group, entropy, attention, states)
        policy = self.model if model is None else model
        view = view or with_media(group.prompt_ids, group.visual)
        if policy not in (self.model, self.ref_model):
            view = replace(view, visual=pixels_of(view.visual))

        def score_rows(forward: Callable, input_ids: Tensor, attention_mask: Tensor) -> tuple:
            width = group.completion_ids.size(1)
            self._collectives.before_forward(policy)
            return GRPOTrainer._get_per_token_logps_and_entropies(
                self, forward, input_ids, attention_mask, width, compute_entropy=entropy
            )

        with paused(self._taps_of_update), without_checkpointing(self.model), without_dropout(policy):
            return read_group(
                group,
                view,
                policy,
                score_rows,
                self._forwards,
                placeholder_ids=self._prompt_preparer.placeholder_ids if self._prepares_prompts else None,
                rows_a_forward=self.args.per_device_train_batch_size,
                attention=attention,
                layers=layers,
                states=states,
            )

    @property
    def prompt_preparer(self) -> PromptPreparer | None:
        """What makes prompts of rows; None where TRL does."""
        return self._prompt_preparer if self._prepares_prompts else None

    def policy_is_the_one_that_sampled(self) -> bool:
        """Whether no optimisation step was taken since the completions in hand were sampled."""
        return self.state.global_step == self._sampled_at_step

    def train(self, *args: Any, **kwargs: Any) -> Any:
        weighs = type(self).token_weights is not GRPOVideoTrainer.token_weights
        if weighs and not self.loss_counts_weighted_tokens_only:
            said = averaged_credit(type(self).__name__, self.args.loss_type, self.args.importance_sampling_level)
            if said:
                logger.warning(said)
        return super().train(*args, **kwargs)

    # Rollout: TRL's, on prompts prepared here

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rollout, output = self._sample(inputs)
        if self.model.training and self.args.dynamic_sampling:
            rollout, output = refill(self, rollout, output)
        self._rollout = rollout
        output["row"] = torch.arange(len(inputs))
        output["sample"] = samples(rollout, self.reward_func_names)
        if self._prepares_prompts:
            output["visual_inputs"] = [prompt.visual for prompt in rollout.prompts]
            output["row_scale"] = rollout.row_scale
        if self.model.training:
            self._sampled_at_step = self.state.global_step
            self._tracker.start_rollout()
            groups = list(complete_groups(rollout, output, self.num_generations, self.reward_func_names))
            self._records.open(groups, self.state)
            if self._update_serves_credit(output):
                output["group"] = [None] * len(inputs)
                for rows, group in groups:
                    output["group"][rows] = [group] * self.num_generations
            else:
                with self._reading_from(self._old_policy_forward(groups, output)):
                    self._apply_token_weights(groups, output)
            self._attach_signals(groups, output)
        self._rollout = None
        return output

    # Updates

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if self._buffered_inputs is not buffered:
            # TRL's own image inputs are packed over the rows and cannot be put back in order; they serve no group.
            if "pixel_values" not in inputs:
                self._buffered_inputs = whole_groups(self._buffered_inputs, self.num_generations)
            counts = torch.stack([loss_counts(batch) for batch in self._buffered_inputs])
            counts = self.accelerator.reduce(counts, reduction="sum").tolist()
            for batch, (tokens, completions) in zip(self._buffered_inputs, counts, strict=True):
                batch["in_loss"] = {"tokens": tokens, "completions": completions}
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        inputs.update(self._means_of_step())
        return inputs

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple:
        self._step_begin = self._step  # transformers asks for the micro-batches of one optimisation step
        return super().get_batch_samples(*args, **kwargs)

    def _means_of_step(self) -> dict[str, float]:
        """Tokens and completions in the loss, means over the micro-batches of the optimisation step on all processes.

        Of a step that spans several rollouts, over those that belong to the rollout in hand: the next is not sampled yet.
        """
        spread = self.args.steps_per_generation
        rollout = spread * self.num_iterations
        step = range(self._step_begin, self._step_begin + self.current_gradient_accumulation_steps)
        batches = [self._buffered_inputs[i % spread] for i in step if i // rollout == self._step // rollout]
        shares = len(batches) * self.accelerator.num_processes
        return {
            f"{what}_per_micro_batch": (sum(batch["in_loss"][what] for batch in batches) or 1) / shares
            for what in ("tokens", "completions")
        }

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        awaits = self.model.training and "group" in inputs
        self._credit_taps = credit_taps(self.model, self.policy_reads) if awaits else {}
        self._awaiting_credit = inputs if awaits else None
        with self._seeing(inputs.get("visual_inputs")), ExitStack() as taps:
            for tap in self._taps_of_update:
                taps.enter_context(tap)
            with self._policy_term_scaled(inputs):
                loss = super()._compute_loss(model, inputs)
            self._guard.record_term("policy loss", loss)
            penalty = self.penalty(inputs)
        if penalty is None:
            return loss
        validate_penalty(penalty)
        self._record([penalty.metrics])
        self._guard.record_term("penalty", penalty.loss)
        return loss + penalty.loss / (self.current_gradient_accumulation_steps if self.model.training else 1)

    @contextmanager
    def _policy_term_scaled(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Context manager that scales the policy term of TRL's loss, and not its entropy bonus and its experts' loss.

        That term is linear in the advantages and, beside them, in the KL coefficient, for every loss type.
        """
        counts_rows = self.loss_type in ROW_MEAN_LOSSES
        scale = self.policy_loss_weight * float(inputs.get("row_scale", 1.0) if counts_rows else 1.0)
        advantages, beta = inputs["advantages"], self.beta
        inputs["advantages"], self.beta = advantages * scale, beta * scale
        try:
            yield
        finally:
            if inputs["advantages"].dim() > advantages.dim():  # token weights came in the forward
                advantages = advantages.unsqueeze(1) * inputs["token_weights"]
            inputs["advantages"], self.beta = advantages, beta

    # ForwardSelector with media

    @contextmanager
    def _seeing(self, visual_inputs: Sequence[VisualInputs] | None) -> Iterator[None]:
        """Within it, forwards over B rows see these B visual inputs."""
        before, self._visual_inputs = self._visual_inputs, visual_inputs
        try:
            yield
        finally:
            self._visual_inputs = before

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._is_vlm and not self._prepares_prompts:
            scores = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
            self._guard.record_logps(scores[0])
            return scores
        visuals = self._visual_inputs if self._prepares_prompts else None
        self._check_placeholders(input_ids, attention_mask, visuals)
        if self._rollout is not None and self.policy_reads is not None and model is self.model:
            compute_entropy = compute_entropy or self.policy_reads.entropies
        batch_size = batch_size or len(input_ids)
        chunks = []
        for start in range(0, len(input_ids), batch_size):
            rows = slice(start, start + batch_size)
            ids, mask = input_ids[rows], attention_mask[rows]
            forward = self._forwards.bind(model, ids, mask, logits_to_keep, visuals and visuals[rows])
            chunks.append(
                super()._get_per_token_logps_and_entropies(
                    forward, ids, mask, logits_to_keep, compute_entropy=compute_entropy, **kwargs
                )
            )
        logps, entropies, aux_losses = zip(*chunks, strict=True)
        logps = torch.cat(logps)
        self._guard.record_logps(logps)
        entropies = None if entropies[0] is None else torch.cat(entropies)
        if self._rollout is not None and self._rollout.scored is None:
            self._rollout.scored = (logps, entropies)
        if self._awaiting_credit is not None:
            inputs, self._awaiting_credit = self._awaiting_credit, None
            self._give_credit(inputs, logps, entropies)
        return logps, entropies, None if aux_losses[0] is None else torch.stack(aux_losses).mean()

    def _check_placeholders(self, input_ids: Tensor, attention_mask: Tensor, visuals: Sequence | None) -> None:
        if self._prepares_prompts:
            check_placeholders(input_ids, attention_mask, self._prompt_preparer.placeholder_ids, visuals)

    @property
    def _taps_of_update(self) -> list[AttentionTap | HiddenTap]:
        return [*self.taps, *self._credit_taps.values()]

    # Small things

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "video", "videos"]))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with keeping_types(self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _suppress_placeholders(self) -> None:
        """A sampled placeholder would have no feature: take those ids out of generation, beside what the user did."""
        ids = {*(self.generation_kwargs.get("suppress_tokens") or ()), *self._prompt_preparer.placeholder_ids.values()}
        self.generation_kwargs["suppress_tokens"] = sorted(ids)
        self.generation_config.suppress_tokens = sorted(ids)

    # Non-finite losses

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # gradients are whole, and not clipped yet
            for name, value in self._guard.check_step(model, self._loss_context).items():
                self._metrics["train"][name].append(value)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self._guard.recording(inputs):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            self._guard.record_term("loss", loss)
        return loss

    @property
    def _loss_context(self) -> dict[str, Any]:
        """What a loss depends on beside its micro-batch and the weights; [`replay`] sets it again."""
        return {
            "class": type(self).__name__,
            "step": self.state.global_step,
            "sampled_at_step": self._sampled_at_step,
            "accumulation": self.current_gradient_accumulation_steps,
            "packs": self._forwards.packs,
        }

    # Logging, records, card

    # What the method gives credit to, in a sentence for the report.
    reinforces = "Every token of a completion gets the same credit: its reward, compared with its group's."
    # Where the run comes from, for its card; a run from a recipe sets it.
    origin: Origin | None = None

    def _set_up_reporting(self) -> None:
        require_card_template(self._template_file)
        self._tracker = RolloutTracker(
            self._logs,
            self._tokenizer,
            self.callback_handler.callbacks,
            enabled=self.log_completions,
            frames=self.log_multimodal,
        )
        self._records = RolloutRecords(
            self.args,
            self.accelerator,
            self.model,
            self._tokenizer,
            self.reward_weights,
            about={"method": self._name, "reinforces": self.reinforces},
            read=self.read,
            reads_policy=not (self.is_fsdp_enabled or self.is_deepspeed_enabled),
            log_metrics=self._record,
        )
        self.add_callback(self._tracker)
        self.add_callback(self._records)

    def log_signal(
        self, of: Group | dict[str, Any], name: str, values: Tensor | Sequence[Tensor] | Callable, axes: str = "GT"
    ) -> None:
        """Keep a signal for the report, where the rollout it belongs to is recorded (`report_every`); else do nothing.

        Args:
            of: the group, or in [`penalty`] the micro-batch (G then stands for its rows).
            name: the signal's name; "token_weights" is taken. A later signal of a name replaces an earlier one.
            values: by `axes`, anything on padding, or a function that makes them, called only where they are kept: "GT",
                of tokens; "F", of frames (numbered as by `token_frames`); "GF", of frames for each completion; "GTF", of
                frames for each token. Boolean values are shown as a mask.
        """
        if self.model.training:
            self._records.log_signal(of, name, values, axes)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """TRL's card, completed with what was done and what came of it; `README.md` in the output folder."""
        if dataset_name is None and self.origin is not None and self.origin.on_hub:
            dataset_name = self.origin.dataset
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            facts = CardFacts(
                trainer=type(self),
                name=self.hub_model_id or folder.name,
                settings=self.args,
                model=self.model,
                processor=self.processing_class,
                prepares_prompts=self._prepares_prompts,
                dataset=self.train_dataset,
                log_history=self.state.log_history,
                accelerator=self.accelerator,
                origin=self.origin,
            )
            complete_card(folder / "README.md", facts)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _record(self, metrics: list[dict[str, float | Tensor]]) -> None:
        """Log each metric's mean over all dictionaries of all processes since the last entry of the log.

        Every process calls it equally often. Each dictionary counts once, in whichever process and call it came.
        """
        local = [{key: float(value) for key, value in of_one.items()} for of_one in metrics]
        for of_one in gather_object(local):
            for key, value in of_one.items():
                self._metrics[self._mode][key].append(value)

    def _log_frames(self, rollout: Rollout) -> None:
        self._tracker.log_frames(rollout.prompts)

    def _show(self, credited: Sequence[tuple[Group, TokenWeights | None]]) -> None:
        self._tracker.show(credited)
