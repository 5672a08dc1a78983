"""A run that is pushed: what is uploaded, what remains after a failure, what loads. The Hub is a local stand-in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.hub_server import TOKEN, stand_in_hub
from trl_perception.assets import model_path
from trl_perception.cli.main import main as command
from trl_perception.hub import UploadError, publish, published
from trl_perception.train import main, parse

ROOT = Path(__file__).parent.parent
SHORT = [
    *("--config", "grpo/tiny", "--use_cpu", "true", "--max_steps", "2", "--synthetic", '{"size": 16}'),
    *("--per_device_train_batch_size", "16", "--disable_tqdm", "true", "--warmup_steps", "0"),
]
LORA = ["--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--lora_r", "4", "--learning_rate", "0.1"]
WEIGHTS = ["config.json", "generation_config.json", "model.safetensors"]
PROCESSOR = ["chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
ABOUT = ["trainer_state.json", "README.md", "recipe.yaml", "report.html", "reward_curve.png"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache of synthetic clips for all runs of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def hub(monkeypatch):
    """The stand-in, in this process: the client reads its settings when it is imported."""
    with stand_in_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def train_and_push(hub, folder, home):
    """The command as a user runs it; the token is on its command line, the worst place for one."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    clean = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
    push = ["--push_to_hub", "true", "--hub_model_id", "seen", "--hub_token", TOKEN, "--hub_private_repo", "true"]
    return subprocess.run(
        [sys.executable, "-m", "trl_perception.train", *SHORT, *push, "--output_dir", str(folder)],
        cwd=ROOT,
        env={**clean, **settings, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, cache):
    """A run that is pushed, with a report in its folder: (stand-in, output folder, finished process)."""
    folder = tmp_path_factory.mktemp("runs") / "pushed"
    folder.mkdir()
    (folder / "report.html").write_text("<p>where credit went</p>")
    (folder / "notes.csv").write_text("mine,alone")
    with stand_in_hub() as server:
        yield server, folder, train_and_push(server, folder, tmp_path_factory.mktemp("home"))


def test_a_pushed_run_is_whole_on_the_hub(pushed):
    hub, folder, done = pushed
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"pushed  {hub.url}/somebody/seen" in done.stdout
    files = hub.repos["somebody/seen"]
    assert sorted(files) == sorted([*WEIGHTS, *PROCESSOR, *ABOUT])
    assert all(content == (folder / name).read_bytes() for name, content in files.items())
    assert hub.private == {"somebody/seen"}
    assert {"create", "validate", "preupload", "batch", "store", "commit"} == set(hub.calls)
    assert hub.calls.count("commit") == 1
    assert hub.calls[0] == "create"


def test_the_token_is_nowhere(pushed):
    _, folder, done = pushed
    assert TOKEN not in done.stdout + done.stderr
    for path in folder.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    card = (folder / "README.md").read_text()
    assert "--hub_token '***'" in card
    assert "hub_token" not in (folder / "recipe.yaml").read_text()


def test_what_was_pushed_answers_in_plain_transformers_as_its_card_says(pushed, tmp_path, clips, monkeypatch, capsys):
    hub, _, _ = pushed
    for name, content in hub.repos["somebody/seen"].items():
        (tmp_path / "somebody" / "seen").mkdir(parents=True, exist_ok=True)
        (tmp_path / "somebody" / "seen" / name).write_bytes(content)
    Path(tmp_path / "clip.mp4").write_bytes(Path(clips[0]).read_bytes())
    monkeypatch.chdir(tmp_path)  # where `somebody/seen` is a folder and clip.mp4 a clip
    (example,) = re.findall(r"```python\n(.*?)```", Path("somebody/seen/README.md").read_text(), re.DOTALL)
    seen = {}
    exec(example, seen)
    # 16 frames of 56x56 pixels: 8 pairs, 4 * 4 patches each, merged by 2 * 2
    assert (seen["inputs"]["input_ids"] == seen["model"].config.video_token_id).sum() == 8 * 4
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_a_failed_upload_is_one_message_after_a_whole_run(tmp_path, cache, hub):
    hub.refusals["commit"] = 403
    folder = tmp_path / "run"
    done = train_and_push(hub, folder, tmp_path / "home")
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"The upload of {folder} to somebody/seen failed: HfHubHTTPError: 403 Forbidden")
    assert said.endswith(f"The files in {folder} are whole; `trl-perception push {folder} somebody/seen` tries again.")
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert hub.repos == {"somebody/seen": {}}
    AutoModelForImageTextToText.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
    hub.refusals.clear()
    command(["push", str(folder), "somebody/seen"])
    assert {*WEIGHTS, *PROCESSOR} < set(hub.repos["somebody/seen"])


@pytest.fixture
def run(tmp_path):
    """The files of a run's folder, in a few bytes."""
    names = ["model-00001-of-00002.safetensors", "config.json", "training_args.bin", "README.md", "recipe.yaml"]
    nested = ["checkpoint-2/model.safetensors", "completions/completions_00001.parquet", "runs/events.out.tfevents.1"]
    for name in [*names, *nested]:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("---\ntags: [trl]\n---\n" if name == "README.md" else name)
    return tmp_path / "run"


def test_only_what_others_need_leaves(run, hub):
    expected = ["README.md", "config.json", "model-00001-of-00002.safetensors", "recipe.yaml"]
    assert published(run) == expected
    assert publish(run, private=False) == f"{hub.url}/somebody/run"
    assert sorted(hub.repos["somebody/run"]) == expected
    assert not hub.private


def test_an_adapter_at_the_top_is_replaced_by_merged_weights(run, hub):
    hub.repos["somebody/run"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "LICENSE": b"mine"}
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")
    publish(run, "somebody/run")
    top = {name for name in hub.repos["somebody/run"] if "/" not in name}
    assert top == {*published(run), "LICENSE"} - {"adapter/adapter_config.json"}
    assert "adapter/adapter_config.json" in hub.repos["somebody/run"]


@pytest.mark.parametrize(("call", "status"), [("create", 401), ("validate", 400), ("batch", 403), ("commit", 500)])
def test_any_refusal_says_what_to_do(run, hub, call, status):
    hub.refusals[call] = status
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UploadError, match=r"failed: .*`trl-perception push .* somebody/run` tries again\.") as refused:
        publish(run, "somebody/run")
    assert TOKEN not in str(refused.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_could_not_be_pushed_does_not_begin(tmp_path, hub):
    hub.refusals["create"] = 401
    push = ["--push_to_hub", "true", "--hub_model_id", "seen", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(
        SystemExit, match=r"seen cannot be pushed to: HfHubHTTPError: .*401.* Log in with `hf auth"
    ) as no:
        main([*SHORT, *push])
    assert TOKEN not in str(no.value)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_pushed_is_refused_before_anything_is_made(tmp_path, hub, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match=r"holds no weights \(\*\.safetensors\)"):
            command(["push", str(folder)])
    assert not hub.calls


def logits(model, text="a red clip"):
    ids = AutoProcessor.from_pretrained(model_path("tiny")).tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_an_adapter_loads_onto_its_base(tmp_path, cache):
    main([*SHORT, *LORA, "--output_dir", str(tmp_path / "run")])
    assert {"adapter_config.json", "adapter_model.safetensors"} < set(published(tmp_path / "run"))
    assert "model.safetensors" not in published(tmp_path / "run")
    base = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    plain = logits(base)
    assert not torch.allclose(logits(PeftModel.from_pretrained(base, tmp_path / "run")), plain, atol=1e-3)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "library_name: peft" in card
    assert re.search(r"\| language model \| 926,848 \| frozen \|", card)


def test_a_merged_adapter_is_a_model_with_its_adapter_beside(tmp_path, cache):
    main([*SHORT, *LORA, "--merge_adapter", "true", "--output_dir", str(tmp_path / "run")])
    files = published(tmp_path / "run")
    assert {"model.safetensors", "config.json", "adapter/adapter_config.json"} < set(files)
    assert {name for name in files if "adapter" in name} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    assert not isinstance(merged, PeftModel)
    assert not hasattr(merged, "peft_config")
    base = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    torch.testing.assert_close(logits(merged), logits(with_adapter), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(merged), logits(AutoModelForImageTextToText.from_pretrained(model_path("tiny"))))
    AutoProcessor.from_pretrained(tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "merged into these weights" in card


def test_merging_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"merge_adapter is set, but no adapter is trained\. Set use_peft: true"):
        main([*SHORT, "--merge_adapter", "true", "--output_dir", str(tmp_path)])


def test_merging_under_zero_3_is_refused(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("trl_perception.train.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(SystemExit, match="merge_adapter is set under ZeRO-3"):
        main([*SHORT, *LORA, "--merge_adapter", "true", "--output_dir", str(tmp_path)])


def test_the_recipe_beside_the_weights_is_the_run(pushed):
    _, folder, _ = pushed
    given = parse([*SHORT, "--output_dir", str(folder)])
    again = parse(["--config", str(folder / "recipe.yaml")])
    for first, second in zip(given, again, strict=True):
        other = {"push_to_hub", "hub_model_id", "hub_private_repo", "distributed_state"}
        kept = {key: value for key, value in vars(first).items() if key not in other}
        assert {key: vars(second)[key] for key in kept} == kept
