"""Plans a run: steps, batches, tokens and memory before its first step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from accelerate import Accelerator
from torch import nn
from trl import GRPOConfig, ModelConfig

from ..media import PromptPreparer
from ..modeling import (
    feature_reuse_unsupported_reason,
    packing_unsupported_reason,
    shared_prefill_unsupported_reason,
    shares_keys,
    token_ratio,
)
from ..modeling.forward_selector import PAYS_FROM
from .memory import Batch, Engine, MemoryPart, World, memory_parts, optimizer_states, peak
from .skeleton import other_models_size, policy_skeleton, quantised_bits

SAMPLED_ROWS = 16


@dataclass(frozen=True)
class PromptSizes:
    """Tokens, and visual tokens among them, of the prompts of some rows; `left_out` rows cannot be used."""

    tokens: Sequence[int]
    visual: Sequence[int]
    left_out: int = 0


@dataclass(frozen=True)
class RunPlan:
    """Args: lines: what the run does, by name. memory: of one process. checkpoint: bytes of one checkpoint."""

    lines: dict[str, str]
    memory: list[MemoryPart]
    checkpoint: float

    @property
    def peak(self) -> float:
        """Peak memory of one process in bytes."""
        return peak(self.memory)

    def as_text(self, *, formulas: bool = False) -> str:
        """Format one line per fact; `formulas` adds one line for each part of the memory."""
        parts = [part for part in self.memory if part.size]
        largest = sorted(parts, key=lambda part: -part.size)[:3]
        shown = ", ".join(f"{part.name} {readable(part.size)}" for part in largest)
        lines = {
            **self.lines,
            "memory": f"about {readable(self.peak)} a process at its peak ({shown}, ...)",
            "checkpoint": readable(self.checkpoint),
        }
        text = [f"{name:>10}  {line}" for name, line in lines.items()]
        if formulas:
            text += [f"{part.name:>24}  {readable(part.size):>9}  {part.moment:<7} {part.formula}" for part in parts]
        return "\n".join(text)


def plan_recipe(
    config: GRPOConfig,
    model: ModelConfig,
    *,
    world: World,
    rows: Sequence,
    preparer: PromptPreparer | None,
    device: str,
) -> RunPlan:
    """Plan a recipe without loading weights.

    Args: rows: of the training data. preparer: of their prompts, or None if TRL prepares them. device: "cuda" or "cpu".
    """
    return plan_run(
        policy_skeleton(config, model),
        config,
        world=world,
        rows=len(rows),
        sizes=preparer and prompt_sizes(preparer, rows, config.on_bad_media),
        other_models=other_models_size(config, model, world),
        bits=quantised_bits(model),
        device=device,
    )


def world_of(accelerator: Accelerator) -> World:
    """Return the processes of a started run."""
    stage = accelerator.state.deepspeed_plugin.zero_stage if accelerator.distributed_type == "DEEPSPEED" else 0
    sharding = "fsdp" if accelerator.distributed_type == "FSDP" else f"zero{stage}" if stage else "none"
    return World(accelerator.num_processes, sharding, accelerator.mixed_precision == "bf16")


def prompt_sizes(preparer: PromptPreparer, dataset: Sequence, on_bad_media: str = "error") -> PromptSizes:
    """Return the sizes of the prompts of `SAMPLED_ROWS` evenly spaced rows, prepared as in training."""
    count = min(SAMPLED_ROWS, len(dataset))
    rows = [dataset[round(index * (len(dataset) - 1) / max(count - 1, 1))] for index in range(count)]
    prompts = [prompt for prompt in preparer(rows, on_unusable=on_bad_media) if not prompt.left_out]
    return PromptSizes(
        [len(prompt.input_ids) for prompt in prompts],
        [prompt.visual.visual_tokens for prompt in prompts],
        count - len(prompts),
    )


def steps_of(config: GRPOConfig, rows: int, processes: int) -> int:
    """Optimisation steps: `max_steps`, or epochs * rollouts per epoch * micro-batches per rollout / accumulation."""
    if config.max_steps > 0:
        return config.max_steps
    sampled = config.per_device_train_batch_size * config.steps_per_generation * processes
    rollouts = rows // (sampled // config.num_generations)
    micro_batches = rollouts * config.steps_per_generation * config.num_iterations
    return math.ceil(config.num_train_epochs * max(math.ceil(micro_batches / config.gradient_accumulation_steps), 1))


def plan_run(
    model: nn.Module,
    config: GRPOConfig,
    *,
    world: World,
    rows: int,
    sizes: PromptSizes | None,
    other_models: float = 0.0,
    bits: int | None = None,
    device: str = "cuda",
) -> RunPlan:
    """Plan a run of a configuration.

    Completions are assumed to have `max_completion_length` tokens; prompts the mean of `sizes` for tokens per step, and
    the longest for memory.

    Args:
        model: with its adapter and `requires_grad` as in training, on any device, "meta" included.
        world: the processes. rows: of the training data.
        sizes: of some prompts, or None if TRL prepares them: memory and tokens are then left out.
        other_models: bytes of a reference model and a teacher on one process.
        bits, device: see [`memory_parts`].
    """
    batch_size, group = config.per_device_train_batch_size, config.num_generations
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    a_step = batch_size * config.gradient_accumulation_steps * world.processes
    steps, text = steps_of(config, rows, world.processes), model.config.get_text_config()
    lines = {
        "processes": f"{world.processes}" + ("" if world.sharding == "none" else f", {world.sharding}"),
        "precision": f"{str(parameters[0].dtype).removeprefix('torch.')} weights"
        + (", bfloat16 forwards" if world.bf16 else "")
        + f", {text._attn_implementation} attention",
        "parameters": f"{sum(p.numel() for p in parameters):,}, {sum(p.numel() for p in trained):,} trained",
        "batch": f"{a_step} completions of {a_step / group:g} prompts a step ({batch_size} rows x "
        f"{config.gradient_accumulation_steps} accumulated x {world.processes})",
        "steps": f"{steps:,}, {steps * a_step / group / max(rows, 1) / config.num_iterations:.3g} epoch(s) of {rows:,} rows",
    }
    memory: list[MemoryPart] = []
    if sizes is None:
        lines["prompts"] = "prepared by TRL"
    elif not sizes.tokens:
        lines["prompts"] = f"none of {sizes.left_out} rows that were looked at can be used"
    else:
        lines["prompts"] = (
            f"{mean(sizes.tokens):.0f} tokens, {mean(sizes.visual):.0f} of them visual, at most {max(sizes.tokens)} "
            f"({len(sizes.tokens)} rows that were looked at{f', {sizes.left_out} left out' if sizes.left_out else ''})"
        )
        packed, reason = _packs(model, config, mean(sizes.tokens))
        runs = math.ceil(batch_size / group)
        batch = Batch(
            sampled=batch_size * config.steps_per_generation,
            sampled_prompts=math.ceil(batch_size * config.steps_per_generation / group),
            updated=batch_size,
            prompts=runs,
            prompt=round(mean(sizes.tokens)),
            visual=round(mean(sizes.visual)),
            completion=config.max_completion_length,
            packed=packed,
            decoded=config.generation_micro_batch_size,
            shared=_prefill_refusal(model, config) is None and shares_keys(model),
        )
        micro_batches = config.gradient_accumulation_steps * world.processes
        plain = replace(batch, packed=False).tokens * micro_batches
        lines["tokens"] = f"at most {batch.tokens * micro_batches:,} a step, " + (
            f"packed (one row a completion: {plain:,})" if packed else f"one row a completion: {reason}"
        )
        memory = memory_parts(
            model,
            replace(batch, prompt=max(sizes.tokens), visual=max(sizes.visual)),
            world,
            checkpointing=bool(config.gradient_checkpointing),
            optimizer=str(getattr(config.optim, "value", config.optim)),
            other_models=other_models,
            bits=bits,
            device=device,
            engine=_engine(config),
        )
    lines["shared"] = "; ".join(_shared(model, config, world))
    return RunPlan(lines, memory, _checkpoint(model, config, trained))


def _engine(config: GRPOConfig) -> Engine | None:
    """Return the engine of each process, None where there is none."""
    if not config.use_vllm or config.vllm_mode != "colocate":
        return None
    return Engine(config.vllm_tensor_parallel_size, config.vllm_enable_sleep_mode)


def _packs(model: nn.Module, config: GRPOConfig, prompt: float) -> tuple[bool, str]:
    """Whether rows are packed, and the reason if not."""
    if config.group_forward == "off":
        return False, "group_forward is off"
    if reason := packing_unsupported_reason(model):
        return False, reason
    batch_size, group = config.per_device_train_batch_size, config.num_generations
    runs = [min(group, batch_size - start) for start in range(0, batch_size, group)]
    sizes = [round(prompt)] * batch_size, [config.max_completion_length] * batch_size
    pays = config.group_forward == "on" or token_ratio(*sizes, runs) >= PAYS_FROM
    return pays, "packing would save too few tokens"


def _shared(model: nn.Module, config: GRPOConfig, world: World) -> list[str]:
    """Return what completions of a prompt share, or the reason why not."""
    refusal = _prefill_refusal(model, config)
    prefill = "one prefill a prompt" if refusal is None else f"a prefill a completion: {refusal}"
    if config.use_vllm:
        prefill = "one prefill a prompt, by vLLM"
    frozen = feature_reuse_unsupported_reason(model) if config.reuse_vision_features else "reuse_vision_features is off"
    if frozen is None and world.sharding != "none":
        frozen = "it is not run outside a model that processes share"
    return [
        prefill,
        "vision tower once a rollout" if frozen is None else f"vision tower in every forward: {frozen}",
    ]


def _prefill_refusal(model: nn.Module, config: GRPOConfig) -> str | None:
    """Return the reason why completions prefill prompts of their own, or None."""
    if not config.shared_prefill:
        return "shared_prefill is off"
    return shared_prefill_unsupported_reason(model, model.generation_config)


def _checkpoint(model: nn.Module, config: GRPOConfig, trained: list[nn.Parameter]) -> float:
    """Bytes of a checkpoint: weights, or only those of the adapter, and the optimizer states."""
    saved = trained if hasattr(model, "peft_config") else list(model.parameters())
    states, size = optimizer_states(str(getattr(config.optim, "value", config.optim)))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in saved)
    if config.save_only_model:
        return weights
    return weights + states * sum(parameter.numel() * (size or parameter.element_size()) for parameter in trained)


def readable(size: float) -> str:
    """Format bytes as MiB or GiB."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"
