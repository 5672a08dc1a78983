"""A run that cannot have learned anything is reported: no usable row, or no reward other than 0."""

import pytest

from tests.helpers import message
from trl_perception.reports.run import reward_stayed_zero
from trl_perception.train import main


def nothing(completions, **columns):
    """A reward that is always 0."""
    return [0.0] * len(completions)


def test_a_run_that_leaves_out_every_row_stops(make_trainer, tmp_path):
    """After an epoch of two prompts, of the five steps that were asked for."""
    broken = [{"prompt": message("What?", "video"), "videos": [str(tmp_path / f"{n}.mp4")], "images": []} for n in "ab"]
    for row in broken:
        (tmp_path / row["videos"][0]).write_bytes(b"no video")
    trainer = make_trainer(broken, on_bad_media="skip")
    with pytest.raises(ValueError, match=r"All 2 prompts that were drawn were left out .*The first: .*[ab]\.mp4"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_a_reward_that_stays_zero_by_hand():
    assert reward_stayed_zero([{"step": 1, "reward": 0.0, "reward_std": 0.0}, {"step": 2, "loss": 1.0}])
    assert not reward_stayed_zero([{"step": 1, "reward": 0.0}, {"step": 2, "reward": 0.1}])
    assert not reward_stayed_zero([{"step": 1, "reward": 0.0, "reward_std": 0.5}])  # 0.5 and -0.5
    assert not reward_stayed_zero([{"step": 1, "loss": 1.0}])


def test_a_run_without_reward_warns_and_has_no_card(tmp_path, monkeypatch, capsys):
    """And its folder is not another recipe's: one line, and nothing of the first run is touched."""
    monkeypatch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    arguments = [
        "--use_cpu",
        "true",
        "--output_dir",
        str(folder),
        "--synthetic",
        '{"size": 16}',
        "--disable_tqdm",
        "true",
    ]
    more = [
        "--per_device_train_batch_size",
        "8",
        "--max_steps",
        "1",
        "--reward_weights",
        "1",
        "--max_completion_length",
        "4",
    ]
    main(["--config", "grpo/tiny", *arguments, *more, "--reward_funcs", "tests.trainers.test_nothing_learned.nothing"])
    assert "WARNING  The reward was 0 in every step that was logged" in capsys.readouterr().out
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "README.md").exists()
    before = (folder / "recipe.yaml").read_text()
    with pytest.raises(SystemExit, match="holds another run: its trainer is GRPOVideoTrainer, this run's PGPOTrainer"):
        main(["--config", "pgpo/tiny", *arguments])
    assert (folder / "recipe.yaml").read_text() == before
