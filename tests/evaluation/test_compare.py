"""Paired comparisons by hand, and runs that cannot be compared."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trl_perception.cli.evaluate import main
from trl_perception.evaluation import compare
from trl_perception.evaluation.store import schema


def folder(path, scores, *, kinds=None, model="a", **changes):
    """A finished evaluation: `scores` by id."""
    path.mkdir()
    rows = [
        {
            "row": number,
            "id": name,
            "prompt": f"question {name}",
            "media": [],
            "problem_type": (kinds or {}).get(name, "numerical"),
            "solution": "1",
            "completions": ["x"] * (len(score) if isinstance(score, list) else 1),
            "scores": {"accuracy": score if isinstance(score, list) else [score]},
            "pass_rate": sum(score) / len(score) if isinstance(score, list) else score,
            "tokens": [4],
            "cut": [False],
            "left_out": "",
            **changes.get(name, {}),
        }
        for number, (name, score) in enumerate(scores.items())
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(["accuracy"], [])), path / "predictions.parquet")
    (path / "settings.json").write_text(json.dumps({"model": model, "by": ["problem_type"], "video_fps": 2.0}))
    return path


def test_rows_are_paired_by_id_in_any_order(tmp_path):
    kinds = {"c": "multiple choice", "d": "multiple choice"}
    first = folder(tmp_path / "first", {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}, kinds=kinds)
    second = folder(tmp_path / "second", {"d": 0.0, "c": 1.0, "b": 1.0, "a": 1.0}, kinds=kinds)
    found = compare(first, second, resamples=4000)
    overall = found["all"]["all"]["accuracy"]
    # a and b rise, c stays, d falls: means .5 and .75, differences (1, 1, 0, -1)
    assert (overall.first, overall.second, overall.difference.mean) == (0.5, 0.75, 0.25)
    assert (overall.higher, overall.lower, overall.difference.rows) == (2, 1, 4)
    numerical = found["problem_type"]["numerical"]["accuracy"]
    # both rows rise by 1, so does every mean of rows drawn from them
    assert (numerical.difference.mean, numerical.difference.low, numerical.difference.high) == (1.0, 1.0, 1.0)


def test_pairing_takes_out_what_rows_have_in_common(tmp_path):
    scores = {str(number): float(number % 2) for number in range(100)}
    first = folder(tmp_path / "first", scores)
    second = folder(tmp_path / "second", {**scores, "0": 1.0, "2": 1.0})
    found = compare(first, second, resamples=4000)["all"]["all"]["accuracy"].difference
    # Two of 100 differences are 1, the others 0: Bin(100, .02) / 100 has its 2.5 % and 97.5 % quantiles at 0 and .05.
    # Unpaired, the interval would reach .14 to either side.
    assert found.mean == pytest.approx(0.02)
    assert (found.low, found.high) == pytest.approx((0.0, 0.05))


@pytest.mark.parametrize(
    ("scores", "changes", "words"),
    [
        ({"a": 1.0}, {}, r"1 of the 2 rows of .*first are not in .*second \(ids b\)"),
        ({"a": 1.0, "b": 1.0, "z": 1.0}, {}, r"1 of the 3 rows of .*second are not in .*first \(ids z\)"),
        ({"a": 1.0, "b": 1.0}, {"b": {"solution": "7"}}, r"1 of 2 rows differ in solution.*row b has '1' and '7'"),
        ({"a": 1.0, "b": 1.0}, {"a": {"prompt": "other"}}, r"differ in prompt.*'question a' and 'other'"),
        ({"a": 1.0, "b": 1.0}, {"a": {"left_out": "gone"}}, r"differ in left_out"),
        ({"a": [1.0, 0.0], "b": [1.0, 0.0]}, {}, r"first has 1 completions a row, .*second has 2"),
    ],
)
def test_rows_that_differ_are_refused(tmp_path, scores, changes, words):
    first = folder(tmp_path / "first", {"a": 1.0, "b": 1.0})
    second = folder(tmp_path / "second", scores, **changes)
    with pytest.raises(ValueError, match=words):
        compare(first, second)


def test_an_unfinished_evaluation_is_refused(tmp_path):
    first = folder(tmp_path / "first", {"a": 1.0})
    with pytest.raises(FileNotFoundError, match="holds no finished evaluation"):
        compare(first, tmp_path / "nowhere")


def test_the_command_prints_and_writes_the_difference(tmp_path, capsys):
    first = folder(tmp_path / "first", {"a": 0.0, "b": 0.0})
    second = folder(tmp_path / "second", {"a": 1.0, "b": 1.0}, model="b")
    settings = json.loads((second / "settings.json").read_text())
    (second / "settings.json").write_text(json.dumps(settings | {"video_fps": 1.0}))
    main(["--compare", str(first), str(second), "--output", str(tmp_path / "out" / "difference.json")])
    said = capsys.readouterr().out
    assert "+100.0 [+100.0, +100.0]" in said
    assert "video_fps differs beside the model: 2.0 and 1.0" in said
    assert "model differs" not in said
    written = json.loads((tmp_path / "out" / "difference.json").read_text())
    assert written["differences"]["all"]["all"]["accuracy"]["difference"]["mean"] == 1.0
