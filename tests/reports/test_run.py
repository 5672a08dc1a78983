"""Reading a run's folder, and the numbers made of its log."""

import json
import math

import pytest

from tests.reports.conftest import make_group
from trl_perception.reports.charts import moving_average, nice_ticks, number, tick_labels
from trl_perception.reports.curves import sections
from trl_perception.reports.run import Run, gain, read_run


def test_the_log_is_the_folders_own_or_its_last_checkpoints(tmp_path, clips, write_run):
    for step in (9, 10):
        (tmp_path / "going" / f"checkpoint-{step}").mkdir(parents=True)
        state = {"log_history": [{"step": step, "reward": 0.5}, {"train_runtime": 1.0}]}
        (tmp_path / "going" / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    going = read_run(tmp_path / "going")
    assert (going.steps, going.groups, going.series("reward")) == (10, [], [(10, 0.5)])
    done = read_run(write_run([make_group(clips[0])]))
    assert (done.method, done.steps, len(done.groups)) == ("PGPO", 2, 1)
    with pytest.raises(FileNotFoundError, match="output_dir of a run"):
        read_run(tmp_path / "nothing")


def test_series_leave_out_what_is_no_number():
    log = [{"step": 1, "reward": math.nan}, {"step": 2, "reward": 0.5}, {"step": 3, "reward": "high"}, {"step": 4}]
    run = Run("run", log, [], {})
    assert run.series("reward") == [(2, 0.5)]
    assert run.keys == ["reward", "step"]
    assert gain(run.series("nothing")) is None
    # 20 points: a tenth is 2. First (0 + 2) / 2 = 1, last (36 + 38) / 2 = 37
    assert gain([(x, 2.0 * x) for x in range(20)]) == (1.0, 37.0)


def test_charts_are_the_runs_own_and_say_which_run():
    log = [
        {
            "step": 1,
            "reward": 0.1,
            "loss": 1.0,
            "appo/frames_selected": 3.0,
            "rewards_by_type/accuracy_reward/yes/no": 0.5,
        },
        {"step": 1, "rewards/accuracy_reward/mean": 0.1, "rewards/format_reward/mean": 1.0},
    ]
    titled = dict(sections([Run("one", log, [], {})]))
    assert list(titled) == ["Learning", "What the method says", "Optimiser"]
    assert [chart.title for chart in titled["Learning"]] == ["Reward", "Each reward", "Accuracy by type of question"]
    assert [line.label for line in titled["Learning"][2].lines] == ["yes/no"]
    assert titled["What the method says"][0].title == "Frames selected"
    both = dict(sections([Run("one", log, [], {}), Run("two", log, [], {})]))["Learning"]
    assert [(line.run, line.colour, line.other) for line in both[0].lines] == [("one", 0, False), ("two", 1, True)]
    # two keys and two runs: colours are the keys', the other run's lines are dashed
    assert [(line.label, line.colour, line.other) for line in both[1].lines] == [
        ("accuracy_reward", 0, False),
        ("accuracy_reward", 0, True),
        ("format_reward", 1, False),
        ("format_reward", 1, True),
    ]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (0.13, 0.79, [0, 0.2, 0.4, 0.6, 0.8]), (-3, 40, [-20, 0, 20, 40])],
)
def test_ticks_are_round_and_hold_the_data(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-7, 3e6])
def test_a_flat_series_has_an_axis(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] <= value <= ticks[-1]
    assert ticks[0] < ticks[-1]
    assert len(set(tick_labels(ticks))) == len(ticks)


def test_numbers_for_people():
    assert [number(v) for v in (0, 0.12345, 12345.6, 5e-7, 1.0, -0.5)] == ["0", "0.123", "12,346", "5e-07", "1", "-0.5"]
    assert tick_labels([1.15, 1.175, 1.2]) == ["1.150", "1.175", "1.200"]
    assert tick_labels([0, 20, 40]) == ["0", "20", "40"]
    # 40 points: windows of 2. (1 + 0) / 2, (2 + 1) / 2, ...
    assert moving_average([(x, float(x)) for x in range(40)])[:3] == [(0, 0.0), (1, 0.5), (2, 1.5)]
