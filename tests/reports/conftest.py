"""A run folder made by hand: two steps of a log, groups with every kind of signal, existing and missing media."""

import json
import os
import shutil

import pytest

from trl_perception.reports.rollouts import new_attempt, write_groups

ABOUT = {"method": "PGPO", "reinforces": "Tokens that <see>.", "settings": {"visual_boost": "2.0"}}


def installed_browser():
    """Paths of Chromium and its driver. Without them the tests that need them are skipped, and fail where CI is set."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("no chromium with its chromedriver is installed (Debian: apt-get install chromium chromium-driver)")
    return chromium, driver


def make_completion(tokens, *, advantage, weights, reward=1.0, frames=None):
    count = len(tokens)
    frames = frames or [0.1, 0.2, 0.3, 0.4]
    return {
        "text": "".join(tokens),
        "tokens": tokens,
        "token_ids": list(range(count)),
        "mask": [True] * count,
        "length": count,
        "rewards": [reward, None],
        "reward": reward,
        "advantage": advantage,
        "token_weights": weights,
        "signals": [
            {"name": "visual_dependency", "kind": "token", "values": [0.5] * count, "tokens": None},
            {"name": "frame_attention", "kind": "frame", "values": frames, "tokens": None},
            {"name": "frame_attention", "kind": "token_frame", "values": [0.0, 0.0, 0.0, 1.0], "tokens": [1]},
        ],
    }


def make_group(clip, *, step=1, prompt="What colour?", completions=None, **columns):
    return {
        "step": step,
        "sample": "row 1",
        "prompt": prompt,
        "media": [{"kind": "video", "source": clip, "name": clip}],
        "frames": [{"medium": 0, "times": [cell / 2, cell / 2 + 0.25]} for cell in range(4)],
        "evidence": [[0.5, 1.0]],
        "problem_type": "free-form",
        "solution": "red",
        "reward_names": ["accuracy_reward", "format_reward"],
        "signals": [{"name": "selected_frames", "kind": "frame_mask", "values": [0.0, 1.0, 0.0, 0.0], "tokens": None}],
        "completions": completions
        or [
            make_completion(["a", " blue", " one"], advantage=-1.0, weights=[0.5, 2.0, 0.5], reward=0.0),
            make_completion(["a", " red", " one"], advantage=1.0, weights=[0.25, 2.5, 0.25]),
        ],
        **columns,
    }


@pytest.fixture
def write_run(tmp_path):
    """`write_run(groups, name="run")` writes the groups and a log of two steps; returns the folder."""

    def write(groups, name="run"):
        folder = tmp_path / name
        attempt = new_attempt(folder, 0)
        for step in sorted({group["step"] for group in groups}):
            write_groups(attempt, step, 0, [group for group in groups if group["step"] == step], ABOUT)
        log = [
            {"step": 1, "reward": 0.25, "entropy": 1.5, "pgpo/weight_max": 3.0, "rewards/accuracy_reward/mean": 0.25},
            {"step": 2, "reward": 0.75, "entropy": 1.0, "pgpo/weight_max": 4.0, "rewards/accuracy_reward/mean": 0.5},
        ]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        return folder

    return write
