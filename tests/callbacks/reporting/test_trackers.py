"""The contents of wandb, trackio and TensorBoard after a run, read back from their local stores."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from trl_perception.batch import Group
from trl_perception.callbacks.reporting.trackers import GROUPS_SHOWN, weighted_group
from trl_perception.media import PreparedPrompt
from trl_perception.reports.weights_page import prompt_text, shaded, weights_markdown, weights_page
from trl_perception.trainers import GRPOVideoTrainer, PGPOTrainer


class Spans(HTMLParser):
    """The shaded tokens of a page: [style, title, text] each."""

    def __init__(self, page):
        super().__init__()
        self.found, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "span":
            self.found.append([dict(attributes)["style"], dict(attributes)["title"], ""])

    def handle_data(self, data):
        if self.tags[-1] == "span":
            self.found[-1][2] += data

    def handle_endtag(self, tag):
        self.tags.append("")


class Letters:
    """A tokenizer whose token n is the nth of these strings."""

    strings = ("<b>", "a|b", "<script>alert(1)</script>", "*\n")

    def decode(self, ids):
        return "".join(self.strings[token] for token in ids)


@pytest.fixture
def group():
    prompt = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which <first>?"}]}]
    return Group(
        prompt=PreparedPrompt({}, prompt, prompt, [], None),
        prompt_ids=torch.tensor([1]),
        completion_ids=torch.tensor([[0, 1, 2], [3, 1, 1]]),
        attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]),
        completion_mask=torch.tensor([[True, True, True], [True, False, False]]),
        rewards={"accuracy": torch.tensor([1.0, 0.0])},
        advantages=torch.tensor([0.5, -0.5]),
    )


def test_shades_by_hand():
    # largest 3: (2 - 1) / (3 - 1) * 0.6 = 0.3 blue; 1 is nothing; 0.5 of 0.6 orange; the largest and 0 full
    spans = Spans(shaded(["two", "one", "half", "three", "none"], [2.0, 1.0, 0.5, 3.0, 0.0], 3.0)).found
    assert [style.removeprefix("background:") for style, _, _ in spans] == [
        "rgba(0,114,178,0.30)",
        "rgba(230,159,0,0.00)",
        "rgba(230,159,0,0.30)",
        "rgba(0,114,178,0.60)",
        "rgba(230,159,0,0.60)",
    ]
    assert [title for _, title, _ in spans] == ["2.000", "1.000", "0.500", "3.000", "0.000"]


def test_a_page_has_every_token_once_and_escaped(group):
    page = weights_page([weighted_group(group, torch.tensor([[2.0, 1.0, 0.0], [1.5, 99.0, 99.0]]), Letters())], 7)
    read = Spans(page)
    legend, tokens = read.found[:3], read.found[3:]
    assert [text for _, _, text in legend] == ["no credit", "as in GRPO", "most (2.00)"]
    assert [(title, text) for _, title, text in tokens] == [
        ("2.000", "<b>"),
        ("1.000", "a|b"),
        ("0.000", "<script>alert(1)</script>"),
        ("1.500", "*\n"),
    ]
    assert "script" not in read.tags
    assert "[video] Which &lt;first&gt;?" in page
    assert "<td>0.500</td><td>1.000</td>" in page


def test_a_text_for_tensorboard_names_the_weights_that_are_not_one(group):
    weights = torch.tensor([[2.0, 1.0, 0.0], [1.5, 9.0, 9.0]])
    lines = weights_markdown(weighted_group(group, weights, Letters())).splitlines()
    assert lines[2] == "|advantage|accuracy|completion|"
    assert lines[4].startswith("|0.500|1.000|&#60;b&#62;*2.00*a&#124;b&#60;script&#62;alert(1)")
    assert lines[4].endswith("*0.00*|")
    assert lines[5] == "|-0.500|0.000|&#42; *1.50*|"
    assert "*2.00*" not in weights_markdown(weighted_group(group, None, Letters()))


def test_a_prompt_as_text():
    assert prompt_text("plain") == "plain"
    assert prompt_text([{"role": "system", "content": "Think."}, {"role": "user", "content": "Now?"}]) == "Think. Now?"


def events_of(folder):
    """The contents of a run as TensorBoard reads it back."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: pip install trl_perception[tensorboard]",
    )
    (log,) = folder.glob("runs/*")
    events = accumulators.EventAccumulator(str(log))
    events.Reload()
    return events


def text_of(events, tag):
    return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_tensorboard_has_completions_frames_and_weights(rows, make_trainer):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install trl_perception[tensorboard]")
    from tensorboard.plugin_util import markdown_to_safe_html

    # Six groups a step, two in each micro-batch: credit is given in the updates, and the table ends after four.
    batches = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}
    settings = {"report_to": "tensorboard", "log_completions": True, "num_completions_to_print": 0, "max_steps": 1}
    trainer = make_trainer([*rows["video"], *rows["mixed"]], cls=PGPOTrainer, **batches, **settings)
    trainer.train()
    events = events_of(Path(trainer.args.output_dir))
    shown = {f"completions/{number}/text_summary" for number in range(GROUPS_SHOWN)}
    assert {tag for tag in events.Tags()["tensors"] if tag.startswith("completions/")} == shown
    picture = events.Images("frames/0.0")[0]
    assert (picture.width, picture.height) == (8 * 56, 56)
    text = markdown_to_safe_html(text_of(events, "completions/0"))
    assert text.count("<tr>") == 1 + 4
    assert "&#60;think&#62;" in text
    assert "<em>" in text


def test_a_method_without_weights_shows_completions_alone(rows, make_trainer):
    settings = {"report_to": "tensorboard", "log_completions": True, "log_multimodal": False, "max_steps": 1}
    trainer = make_trainer(rows["video"], num_completions_to_print=0, **settings)
    assert type(trainer) is GRPOVideoTrainer
    trainer.train()
    events = events_of(Path(trainer.args.output_dir))
    assert "completions/0/text_summary" in events.Tags()["tensors"]
    assert not events.Tags()["images"]


def test_an_evaluation_between_steps_is_no_training_rollout(rows, make_trainer):
    settings = {"report_to": "tensorboard", "log_completions": True, "num_completions_to_print": 0, "max_steps": 2}
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    extra = {"eval_dataset": make_trainer(rows["video"]).train_dataset}
    trainer = make_trainer(rows["video"], cls=PGPOTrainer, extra=extra, **settings, **evaluation)
    trainer.train()
    assert len(events_of(Path(trainer.args.output_dir)).Tensors("completions/0/text_summary")) == 2


# wandb and trackio run as they do for a user, in a separate process; rows with two media, one and none.

SCRIPT = """
import sys
from datasets import Dataset
from tests.helpers import letter_variety, message
from trl_perception.trainers import PGPOConfig, PGPOTrainer

tracker, *clips = sys.argv[1:]
rows = [{"prompt": message("<1>?", *["video"] * len(part)), "videos": part} for part in (clips[:2], clips[:1], [])]
PGPOTrainer(
    model="tiny",
    reward_funcs=letter_variety,
    args=PGPOConfig(
        output_dir="run", report_to=tracker, run_name="seen", project="seen", max_steps=2, per_device_train_batch_size=12,
        num_generations=4, max_completion_length=8, logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True,
        bf16=False, log_completions=True, num_completions_to_print=0,
    ),
    train_dataset=Dataset.from_list(rows),
).train()
"""


@pytest.fixture
def tracked(tmp_path, clips):
    """Runs the script in an empty folder: `tracked(tracker, setting=value)` gives the folder."""

    def run(tracker, **settings):
        pytest.importorskip(tracker, reason=f"{tracker} is not installed: pip install trl_perception[{tracker}]")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, tracker, *clips],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", **settings},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path

    return run


def check_page(page):
    """A page with the weights of two steps: 4 completions of each of the two prompts with media."""
    read = Spans(page)
    assert "[video] [video] &lt;1&gt;?" in page
    assert read.tags.count("tr") == 2 * (1 + 4)
    tokens = read.found[3:]
    assert 8 < len(tokens) <= 8 * 8
    assert len({title for _, title, _ in tokens}) > 2


@pytest.mark.slow
def test_wandb_offline_has_completions_with_frames_and_shaded_weights(tracked, tmp_path):
    store = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_DATA_DIR": str(tmp_path / "data")}
    folder = tracked("wandb", WANDB_CACHE_DIR=str(tmp_path / "cache"), **store)
    pages = sorted(folder.glob("wandb/offline-run-*/files/media/html/token_weights_*.html"))
    assert len(pages) == 2
    check_page(pages[0].read_text())
    staged = [path.read_bytes() for path in folder.glob("data/**/staging/*")]
    tables = [json.loads(content) for content in staged if content.startswith(b'{"_type": "table"')]
    assert sum(content.startswith(b"\x89PNG") for content in staged) > 0
    for table in tables:
        image, step = table["columns"].index("image"), table["columns"].index("step")
        # Two videos of 8 frames, one, none; 4 completions each
        assert sorted(len(row[image]) for row in table["data"]) == [0] * 4 + [8] * 4 + [16] * 4
        assert {cell["_type"] for row in table["data"] for cell in row[image]} == {"image-file"}
        assert {row[step] for row in table["data"]} <= {1, 2}
    assert len(tables) >= 2


@pytest.mark.slow
def test_trackio_keeps_completions_frames_and_shaded_weights(tracked, tmp_path):
    folder = tracked("trackio", TRACKIO_DIR=str(tmp_path / "store"))
    read = "import json; from trackio.sqlite_storage import SQLiteStorage as s; print(json.dumps(s.get_logs('seen', 'seen')))"
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store")}
    printed = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    logs = json.loads(printed.stdout.splitlines()[-1])
    pages = [log["token_weights"] for log in logs if "token_weights" in log]
    assert [page["_type"] for page in pages] == ["trackio.html"] * 2
    check_page((folder / "store" / "media" / pages[0]["file_path"]).read_text())
    table = next(log["completions"]["_value"] for log in logs if "completions" in log)
    assert sorted(len(row["image"]) for row in table) == [0] * 4 + [8] * 4 + [16] * 4
    frames = [folder / "store" / "media" / image["file_path"] for row in table for image in row["image"]]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in frames)
