"""GRPO with video on TRL: the parent of every method. Every override of a TRL method in this package is in this file.

A training step is: rows -> rollout -> (forward -> credit -> loss) for each of its micro-batches.
"""

import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

from ..assets import model_path
from ..batch import (
    REPEATED,
    Group,
    MicroBatch,
    PromptsOfTRL,
    Rollout,
    Scores,
    are_groups,
    complete_groups,
    means_per_micro_batch,
    prompt_for_rewards,
    scored_groups,
    whole_groups,
)
from ..callbacks.checkpoints import Checkpoints, run_state
from ..callbacks.checkpoints.run_facts import facts_of, identity_of
from ..callbacks.nonfinite import NonFiniteGuard, samples
from ..callbacks.precision import MasterWeights
from ..callbacks.reporting import RolloutRecords, RolloutTracker
from ..callbacks.zero_reward import ZeroReward
from ..counterfactuals import groups_under, rollout_under
from ..credit import (
    Groups,
    attach_signals,
    averaged_credit,
    host_values,
    shaped_rewards,
    validate_penalty,
    validate_token_weights,
    weigh_sequences,
    weigh_tokens,
)
from ..data.columns import undecoded_videos
from ..data.start_checks import check_processor
from ..data.streams import in_order
from ..data.training_checks import (
    check_datasets,
    check_media_kept,
    left_out_of_an_epoch,
    refuse_padded,
    require_prompts,
)
from ..engine import check_engine, log_prob_check, media_rollouts
from ..families import family_of_processor, family_of_run
from ..media import PreparedPrompt, PromptPreparer, RowsAhead, VisualInputs
from ..media.visual_inputs import UNKNOWN_MEDIA
from ..modeling import (
    AttentionTap,
    Head,
    HiddenTap,
    OneTowerRun,
    View,
    base_model,
    encode,
    feature_reuse_unsupported_reason,
    gather_parameters,
    keep_lm_head_unsharded,
    on_device,
    pixels_of,
    prefill_once,
    same_frozen_tower,
    set_up_vision,
    shared_prefill_unsupported_reason,
    with_media,
)
from ..modeling.activation_checkpointing import unify_checkpointing_names, without_checkpointing
from ..modeling.adapters import (
    check_adapters_of,
    drops_out,
    explain_missing_layers,
    keeping_types,
    outside_frozen_parts,
    require_untouched_base,
    without_dropout,
)
from ..modeling.experts import require_router_logits
from ..modeling.forward_selector import ForwardSelector
from ..modeling.freezing import freeze_vision, require_trainable
from ..modeling.quantization import require_quantised_training
from ..objectives import Penalty, TokenWeights
from ..objectives.checks import checks_together
from ..reports.card import CardFacts, complete_card, require_card_template
from ..reports.card_facts import Origin
from ..rewards.checked import distinct
from .distributed import CollectiveScheduler, Sharding, empty_forward
from .dynamic_sampling import DynamicSampling, refuse_dynamic_sampling
from .grpo_video_config import GRPOVideoConfig
from .policy_reader import AttentionReduce, CachedForward, ForwardOutput, PolicyReader, PolicyReads, Taps
from .rewards import RewardChecks, require_scored
from .rollout import RolloutBuilder, leave_out

logger = get_logger(__name__)

# Losses that average over rows: a row that is left out must not count in their denominator.
ROW_MEAN_LOSSES = ("grpo", "sapo", "dr_grpo", "luspo")
# Arguments of TRL's scoring forward for media that TRL prepared, in its batch by the same names.
MEDIA_OF_TRL = tuple(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)[8:]


class GRPOVideoTrainer(GRPOTrainer):
    """GRPO, and every loss type of TRL's [`~trl.GRPOTrainer`], for prompts with videos, images and text in one batch.

    Rows are TRL's: a conversational `prompt` and columns `images`/`videos` (or `image`/`video`), or media inside the
    messages as qwen-vl-utils writes them. The visual tensors of a prompt are made once and are the same ones in
    rollout, old and reference log-probabilities and every update; in every forward the number of placeholder tokens
    must equal the number of visual features.

    A subclass gives credit through hooks: [`token_weights`], [`sequence_weights`], [`shape_rewards`] or [`penalty`].

    Args:
        model: name or path (`"tiny"` is the model that ships with this package) or a `PreTrainedModel`.
        reward_funcs: as in TRL. A callable must return one finite float, or None, for each completion.
        args: a [`GRPOVideoConfig`], or the method's own configuration.
        train_dataset, eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers, quantization_config,
            peft_config, tools, rollout_func, environment_factory: as in TRL.

    Errors: ValueError for media with a processor that does not describe them as grids, for settings that the engine
    (`use_vllm`) cannot follow, for videos with tools, environments or a `rollout_func`, and for bad rows (see `on_bad_media`).
    """

    _tag_names = ["trl", "grpo", "trl-perception"]  # noqa: RUF012 (TRL's own attribute)
    _name = "GRPO"
    config_class = GRPOVideoConfig
    method = "grpo"  # its name in recipes

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
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: list[Callable] | None = None,
        rollout_func: Callable | None = None,
        environment_factory: Callable | dict[str, Callable] | None = None,
    ):
        model = model_path(model) if isinstance(model, str) else model
        name = model if isinstance(model, str) else model.config._name_or_path
        if args is None:
            args = self.config_class(f"{name.rstrip('/').split('/')[-1]}-{self._name}")
        if not isinstance(args, self.config_class):
            wanted = self.config_class.__name__
            raise TypeError(f"`args` is a {type(args).__name__}; {type(self).__name__} wants a {wanted}.")
        if args.use_vllm and not (tools or rollout_func or environment_factory):  # before weights are loaded
            load = partial(AutoProcessor.from_pretrained, name, trust_remote_code=args.trust_remote_code)
            if family_of_processor(processing_class or load()) is not None:
                check_engine(args, quantised=quantization_config is not None)
        if environment_factory is None:  # an environment may write the prompts
            for dataset in (train_dataset, eval_dataset):
                require_prompts(dataset)
            if args.check_rows and not tools and rollout_func is None:
                check_datasets(args, reward_funcs, train_dataset, eval_dataset)
        frozen = {"tower": args.freeze_vision_tower, "merger": args.freeze_merger}
        peft_config = outside_frozen_parts(peft_config, **frozen)
        self._reward_checks = RewardChecks(timeout=args.reward_timeout, skips=args.on_nonfinite == "skip")
        self._step_begin = 0
        self._sampled_at_step = -1  # the optimisation step at which the rollout in hand was sampled
        with explain_missing_layers(peft_config, **frozen), media_rollouts(args):
            super().__init__(
                model=model,
                reward_funcs=self._reward_checks.wrap(reward_funcs),
                args=args,
                train_dataset=undecoded_videos(train_dataset),
                eval_dataset=undecoded_videos(eval_dataset),
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                tools=tools,
                rollout_func=rollout_func,
                environment_factory=environment_factory,
            )
        self.reward_func_names = distinct(self.reward_func_names)
        self._setup_model(frozen)
        # Tools, environments and own rollouts write prompts that are not ours to prepare; TRL handles their images.
        own_prompts = self.tools or self.rollout_func or self.environment_factories
        known = family_of_run(base_model(self.model), self.processing_class)
        self._prepares_prompts = known is not None and not own_prompts
        prepare = args.prompt_preparer if self._prepares_prompts else PromptsOfTRL
        self._prompt_preparer = prepare(self.processing_class)
        if self._prepares_prompts:
            self._suppress_placeholders()
            check_processor(self._prompt_preparer, self.model.config.model_type, train_dataset, self.accelerator.print)
        elif args.check_rows:
            check_media_kept(self.processing_class, train_dataset, eval_dataset)
        self._setup_fast_paths()
        self._setup_distributed()
        self._setup_components()
        self.setup_method()

    def setup_method(self) -> None:
        """For subclasses: check the method's settings and set up what it needs, once models, rewards and processes are there."""

    # The hooks

    def token_weights(self, group: Group) -> TokenWeights | None:
        """Multiplicative credit for the tokens of one group: advantage[g,t] = advantage[g] * weights[g,t].

        Called once a rollout for each complete group, in training, without gradient: before any shuffle, or, for a subclass
        that names its `policy_reads`, in the forward of an update that follows its rollout directly. A subclass returns
        weights (G,T); None, the default, leaves every token its sequence's advantage.
        """
        return None

    def penalty(self, inputs: MicroBatch) -> Penalty | None:
        """A term with gradient that is added to the loss at every update; None, the default, adds nothing.

        Its loss is divided by the accumulation, and gradients are averaged over processes. A mean over the micro-batch's
        tokens would thus weigh a token by the micro-batch that it came in; their sum divided by
        `inputs["tokens_per_micro_batch"]` is the mean over the whole optimisation step.

        Args:
            inputs: the [`MicroBatch`]: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`, `advantages`,
                `visual_inputs`, `logps` (B,T) of the policy with gradient, the property `loss_mask`, and what a subclass put
                there; in training `tokens_per_micro_batch` and `completions_per_micro_batch`, tokens that the policy is
                trained on and completions that have any, means over the micro-batches of the step on all processes.
        """
        return None

    def sample_counterfactuals(self) -> dict[str, list[Group | None]]:
        """Completions of a rollout's prompts under views, by name, each from [`sample_under`]; none by default.

        Called once a rollout in training, on every process, before rewards are computed. `group.counterfactuals[name]` has
        them in every other hook.
        """
        return {}

    def shape_rewards(self, group: Group) -> Tensor | None:
        """Rewards (G,K) from which the advantages of a group are formed; None, the default, leaves them as they are.

        Called once a rollout for each complete group, in training, before advantages are formed (`group.advantages` is NaN).
        Columns are those of `group.rewards`, unweighted, NaN where a reward does not apply. [`log_metric`] logs a value.
        """
        return None

    def gather_statistics(self, groups: Sequence[Group]) -> None:
        """Called before [`sequence_weights`] on every process, with its groups that are given credit together, perhaps none."""

    def sequence_weights(self, group: Group) -> Tensor | None:
        """Factors (G,) >= 0 for the advantages of whole completions, called after [`token_weights`]; None is 1, the default."""
        return None

    def rollout_signals(self, group: Group) -> dict[str, Tensor]:
        """Tensors of the sampling policy that the updates on a group need: name -> (G,...), passed on with its rows.

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
        output = self.read(group, view, entropy=entropy, model=model)
        return output.logps, output.entropies

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
        """Runs one forward of a group and returns everything that is asked for (see [`score`]).

        Runs as one packed row, or in micro-batches of `per_device_train_batch_size`. The policy on the prompt as it is
        may be read from a forward that is made anyway (see `policy_reads`).

        Args:
            attention: (tapped layers, mask (rows,P+T)) -> a tensor with the rows first; P without padding.
            layers: how many last full-attention layers are tapped for it.
            states: whether the last hidden states at the positions that predict the completion are kept, (G,T,D).
        """
        if view is None and model is None and self._reader.cached.knows(group, entropy, attention, states):
            return self._reader.cached.read(group, entropy, attention, states)
        policy = self.model if model is None else model
        view = view or with_media(group.prompt_ids, group.visual)
        if policy not in (self.model, self.ref_model):
            view = replace(view, visual=pixels_of(view.visual))
        asked = {"entropy": entropy, "attention": attention, "layers": layers, "states": states}
        with without_checkpointing(self.model), without_dropout(policy):
            return self._reader.read(group, view, policy, **asked)

    def sample_under(self, view: Callable[[PreparedPrompt], View | None], n: int) -> list[Group | None]:
        """Samples further completions of the rollout's prompts under a view, for [`sample_counterfactuals`].

        As the rollout itself is sampled (shared prefill, engine, processes), and scored by the same rewards, whose metrics
        and table have the rollout alone; never trained on. Tokens count in `num_tokens`.

        Args:
            view: a prompt -> a [`View`] without positions of its own, or None for a prompt that is not sampled.
            n: completions of each prompt, at least 1.
        Returns: for each group of this process the n completions with their `rewards`, or None.
        Errors: ValueError for a view with positions, and where TRL prepares the prompts.
        """
        rollout, count, filler = self._rollout, self.num_generations, self._tokenizer.eos_token_id
        groups, shown = rollout_under(rollout, view, n, count, self.accelerator, filler, self.with_features)
        if shown is None:
            return [None] * (len(rollout.prompts) // count)
        if not self._prepares_prompts:
            raise ValueError(UNKNOWN_MEDIA)
        with self._sampling(shown, n):
            generated = super()._generate([row["prompt"] for row in shown.trl_rows])
            prompts = [prompt_for_rewards(prompt) for prompt in shown.prompts]
            rewards = super()._calculate_rewards(shown.rows, prompts, generated[3], generated[1])
            self._reward_checks.stop_together(self.accelerator)
        shown.prompt_ids, shown.completion_ids = generated[:2]
        local = shown.local(rewards, self.accelerator.process_index)
        return groups_under(shown, groups, n, len(rollout.prompts) // count, local, self.reward_func_names)

    def score_update(self, inputs: MicroBatch, visuals: Sequence[VisualInputs]) -> Tensor:
        """log p (B,T) of an update's rows, with gradient, under other visual inputs of their prompts, for [`penalty`].

        One more forward of the micro-batch. With sharded parameters every process must ask for it at every update.
        """
        width = inputs["completion_ids"].size(1)
        return self._reader.score_rows(self.model, inputs.input_ids, inputs.attention_mask, width, visuals).logps

    def log_metric(self, name: str, value: float) -> None:
        """Logs the mean of a value over all calls of a rollout on all processes, for [`shape_rewards`]."""
        self._log_metric(name, float(value))

    def head_of(self, model: nn.Module) -> Head:
        """Returns the current language-model head of the policy or of another model of the run, for [`token_weights`]."""
        return self._collectives.head_of(model)

    def share_model(self, model: nn.Module) -> None:
        """Registers a model that is placed as the policy is: all processes then run its forwards together."""
        self._collectives.share(model)
        self._tower_runs += self._sharding.tower_runs(model)

    @property
    def prompt_preparer(self) -> PromptPreparer | None:
        """The component that prepares prompts from rows; None if TRL prepares them."""
        return self._prompt_preparer if self._prepares_prompts else None

    def policy_is_the_one_that_sampled(self) -> bool:
        """Whether no optimisation step was taken since the completions in hand were sampled."""
        return self.state.global_step == self._sampled_at_step

    # Set-up

    def _setup_model(self, frozen: dict[str, bool]) -> None:
        for policy in (self.model, self.ref_model):
            if policy is not None:
                set_up_vision(policy, self.args.position_rule)
        # TRL forces the reentrant kind for adapters under ZeRO-3, and writes the old name.
        unify_checkpointing_names(self.args, to_new=False)
        check_adapters_of(self.model, **frozen)
        freeze_vision(self.model, **frozen)
        if self.args.beta > 0:
            require_untouched_base(self.model, "The KL term (beta above 0)")
        require_quantised_training(self.model, self.args)
        require_trainable(self.model)
        self._drops_out = drops_out(self.model)

    def _suppress_placeholders(self) -> None:
        """Suppresses placeholder ids in generation: a sampled placeholder would have no feature."""
        if self.use_vllm:
            self.vllm_generation.begin(self._prompt_preparer, self.eos_token_ids)
            return
        ids = {*(self.generation_kwargs.get("suppress_tokens") or ()), *self._prompt_preparer.suppressed_ids}
        self.generation_kwargs["suppress_tokens"] = sorted(ids)
        self.generation_config.suppress_tokens = sorted(ids)

    def _setup_fast_paths(self) -> None:
        """Selects what is computed once per prompt: its packed forward, its prefill, the features of its media."""
        options, trl_prepares = self.args, self._is_vlm and not self._prepares_prompts
        refusal = None
        if trl_prepares:
            refusal = "TRL prepares these prompts (tools, an environment or a processor of another family)"
        elif self.aux_loss_enabled:
            require_router_logits(self.model)
            refusal = "experts balance their load over all rows (router_aux_loss_coef=0 switches this loss off)"
        elif options.torch_compile:
            refusal = "torch_compile cannot trace a packed row's mask"
        self._forwards = ForwardSelector(self.model, options.group_forward, refusal)
        elsewhere = trl_prepares or self.use_vllm or self.use_transformers_continuous_batching
        self._prefills = options.shared_prefill and not elsewhere
        if self._prefills and (reason := shared_prefill_unsupported_reason(self.model, self.generation_config)):
            self._prefills = False
            logger.warning(f"Every completion prefills its own copy of the prompt: {reason}.")
        frozen = self._prepares_prompts and feature_reuse_unsupported_reason(self.model) is None
        self._reuses_features = options.reuse_vision_features and frozen
        reason = ""
        if self._reuses_features and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            reason = "under FSDP and DeepSpeed it is not run outside the model"
        elif self._reuses_features and self.ref_model and not same_frozen_tower(self.model, self.ref_model):
            reason = "the reference model's has other weights, and features of its own"
        if reason:
            self._reuses_features = False
            logger.warning(f"The frozen vision tower is run in every forward: {reason}.")

    def _setup_distributed(self) -> None:
        found = self.args.ddp_find_unused_parameters
        self._sharding = Sharding(self.accelerator, self.is_fsdp_enabled, self.is_deepspeed_enabled, found)
        self._sharding.refuse_what_would_hang(
            self.model, self.args, sees=self._is_vlm, references=self.ref_model is not None
        )
        token = self._tokenizer.pad_token_id
        run_empty = partial(empty_forward, accelerator=self.accelerator, token_id=token)
        self._collectives = CollectiveScheduler(self.accelerator, self._sharding.shards_parameters, run_empty)
        self._tower_runs: list[OneTowerRun] = []
        self.share_model(self.model)
        if self._sharding.fsdp and self.accelerator.num_processes > 1:
            keep_lm_head_unsharded(self.model)
        if self.ref_model is not None:
            self.share_model(self.ref_model)

    def _setup_components(self) -> None:
        options, preparer = self.args, self._prompt_preparer
        self._rows_ahead = RowsAhead(options.media_prefetch, options.steps_per_generation * self.num_iterations)
        self._build_rollout = RolloutBuilder(
            preparer, self.accelerator, self.with_features, self._rows_ahead, on_unusable=options.on_bad_media
        )
        self._reader = PolicyReader(
            partial(GRPOTrainer._get_per_token_logps_and_entropies, self),
            self._forwards,
            self._collectives,
            placeholder_ids=preparer.placeholder_ids,
            rows_a_forward=options.per_device_train_batch_size,
        )
        self._log_prob_check = log_prob_check(options, self.model.dtype, self._tokenizer.decode)
        if options.dynamic_sampling:
            refuse_dynamic_sampling(self.train_dataset, trl_prepares=self._is_vlm and not self._prepares_prompts)
        self._guard = NonFiniteGuard(self.accelerator, options, self.processing_class)
        moves = options.sync_ref_model and self.ref_model is not None
        self._checkpoints = Checkpoints(
            options,
            self.accelerator,
            self.accelerator.unwrap_model(self.ref_model) if moves else None,
            trains_adapter=isinstance(self.model, PeftModel),
            in_parts=self.is_fsdp_enabled or is_deepspeed_zero3_enabled(),
        )
        for callback in (MasterWeights(self.accelerator), ZeroReward(), self._checkpoints):
            self.add_callback(callback)
        self._setup_reporting()

    def with_features(self, visual: VisualInputs) -> VisualInputs:
        """Returns visual inputs where the model is, with the features of a frozen tower, where these are reused."""
        if not self._reuses_features:
            return visual if self.keeps_pixels else on_device(self.model, visual)
        with self.accelerator.autocast():
            return encode(self.model, visual, keep_pixels=self.keeps_pixels)

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "video", "videos"]))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Repeats the prompts of a stream once for each completion, as in evaluations; transformers does not."""
        load = self.get_eval_dataloader if isinstance(test_dataset, IterableDataset) else super().get_test_dataloader
        return load(undecoded_videos(test_dataset))

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader:
        return super()._get_dataloader(in_order(dataset, self.args), *args, **kwargs)

    # Rollout: TRL's, on prompts prepared here

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> MicroBatch:
        sampled = self._sample(inputs)
        if self.model.training and self.args.dynamic_sampling:
            sampled = self._refilled(sampled)
        rollout, output = sampled
        output["row"] = torch.arange(len(inputs))
        output["sample"] = samples(rollout, self.reward_func_names)
        output["row_scale"] = rollout.row_scale
        if self._prepares_prompts:
            output["visual_inputs"] = rollout.visuals
        if self.model.training:
            self._sampled_at_step = self.state.global_step
            self._tracker.start_rollout()
            self._credit_rollout(rollout, output)
        return output

    def _sample(self, inputs: list[dict[str, Any]]) -> tuple[Rollout, MicroBatch]:
        training = self.model.training
        self._rollout = rollout = self._build_rollout(inputs, self._completions_a_prompt, training=training)
        if self._prepares_prompts:
            self._metrics[self._mode]["media/skipped"].append(rollout.unusable)
        if training:
            self._build_rollout.require_rows_used(self.train_dataset)
        rows = rollout.trl_rows if self._prepares_prompts else inputs
        output = MicroBatch.of(super()._generate_and_score_completions(rows))
        leave_out(rollout, output, self.accelerator)
        if "sampling_per_token_logps" in output and "old_per_token_logps" in output:
            self._check_log_probs(output, output["old_per_token_logps"], [visual.sample for visual in rollout.visuals])
        return rollout, output

    @contextmanager
    def _sampling(self, rollout: Rollout, num_generations: int) -> Iterator[None]:
        """Context manager in which TRL samples and scores another rollout, without its metrics and table."""
        before, metrics = (self._rollout, self.num_generations), self._metrics[self._mode]
        logged = {name: list(values) for name, values in metrics.items()}
        self._rollout, self.num_generations = rollout, num_generations
        try:
            yield
        finally:
            self._rollout, self.num_generations = before
            tokens = metrics["num_tokens"]
            metrics.clear()
            metrics.update(logged, num_tokens=tokens)
            self._pending_extra_logs.clear()
            self._pending_metrics.clear()

    def _check_log_probs(self, batch: MicroBatch, policys: Tensor, names: list[str]) -> None:
        """Stops where the engine's log-probs are not those of the policy that sampled."""
        if self._prepares_prompts and not self._drops_out:
            self._log_prob_check(batch, policys, names)

    def _refilled(self, sampled: tuple[Rollout, MicroBatch]) -> tuple[Rollout, MicroBatch]:
        refill = DynamicSampling(
            self._sample,
            self.accelerator,
            self.train_dataset,
            num_generations=self.num_generations,
            reward_weights=self.reward_weights,
            rounds=self.args.dynamic_sampling_rounds,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        with self._forwards.as_chosen():
            sampled, metrics = refill(sampled, (self.args.seed, self.state.global_step, self._step))
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        return sampled

    @property
    def _completions_a_prompt(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    def _tokenize_prompts(self, prompts: list) -> tuple[list, list | None, dict[str, Any]]:
        if not self._prepares_prompts:
            tokenized = super()._tokenize_prompts(prompts)
            refuse_padded(tokenized[0], self.processing_class)
            if tokenized[1] is not None and any(isinstance(tap, AttentionTap) for tap in self.taps):
                raise ValueError(UNKNOWN_MEDIA)
            return tokenized
        return [prompt.input_ids for prompt in self._rollout.prompts], None, {}

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        shares = self._prefills and are_groups(prompt_ids, num_generations)
        with ExitStack() as stack:
            if self.use_vllm and self._prepares_prompts:
                images = self.vllm_generation.media(self._rollout.visuals)
            elif not self.use_vllm:
                stack.enter_context(gather_parameters(self.model))
            for tower in self._tower_runs:
                stack.enter_context(tower.pause())
            if not self.use_vllm and (self._prepares_prompts or shares):
                visuals = self._rollout.visuals if self._prepares_prompts else None
                repeats, at_once = num_generations if shares else 1, self.args.generation_micro_batch_size
                stack.enter_context(prefill_once(self.model, visuals, repeats, at_once))
            completion_ids, logprobs = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
            )
        for row, prompt in enumerate(self._rollout.prompts):
            if prompt.left_out and prompt.left_out != REPEATED:
                completion_ids[row] = [self._tokenizer.eos_token_id]
                if logprobs is not None:
                    logprobs[row] = [math.nan]  # of no engine
        return completion_ids, logprobs

    def _generate(self, prompts: list) -> tuple:
        generated = super()._generate(prompts)
        self._rollout.prompt_ids, self._rollout.completion_ids = generated[:2]
        batch = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        rows = min(self._completions_a_prompt, batch)
        self._forwards.select(generated[0], generated[1], rows, self.accelerator)
        if not self._prepares_prompts:
            return generated
        # Without images TRL makes no visual inputs of its own: ours are in place for every forward.
        return *generated[:6], None, generated[7]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        rollout, process = self._rollout, self.accelerator.process_index
        if self.model.training:
            rollout.counterfactuals = self.sample_counterfactuals()
        if self._prepares_prompts:
            inputs, prompts = rollout.rows, [prompt_for_rewards(prompt) for prompt in rollout.prompts]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._reward_checks.stop_together(self.accelerator)
        found = self._reward_checks.leave_out_nonfinite(
            rewards, rollout, self.reward_funcs, self.reward_func_names, self._completions_a_prompt, process
        )
        if self.args.on_nonfinite == "skip":
            self._metrics[self._mode]["nonfinite/rewards"].append(found)
        rewards[rollout.left_out.bool()] = torch.nan
        if self._prepares_prompts:
            self._tracker.log_frames(rollout.prompts)
        require_scored(rewards, rollout, self.reward_func_names)
        rollout.rewards_per_func = rollout.local(rewards, process)
        if not self.model.training or type(self).shape_rewards is GRPOVideoTrainer.shape_rewards:
            return rewards
        with checks_together():
            for rows, group in scored_groups(rollout, self.num_generations, self.reward_func_names):
                rollout.rewards_per_func[rows] = shaped_rewards(group, self.shape_rewards(group))
        return self.accelerator.gather(rollout.rewards_per_func)

    # Credit

    def _credit_rollout(self, rollout: Rollout, output: MicroBatch) -> None:
        """Assigns credit to the whole rollout, or attaches the groups if the forward of their update serves it."""
        groups = list(complete_groups(rollout, output, self.num_generations, self.reward_func_names))
        self._records.open(groups, self.state)
        if self._update_serves_credit(output):
            output["group"] = [None] * len(rollout.rows)
            for rows, group in groups:
                output["group"][rows] = [group] * self.num_generations
        else:
            self._give_credit(groups, output, self._old_policy_forward(groups, rollout, output))
        with torch.no_grad(), self._collectives.section():
            attach_signals(output, groups, self.rollout_signals)

    def _update_serves_credit(self, output: MicroBatch) -> bool:
        """Whether the forward of the update is that of the sampling policy on whole groups, so that credit can wait for it.

        Tokens that leave the loss altogether do so before it begins. With dropout its values are not those of any view.
        """
        return (
            self.policy_reads is not None
            and self._prepares_prompts
            and "old_per_token_logps" not in output
            and not self._drops_out
            and not self.loss_counts_weighted_tokens_only
            and self.args.per_device_train_batch_size % self.num_generations == 0
        )

    def _old_policy_forward(self, groups: Groups, rollout: Rollout, output: MicroBatch) -> CachedForward:
        """The forward in which TRL scored the sampling policy; an empty one if there was none."""
        if not rollout.scores or self._drops_out or "old_per_token_logps" not in output:
            return CachedForward()
        return CachedForward.of(groups, rollout.scores[0])

    def _give_credit(self, groups: Groups, output: MicroBatch, forward: CachedForward) -> None:
        """Multiplies the advantages of the groups by their token weights. `forward` serves what it holds to `read`."""
        with torch.no_grad(), self._reader.reusing(forward), checks_together():
            with self._collectives.section():
                credits = [validate_token_weights(group, self.token_weights(group)) for _, group in groups]
            self.gather_statistics([group for _, group in groups])
            with self._collectives.section():
                for index, (_, group) in enumerate(groups):
                    credits[index] = weigh_sequences(group, credits[index], self.sequence_weights(group))
        weigh_tokens(output, groups, credits, drops_unweighted=self.loss_counts_weighted_tokens_only)
        credited = [(group, credit) for (_, group), credit in zip(groups, credits, strict=True)]
        self._tracker.show(credited)
        self._record([credit.metrics for credit in credits if credit is not None])
        for group, credit in credited:
            if credit is not None:
                self.log_signal(group, "token_weights", credit.weights)

    # Updates: forward, credit, loss

    def _prepare_inputs(self, generation_batch: Any) -> MicroBatch:
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return MicroBatch.of(inputs)
        if self._buffered_inputs is not buffered:
            self._buffered_inputs = self._in_groups(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        inputs.update(self._means_of_step())
        return inputs

    def _in_groups(self, batches: list[dict[str, Any]]) -> list[MicroBatch]:
        """The micro-batches of a rollout with the rows of each group side by side and their counts of the loss."""
        batches = [MicroBatch.of(batch) for batch in batches]
        # TRL's own image inputs are packed over the rows and cannot be put back in order; they serve no group.
        if "pixel_values" not in batches[0]:
            batches = whole_groups(batches, self.num_generations)
        counts = self.accelerator.reduce(torch.stack([batch.loss_counts for batch in batches]), reduction="sum")
        for batch, (tokens, completions) in zip(batches, counts.tolist(), strict=True):
            batch["in_loss"] = {"tokens": tokens, "completions": completions}
        return batches

    def get_batch_samples(self, epoch_iterator: Iterator, *args: Any, **kwargs: Any) -> tuple:
        self._step_begin = self._step  # transformers asks for the micro-batches of one optimisation step
        return super().get_batch_samples(self._rows_ahead.over(epoch_iterator, self._step), *args, **kwargs)

    def _means_of_step(self) -> dict[str, float]:
        """Means of tokens and completions in the loss over the micro-batches of the optimisation step on all processes.

        For a step that spans several rollouts only the micro-batches of the current one count: the next is not sampled yet.
        """
        spread = self.args.steps_per_generation
        rollout = spread * self.num_iterations
        step = range(self._step_begin, self._step_begin + self.current_gradient_accumulation_steps)
        batches = [self._buffered_inputs[i % spread] for i in step if i // rollout == self._step // rollout]
        return means_per_micro_batch(batches, self.accelerator.num_processes)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Runs the forward, assigns credit from it, and adds TRL's loss of its scores and the penalty of the method."""
        batch = MicroBatch.of(inputs)
        waits = self.model.training and "group" in batch  # as on every process, whatever is left out
        credit_taps = self.policy_reads.taps(self.model) if waits else {}
        scores = self._scores_of_update(model, batch, credit_taps)
        if waits:
            groups = batch.take_groups(self.num_generations)
            self._give_credit(groups, batch, CachedForward.of(groups, scores, credit_taps))
        loss = self._policy_loss(scores, batch)
        self._guard.record_term("policy loss", loss)
        batch["logps"] = scores.logps
        penalty = self.penalty(batch)
        del batch["logps"]
        if penalty is None:
            return loss
        validate_penalty(penalty)
        self._record([penalty.metrics])
        self._guard.record_term("penalty", penalty.loss)
        return loss + penalty.loss / (self.current_gradient_accumulation_steps if self.model.training else 1)

    def _scores_of_update(self, model: nn.Module, batch: MicroBatch, credit_taps: Taps) -> Scores:
        """Runs the forward of an update as TRL's loss does, with the taps of penalty and credit."""
        with ExitStack() as taps:
            for tap in (*self.taps, *credit_taps.values()):
                taps.enter_context(tap)
            scores = self._reader.score_rows(
                model,
                batch.input_ids,
                batch.attention_mask,
                batch["completion_ids"].size(1),
                batch.get("visual_inputs"),
                compute_entropy=True,
                compute_aux_loss=self.aux_loss_enabled,
                **{name: batch.get(name) for name in MEDIA_OF_TRL},
            )
        self._guard.record_logps(scores.logps)
        unscored = "sampling_per_token_logps" in batch and "old_per_token_logps" not in batch
        if unscored and self.model.training and self.policy_is_the_one_that_sampled():
            self._check_log_probs(batch, scores.logps.detach(), [sample["name"] for sample in batch["sample"]])
        return scores

    def _policy_loss(self, scores: Scores, batch: MicroBatch) -> Tensor:
        """Computes TRL's loss from scores. Only its policy term is scaled, not the entropy bonus and the experts' loss.

        For every loss type the policy term is linear in the advantages and the KL coefficient.
        """
        row_scale = float(batch.get("row_scale", 1.0)) if self.loss_type in ROW_MEAN_LOSSES else 1.0
        scale = self.policy_loss_weight * row_scale
        beta, self.beta = self.beta, self.beta * scale
        try:
            return super()._compute_loss(scores, {**batch, "advantages": batch["advantages"] * scale})
        finally:
            self.beta = beta

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ) -> Scores:
        if isinstance(model, Scores):  # TRL's loss, which is given the scores of its forward in the model's place
            return model
        if model is self.model and self.policy_reads is not None:  # of the policy that sampled, before any update
            compute_entropy = compute_entropy or self.policy_reads.entropies
        scores = self._reader.score_rows(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            self._rollout.visuals if self._prepares_prompts else None,
            batch_size=batch_size,
            compute_entropy=compute_entropy,
            **kwargs,
        )
        self._rollout.scores.append(scores)
        return scores

    # Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._metrics["eval"].clear()  # of a prediction, which logs none, or of an evaluation that stopped
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple:
        """TRL's, with the loss averaged over processes: the rows that count are on some of them only."""
        loss, *others = super().prediction_step(*args, **kwargs)
        return self.accelerator.gather(loss).mean(), *others

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
        facts = facts_of(type(self).__name__, self.args, self.train_dataset)
        folder = self._checkpoints.to_resume(resume_from_checkpoint, facts)
        if folder is not None:
            self.accelerator.print(f"resuming from {folder.name} of {self._name} ({folder})")
            records = run_state.read_state(folder, self.args.process_index).get("records")
            if records is not None:
                self._records.resume(records, with_open=not self.args.ignore_data_skip)
        try:
            trained = super().train(folder and str(folder), *args, **kwargs)
        finally:
            self._build_rollout.close()
        self._build_rollout.require_rows_used(self.train_dataset, at_the_end=True)
        return trained

    def _warn_before_training(self) -> None:
        weighs = type(self).token_weights is not GRPOVideoTrainer.token_weights
        if weighs and not self.loss_counts_weighted_tokens_only:
            settings = self.args.loss_type, self.args.importance_sampling_level
            if averaged := averaged_credit(type(self).__name__, *settings):
                logger.warning(averaged)
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
        """State that this process resumes from: JSON values, and the micro-batches of a rollout with updates left."""
        is_open = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        return {
            "micro_steps": self._step,
            "sampled_at_step": self._sampled_at_step,
            "packs": self._forwards.packs,
            "skipped_in_a_row": self._guard.skipped_in_a_row,
            "metrics": {name: [float(value) for value in values] for name, values in self._metrics["train"].items()},
            "loss": self._tr_loss.item(),
            "logged_at_step": self._globalstep_last_logged,
            "completions": run_state.logged_completions(self._logs) if self.log_completions else None,
            "records": self._records.state(is_open),
            "rollout": self._buffered_inputs if is_open else None,
        }

    def _set_resume_state(self, state: dict[str, Any]) -> None:
        """Restores what [`_resume_state`] returned. Records resume earlier, in [`train`]."""
        if self.args.ignore_data_skip:
            done = self.state.global_step * self.args.gradient_accumulation_steps
            every = self.args.steps_per_generation * self.num_iterations
            self._step, self._buffered_inputs = -(-done // every) * every, None  # a rollout begins
            return
        self._step, self._sampled_at_step = state["micro_steps"], state["sampled_at_step"]
        self._buffered_inputs = state["rollout"] and [MicroBatch(batch) for batch in state["rollout"]]
        self._forwards.packs = state["packs"]
        self._guard.skipped_in_a_row = state["skipped_in_a_row"]
        self._metrics["train"].clear()
        self._metrics["train"].update(state["metrics"])
        self._tr_loss += state["loss"]
        self._total_loss_scalar -= state["loss"]  # the mean that ends a run is of the steps since it was resumed
        self._globalstep_last_logged = state["logged_at_step"]
        if self.log_completions and state["completions"] is not None:
            run_state.restore_completions(self._logs, state["completions"])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._checkpoints.writing(super()._get_output_dir(trial), self.state) as draft:
            super()._save_checkpoint(model, trial)
            facts = facts_of(type(self).__name__, self.args, self.train_dataset)
            self._checkpoints.write(draft, self._resume_state(), facts, self.state.global_step)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(os.path.join(super()._get_output_dir(trial), draft.name))

    def _get_output_dir(self, trial: Any) -> str:
        return self._checkpoints.run_folder(super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: transformers calls it before the checkpoint is complete, and [`_save_checkpoint`] pushes."""

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
        """Creates a new loader for each evaluation: a persistent one would continue its order, which a resumed run cannot."""
        kept, self.args.dataloader_persistent_workers = self.args.dataloader_persistent_workers, False
        try:
            return super().get_eval_dataloader(undecoded_videos(eval_dataset))
        finally:
            self.args.dataloader_persistent_workers = kept

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
        """Everything a loss depends on besides its micro-batch and the weights; [`replay`] restores it."""
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

    def _setup_reporting(self) -> None:
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
        """Adds a signal to the record of its rollout for the report; does nothing if the rollout is not recorded (`report_every`).

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
        """Writes TRL's card, completed with settings and results, to `README.md` in the output folder."""
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
        for of_one in gather_object(host_values(metrics)):
            for key, value in of_one.items():
                self._metrics[self._mode][key].append(value)
