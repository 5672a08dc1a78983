"""Answers as models write them, with the score of each: cases.jsonl."""

import json
from pathlib import Path

import pytest

from trl_perception.rewards import accuracy_reward, box_iou_reward, check_solution, temporal_iou_reward

CASES = [json.loads(line) for line in (Path(__file__).parent / "cases.jsonl").read_text().splitlines()]
REWARDS = {"temporal grounding": temporal_iou_reward, "box grounding": box_iou_reward}


@pytest.mark.parametrize("case", CASES, ids=[f"{c['problem_type']}: {c['answer']} / {c['solution']}" for c in CASES])
def test_case(case):
    row = {key: [case[key]] for key in ("problem_type", "solution", "options")}
    completion = f"<think>why</think><answer>{case['answer']}</answer>"
    rewards = (REWARDS.get(case["problem_type"], accuracy_reward), accuracy_reward)
    if case["expected"] == "refuse":
        with pytest.raises(ValueError, match="Correct or drop the row"):
            check_solution(case["problem_type"], case["solution"], case["options"])
        with pytest.raises(ValueError, match="row 0 of the batch"):
            accuracy_reward([None], [completion], **row)
        return
    check_solution(case["problem_type"], case["solution"], case["options"])
    for reward in rewards:
        assert reward([None], [completion], **row) == [case["expected"]], case["why"]
