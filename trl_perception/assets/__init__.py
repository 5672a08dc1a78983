"""Models that ship with the package, small enough for a CPU: names to folders, folders to (model, processor)."""

from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

EMBEDDED = ("tiny", "tiny_teacher")


def model_path(name: str) -> str:
    """The folder of an embedded model ("tiny"); any other name, a path or a hub id, as it is."""
    folder = Path(__file__).parent / name
    return str(folder) if name in EMBEDDED and folder.is_dir() else name


def from_pretrained(name: str = "tiny", **kwargs) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model and its processor; `kwargs` (dtype, attn_implementation, ...) go to the model."""
    path = model_path(name)
    return AutoModelForImageTextToText.from_pretrained(path, **kwargs), AutoProcessor.from_pretrained(path)
