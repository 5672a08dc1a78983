"""Rollout records on disk: whole tables that are never written over, attempts that replace each other, a bound."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reports.conftest import ABOUT, make_group
from trl_perception.reports.rollouts import new_attempt, read_groups, thin, write_groups


def test_groups_come_back_as_they_were_written(tmp_path):
    attempt = new_attempt(tmp_path, 0)
    group = make_group("clip.mp4")
    write_groups(attempt, 1, 0, [group], ABOUT)
    (read,), about = read_groups(tmp_path)
    assert about == ABOUT
    assert read["completions"][1]["token_weights"] == [0.25, 2.5, 0.25]
    assert read["completions"][1]["rewards"] == [1.0, None]
    assert read["frames"][1]["times"] == [0.5, 0.75]
    assert read.keys() == group.keys()


def test_each_process_has_a_table_and_none_is_written_over(tmp_path):
    attempt = new_attempt(tmp_path, 0)
    for process in (0, 1):
        write_groups(attempt, 3, process, [make_group("clip.mp4", step=3, sample=f"of {process}")], ABOUT)
    with pytest.raises(FileExistsError, match="never written over"):
        write_groups(attempt, 3, 1, [make_group("clip.mp4", step=3)], ABOUT)
    assert [group["sample"] for group in read_groups(tmp_path)[0]] == ["of 0", "of 1"]
    assert not list(attempt.glob("*.part"))


def test_a_resumed_attempt_appends_and_a_new_one_starts_over(tmp_path):
    def attempt(after, *steps):
        folder = new_attempt(tmp_path, after)
        for step in steps:
            write_groups(folder, step, 0, [make_group("clip.mp4", step=step, sample=folder.name)], ABOUT)

    def found():
        return [(group["step"], group["sample"][:3]) for group in read_groups(tmp_path)[0]]

    attempt(0, 1, 11, 21)
    attempt(10)  # stopped before it recorded anything: it replaces nothing
    assert found() == [(1, "001"), (11, "001"), (21, "001")]
    attempt(10, 11, 31)  # went back to step 10: what the first recorded beyond it is replaced
    assert found() == [(1, "001"), (11, "003"), (31, "003")]
    attempt(0, 1)
    assert found() == [(1, "004")]


def test_thinning_keeps_first_and_last_and_an_even_spread(tmp_path):
    attempt = new_attempt(tmp_path, 0)
    for step in (1, 11, 21, 31, 80):
        write_groups(attempt, step, 0, [make_group("clip.mp4", step=step)], ABOUT)
    write_groups(attempt, 11, 1, [make_group("clip.mp4", step=11)], ABOUT)
    # gaps around: 11 has 21 - 1 = 20, 21 has 31 - 11 = 20, 31 has 80 - 21 = 59. 11 goes; then 21 has 30, 31 has 59: 21 goes
    thin(attempt, 0, 3)
    assert [path.name for path in sorted(attempt.glob("*process-00*"))] == [
        f"step-{step:06d}-process-00.parquet" for step in (1, 31, 80)
    ]
    assert len(list(attempt.glob("*process-01*"))) == 1


def test_a_foreign_table_is_refused(tmp_path):
    attempt = new_attempt(tmp_path, 0)
    pq.write_table(pa.table({"step": [1]}), attempt / "step-000001-process-00.parquet")
    with pytest.raises(ValueError, match="no rollout record of this version"):
        read_groups(tmp_path)
