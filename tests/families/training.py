"""Trainers on the tiny models of the families: mixed rows in files, options of every method, and a recorder of steps."""

from typing import Any

import torch
from datasets import Dataset

from tests.families.tiny import tiny
from tests.helpers import every_method, letter_variety
from trl_perception.trainers import TRAINERS

UNBALANCED = ("glm4v_moe", "internvl_moe")  # families whose experts cannot be balanced
HYBRID, GEMMA = ("qwen3_5", "qwen3_5_moe"), ("gemma3", "gemma4", "gemma4_large")
KINDS = {"text": "", "image": "i", "images": "ii", "video": "v", "both": "vi"}  # media of a prompt, in order

OPTIONS = every_method(
    # The tiny models have as few as one or two layers of full attention.
    appo={"attention_layers": 2, "tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "accuracy_reward"},
    pgpo={"dependency_threshold": 0.0},
    ral={"num_iterations": 2},
    attn_distill={"gkd_weight": 0.5, "grpo_weight": 1.0},
)


def accuracy_reward(completions, **columns):
    """Whether a completion has more letters a to m than others: some of a group do, some do not."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(sum(ord(letter) % 2 for letter in text) * 2 > len(text)) for text in texts]


def mixed(clips, pictures, kinds=KINDS, repeats=1) -> list[dict]:
    """A row of each kind, `repeats` times, with its media in the message."""
    rows = []
    for number in range(repeats):
        paths = {"v": iter(clips[number:] + clips), "i": iter(pictures[number:] + pictures)}
        for kind in kinds:
            media = [("video" if letter == "v" else "image", next(paths[letter])) for letter in KINDS[kind]]
            blocks = [{"type": medium, medium: path} for medium, path in media]
            text = {"type": "text", "text": f"Which colour comes first in {kind} {number}?"}
            rows.append({"prompt": [{"role": "user", "content": [*blocks, text]}]})
    return rows


def trainer_of(family: str, method: str, folder, rows: list[dict], *, cls=None, extra=None, model=None, **config: Any):
    """A trainer on the family's tiny model, or on one that is saved at `model`; the teacher of a distillation has other weights."""
    own = tiny(family)
    cls, extra = cls or TRAINERS[method], dict(extra or {})
    if method == "attn_distill" and "peft_config" not in extra:
        teacher = tiny(family).model
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(1.2)
        extra["teacher_model"] = teacher
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 10,
        "num_generations": 2,
        "max_completion_length": 6,
        "video_max_frames": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 3,
    }
    if family in UNBALANCED:
        defaults["router_aux_loss_coef"] = 0.0
    return cls(
        model=model or own.model,
        reward_funcs=[letter_variety, accuracy_reward],
        args=cls.config_class(**{**defaults, **OPTIONS[method], **config}),
        train_dataset=Dataset.from_list(rows),
        processing_class=own.processor,
        **extra,
    )
