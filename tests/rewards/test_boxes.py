import math

import pytest

from trl_perception.rewards import box_iou, box_iou_reward, parse_box
from trl_perception.rewards.boxes import box_of

BOXES = [
    ("[10, 20, 30, 40]", (10.0, 20.0, 30.0, 40.0)),
    ("10,20,30,40", (10.0, 20.0, 30.0, 40.0)),
    ("(0.1, 0.2, 0.3, 0.45)", (0.1, 0.2, 0.3, 0.45)),
    ("(10,20),(30,40)", (10.0, 20.0, 30.0, 40.0)),
    ("[[10, 20], [30, 40]]", (10.0, 20.0, 30.0, 40.0)),
    ("The car is at\n[10, 20,\n30, 40].", (10.0, 20.0, 30.0, 40.0)),
    ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "car"}]\n```', (10.0, 20.0, 30.0, 40.0)),
    ("[0, 0, 1, 1]", (0.0, 0.0, 1.0, 1.0)),
    ("", None),
    ("left", None),
    ("[10, 20, 30]", None),
    ("[10, 20, 30, 40, 50]", None),
    ("[10, 20, 30, 40] or [1, 2, 3, 4]", None),
    ("car 2: [10, 20, 30, 40]", None),
    ("[30, 20, 10, 40]", None),
    ("[10, 40, 30, 20]", None),
    ("[10, 20, 10, 40]", None),
    ("[-10, 20, 30, 40]", None),
    ("[10, 20, 30, -40]", None),
    ("[1e1, 20, 30, 40]", None),
    ("[0, 0, 99999999, 99999999]", None),
    ("[nan, 0, inf, 1]", None),
    ("[10%, 20%, 30%, 40%]", None),
    ("[10 20 30 40]", None),
    ("[\uff11, 2, 3, 4]", None),  # full width
    ("[1\u00b2, 2, 3, 4]", None),
]

# predicted, target, score
IOU = [
    ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
    ((0, 0, 2, 2), (3, 3, 4, 4), 0.0),
    ((0, 0, 2, 2), (2, 0, 4, 2), 0.0),
    # shared 1 x 1 = 1, areas 4 and 4: union 7
    ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
    # shared 1 x 2 = 2, areas 4 and 6: union 8
    ((0, 0, 2, 2), (1, 0, 4, 2), 2 / 8),
    # one inside the other: 1 of 16
    ((1, 1, 2, 2), (0, 0, 4, 4), 1 / 16),
    ((1, 1, 1, 2), (1, 1, 1, 2), 0.0),
    ((0, 0, 1e100, 1e100), (0, 0, 1e100, 5e99), 0.5),
]


@pytest.mark.parametrize(("text", "expected"), BOXES)
def test_parse_box(text, expected):
    assert parse_box(text) == expected


# text, list or mapping as models write them, the box
WRITTEN = [
    ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "player 23"}]\n```', (10.0, 20.0, 30.0, 40.0)),
    ("{'bbox': ['10', '20', '30', '40'], 'score': 0.9}", (10.0, 20.0, 30.0, 40.0)),
    ('{"x": 10, "y": 20, "width": 20, "height": 20}', (10.0, 20.0, 30.0, 40.0)),
    ('{"left": 10, "top": 20, "right": 30, "bottom": 40}', (10.0, 20.0, 30.0, 40.0)),
    ("x1: 10, y1: 20, x2: 30, y2: 40", (10.0, 20.0, 30.0, 40.0)),
    ("<|object_ref_start|>car 2<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>", (10.0, 20.0, 30.0, 40.0)),
    ("<box>10 20 30 40</box>", (10.0, 20.0, 30.0, 40.0)),
    ("[[10, 20, 30, 40]]", (10.0, 20.0, 30.0, 40.0)),
    ("[10 20 30 40]", (10.0, 20.0, 30.0, 40.0)),
    ([[10, 20], [30, 40]], (10.0, 20.0, 30.0, 40.0)),
    ("[\uff11\uff10, 20, 30, 40]", (10.0, 20.0, 30.0, 40.0)),
    ('[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1, 2, 3, 4]}]', None),
    ('{"bbox_2d": [30, 20, 10, 40]}', None),
    ('{"bbox_2d": [10, 20, 30, true]}', None),
    ("<box>10 20 30 40</box><box>1 2 3 4</box>", None),
    ("10 20 30 40 50", None),
    ("[[10, 20, 30], [40]]", None),
    ([10, 20, 30], None),
]


@pytest.mark.parametrize(("written", "expected"), WRITTEN)
def test_box_of_what_models_write(written, expected):
    assert box_of(written) == expected


@pytest.mark.parametrize(("predicted", "target", "expected"), IOU)
def test_box_iou_matches_hand_count(predicted, target, expected):
    assert box_iou(predicted, target) == pytest.approx(expected, abs=1e-12)
    assert box_iou(target, predicted) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("box", [(2, 0, 1, 1), (0, 2, 1, 1), (0, 0, math.nan, 1), (0, 0, math.inf, 1), (0, 0, 1)])
def test_box_iou_refuses_what_is_no_box(box):
    with pytest.raises(ValueError, match="up to 1e100, with x0 <= x1"):
        box_iou(box, (0, 0, 1, 1))


def test_box_iou_reward_scores_its_rows_and_leaves_the_others():
    completions = ["<answer>[1, 1, 3, 3]</answer>", "<answer>B</answer>", "[0, 0, 2, 2]", "<answer>left</answer>"]
    scores = box_iou_reward(
        prompts=["?"] * 4,
        completions=completions,
        completion_ids=[[1]] * 4,
        solution=["<answer>[0, 0, 2, 2]</answer>", "B", "[0, 0, 2, 2]", [0, 0, 2, 2]],
        problem_type=["box grounding", "multiple choice", "spatial grounding", "box grounding"],
    )
    # shared 1, union 7; not applicable; no answer tag; no box
    assert scores == [pytest.approx(1 / 7), None, 0.0, 0.0]


@pytest.mark.parametrize("missing", ["solution", "problem_type"])
def test_box_iou_reward_names_the_missing_column(missing):
    columns = {"solution": ["[0, 0, 1, 1]"], "problem_type": ["box grounding"]}
    del columns[missing]
    with pytest.raises(ValueError, match=f"column '{missing}'"):
        box_iou_reward(["?"], ["x"], [[1]], **columns)


@pytest.mark.parametrize("solution", ["left", None, "", "[2, 0, 1, 1]"])
def test_box_iou_reward_refuses_a_solution_without_a_box(solution):
    with pytest.raises(ValueError, match=r"row 0 .* wants one box"):
        box_iou_reward(["?"], ["x"], [[1]], solution=[solution], problem_type=["box grounding"])
