"""Weights in 4 or 8 bit (bitsandbytes): what is quantised, and what is not."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig
from trl import ModelConfig, get_quantization_config

from .freezing import MERGERS, TOWERS

# Regular expressions on module names. Tower and merger are a tenth of the weights and read every pixel; the head is read
# by the loss directly.
KEPT_WHOLE = ("lm_head", rf"(.*\.)?({'|'.join((*TOWERS, *MERGERS))})")


def quantization_of(model: ModelConfig, *, trust_remote_code: bool = False) -> BitsAndBytesConfig | None:
    """The quantisation that a recipe asks for (`load_in_4bit`, `load_in_8bit`), of the language layers alone.

    Errors: ValueError without `use_peft`, ImportError without bitsandbytes.
    """
    if not (model.load_in_4bit or model.load_in_8bit):
        return None
    setting = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
    if not model.use_peft:
        raise ValueError(
            f"{setting} is set without an adapter, and quantised weights are not trained. Set use_peft: true, or unset {setting}."
        )
    require_bitsandbytes(setting)
    config = get_quantization_config(model) if model.dtype != "auto" else None
    if config is None:  # the type that the weights were saved in
        known = AutoConfig.from_pretrained(
            model.model_name_or_path, revision=model.model_revision, trust_remote_code=trust_remote_code
        )
        given = {name: getattr(model, name) for name in ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")}
        config = BitsAndBytesConfig(
            **given,
            bnb_4bit_compute_dtype=known.dtype or torch.float32,
            bnb_4bit_use_double_quant=model.use_bnb_nested_quant,
            bnb_4bit_quant_storage=model.bnb_4bit_quant_storage,
        )
    config.llm_int8_skip_modules = list(KEPT_WHOLE)
    return config


def quantization_of_teacher(*, load_in_4bit: bool, load_in_8bit: bool, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The quantisation of a teacher, of its language layers alone; computations in `dtype`.

    Errors: ImportError without bitsandbytes.
    """
    if not (load_in_4bit or load_in_8bit):
        return None
    require_bitsandbytes("teacher_load_in_4bit" if load_in_4bit else "teacher_load_in_8bit")
    return BitsAndBytesConfig(
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(KEPT_WHOLE),
    )


def require_bitsandbytes(setting: str) -> None:
    """Errors: ImportError that says what to install."""
    if find_spec("bitsandbytes") is None:
        raise ImportError(
            f"{setting} needs bitsandbytes, which is not installed. Install it with `pip install 'trl_perception[quant]'`, or "
            f"unset {setting}."
        )


def require_quantised_training(model: nn.Module, args: Any) -> None:
    """Refuse what bitsandbytes and PEFT get wrong on a CPU.

    Errors: ValueError for evaluation of a 4-bit policy, after which its weights stay in a layout that passes no gradient,
    and for DoRA on 8 bit, whose scales are lost at its first forward.
    """
    if args.device.type != "cpu":
        return
    if getattr(model, "is_loaded_in_4bit", False) and args.eval_strategy != "no":
        raise ValueError(
            f"The model is loaded in 4 bit on a CPU and eval_strategy is {args.eval_strategy!r}: an evaluation leaves 4-bit "
            "weights in a layout that passes no gradient there. Set eval_strategy='no', load_in_8bit, or use a GPU."
        )
    dora = any(getattr(config, "use_dora", False) for config in getattr(model, "peft_config", {}).values())
    if getattr(model, "is_loaded_in_8bit", False) and dora:
        raise ValueError(
            "use_dora does not train on 8-bit weights on a CPU. Set load_in_4bit, use_dora=False, or use a GPU."
        )


def describe_quantised(model: nn.Module) -> str | None:
    """Returns what of a model is quantised, or None."""
    if find_spec("bitsandbytes") is None:
        return None
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    layers = {bits: [0, 0] for bits in (4, 8)}
    for name, module in model.named_modules():
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            in_vision = any(part in (*TOWERS, *MERGERS) for part in name.split("."))
            layers[4 if isinstance(module, Linear4bit) else 8][in_vision] += 1
    said = [
        f"{count} {part} layers in {bits} bit"
        for bits, counts in layers.items()
        for part, count in zip(("language", "vision"), counts, strict=True)
        if count
    ]
    if not said:
        return None
    whole = "" if any(counts[1] for counts in layers.values()) else "; vision tower, merger and head are not quantised"
    return ", ".join(said) + whole
