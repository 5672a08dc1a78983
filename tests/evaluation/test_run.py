"""Whole evaluations of the embedded model."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trl_perception.cli.main import main
from trl_perception.evaluation import EvaluationSettings, evaluate
from trl_perception.media import video
from trl_perception.media.prompts import UnusableSampleError

KEYS = ("row", "id", "problem_type", "solution", "completions", "scores", "pass_rate", "tokens", "cut", "left_out")
FAST = {"batch_size": 4, "max_new_tokens": 40, "video_fps": 4.0, "video_max_frames": 16, "resamples": 100}


def settings(data, output, **changes):
    return EvaluationSettings(**{"model": "tiny", "data": str(data), "output": str(output), **FAST, **changes})


def batches_completed(monkeypatch):
    """The sizes of the batches completed from now on."""
    from trl_perception.evaluation import predict

    sizes, real = [], predict.complete

    def spy(model, processor, prompts, **kwargs):
        sizes.append(len(prompts))
        return real(model, processor, prompts, **kwargs)

    monkeypatch.setattr(predict, "complete", spy)
    return sizes


@pytest.fixture(scope="module")
def greedy(rows_file, tmp_path_factory):
    return evaluate(settings(rows_file, tmp_path_factory.mktemp("greedy") / "out", by=["problem_type", "family"]))


def test_predictions_hold_every_row_in_order(greedy, rows):
    predictions = greedy.predictions.to_pylist()
    assert set(KEYS) <= set(predictions[0])
    assert [prediction["id"] for prediction in predictions] == rows["id"]
    for prediction, row in zip(predictions, rows, strict=True):
        assert prediction["solution"] == row["solution"]
        assert prediction["media"] == [*row["images"], *row["videos"]]
        (accuracy,) = prediction["scores"]["accuracy"]
        assert prediction["pass_rate"] == float(accuracy >= 0.5)
        (overlap,) = prediction["scores"]["temporal_iou"]
        assert overlap == (accuracy if row["problem_type"] == "temporal grounding" else None)


def test_the_summary_says_what_the_predictions_say(greedy, rows):
    written = json.loads(json.dumps(greedy.summary))
    rates = [prediction["pass_rate"] for prediction in greedy.predictions.to_pylist()]
    figure = written["figures"]["all"]["all"]["accuracy"]
    assert figure["mean"] == pytest.approx(sum(rates) / 14)
    assert figure["low"] <= figure["mean"] <= figure["high"]
    assert {key: value["accuracy"]["rows"] for key, value in written["figures"]["family"].items()} == Counter(
        rows["family"]
    )
    assert written["settings"]["model"] == "tiny"
    assert "transformers" in written["versions"]
    assert written["left_out"] == {"rows": 0, "reasons": {}}


def test_an_interrupted_run_resumes_and_ends_equal(greedy, own_file, tmp_path, monkeypatch):
    from trl_perception.evaluation import store

    written, real = [], store.PredictionStore.write

    def until_the_plug_is_pulled(self, number, records):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        real(self, number, records)

    made = settings(own_file, tmp_path / "out", by=["problem_type", "family"])
    with monkeypatch.context() as patch:
        patch.setattr(store.PredictionStore, "write", until_the_plug_is_pulled)
        with pytest.raises(KeyboardInterrupt):
            evaluate(made)
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2
    sizes = batches_completed(monkeypatch)
    done = evaluate(made)
    assert sizes == [4, 2]  # of 4, 4, 4 and 2
    assert done.predictions.equals(greedy.predictions)
    sizes.clear()
    assert evaluate(made).summary == done.summary
    assert sizes == []  # nothing was left to do


def test_a_run_with_other_settings_or_rows_does_not_resume(own_file, tmp_path):
    evaluate(settings(own_file, tmp_path / "out", limit=4))
    with pytest.raises(ValueError, match=r"other settings \(max_new_tokens: 40 there, 41 now\)"):
        evaluate(settings(own_file, tmp_path / "out", limit=4, max_new_tokens=41))
    lines = own_file.read_text().splitlines(keepends=True)
    own_file.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match=r"other settings \(rows_digest: "):
        evaluate(settings(own_file, tmp_path / "out", limit=4))
    own_file.write_text("".join(lines[:3]))
    with pytest.raises(ValueError, match=r"other settings \(rows: 4 there, 3 now"):
        evaluate(settings(own_file, tmp_path / "out", limit=4))


@pytest.fixture
def own_file(rows_file, tmp_path):
    return Path(shutil.copy(rows_file, tmp_path / "rows.jsonl"))


def test_a_second_evaluation_decodes_nothing(greedy, rows_file, tmp_path, monkeypatch):
    kept = {"by": ["problem_type", "family"], "media_cache_dir": str(tmp_path / "kept")}
    assert evaluate(settings(rows_file, tmp_path / "first", **kept)).predictions == greedy.predictions
    monkeypatch.setattr(video, "opened", None)
    assert evaluate(settings(rows_file, tmp_path / "second", **kept)).predictions == greedy.predictions


def test_samples_give_avg_and_pass_at_k(rows_file, tmp_path):
    done = evaluate(settings(rows_file, tmp_path / "out", samples=4, temperature=1.0, limit=6, seed=1))
    predictions = done.predictions.to_pylist()
    assert {len(prediction["completions"]) for prediction in predictions} == {4}
    found = {name: figure.mean for name, figure in done.figures["all"]["all"].items()}
    assert found["avg@4"] == pytest.approx(sum(prediction["pass_rate"] for prediction in predictions) / 6)
    assert found["pass@4"] == pytest.approx(sum(prediction["pass_rate"] > 0 for prediction in predictions) / 6)
    assert found["avg@4"] <= found["pass@2"] <= found["pass@4"]
    assert any(len(set(prediction["completions"])) > 1 for prediction in predictions)


def test_samples_do_not_depend_on_the_order_of_batches(rows_file, tmp_path, monkeypatch):
    from trl_perception.evaluation.store import PredictionStore

    sampled = {"samples": 2, "temperature": 1.0, "limit": 6, "batch_size": 2}
    forwards = evaluate(settings(rows_file, tmp_path / "forwards", **sampled))
    pending = PredictionStore.pending
    monkeypatch.setattr(PredictionStore, "pending", lambda store: pending(store)[::-1])
    assert evaluate(settings(rows_file, tmp_path / "backwards", **sampled)).predictions.equals(forwards.predictions)
    monkeypatch.undo()
    other = evaluate(settings(rows_file, tmp_path / "other", **sampled, seed=1))
    assert not other.predictions.equals(forwards.predictions)


@pytest.fixture
def broken_file(rows_file, tmp_path):
    """The rows, two of them with media that cannot be used."""
    lines = [json.loads(line) for line in rows_file.read_text().splitlines()]
    (tmp_path / "cut.mp4").write_bytes(b"not a video")
    clips = [line for line in lines if line["videos"]]
    clips[0]["videos"], clips[1]["videos"] = [str(tmp_path / "cut.mp4")], [str(tmp_path / "gone.mp4")]
    path = tmp_path / "broken.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, [clips[0]["id"], clips[1]["id"]]


def test_media_that_cannot_be_used_stop_the_run_by_name(broken_file, tmp_path):
    path, ids = broken_file
    with pytest.raises(UnusableSampleError, match=rf"sample ({ids[0]}|{ids[1]}): .*set on_bad_media to 'skip'"):
        evaluate(settings(path, tmp_path / "out", check_rows=False))


def test_the_chat_template_gets_its_arguments(rows_file, tmp_path):
    refusing = {"chat_template": "{{ raise_exception('thinking is ' ~ enable_thinking) }}", "enable_thinking": False}
    with pytest.raises(UnusableSampleError, match="thinking is False"):
        evaluate(settings(rows_file, tmp_path / "out", chat_template_kwargs=refusing))


def test_rows_are_checked_before_the_model_is_loaded(broken_file, tmp_path):
    path, ids = broken_file
    with pytest.raises(ValueError, match=r"1 of 14 rows of the evaluation data cannot be used") as error:
        evaluate(settings(path, tmp_path / "out", model="nowhere/no-model"))
    assert f"(id {ids[1]}): {tmp_path / 'gone.mp4'}" in str(error.value)


def test_media_that_cannot_be_used_are_left_out_counted_and_listed(broken_file, tmp_path, capsys):
    path, ids = broken_file
    options = [f"--{key}={value}" for key, value in {**FAST, "batch_size": 1, "on_bad_media": "skip"}.items()]
    main(["evaluate", "--model", "tiny", "--data", str(path), "--output", str(tmp_path / "out"), *options])
    said = capsys.readouterr().out
    assert "Left out: 2 of 14 rows" in said
    assert all(f"  {name}: sample {name}" in said for name in ids)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["left_out"]["reasons"]) == set(ids)
    assert summary["figures"]["all"]["all"]["accuracy"]["rows"] == 12
    predictions = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()}
    assert len(predictions) == 14
    assert all((predictions[name]["completions"], predictions[name]["pass_rate"]) == ([], None) for name in ids)


def test_rewards_are_called_as_in_training(rows_file, tmp_path):
    done = evaluate(
        settings(rows_file, tmp_path / "out", rewards=["accuracy", "tests.evaluation.test_run.seen"], limit=4)
    )
    (found,) = {
        tuple(prediction["scores"]["tests.evaluation.test_run.seen"]) for prediction in done.predictions.to_pylist()
    }
    assert found == (1.0,)


async def seen(prompts, completions, completion_ids, solution, family, log_metric, **columns):
    """1.0 for each completion whose arguments match those of TRL's trainer."""
    log_metric("seen", 1.0)
    rows = zip(prompts, completions, completion_ids, solution, family, strict=True)
    return [
        float(
            prompt[0]["role"] == "user"
            and completion[0]["role"] == "assistant"
            and ids[-1] > 0
            and bool(answer and name)
        )
        for prompt, completion, ids, answer, name in rows
    ]
