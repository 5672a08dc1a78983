"""Training with media read ahead and kept on disk is training without."""

import pytest
import torch
from datasets import Dataset, IterableDataset

from tests.callbacks.checkpoints.resuming import log_of
from tests.conftest import write_clip
from tests.media.beside import Beside
from trl_perception.batch import PromptsOfTRL
from trl_perception.media import MediaLoader, PromptPreparer, RowsAhead, loader, video
from trl_perception.media.prompts import UnusableSampleError
from trl_perception.trainers import GRPOVideoConfig
from trl_perception.trainers.rollout import RolloutBuilder

# A rollout of one prompt a step, or of two prompts with two updates of two micro-steps each.
SHORT = {
    "per_device_train_batch_size": 2,
    "num_generations": 2,
    "max_completion_length": 4,
    "max_steps": 3,
    "temperature": 3.0,
}
TWO_UPDATES = {**SHORT, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 5}


@pytest.fixture
def beside(monkeypatch):
    """Puts threads in the place of the processes; the clips that were read at their turn."""
    monkeypatch.setattr(loader, "ReaderProcesses", Beside)
    late, original = [], MediaLoader._read

    def read(self, key, request):
        late.extend([request.source] * isinstance(request.source, str))  # a trainer first tries frames of its own
        return original(self, key, request)

    monkeypatch.setattr(MediaLoader, "_read", read)
    return late


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """Six rows with a clip each."""
    folder = tmp_path_factory.mktemp("six")
    prompt = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which colour?"}]}]
    return [
        {"prompt": prompt, "videos": [write_clip(folder / f"{seed}.mp4", seed=seed, frames=4)], "id": str(seed)}
        for seed in range(6)
    ]


def trained(make_trainer, rows, **config):
    trainer = make_trainer(rows, **{**SHORT, **config})
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("config", "ahead", "first", "asked"),
    [
        (SHORT, 1, 1, [1, 1, 1]),
        # An epoch of six rows is three rollouts.
        pytest.param(TWO_UPDATES, 2, 2, [4, 2, 0], marks=pytest.mark.slow),
    ],
    ids=["one rollout a step", "two updates a rollout"],
)
def test_reading_ahead_changes_nothing_but_when_media_are_read(
    make_trainer, six, beside, monkeypatch, config, ahead, first, asked
):
    plain, at_their_turn = log_of(trained(make_trainer, six, **config)), len(beside)
    assert at_their_turn == first * 3
    beside.clear()
    found, read_ahead = [], PromptPreparer.read_ahead
    monkeypatch.setattr(
        PromptPreparer, "read_ahead", lambda self, rows: found.append(len(rows)) or read_ahead(self, rows)
    )
    trainer = trained(make_trainer, six, **config, media_prefetch=ahead, media_cache_mb=1)
    assert log_of(trainer) == plain
    assert found == asked
    assert len(beside) == first  # those of the first rollout
    assert trainer._prompt_preparer.loader._processes is None


@pytest.mark.slow
@pytest.mark.parametrize("case", ["stream", "dynamic sampling", "evaluation", "several updates a rollout", "left out"])
def test_other_runs_read_ahead_too(make_trainer, six, beside, case):
    config = {
        "stream": {"max_steps": 3},
        "dynamic sampling": {"dynamic_sampling": True, "num_iterations": 1},
        "evaluation": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4},
        "several updates a rollout": {
            "gradient_accumulation_steps": 1,
            "steps_per_generation": 2,
            "dataloader_num_workers": 2,
        },
        "left out": {"on_bad_media": "skip", "max_steps": 6},
    }[case]
    rows = six
    if case == "left out":
        rows = [{**row, "videos": ["/nowhere.mp4"]} if row["id"] in "25" else row for row in six]
    logs = []
    for ahead in (0, 1):
        data = IterableDataset.from_generator(lambda: iter(six)) if case == "stream" else Dataset.from_list(rows)
        extra = {"eval_dataset": Dataset.from_list(six[:2])} if case == "evaluation" else None
        logs.append(log_of(trained(make_trainer, data, media_prefetch=ahead, extra=extra, **{**TWO_UPDATES, **config})))
    assert logs[0] == logs[1]


@pytest.mark.parametrize("ahead", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_bad_medium_stops_the_run_where_its_rollout_begins(make_trainer, six, beside, tmp_path, ahead):
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    rows = [*six[:2], {**six[2], "videos": [str(tmp_path / "bad.mp4")]}, six[3]]
    trainer = make_trainer(rows, **SHORT, media_prefetch=ahead, shuffle_dataset=False)
    with pytest.raises(UnusableSampleError, match=r"^sample 2: .*bad\.mp4: decoding failed, it is truncated, damaged"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert trainer._prompt_preparer.loader._processes is None


@pytest.mark.slow
def test_a_run_resumes_exactly_while_media_are_read_ahead(make_trainer, six, beside, tmp_path):
    config = {**TWO_UPDATES, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 10, "max_steps": 7}
    whole = log_of(trained(make_trainer, six, **config, media_prefetch=1))
    assert whole == log_of(trained(make_trainer, six, **config, output_dir=str(tmp_path / "plain")))
    for step, ahead in ((1, 1), (2, 2), (3, 0)):  # within a rollout, between two, and without reading ahead
        trainer = make_trainer(six, **{**config, "save_strategy": "no", "media_prefetch": ahead})
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert log_of(trainer) == whole


@pytest.fixture
def opened(monkeypatch):
    """Paths that a decoder opened; no medium is kept in memory."""
    paths, original = [], video.opened
    monkeypatch.setattr(video, "opened", lambda medium, budget: paths.append(str(medium)) or original(medium, budget))
    monkeypatch.setattr(MediaLoader, "_keep", lambda *_: None)
    return paths


def test_a_second_epoch_decodes_nothing(make_trainer, six, opened, tmp_path):
    rows = six[:2]
    trained(make_trainer, rows, max_steps=4, media_cache_dir=str(tmp_path / "kept"))  # two epochs
    # A clip is opened for its packets and for its frames.
    assert sorted(opened) == sorted(path for row in rows for path in row["videos"] * 2)


@pytest.mark.slow
def test_a_later_run_that_reads_ahead_decodes_nothing(make_trainer, six, opened, beside, tmp_path):
    rows, config = six[:3], {"media_cache_dir": str(tmp_path / "kept")}
    plain = log_of(trained(make_trainer, rows))
    assert log_of(trained(make_trainer, rows, **config)) == plain
    opened.clear()
    assert log_of(trained(make_trainer, rows, **config, media_prefetch=1)) == plain
    assert opened == []


def test_reading_ahead_is_refused_where_it_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="media_prefetch is 1, and TRL prepares these prompts"):
        RolloutBuilder(PromptsOfTRL(None), None, None, RowsAhead(1, 1), on_unusable="error")
    with pytest.raises(ValueError, match="media_prefetch is -1; a number of at least 0"):
        GRPOVideoConfig(str(tmp_path), use_cpu=True, bf16=False, media_prefetch=-1)
    with pytest.raises(ValueError, match="media_cache_dir_gb is 0; a positive number"):
        GRPOVideoConfig(str(tmp_path), use_cpu=True, bf16=False, media_cache_dir_gb=0)


@pytest.mark.slow
def test_processes_read_ahead_for_a_run(make_trainer, six):
    plain = log_of(trained(make_trainer, six, max_steps=6))
    ahead = trained(make_trainer, six, max_steps=6, media_prefetch=1, media_workers=2, media_cache_mb=1)
    assert log_of(ahead) == plain
    assert ahead._prompt_preparer.loader.stats["decoded"] == 6
    assert torch.multiprocessing.active_children() == []
