"""The teacher of a distillation: loaded, checked against the student, frozen."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedModel
from trl.trainer.utils import create_model_from_path

from ..assets import model_path
from ..families import TEXT_ONLY, family_of
from .head import base_model
from .quantization import quantization_of_teacher
from .vision_setup import set_up_vision

SAME_VISION = ("patch_size", "temporal_patch_size", "spatial_merge_size", "image_size")
SAME_IDS = ("image_token_id", "video_token_id")


def load_teacher(config: Any, student: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    """The teacher that the configuration names, an [`AttnDistillConfig`].

    Errors: ValueError where its tokenizer is another one than the student's.
    """
    path = model_path(config.teacher_model_name_or_path)
    revision = config.teacher_model_revision
    others = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=config.trust_remote_code)
    if others.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"The teacher {config.teacher_model_name_or_path} has another vocabulary than the student (sizes "
            f"{len(others)} and {len(tokenizer)}). Distillation compares next-token distributions: choose a teacher of the "
            "same family."
        )
    kwargs = {"revision": revision, "trust_remote_code": config.trust_remote_code, "dtype": student.dtype}
    kwargs.update(config.teacher_model_init_kwargs or {})
    quantised = quantization_of_teacher(
        load_in_4bit=config.teacher_load_in_4bit, load_in_8bit=config.teacher_load_in_8bit, dtype=student.dtype
    )
    if quantised is not None:
        kwargs["quantization_config"] = quantised
    return create_model_from_path(path, **kwargs)


def check_teacher(teacher: PreTrainedModel, student: PreTrainedModel, tokenizer: Any) -> None:
    """Hold the teacher to what the comparison needs: it sees the same keys and speaks the same tokens.

    Errors: ValueError naming the first setting that differs.
    """
    mine, theirs = (base_model(model).config for model in (student, teacher))
    for name in SAME_IDS:
        _require_same(name, getattr(mine, name, None), getattr(theirs, name, None))
    for name in SAME_VISION:
        visions = [getattr(config, "vision_config", None) for config in (mine, theirs)]
        _require_same(f"vision_config.{name}", *(getattr(vision, name, None) for vision in visions))
    families = [family_of(base_model(model)) for model in (student, teacher)]
    _require_same("family", *(family.name for family in families))
    if families[0] is not TEXT_ONLY:
        _require_same("patches a token", *(families[0].patches_per_token(config) for config in (mine, theirs)))
    for who, config in (("student", mine), ("teacher", theirs)):
        size = config.get_text_config().vocab_size
        if size < len(tokenizer):
            raise ValueError(f"The {who}'s head has {size} tokens, the tokenizer {len(tokenizer)}: they do not fit.")


def freeze_teacher(teacher: PreTrainedModel, position_rule: str) -> PreTrainedModel:
    """The teacher without gradient and dropout, in evaluation mode, with the student's positions."""
    set_up_vision(teacher, position_rule)
    teacher.requires_grad_(False)
    return teacher.eval()


def _require_same(name: str, student: Any, teacher: Any) -> None:
    if student != teacher:
        raise ValueError(
            f"{name} is {student} for the student and {teacher} for the teacher. Both must see the same visual tokens: "
            "choose a teacher of the same family."
        )
