"""Models that ship with the package, small enough for a CPU: names to folders, folders to (model, processor)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

EMBEDDED = ("tiny", "tiny_teacher")


def model_path(name: str) -> str:
    """The folder of an embedded model ("tiny"); any other name, a path or a hub id, as it is, `~` written out.

    Errors: FileNotFoundError for what can only be a folder and is none.
    """
    folder = Path(__file__).parent / name
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    if (name.startswith((".", "/")) or name.count("/") > 1) and not Path(name).is_dir():
        raise FileNotFoundError(f"The model {name} is no folder (looked from {Path.cwd()}). Correct its path.")
    return str(folder) if name in EMBEDDED and folder.is_dir() else name


def from_pretrained(
    name: str = "tiny", *, trust_remote_code: bool = False, position_rule: str = "released", **kwargs
) -> "tuple[PreTrainedModel, ProcessorMixin]":
    """The model, with the adapter of a folder that holds one, and its processor.

    `position_rule` says where text behind a video starts (see [`~modeling.apply_position_rule`]); `kwargs` (dtype,
    attn_implementation, ...) go to the model.

    Errors: ValueError for a model that brings its own code, unless `trust_remote_code` is set. Nobody is asked at a prompt.
    """
    from .checkpoint import base_of, load_checkpoint  # names of models are judged without transformers

    base, adapter = base_of(model_path(name))
    return load_checkpoint(
        model_path(base), adapter, trust_remote_code=trust_remote_code, position_rule=position_rule, **kwargs
    )
