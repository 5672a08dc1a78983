"""Adapters (PEFT) under the trainers: what is kept out of frozen parts, what is refused, and dropout while reading."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from trl import ModelConfig, get_peft_config

from . import adapted_modules
from .freezing import MERGERS, TOWERS, part_of

# Initialisations of LoRA that write into the base weights what they take out of them.
WRITE_INTO_THE_BASE = ("pissa", "corda", "olora", "mica", "loftq", "lora_ga")


def adapter_of(model: ModelConfig) -> PeftConfig | None:
    """The adapter that a recipe asks for (`use_peft`, `lora_...`); a single name in `lora_target_modules` is a name."""
    config = get_peft_config(model)
    if config is not None and isinstance(config.target_modules, str) and config.target_modules.isidentifier():
        # TRL unpacks a list of one, and PEFT takes a string as a pattern.
        config.target_modules = {config.target_modules}
    return config


def outside_frozen_parts(config: PeftConfig | None, *, tower: bool, merger: bool) -> PeftConfig | None:
    """The same adapter without layers in the vision tower (`tower`) and the merger (`merger`).

    An adapter that lay there frozen would come back to life: PEFT makes every layer of an adapter trainable again when it
    is switched on after a reference pass.

    Errors: ValueError for `modules_to_save` or parameters of a frozen part.
    """
    check_adapter(config)
    if not isinstance(config, PeftConfig) or not (tower or merger):
        return config
    for field, frozen in (("freeze_vision_tower", tower), ("freeze_merger", merger)):
        part = "tower" if field == "freeze_vision_tower" else "merger"
        for setting in ("modules_to_save", "target_parameters"):
            named = [name for name in getattr(config, setting, None) or () if frozen and part_of(name) == part]
            if named:
                raise ValueError(
                    f"The adapter's {setting} has {', '.join(named)}, and {field} takes the vision {part} out of training. "
                    f"Unset {field}, or take it out of {setting}."
                )
    if not hasattr(config, "exclude_modules"):
        raise ValueError(
            f"{config.peft_type} cannot keep its layers out of a frozen part. Unset freeze_vision_tower and freeze_merger and "
            "name the layers of the language model in target_modules, or use LoRA."
        )
    pattern = _frozen_pattern(tower, merger)
    theirs = config.exclude_modules
    if theirs and not isinstance(theirs, str):
        theirs = rf"(.*\.)?({'|'.join(re.escape(name) for name in sorted(theirs))})"
    config = copy.copy(config)
    config.exclude_modules = f"({theirs})|({pattern})" if theirs else pattern
    return config


def check_adapter(config: Any) -> None:
    """Refuse kinds of adapters that work on positions instead of layers.

    Errors: ValueError with what can be used.
    """
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"{getattr(config.peft_type, 'value', config.peft_type)} puts virtual tokens before each row, which shift the "
            "positions of media and completions. Use an adapter on layers: LoRA, DoRA, rsLoRA."
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise ValueError(
            "alora_invocation_tokens switches the adapter on from a position of each row, which a prompt that completions "
            "share does not have. Use LoRA without it."
        )


def check_adapters_of(model: nn.Module, *, tower: bool, merger: bool) -> None:
    """Check a model that came with an adapter as a `peft_config` is checked.

    Errors: ValueError where the adapter has layers in a frozen part (see [`outside_frozen_parts`]), or is of another kind.
    """
    for config in getattr(model, "peft_config", {}).values():
        check_adapter(config)
    for part, frozen in (("tower", tower), ("merger", merger)):
        names = [name for name in adapted_modules(model) if part_of(name) == part]
        if frozen and names:
            setting = "freeze_vision_tower" if part == "tower" else "freeze_merger"
            raise ValueError(
                f"The model's adapter has {len(names)} layers in the vision {part} ({names[0]}, ...), and {setting} is set. "
                f"Merge that adapter into the model first (merge_and_unload), or unset {setting}."
            )


@contextmanager
def explain_missing_layers(config: PeftConfig | None, *, tower: bool, merger: bool) -> Iterator[None]:
    """Context manager whose error for an adapter without layers names the setting that excludes them, or says that none names any."""
    try:
        yield
    except NoMatchingPeftModuleError as error:
        names = [name for name, frozen in (("freeze_vision_tower", tower), ("freeze_merger", merger)) if frozen]
        if not names:
            raise
        raise ValueError(
            f"No layer is left for the adapter: {' and '.join(names)} keeps it out of what target_modules names ({error}) "
            f"Name layers of the language model in target_modules, or unset {' and '.join(names)}."
        ) from error
    except ValueError as error:
        if getattr(config, "target_modules", True) or "`target_modules`" not in str(error):
            raise
        raise ValueError(
            "The adapter names no layers, and PEFT has none by itself for this model. Set lora_target_modules (target_modules), "
            "for example all-linear."
        ) from error


def require_untouched_base(model: nn.Module, reader: str) -> None:
    """The base model must be what is left when the adapter is switched off.

    Args:
        reader: who reads the base model, for the error.
    Errors: ValueError for an adapter that trains or rewrites weights of the base.
    """
    for config in model.peft_config.values() if isinstance(model, PeftModel) else ():
        bias, start = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
        found, wanted = None, None
        if bias != "none":
            found, wanted = f"bias={bias!r} trains biases of the base", "bias='none'"
        elif isinstance(start, str) and start.lower().startswith(WRITE_INTO_THE_BASE):
            found, wanted = f"init_lora_weights={start!r} rewrites the base", "init_lora_weights=True"
        elif getattr(config, "layer_replication", None):
            found, wanted = "layer_replication gives the base other layers", "layer_replication=None"
        if found:
            raise ValueError(
                f"{reader} reads the base model with the adapter switched off, but {found}, which stays when the adapter is "
                f"off. Set {wanted}."
            )


def require_mergeable(model: nn.Module, setting: str = "merge_adapter") -> None:
    """Refuse to merge what the base's configuration cannot hold.

    Args: setting: what asks for it, for the error.
    Errors: ValueError for a head or embeddings of the adapter's own where the base ties the two.
    """
    if not isinstance(model, PeftModel):
        return
    config = model.get_base_model().config
    if not any(getattr(of, "tie_word_embeddings", False) for of in (config, config.get_text_config())):
        return
    names = {name.split(".")[-1] for name in adapted_modules(model)} & {"lm_head", "embed_tokens"}
    if names:
        raise ValueError(
            f"{setting} is set, the adapter has its own {' and '.join(sorted(names))}, and the base ties embeddings and "
            f"head: merged, one would be lost. Take {' and '.join(sorted(names))} out of lora_modules_to_save and "
            f"lora_target_modules, or unset {setting}."
        )


@contextmanager
def keeping_types(model: nn.Module) -> Iterator[None]:
    """After it, parameters have the types they had before: PEFT loads an adapter in float32, whatever it was trained in."""
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if before.get(name, parameter.dtype) != parameter.dtype:
            parameter.data = parameter.data.to(before[name])


def drops_out(model: nn.Module) -> bool:
    """Whether two forwards of the model in training mode differ."""
    return bool(_dropping(model))


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Context manager under which nothing in the model is dropped.

    All else stays in the mode it is in: quantised layers change their weights' layout, and their numbers, with the mode.
    """
    dropping = [module for module in _dropping(model) if module.training]
    for module in dropping:
        module.training = False
    try:
        yield
    finally:
        for module in dropping:
            module.training = True


def _dropping(model: nn.Module) -> list[nn.Module]:
    """Dropout layers, and attention layers that drop weights themselves."""
    return [
        module
        for module in model.modules()
        if (isinstance(module, _DropoutNd) and module.p > 0) or (getattr(module, "attention_dropout", None) or 0) > 0
    ]


def _frozen_pattern(tower: bool, merger: bool) -> str:
    """A regular expression for the names of modules in frozen parts, in the words of `part_of`."""
    in_tower, in_merger = (rf"(.*\.)?({'|'.join(names)})(\..*)?" for names in (TOWERS, MERGERS))
    if tower and merger:
        return f"{in_tower}|{in_merger}"
    return in_merger if merger else rf"(?!{in_merger}$)({in_tower})"
