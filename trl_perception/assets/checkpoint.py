"""A checkpoint by its folder: a whole model, or an adapter with the model that it was trained on."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from ..modeling import set_up_vision

ADAPTER_FILE = "adapter_config.json"
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load_checkpoint(
    base: str,
    adapter: str | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    position_rule: str = "released",
    **settings: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model with its adapter in place, and the processor: the adapter's own where it has one.

    Args:
        base, revision, trust_remote_code: the model. adapter: folder of the adapter on it, or None.
        position_rule: see [`~modeling.apply_position_rule`]. settings: of `from_pretrained`.
    """
    model = AutoModelForImageTextToText.from_pretrained(
        base, revision=revision, trust_remote_code=trust_remote_code, **settings
    )
    if adapter is not None:
        # The base model with the adapter's layers in place: what generates is a model of transformers.
        model = PeftModel.from_pretrained(model, adapter).get_base_model()
    set_up_vision(model, position_rule)
    own = adapter is not None and any((Path(adapter) / name).is_file() for name in PROCESSOR_FILES)
    processor = AutoProcessor.from_pretrained(
        adapter if own else base, revision=None if own else revision, trust_remote_code=trust_remote_code
    )
    return model, processor


def base_of(path: str) -> tuple[str, str | None]:
    """Where the base model of a folder is, and the folder itself where it holds an adapter, None where a whole model."""
    if not (Path(path) / ADAPTER_FILE).is_file():
        return path, None
    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    return base, path
