"""A full disk raises one error, and the previous checkpoint stays valid."""

import json
import resource
import shutil
import subprocess
import sys

import pytest

from tests.callbacks.checkpoints.resuming import SAVED, build, resumed, started
from trl_perception.callbacks.checkpoints import saving
from trl_perception.callbacks.checkpoints.disk import DiskFullError
from trl_perception.callbacks.checkpoints.folder import incomplete_reason

# The file that does not fit, and the last one written: safetensors removes its own incomplete file.
FULL_AT = {
    "model.safetensors": "generation_config.json",
    "optimizer.pt": "optimizer.pt",
    "rank00000.safetensors": "trainer_state.json",
}


@pytest.mark.parametrize("full_at", FULL_AT)
def test_a_full_disk_is_one_clear_error(full_at, saved, four, tmp_path, monkeypatch):
    folder = shutil.copytree(saved, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-4")
    trainer = build("grpo", four, {**SAVED, "output_dir": str(folder)})
    sizes = {path.name: path.stat().st_size for path in (saved / "checkpoint-4").iterdir()}
    owner, name = (saving, "write_state") if full_at.startswith("rank") else (trainer, "_save_checkpoint")
    plain, limits = getattr(owner, name), resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[full_at] - 4096, limits[1]))
        try:
            plain(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(owner, name, limited)
    with pytest.raises(DiskFullError) as caught:
        trainer.train(resume_from_checkpoint=True)
    said = str(caught.value)
    assert f"Step 4: the checkpoint {folder}/checkpoint-4 could not be written: there was no room after" in said
    assert f" MiB, {FULL_AT[full_at]} last. " in said
    assert "MiB free" in said
    assert "save_total_limit (now None)" in said
    assert incomplete_reason(folder / "checkpoint-2") is None
    assert [path.name for path in folder.rglob("checkpoint-*")] == ["checkpoint-2"]
    assert resumed(folder, four).state.global_step == 5  # with free space again


@pytest.mark.slow
def test_a_disk_that_is_really_full(four, tmp_path):
    """A 24 MiB file system in its own namespaces: the first checkpoint of 15 MiB fits, the second does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=24m none "{disk}"'
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], check=False, capture_output=True).returncode:
        pytest.skip("user name spaces are not allowed here")
    jobs = [
        {
            "trainer": "grpo",
            "rows": four,
            "config": {**SAVED, "output_dir": str(disk)},
            "kill": {"at": "update", "count": 99},
        }
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    work = f'"{sys.executable}" -m tests.callbacks.checkpoints.resuming "{tmp_path}/jobs.json"'
    run = started(["unshare", "-Urm", "sh", "-c", f'{mount}; {work}; cp -r "{disk}" "{tmp_path}/left"'])
    assert f"Step 4: the checkpoint {disk}/checkpoint-4 could not be written: there was no room after" in run.stderr
    assert [path.name for path in (tmp_path / "left").rglob("checkpoint-*")] == ["checkpoint-2"]
    assert incomplete_reason(tmp_path / "left" / "checkpoint-2") is None
