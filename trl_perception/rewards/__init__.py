"""Reward functions, called as TRL calls them: f(prompts=, completions=, completion_ids=, **columns) -> list[float]."""

from trl_perception.rewards.accuracy import PROBLEM_TYPES, accuracy_reward, boxed_accuracy_reward
from trl_perception.rewards.boxes import box_iou, parse_box
from trl_perception.rewards.check import solution_check
from trl_perception.rewards.choice import choice_letter, option_letter
from trl_perception.rewards.errors import RewardError
from trl_perception.rewards.format import answer_format_reward, boxed_format_reward, format_reward
from trl_perception.rewards.grounding import box_iou_reward, temporal_iou_reward
from trl_perception.rewards.registry import REWARD_FACTORIES, REWARDS, get_reward
from trl_perception.rewards.rules import check_solution
from trl_perception.rewards.shaping import LengthWindow, repetition, soft_overlong
from trl_perception.rewards.temporal import parse_spans, temporal_iou
from trl_perception.rewards.text import completion_text, extract_answer, extract_boxed

__all__ = [
    "PROBLEM_TYPES",
    "REWARDS",
    "REWARD_FACTORIES",
    "LengthWindow",
    "RewardError",
    "accuracy_reward",
    "answer_format_reward",
    "box_iou",
    "box_iou_reward",
    "boxed_accuracy_reward",
    "boxed_format_reward",
    "check_solution",
    "choice_letter",
    "completion_text",
    "extract_answer",
    "extract_boxed",
    "format_reward",
    "get_reward",
    "option_letter",
    "parse_box",
    "parse_spans",
    "repetition",
    "soft_overlong",
    "solution_check",
    "temporal_iou",
    "temporal_iou_reward",
]
