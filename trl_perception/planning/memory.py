"""Estimates the peak memory of a process, part by part, from shapes alone.

Symbols of the formulas: A all parameters, N trained ones, B completions sampled at a time, B_p their prompts, n tokens of a
forward of an update, s bytes of a computed value, P prompt and R completion tokens, L layers, h hidden size, q and k sizes of queries and
of keys, m intermediate size, V vocabulary.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedConfig
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as VOCABULARY_CHUNK_SIZE

from ..families import TEXT_ONLY
from ..modeling import base_model
from ..modeling.freezing import part_of
from ..modeling.quantization import KEPT_WHOLE
from ..modeling.vision import family_of_model

FLOAT32 = 4
# Tiles of logits that TRL's fused head holds at a time: one with its Triton kernel, seven with torch's operations.
TILES = {"cuda": 1, "cpu": 7}


class MemoryPart(NamedTuple):
    """`size` in bytes, its formula, and the `moment` at which the memory is held.

    Moments: "always"; "rollout"; "update"; and within an update "head", while the loss is formed from the last hidden
    states, or "layer", while the backward pass is in a layer.
    """

    name: str
    size: float
    formula: str
    moment: str


@dataclass(frozen=True)
class World:
    """The distribution of a run over processes.

    Args:
        processes: number of processes.
        sharding: what is sharded: "none" (one process, DDP), "zero1" (optimizer states), "zero2" (and
            gradients), "zero3" or "fsdp" (and weights).
        bf16: whether forwards compute in bfloat16.
    """

    processes: int = 1
    sharding: str = "none"
    bf16: bool = False

    def share(self, part: str) -> int:
        """Return the number of shards of a part: "optimizer", "gradients" or "weights"."""
        divided = {
            "optimizer": ("zero1", "zero2", "zero3", "fsdp"),
            "gradients": ("zero2", "zero3", "fsdp"),
            "weights": ("zero3", "fsdp"),
        }
        return self.processes if self.sharding in divided[part] else 1


@dataclass(frozen=True)
class Batch:
    """The rows of one process.

    Args:
        sampled, sampled_prompts: completions, and distinct prompts, of a rollout.
        updated, prompts: completions, and distinct prompts, of a micro-batch.
        prompt, visual, completion: tokens of one prompt, visual ones among them, and of one completion.
        packed: whether completions of a prompt share one copy of it in a forward pass.
        decoded: completions that are decoded together; None for all.
        shared: whether they share the keys and values of their prompt.
    """

    sampled: int
    sampled_prompts: int
    updated: int
    prompts: int
    prompt: int
    visual: int
    completion: int
    packed: bool
    decoded: int | None = None
    shared: bool = False

    @property
    def cached(self) -> float:
        """Tokens in the cache of the completions that are decoded together."""
        decoded = min(self.decoded or self.sampled, self.sampled)
        prompts = decoded * self.sampled_prompts / self.sampled if self.shared else decoded
        return prompts * self.prompt + decoded * self.completion

    @property
    def tokens(self) -> int:
        """Tokens of one forward of an update."""
        if self.packed:
            return self.prompts * (self.prompt - 1) + self.updated * (1 + self.completion)
        return self.updated * (self.prompt + self.completion)


@dataclass(frozen=True)
class Engine:
    """The engine (vLLM) that samples in each process.

    Args:
        shares: processes that split its weights (tensor parallelism).
        sleeps: whether it lets go of both during updates.
    """

    shares: int = 1
    sleeps: bool = False


def memory_parts(
    model: nn.Module,
    batch: Batch,
    world: World,
    *,
    checkpointing: bool,
    optimizer: str,
    other_models: float = 0.0,
    bits: int | None = None,
    device: str = "cuda",
    engine: Engine | None = None,
) -> list[MemoryPart]:
    """Estimate the memory of one process, part by part, without fragmentation and memory of libraries.

    Args:
        model: on any device, "meta" included, with `requires_grad` as in training.
        checkpointing: whether layers are recomputed in the backward pass.
        optimizer: transformers' name of it, such as "adamw_torch".
        other_models: bytes of a reference model and a teacher on this process.
        bits: of the language layers' weights if they will be quantised later, 4 or 8.
        device: "cuda" or "cpu", the device of the run.
        engine: None where transformers samples, or an engine elsewhere.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in trained)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    weights = weights_size(model, bits)
    states, state_size = optimizer_states(optimizer)
    moments = states * (state_size * count if state_size else gradients)
    masters = 0
    if world.sharding.startswith("zero") and world.bf16:  # DeepSpeed casts the model and keeps float32 copies
        weights, gradients = 2 * sum(parameter.numel() for parameter in model.parameters()), 2 * count
        masters, moments = FLOAT32 * count, states * FLOAT32 * count
    share = world.share
    parts = [
        MemoryPart("weights", weights / share("weights"), "A * bytes of their type", "always"),
        MemoryPart("master weights", masters / share("optimizer"), "4 N", "always"),
        MemoryPart("optimizer", moments / share("optimizer"), f"{states} states of N", "always"),
        MemoryPart("other models", other_models, "reference model, teacher", "always"),
        *_media(model, batch),
        *(_rollout(model, batch, world) if engine is None else _engine(model, batch, world, engine)),
        MemoryPart("gradients", gradients / share("gradients"), "N * bytes of their type", "update"),
    ]
    if world.processes > 1 and world.sharding == "none":
        parts.append(MemoryPart("reduction buckets", gradients, "N * bytes of their type", "update"))
    return parts + _update(model, batch, world, checkpointing, device)


def peak(parts: list[MemoryPart]) -> float:
    """Return the peak in bytes: always + max(rollout, update + max(head, layer))."""
    held = {
        moment: sum(part.size for part in parts if part.moment == moment)
        for moment in ("always", "rollout", "update", "head", "layer")
    }
    return held["always"] + max(held["rollout"], held["update"] + max(held["head"], held["layer"]))


def weights_size(model: nn.Module, bits: int | None = None) -> float:
    """Bytes of a model's parameters, with frozen linear layers of the language model in `bits` (4 or 8) if given."""
    whole = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if bits is None:
        return whole
    packed = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not module.weight.requires_grad
        and not any(re.search(pattern, name) for pattern in KEPT_WHOLE)
    ]
    return whole - sum(weight.numel() * (weight.element_size() - bits / 8) for weight in packed)


def optimizer_states(name: str) -> tuple[int, int | None]:
    """Return the number of states per trained parameter and bytes of each; None means the parameter's dtype."""
    if "8bit" in name:
        return 2, 1
    if "adafactor" in name:
        return 0, None
    if any(part in name for part in ("sgd", "lion", "rmsprop", "adagrad")):
        return 1, None
    return 2, None


def _media(model: nn.Module, batch: Batch) -> list[MemoryPart]:
    """Pixels of the distinct prompts of a rollout, kept for the updates."""
    tower = getattr(model.config, "vision_config", None)
    if tower is None or not batch.visual:
        return []
    pixels = FLOAT32 * _patches(model, batch.visual) * _patch_size(tower)
    return [MemoryPart("pixels", batch.sampled_prompts * pixels, "4 * patches * values of one", "always")]


def _layer_cache(model: nn.Module, batch: Batch, world: World) -> float:
    """Bytes of the keys and values of a rollout in one layer."""
    return 2 * _widths(model.config.get_text_config())[2] * batch.cached * _computed_size(model, world)


def _engine(model: nn.Module, batch: Batch, world: World, engine: Engine) -> list[MemoryPart]:
    """Weights of its own, and the cache of a rollout, whose prompts it holds once.

    Processes that share it sample their prompts together: each holds a share of the keys of all of them.
    """
    layers, moment = model.config.get_text_config().num_hidden_layers, "rollout" if engine.sleeps else "always"
    weights = sum(parameter.numel() for parameter in model.parameters()) * _computed_size(model, world)
    cache = layers * _layer_cache(model, replace(batch, shared=True, decoded=None), world)
    return [
        MemoryPart("engine weights", weights / engine.shares, "A s, split over its processes", moment),
        MemoryPart("engine cache", cache, "L 2 k (B_p P + B R) s", moment),
    ]


def _rollout(model: nn.Module, batch: Batch, world: World) -> list[MemoryPart]:
    text = model.config.get_text_config()
    cache = (text.num_hidden_layers + 1) * _layer_cache(model, batch, world)
    logits = FLOAT32 * min(batch.decoded or batch.sampled, batch.sampled) * text.vocab_size
    return [
        MemoryPart("cache", cache, f"(L + 1) 2 k {'(B_p P + B R)' if batch.shared else 'B (P + R)'} s", "rollout"),
        MemoryPart("logits of a step", 3 * logits, "3 * 4 B V", "rollout"),
    ]


def _update(model: nn.Module, batch: Batch, world: World, checkpointing: bool, device: str) -> list[MemoryPart]:
    text, size = model.config.get_text_config(), _computed_size(model, world)
    tokens, layers = batch.tokens, text.num_hidden_layers
    hidden, _, _, intermediate = _widths(text)
    saved = tokens * _saved_of_layer(text, size) + _repeated_keys(text, batch, size)
    flowing = 2 * tokens * (hidden + intermediate) * size
    parts = [
        _kept(layers, saved, tokens * hidden * size, checkpointing),
        MemoryPart("one layer", (saved if checkpointing else 0) + flowing, "n s 2 (h + m), and what it saves", "layer"),
    ]
    scored = batch.updated * batch.completion if device == "cuda" else tokens
    tile = min(TOKEN_CHUNK_SIZE, scored) * min(VOCABULARY_CHUNK_SIZE, text.vocab_size)
    parts.append(MemoryPart("logits", TILES[device] * FLOAT32 * tile, "4 * a tile of tokens and V", "head"))
    head = model.get_output_embeddings()
    if head is not None and head.weight.requires_grad:
        parts.append(MemoryPart("gradient of the head", FLOAT32 * head.weight.numel(), "4 V h", "head"))
    if world.bf16 and next(model.parameters()).element_size() == FLOAT32 and not world.sharding.startswith("zero"):
        copied = 2 * sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
        whole = 1 if world.sharding == "none" else layers
        parts.append(MemoryPart("bfloat16 weights", copied / whole, "2 A, or those of a layer", "update"))
    tower = getattr(model.config, "vision_config", None)
    trains = any(value.requires_grad and part_of(name) == "tower" for name, value in model.named_parameters())
    if tower is not None and batch.visual and trains:
        patches = _patches(model, batch.visual) * (batch.prompts if batch.packed else batch.updated)
        block = patches * _saved_of_layer(tower, size)
        blocks = _kept(_depth(tower), block, patches * _widths(tower)[0] * size, checkpointing)
        pixels = patches * _patch_size(tower) * size
        parts.append(blocks._replace(name="activations of tower", size=blocks.size + pixels))
    return parts


def _kept(layers: int, saved: float, inputs: float, checkpointing: bool) -> MemoryPart:
    """Memory that all layers save for the backward pass: only their inputs if they are recomputed."""
    if checkpointing:
        return MemoryPart("activations", layers * inputs, "L n h s", "update")
    return MemoryPart("activations", layers * saved, "L n s (6 h + 3 q + 2 k + 4 m), repeated keys", "update")


def _saved_of_layer(config: PreTrainedConfig, size: int) -> float:
    """Bytes that a layer saves per token: inputs and outputs of norms (normed values in float32) and linear layers."""
    hidden, queries, keys, intermediate = _widths(config)
    return size * (4 * hidden + 3 * queries + 2 * keys + 4 * intermediate) + 2 * FLOAT32 * hidden


def _repeated_keys(text: PreTrainedConfig, batch: Batch, size: int) -> float:
    """Bytes of the keys and values that attention keeps in a layer in addition to the tokens' own.

    Each completion of a packed row copies those of its prompt. SDPA with a mask repeats them for every query head.
    """
    _, queries, keys, _ = _widths(text)
    rows = batch.updated * (batch.prompt + batch.completion) * size
    repeats = text._attn_implementation in ("sdpa", "eager")
    if batch.packed:
        return 2 * (queries if repeats else keys) * rows
    maps = (
        2 * text.num_attention_heads * (batch.prompt + batch.completion) if text._attn_implementation == "eager" else 0
    )
    return (2 * (queries - keys) * repeats + maps) * rows


def _computed_size(model: nn.Module, world: World) -> int:
    return 2 if world.bf16 else next(model.parameters()).element_size()


def _patches(model: nn.Module, visual: int) -> int:
    family = family_of_model(model)
    return visual if family is TEXT_ONLY else visual * family.patches_per_token(base_model(model).config)


def _patch_size(tower: PreTrainedConfig) -> int:
    """Values of a patch: channels * frames * height * width."""
    channels = getattr(tower, "in_channels", None) or getattr(tower, "num_channels", 3)
    height, width = tower.patch_size if isinstance(tower.patch_size, Sequence) else [tower.patch_size] * 2
    return channels * getattr(tower, "temporal_patch_size", 1) * height * width


def _depth(tower: PreTrainedConfig) -> int:
    return getattr(tower, "depth", None) or tower.num_hidden_layers


def _widths(config: PreTrainedConfig) -> tuple[int, int, int, int]:
    """h, q, k and m of a text or vision configuration, of its widest layers where they differ."""
    if getattr(config, "per_layer_attributes", None):
        hidden, queries, keys, intermediate = map(max, zip(*map(_widths, config.per_layer_config), strict=True))
        return hidden, queries, keys, intermediate
    hidden = getattr(config, "embed_dim", None) or config.hidden_size
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    keys = (getattr(config, "num_key_value_heads", None) or heads) * head
    intermediate = getattr(config, "intermediate_size", None) or int(hidden * config.mlp_ratio)
    return hidden, heads * head, keys, intermediate
