import math

import pytest

from trl_perception.rewards import parse_spans, temporal_iou, temporal_iou_reward
from trl_perception.rewards.temporal import spans_of

SPANS = [
    ("2.0 to 3.5", [(2.0, 3.5)]),
    ("2.0-3.5 s", [(2.0, 3.5)]),
    ("2.0s – 3.5s", [(2.0, 3.5)]),
    ("2 seconds until 3 Seconds.", [(2.0, 3.0)]),
    ("[2.0, 3.5]", [(2.0, 3.5)]),
    ("(2,300)", [(2.0, 300.0)]),
    ("2.0, 3.5", [(2.0, 3.5)]),
    ("2.0 \n to\t3.5", [(2.0, 3.5)]),
    ("3.3333333333333335 to 4", [(3.3333333333333335, 4.0)]),
    ("00:12 to 00:15", [(12.0, 15.0)]),
    # 1 h 2 min 3 s = 3600 + 120 + 3
    ("1:02:03 - 1:02:05.5", [(3723.0, 3725.5)]),
    ("[[2, 3], [5, 6]]", [(2.0, 3.0), (5.0, 6.0)]),
    ("2-3, 5-6", [(2.0, 3.0), (5.0, 6.0)]),
    ("The cat jumps from 2 to 3 and from 5 to 6 seconds.", [(2.0, 3.0), (5.0, 6.0)]),
    ("- 2 to 3\n- 5 to 6", [(2.0, 3.0), (5.0, 6.0)]),
    ("", []),
    ("never", []),
    ("2", []),
    ("5 to 2", []),
    ("2 to 2", []),
    ("2 to 3 and 6 to 5", []),
    ("-1 to 3", []),
    ("2 to -3", []),
    ("1 to 2 to 3", []),
    ("[1, 2, 3]", []),
    ("1,234 to 1,300", []),
    ("2 to 3 minutes", []),
    ("2% to 3%", []),
    ("2 to 3%", []),
    ("frames 2 to 3", []),
    ("2 to 3ms", []),
    ("12:75 to 13:00", []),
    ("1e1 to 2e1", []),
    ("nan to inf", []),
    ("0 to inf", []),
    ("0 to 99999999999", []),
    ("\u0662 to \u0663", []),
    ("\uff12 to \uff13", []),  # full width
    ("2\u00b2 to 3", []),
]

# predicted, target, score
IOU = [
    ([[0, 10]], [[0, 10]], 1.0),
    ([[0, 10]], [[20, 30]], 0.0),
    ([[0, 10]], [[10, 20]], 0.0),
    # shared 5..10 = 5, union 0..15 = 15
    ([[0, 10]], [[5, 15]], 5 / 15),
    # shared 2..4 = 2, union 0..10 = 10
    ([[2, 4]], [[0, 10]], 0.2),
    # P = 0..2 and 4..6 (4), shared 1..2 and 4..5 (2), T = 1..5 (4), union 4 + 4 - 2 = 6
    ([[0, 2], [4, 6]], [[1, 5]], 2 / 6),
    # P as a union is 0..6 (6), not 4 + 4; shared 2..6 = 4, T = 2..8 (6), union 6 + 6 - 4 = 8
    ([[2, 6], [0, 4]], [[2, 8]], 0.5),
    # saying a span twice changes nothing: shared 2, union 4
    ([[0, 2], [0, 2]], [[0, 4]], 0.5),
    # P = 0..1, 2..3, 9..10 (3), T = 0..3 and 8..10 (5), shared 1 + 1 + 1 = 3, union 3 + 5 - 3 = 5
    ([[0, 1], [2, 3], [9, 10]], [[0, 3], [8, 10]], 0.6),
    ([], [[0, 1]], 0.0),
    ([], [], 0.0),
    ([[3, 3]], [[3, 3]], 0.0),
    ([[3, 3]], [[0, 10]], 0.0),
    ([[0, 1e300]], [[0, 2e300]], 0.5),
]


@pytest.mark.parametrize(("text", "expected"), SPANS)
def test_parse_spans(text, expected):
    assert parse_spans(text) == expected


# text, list or mapping as models write them, the spans in seconds
WRITTEN = [
    ('{"start_time": "00:12.50", "end_time": "00:20"}', [(12.5, 20.0)]),
    ('[{"start": 2, "end": 3, "label": "dog 7"}, {"start": "5s", "end": "6s"}]', [(2.0, 3.0), (5.0, 6.0)]),
    ('{"start": 2, "end": 3}, {"start": 5, "end": 6}', [(2.0, 3.0), (5.0, 6.0)]),
    ("{'timestamps': [[2, 3], [5, 6]], 'event': 'dog 7'}", [(2.0, 3.0), (5.0, 6.0)]),
    ('["00:12", "00:20"]', [(12.0, 20.0)]),
    ("<2.0 seconds> - <3.0 seconds>", [(2.0, 3.0)]),
    # 1 min 5 s = 65 s; 1 h 1 min 1 s = 3661 s
    ("1 min 5 s to 1 min 12 s", [(65.0, 72.0)]),
    ("1m5s-1m12s", [(65.0, 72.0)]),
    ("1 h to 1 h 1 min 1 s", [(3600.0, 3661.0)]),
    ("2 min to 3 min", [(120.0, 180.0)]),
    ("00:00:12,500 --> 00:00:20,000", [(12.5, 20.0)]),
    ("from 12秒到20秒", [(12.0, 20.0)]),
    ("1分5秒至1分12秒", [(65.0, 72.0)]),
    ("2 → 3", [(2.0, 3.0)]),
    ("Start: 2 s; End: 3 s", [(2.0, 3.0)]),
    ("It starts at 2.0 and ends at 3.0.", [(2.0, 3.0)]),
    ("between 2 and 3, and between 5 and 6", [(2.0, 3.0), (5.0, 6.0)]),
    (["2 to 3", "5 to 6"], [(2.0, 3.0), (5.0, 6.0)]),
    ([["2", 3.5]], [(2.0, 3.5)]),
    ({"begin": 2, "end": 3}, [(2.0, 3.0)]),
    ("2 to 3 minutes", []),
    ("2 to 3 min 5 s", []),
    ("2 and 3 and 4", []),
    ('{"start": 3, "end": 2}', []),
    ('{"start": 2, "end": "soon"}', []),
    ('{"start": -1, "end": 2}', []),
    ([2, None], []),
    ([2, 3, 4], []),
    ("dog 7: 2 to 3", []),
    ("frame 2 → frame 3", []),
]


@pytest.mark.parametrize(("written", "expected"), WRITTEN)
def test_spans_of_what_models_write(written, expected):
    assert spans_of(written) == expected


@pytest.mark.parametrize(("predicted", "target", "expected"), IOU)
def test_temporal_iou_matches_hand_count(predicted, target, expected):
    assert temporal_iou(predicted, target) == pytest.approx(expected, abs=1e-12)
    assert temporal_iou(target, predicted) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("span", [[3, 2], [0, math.nan], [0, math.inf], [1], [1, 2, 3]])
def test_temporal_iou_refuses_what_is_no_span(span):
    with pytest.raises(ValueError, match="finite, with start <= end"):
        temporal_iou([span], [[0, 1]])


def test_temporal_iou_leaves_its_inputs_alone():
    predicted, target = [[4, 6], [0, 5]], [[1, 2]]
    temporal_iou(predicted, target)
    assert (predicted, target) == ([[4, 6], [0, 5]], [[1, 2]])


def test_temporal_iou_reward_scores_its_rows_and_leaves_the_others():
    completions = ["<answer>2 to 4</answer>", "<answer>B</answer>", "2 to 4", "<answer>soon</answer>"]
    scores = temporal_iou_reward(
        prompts=["?"] * 4,
        completions=completions,
        completion_ids=[[1]] * 4,
        solution=["<answer>3.0 to 5.0</answer>", "B", "2 to 4", [[2.0, 4.0]]],
        problem_type=["temporal grounding", "multiple choice", "temporal grounding", "temporal grounding"],
    )
    # shared 3..4 = 1, union 2..5 = 3; not applicable; no answer tag; no span
    assert scores == [pytest.approx(1 / 3), None, 0.0, 0.0]


@pytest.mark.parametrize("missing", ["solution", "problem_type"])
def test_temporal_iou_reward_names_the_missing_column(missing):
    columns = {"solution": ["1 to 2"], "problem_type": ["temporal grounding"]}
    del columns[missing]
    with pytest.raises(ValueError, match=f"column '{missing}'"):
        temporal_iou_reward(["?"], ["x"], [[1]], **columns)


@pytest.mark.parametrize("solution", ["soon", None, "", "5 to 2", "<answer></answer>"])
def test_temporal_iou_reward_refuses_a_solution_without_spans(solution):
    with pytest.raises(ValueError, match=r"row 0 .* wants time spans"):
        temporal_iou_reward(["?"], ["x"], [[1]], solution=[solution], problem_type=["temporal grounding"])
