"""The teacher of a distillation: loaded, checked against the student, frozen and placed as TRL places a reference model."""

from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path

from ..assets import model_path
from ..modeling import apply_position_rule, base_model
from ..modeling.quantization import quantization_of_teacher
from .attn_distill_config import AttnDistillConfig
from .distributed import Sharding

SAME_VISION = ("patch_size", "temporal_patch_size", "spatial_merge_size")
SAME_IDS = ("image_token_id", "video_token_id")


def load_teacher(config: AttnDistillConfig, student: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    """The teacher that the configuration names.

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
    for who, config in (("student", mine), ("teacher", theirs)):
        size = config.get_text_config().vocab_size
        if size < len(tokenizer):
            raise ValueError(f"The {who}'s head has {size} tokens, the tokenizer {len(tokenizer)}: they do not fit.")


def prepare_teacher(
    teacher: PreTrainedModel, accelerator: Accelerator, sharding: Sharding, position_rule: str
) -> nn.Module:
    """Frozen, in evaluation mode, without dropout, with the student's positions, placed or sharded as TRL's reference model."""
    apply_position_rule(teacher, position_rule)
    teacher.requires_grad_(False)
    teacher.eval()
    if sharding.deepspeed:
        return prepare_deepspeed(teacher, accelerator)
    if sharding.fsdp:
        sharding.require_weights_everywhere("the teacher")
        return prepare_fsdp(teacher, accelerator)
    return accelerator.prepare_model(teacher, evaluation_mode=True)


def _require_same(name: str, student: Any, teacher: Any) -> None:
    if student != teacher:
        raise ValueError(
            f"{name} is {student} for the student and {teacher} for the teacher. Both must see the same visual tokens: "
            "choose a teacher of the same family."
        )
