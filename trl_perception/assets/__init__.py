"""Models that ship with the package, small enough for a CPU: names to folders, folders to (model, processor)."""

from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

EMBEDDED = ("tiny", "tiny_teacher")


def model_path(name: str) -> str:
    """The folder of an embedded model ("tiny"); any other name, a path or a hub id, as it is."""
    folder = Path(__file__).parent / name
    return str(folder) if name in EMBEDDED and folder.is_dir() else name


def from_pretrained(
    name: str = "tiny", *, trust_remote_code: bool = False, **kwargs
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model and its processor; `kwargs` (dtype, attn_implementation, ...) go to the model.

    Errors: ValueError for a model that brings its own code, unless `trust_remote_code` is set. Nobody is asked at a prompt.
    """
    path = model_path(name)
    model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=trust_remote_code, **kwargs)
    return model, AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
