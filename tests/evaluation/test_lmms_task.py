"""Rows as a task of lmms-eval: the functions that the task file names, without lmms-eval."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from PIL import Image

from trl_perception.evaluation.lmms_task import doc_to_messages, doc_to_text, doc_to_visual, process_results

TASK = Path(__file__).parents[2] / "recipes" / "lmms_eval" / "rows.yaml"


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_task_names_functions_and_metrics_that_exist():
    task = yaml.load(TASK.read_text(), Loader)
    for key in ("doc_to_messages", "doc_to_visual", "doc_to_text", "process_results"):
        module, _, name = task[key].rpartition(".")
        assert callable(getattr(import_module(module), name))
    scores = process_results({"prompt": "?", "solution": "1", "problem_type": "numerical"}, ["1"])
    assert {metric["metric"] for metric in task["metric_list"]} == set(scores)


def test_conversations_carry_their_media_by_url(pictures):
    blocks = [{"type": "video", "text": None}, {"type": "image"}, {"type": "text", "text": "Why?"}]
    doc = {"prompt": [{"role": "user", "content": blocks}], "videos": ["a.mp4"], "images": [pictures[0]]}
    (message,) = doc_to_messages(doc)
    assert message["role"] == "user"
    assert message["content"][0] == {"type": "video", "url": "a.mp4"}
    assert message["content"][2] == {"type": "text", "text": "Why?"}
    assert isinstance(message["content"][1]["url"], Image.Image)
    clip, picture = doc_to_visual(doc)
    assert (clip, picture.size) == ("a.mp4", Image.open(pictures[0]).size)
    assert doc_to_text(doc) == "Why?"


def test_completions_are_scored_by_the_packages_rewards():
    doc = {"prompt": "?", "solution": "1.0 to 3.0", "problem_type": "temporal grounding", "options": None}
    # overlap 2.0 to 3.0 is 1 s, together 1.0 to 4.0 is 3 s: 1/3, less than one half
    found = process_results(doc, ["<think>x</think><answer>2.0 to 4.0</answer>"])
    assert found == {"right": 0.0, "accuracy": pytest.approx(1 / 3), "format": 1.0}
    assert process_results(doc, ["<answer>1.0 to 3.0</answer>"]) == {"right": 1.0, "accuracy": 1.0, "format": 0.0}
