"""Video GRPO on TRL: the base of every method.

It and its rooms (`sampling`, `crediting`, `scoring`, `nonfinite`, `telling`, `checkpoints`) are the only places that touch TRL's private
names.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoProcessor, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

from ..assets import model_path
from ..batch import Group, Rollout, complete_groups, loss_counts, whole_groups
from ..callbacks.checkpoints import Checkpoints, run_state
from ..callbacks.checkpoints.run_facts import facts_of, identity_of
from ..callbacks.nonfinite import NonFinite, samples
from ..callbacks.precision import MasterWeights
from ..callbacks.reporting import Telling
from ..callbacks.zero_reward import ZeroReward
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
from .credit import Crediting, validate_penalty
from .dynamic_sampling import refill, refuse_dynamic_sampling
from .forward_selector import ForwardSelector
from .generation import Sampling
from .grpo_video_config import GRPOVideoConfig
from .policy_reader import AttentionReduce, CachedForward, ForwardOutput, PolicyReads, credit_taps, read_group
from .refusals import (
    averaged_credit,
    check_datasets,
    left_out_of_an_epoch,
    refuse_vllm,
    require_prompts,
    require_trainable,
)
from .scoring import Scoring
from .sharding import Sharding

logger = get_logger(__name__)

# Losses that average over rows: a row that is left out must not count in their denominator.
ROW_MEAN_LOSSES = ("grpo", "sapo", "dr_grpo", "luspo")


class GRPOVideoTrainer(Sampling, Crediting, Scoring, NonFinite, Sharding, Telling):
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
        moves = args.sync_ref_model and self.ref_model is not None
        reference = self.accelerator.unwrap_model(self.ref_model) if moves else None
        kinds = {"trains_adapter": isinstance(self.model, PeftModel)}
        kinds["in_parts"] = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        self._checkpoints = Checkpoints(self.args, self.accelerator, reference, **kinds)
        for callback in (MasterWeights(self.accelerator), ZeroReward(), self._checkpoints):
            self.add_callback(callback)
        self._drops_out = drops_out(self.model)
        self._share_what_can_be_shared()
        self.setup_distributed()
        if args.dynamic_sampling:
            refuse_dynamic_sampling(self.train_dataset, trl_prepares=self._is_vlm and not self._prepares_prompts)
        if args.report_every:
            self._keep_records()

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
            self._shown = ()
            groups = list(complete_groups(rollout, output, self.num_generations, self.reward_func_names))
            if self._records is not None:
                self._records.open(groups)
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
            penalty = self.penalty(inputs)
        if penalty is None:
            return loss
        validate_penalty(penalty)
        self._record([penalty.metrics])
        self._saw("penalty", penalty.loss)
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
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
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

    def _suppress_placeholders(self) -> None:
        """A sampled placeholder would have no feature: take those ids out of generation, beside what the user did."""
        ids = {*(self.generation_kwargs.get("suppress_tokens") or ()), *self._prompt_preparer.placeholder_ids.values()}
        self.generation_kwargs["suppress_tokens"] = sorted(ids)
        self.generation_config.suppress_tokens = sorted(ids)

    # Checkpoints

    def claim_output_dir(self, resume_from_checkpoint: str | bool | None = None) -> None:
        """Claim the output folder for this run, as [`train`] does. Errors: ValueError where it belongs to another run."""
        keeps = self.args.save_strategy != "no" or bool(self.args.report_every) or self.origin is not None
        facts = (type(self).__name__, self.origin, self.model, self.reward_func_names, self.train_dataset)
        self._checkpoints.claim(identity_of(*facts), resume_from_checkpoint, keeps_files=keeps)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Resuming from True takes the last complete checkpoint of the output folder.

        Errors: ValueError where there is none, or it is damaged, not complete, or does not fit this run: another trainer,
        an adapter or none, other processes, batches, seed or rows (`ignore_data_skip=True` resumes with other rows and batches
        nevertheless). ValueError for an output folder of another run, and where every row was left out.
        """
        self._warn_before_training()
        self.claim_output_dir(resume_from_checkpoint)
        folder = self._checkpoints.to_resume(resume_from_checkpoint, self._facts())
        if folder is not None:
            self.accelerator.print(f"resuming from {folder.name} of {self._name} ({folder})")
            records = run_state.read_state(folder, self.args.process_index).get("records")
            if self._records is not None and records is not None:
                self._records.resume(records, with_open=not self.args.ignore_data_skip)
        trained = super().train(folder and str(folder), *args, **kwargs)
        self._require_rows_used(at_the_end=True)
        return trained

    def _warn_before_training(self) -> None:
        weighs = type(self).token_weights is not GRPOVideoTrainer.token_weights
        if weighs and not self.loss_counts_weighted_tokens_only:
            said = averaged_credit(type(self).__name__, self.args.loss_type, self.args.importance_sampling_level)
            if said:
                logger.warning(said)
        if hasattr(self.train_dataset, "__len__"):
            prompts = self.args.generation_batch_size // self.num_generations
            if rest := left_out_of_an_epoch(len(self.train_dataset), prompts, shuffled=self.shuffle_dataset):
                logger.warning(rest)

    def _run_epoch(self, **arguments: Any) -> None:
        folder, done = arguments["resume_from_checkpoint"], arguments["epochs_trained"]
        if folder is not None and arguments["epoch"] == done:
            rank, reference = self.args.process_index, self._checkpoints.reference
            run_state.skip_epochs(arguments["train_dataloader"], done)
            self._set_resume_state(run_state.restore_state(Path(folder), rank, self.accelerator.device, reference))
        if self.state.global_step >= self.state.max_steps:  # transformers would make one step more
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**arguments)

    def _resume_state(self) -> dict[str, Any]:
        """What this process resumes with: JSON, and the micro-batches of a rollout that updates are still to be made on."""
        is_open = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        return {
            "micro_steps": self._step,
            "sampled_at_step": self._sampled_at_step,
            "packs": self._forwards.packs,
            "skipped_in_a_row": self._skipped_in_a_row,
            "metrics": {name: [float(value) for value in values] for name, values in self._metrics["train"].items()},
            "loss": self._tr_loss.item(),
            "logged_at_step": self._globalstep_last_logged,
            "completions": run_state.logged_completions(self._logs) if self.log_completions else None,
            "records": None if self._records is None else self._records.state(is_open),
            "rollout": self._buffered_inputs if is_open else None,
        }

    def _set_resume_state(self, state: dict[str, Any]) -> None:
        """Put back what [`_resume_state`] returned, but for the records, which resume before."""
        if self.args.ignore_data_skip:
            done = self.state.global_step * self.args.gradient_accumulation_steps
            every = self.args.steps_per_generation * self.num_iterations
            self._step = -(-done // every) * every  # a rollout begins
            return
        self._step, self._sampled_at_step = state["micro_steps"], state["sampled_at_step"]
        self._buffered_inputs, self._forwards.packs = state["rollout"], state["packs"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._metrics["train"].clear()
        self._metrics["train"].update(state["metrics"])
        self._tr_loss += state["loss"]
        self._total_loss_scalar -= state["loss"]  # the mean that ends a run is of the steps since it was resumed
        self._globalstep_last_logged = state["logged_at_step"]
        if self.log_completions and state["completions"] is not None:
            run_state.restore_completions(self._logs, state["completions"])

    def _facts(self) -> dict[str, Any]:
        return facts_of(type(self).__name__, self.args, self.train_dataset)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._checkpoints.writing(super()._get_output_dir(trial), self.state) as draft:
            super()._save_checkpoint(model, trial)
            self._checkpoints.write(draft, self._resume_state(), self._facts(), self.state.global_step)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(os.path.join(super()._get_output_dir(trial), draft.name))

    def _get_output_dir(self, trial: Any) -> str:
        return self._checkpoints.run_folder(super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: transformers calls it before the checkpoint is complete; [`_save_checkpoint`] pushes."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with keeping_types(self.model if model is None else model):
            if model is None and isinstance(self.model, PreTrainedModel):
                run_state.load_weights(self.model, resume_from_checkpoint)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """A new one for each evaluation: one that is kept continues its order, which a resumed run would begin again."""
        if isinstance(eval_dataset, Dataset | IterableDataset):
            eval_dataset = undecoded_videos(eval_dataset)
        kept, self.args.dataloader_persistent_workers = self.args.dataloader_persistent_workers, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_persistent_workers = kept
