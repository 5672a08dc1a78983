"""A hang is a failure that shows where each process was."""

import pytest

from tests.processes.launch import LaunchError, launch


@pytest.mark.slow
def test_a_process_that_waits_is_found_by_the_clock(tmp_path):
    job = {"runs": [{"kind": "waiting.waited", "name": "waits", "seconds": 3600}]}
    with pytest.raises(LaunchError) as failure:
        launch(job, tmp_path, 2, seconds=3, patience=3600, after="met")
    message = str(failure.value)
    assert "still running after 3 seconds" in message
    first, second = (message.split(f"--- stacks-{rank}")[1].split("---")[0] for rank in range(2))
    assert "barrier" in first
    assert "sleep_instead" in second


@pytest.mark.slow
def test_a_process_that_waits_is_found_by_the_others(tmp_path):
    job = {"runs": [{"kind": "waiting.waited", "name": "waits", "seconds": 3600}]}
    with pytest.raises(LaunchError) as failure:
        launch(job, tmp_path, 2, seconds=400, patience=20)
    message = str(failure.value)
    assert "exit status 1" in message
    assert "sleep_instead" in message.split("--- stacks-1")[1].split("---")[0]
