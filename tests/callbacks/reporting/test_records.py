"""Records of rollouts: what each trainer records, for both ways of assigning credit, and within which bounds."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoProcessor

from tests.helpers import history, letter_variety
from trl_perception import (
    APPOTrainer,
    AttnDistillTrainer,
    GRPOVideoTrainer,
    KTRTrainer,
    PGPOTrainer,
    RALTrainer,
)
from trl_perception.assets import model_path
from trl_perception.objectives import Penalty, TokenWeights
from trl_perception.reports import record_builder
from trl_perception.reports.record_builder import RecordBuilder, rounded
from trl_perception.reports.rollouts import SCHEMA, read_groups

ROOT = Path(__file__).parent.parent.parent
EVERY = {"entropy": {"token"}, "frame_attention": {"frame", "token_frame"}}
APPO = {"accuracy_reward": "letter_variety", "reward_threshold": 6.0}
# trainer -> (its settings, its own signals by kind)
METHODS = {
    GRPOVideoTrainer: ({}, {}),
    APPOTrainer: (APPO, {}),
    PGPOTrainer: ({}, {"visual_dependency": {"token"}}),
    KTRTrainer: ({}, {"visual_delta": {"token"}, "temporal_delta": {"token"}, "key_tokens": {"mask"}}),
    RALTrainer: ({"num_iterations": 2}, {"attention_shift": {"token"}}),
    AttnDistillTrainer: (
        {"teacher_model_name_or_path": "tiny_teacher"},
        {
            "distance_to_teacher": {"token"},
            "divergence_from_teacher": {"token"},
            "teacher_attention": {"frame", "token_frame"},
        },
    ),
}
IN_UPDATE = {"per_device_train_batch_size": 4}
IN_ROLLOUT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}  # groups are cut by the micro-batches


@pytest.fixture
def watched(rows):
    """Clips with every field that a record can hold."""
    more = {"evidence": [[0.5, 1.25]], "problem_type": "free-form", "solution": "red", "id": 7}
    return [{**row, **more} for row in rows["video"]]


def recorded(trainer):
    trainer.train()
    return read_groups(trainer.args.output_dir)[0]


def signals(completion):
    found = {}
    for signal in completion["signals"]:
        found.setdefault(signal["name"], {})[signal["kind"]] = signal
    return found


def fast(classes, *names):
    """Trainers by name; those of other names are tested with the slow tests."""
    return [
        pytest.param(cls, id=cls.__name__, marks=() if cls.__name__ in names else pytest.mark.slow) for cls in classes
    ]


@pytest.mark.parametrize("cls", fast(METHODS, "KTRTrainer", "AttnDistillTrainer"))
def test_every_trainer_records_its_signals(cls, watched, make_trainer):
    settings, own = METHODS[cls]
    trainer = make_trainer(
        watched, cls=cls, report_every=1, max_steps=2 * settings.get("num_iterations", 1), **settings
    )
    groups = recorded(trainer)
    assert [group["step"] for group in groups] == ([1, 3] if "num_iterations" in settings else [1, 2])
    _, about = read_groups(trainer.args.output_dir)
    assert about["method"] == cls._name
    assert about["reinforces"] == cls.reinforces
    assert about["settings"]["model"] == "tiny"
    for group in groups:
        assert (group["sample"], group["problem_type"], group["solution"]) == ("7", "free-form", "red")
        assert group["prompt"].startswith("Colour of scene")
        assert group["evidence"] == [[0.5, 1.25]]
        (medium,) = group["media"]
        assert medium["source"].endswith(".mp4")
        # 8 of 16 frames, evenly: 0, 2, 4, 6, 9, 11, 13, 15 quarters of a second, two a cell
        assert [frame["times"] for frame in group["frames"]] == [[0.0, 0.5], [1.0, 1.5], [2.25, 2.75], [3.25, 3.75]]
        assert {s["name"] for s in group["signals"]} == ({"selected_frames"} if cls is APPOTrainer else set())
        for completion in group["completions"]:
            count = len(completion["tokens"])
            assert 0 < count == completion["length"] == len(completion["mask"]) == len(completion["token_ids"])
            found = signals(completion)
            assert {name: set(kinds) for name, kinds in found.items()} == {**EVERY, **own}
            for kinds in found.values():
                for kind, signal in kinds.items():
                    wanted = {"frame": 4, "token_frame": 4 * len(signal["tokens"] or [])}.get(kind, count)
                    assert len(signal["values"]) == wanted
                    assert all(map(math.isfinite, signal["values"]))
            weighs = cls in (APPOTrainer, PGPOTrainer, KTRTrainer)
            assert (completion["token_weights"] is not None) == weighs
            assert not weighs or len(completion["token_weights"]) == count


@pytest.mark.parametrize("way", [IN_UPDATE, IN_ROLLOUT], ids=["in the update", "in the rollout"])
@pytest.mark.parametrize("cls", fast([APPOTrainer, PGPOTrainer, KTRTrainer], "APPOTrainer"))
def test_recorded_weights_are_those_that_were_given(cls, way, watched, make_trainer, monkeypatch):
    trainer = make_trainer(watched, cls=cls, report_every=1, max_steps=2, **METHODS[cls][0], **way)
    given, in_update = [], []
    token_weights, give_credit = trainer.token_weights, trainer._give_credit
    monkeypatch.setattr(
        trainer, "token_weights", lambda group: given.append((group, token_weights(group))) or given[-1][1]
    )
    monkeypatch.setattr(
        trainer,
        "_give_credit",
        lambda groups, output, forward: in_update.append("in_loss" in output) or give_credit(groups, output, forward),
    )
    groups = recorded(trainer)
    assert set(in_update) == {way is IN_UPDATE}
    assert len(groups) == len(given) == 2
    for record, (group, credit) in zip(groups, given, strict=True):
        for i, completion in enumerate(record["completions"]):
            assert completion["token_ids"] == group.completion_ids[i, : completion["length"]].tolist()
            weights = credit.weights[i, : completion["length"]]
            assert completion["token_weights"] == pytest.approx(weights.tolist(), rel=1e-3)
            assert completion["advantage"] == pytest.approx(group.advantages[i].item())
            assert completion["rewards"] == [pytest.approx(group.rewards["letter_variety"][i].item())]


def test_either_way_records_the_same(watched, make_trainer, tmp_path):
    """At the first step the policies are equal, so both ways of assigning credit read the same signals."""
    ways = [
        recorded(
            make_trainer(watched, cls=KTRTrainer, report_every=1, max_steps=1, output_dir=str(tmp_path / name), **way)
        )
        for name, way in (("update", IN_UPDATE), ("rollout", IN_ROLLOUT))
    ]
    for one, other in zip(*(way[0]["completions"] for way in ways), strict=True):
        assert one["token_ids"] == other["token_ids"]
        ours, theirs = signals(one), signals(other)
        for name in ("visual_delta", "temporal_delta", "entropy"):
            assert ours[name]["token"]["values"] == pytest.approx(theirs[name]["token"]["values"], abs=2e-3)


def test_shift_of_attention_is_of_the_last_update(watched, make_trainer):
    """RAL's first update on a rollout has no shift; the second's is recorded."""
    groups = recorded(make_trainer(watched, cls=RALTrainer, report_every=1, num_iterations=2, max_steps=2))
    shifts = [value for c in groups[0]["completions"] for value in signals(c)["attention_shift"]["token"]["values"]]
    assert max(shifts) > 0


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        pytest.param({"report_every": 2, "max_steps": 5}, [1, 3, 5], marks=pytest.mark.slow),
        pytest.param({"report_every": 3, "max_steps": 6}, [1, 4, 6], marks=pytest.mark.slow),  # and the last rollout
        ({"report_every": 3, "max_steps": 6, "num_iterations": 2}, [1, 5]),  # rollouts before steps 1, 3, 5
    ],
)
def test_every_so_many_steps(settings, steps, rows, make_trainer):
    assert [group["step"] for group in recorded(make_trainer(rows["text"], **settings))] == steps


def test_a_resumed_run_appends(rows, make_trainer):
    first = make_trainer(rows["text"], report_every=1, max_steps=2, save_strategy="steps", save_steps=2)
    first.train()
    second = make_trainer(rows["text"], report_every=1, max_steps=4)
    second.train(resume_from_checkpoint=True)
    assert [group["step"] for group in read_groups(second.args.output_dir)[0]] == [1, 2, 3, 4]


def test_a_record_changes_nothing_and_none_leaves_no_trace(rows, make_trainer, tmp_path):
    outcomes = []
    for every in (None, 1):
        trainer = make_trainer(rows["mixed"], report_every=every, max_steps=3, output_dir=str(tmp_path / str(every)))
        trainer.train()
        outcomes.append(history(trainer, "loss", "grad_norm", "reward"))
    assert outcomes[0] == outcomes[1]
    assert not (tmp_path / "None" / "rollouts").exists()
    assert len(read_groups(tmp_path / "1")[0]) == 3


def test_groups_with_a_spread_come_first_and_types_alternate(rows, make_trainer):
    types = ["a", "a", "b", "b"]
    data = [{**row, "problem_type": kind} for row, kind in zip(rows["text"], types, strict=True)]

    def reward(completions, problem_type, prompts, **columns):
        # "Say red." alone has no spread
        flat = ["red." in str(prompt) for prompt in prompts]
        return [0.5 if same else float(i % 2) for i, same in enumerate(flat)]

    trainer = make_trainer(
        data, report_every=1, report_groups=2, max_steps=1, per_device_train_batch_size=16, reward=reward
    )
    groups = recorded(trainer)
    assert [group["problem_type"] for group in groups] in (["a", "b"], ["b", "a"])
    assert all("red." not in group["prompt"] for group in groups)
    # per type: "a" has one group of 0.5 and one of 0 1 0 1, "b" two of 0 1 0 1: 0.5 all
    assert history(trainer, "rewards_by_type/reward/a", "rewards_by_type/reward/b") == [[0.5], [0.5]]


class Notes(GRPOVideoTrainer):
    """Logs a signal of each shape, from both hooks."""

    def token_weights(self, group):
        count, width = group.completion_ids.shape
        self.log_signal(group, "rank", torch.arange(count * width).view(count, width).float())
        self.log_signal(group, "frames", torch.tensor([1.0, 2.0, 3.0, 4.0]), "F")
        self.log_signal(group, "each", lambda: torch.arange(count)[:, None].expand(-1, 4).float(), "GF")
        return TokenWeights(group.completion_mask.float(), {})

    def penalty(self, inputs):
        self.log_signal(
            inputs, "row", [torch.full((inputs["completion_ids"].size(1),), float(row)) for row in inputs["row"]]
        )
        return Penalty(0.0 * self.model.lm_head.weight.sum(), {})


def test_a_subclass_logs_its_own_signals(watched, make_trainer):
    trainer = make_trainer(
        watched, cls=Notes, report_every=1, max_steps=1, per_device_train_batch_size=8, report_groups=1
    )
    (group,) = recorded(trainer)
    width = max(completion["length"] for completion in group["completions"])
    assert [(s["name"], s["kind"], s["values"]) for s in group["signals"]] == [
        ("frames", "frame", [1.0, 2.0, 3.0, 4.0])
    ]
    rows_of_group = set()
    for i, completion in enumerate(group["completions"]):
        found, count = signals(completion), completion["length"]
        assert found["rank"]["token"]["values"] == [float(i * width + t) for t in range(count)]
        assert found["each"]["frame"]["values"] == [float(i)] * 4
        (row,) = set(found["row"]["token"]["values"])
        rows_of_group.add(row)
    assert rows_of_group in ({0.0, 1.0, 2.0, 3.0}, {4.0, 5.0, 6.0, 7.0})


def builder(length, mask):
    completion = {"length": length, "token_weights": None, "signals": []}
    return RecordBuilder({"signals": [], "completions": [completion]}, 0, torch.tensor([mask]))


def test_attention_of_tokens_becomes_a_mean_and_the_rows_that_look_most(monkeypatch):
    monkeypatch.setattr(record_builder, "MOST_TOKEN_FRAMES", 4)  # of 2 frames: two tokens
    kept = builder(3, [True, True, True, False])
    # the fourth token is padding
    kept.log_signal(0, "look", torch.tensor([[0.1, 0.3], [0.0, 0.1], [0.5, 0.2], [99.0, 99.0]]), "GTF")
    found = signals(kept.row["completions"][0])["look"]
    assert found["frame"]["values"] == pytest.approx([0.2, 0.2])  # (.1 + 0 + .5) / 3, (.3 + .1 + .2) / 3
    assert found["token_frame"]["tokens"] == [0, 2]  # 0.4 and 0.7 against 0.1
    assert found["token_frame"]["values"] == pytest.approx([0.1, 0.3, 0.5, 0.2])


def test_tokens_are_bounded_and_axes_are_known(monkeypatch):
    monkeypatch.setattr(record_builder, "MOST_TOKENS", 2)
    kept = builder(3, [True, True, True])
    kept.log_signal(0, "value", torch.tensor([1.0, 2.0, 3.0]), "GT")
    assert signals(kept.row["completions"][0])["value"]["token"]["values"] == [1.0, 2.0]
    with pytest.raises(ValueError, match="'GT', 'GF', 'GTF' or 'F' is wanted"):
        kept.log_signal(0, "value", torch.tensor([1.0]), "TG")


def test_a_later_signal_takes_the_place_of_an_earlier_one():
    kept = builder(1, [True])
    for name, value in (("a", 1.0), ("b", 2.0), ("a", 3.0), ("token_weights", 4.0)):
        kept.log_signal(0, name, torch.tensor([value]), "GT")
    kept = RecordBuilder.from_state(json.loads(json.dumps(kept.state())))  # as a checkpoint keeps it
    kept.log_signal(0, "b", torch.tensor([5.0]), "GT")
    (completion,) = kept.row["completions"]
    assert [(signal["name"], signal["values"]) for signal in completion["signals"]] == [("a", [3.0]), ("b", [5.0])]
    assert completion["token_weights"] == [4.0]


def test_four_significant_digits():
    values = torch.tensor([0.0, 1.23456, -0.000123456, 123456.0, float("nan")])
    assert rounded(values)[:4] == pytest.approx([0.0, 1.235, -0.0001235, 123500.0], rel=1e-6)
    assert math.isnan(rounded(values)[4])


def test_content_is_described_and_never_kept(pictures, make_trainer):
    with open(pictures[0], "rb") as file:
        content = file.read()
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}]
    trainer = make_trainer(
        [{"prompt": prompt, "images": [{"bytes": content, "path": None}]}], report_every=1, max_steps=1
    )
    (group,) = recorded(trainer)
    assert group["media"] == [{"kind": "image", "source": None, "name": f"bytes ({len(content)} B)"}]
    assert group["frames"] == [{"medium": 0, "times": []}]


@pytest.mark.parametrize("prompt", ["Say red.", [{"role": "user", "content": "Say red."}]], ids=["string", "messages"])
def test_plain_text_models_are_recorded(prompt, make_trainer):
    tokenizer = AutoProcessor.from_pretrained(model_path("tiny")).tokenizer
    tokenizer.padding_side = "left"
    trainer = make_trainer(
        [{"prompt": prompt}],
        cls=Notes,
        reward=lambda completions, **columns: [float(i) for i in range(len(completions))],
        extra={"processing_class": tokenizer},
        report_every=1,
        max_steps=1,
    )
    (group,) = recorded(trainer)
    assert (group["prompt"], group["media"], group["frames"]) == ("Say red.", [], [])
    assert all(set(signals(c)) >= {"entropy", "rank", "row"} for c in group["completions"])


@pytest.mark.parametrize("evidence", ["from 1 to 2", [1.0, 2.0], [["a", "b"]], None])
def test_evidence_is_spans_or_nothing(evidence, rows, make_trainer):
    data = [{**row, "evidence": evidence} for row in rows["text"]]
    (group,) = recorded(make_trainer(data, report_every=1, max_steps=1))
    assert group["evidence"] is None


def test_settings_are_checked(rows, make_trainer):
    for name in ("report_every", "report_groups"):
        with pytest.raises(ValueError, match=f"{name} is 0; a positive number is wanted"):
            make_trainer(rows["text"], **{name: 0})


def test_the_schema_is_what_a_table_has(rows, make_trainer):
    (group,) = recorded(make_trainer(rows["text"], report_every=1, max_steps=1))
    assert list(group) == SCHEMA.names


@pytest.mark.slow
def test_two_processes_share_the_groups(tmp_path):
    """Three groups per record over two processes: two from the first, one from the second, in separate tables."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    launch += ["--rdzv_endpoint=localhost:0", "-m", "trl_perception.train", "--config", "pgpo/tiny"]
    settings = {
        "output_dir": tmp_path / "run",
        "max_steps": 3,
        "report_every": 2,
        "report_groups": 3,
        "per_device_train_batch_size": 16,
        "synthetic": '{"size": 16, "seed": 1}',
        "use_cpu": "true",
        "ddp_backend": "gloo",
        "disable_tqdm": "true",
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "TRL_PERCEPTION_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (attempt,) = (tmp_path / "run" / "rollouts").iterdir()
    found = {path.name: pq.read_table(path).num_rows for path in attempt.iterdir()}
    assert found == {f"step-00000{s}-process-0{p}.parquet": rows for s in (1, 3) for p, rows in ((0, 2), (1, 1))}


@pytest.mark.parametrize("cls", [RALTrainer, AttnDistillTrainer], ids=lambda cls: cls.__name__)
def test_a_text_model_is_recorded_too(cls, make_trainer):
    tokenizer = AutoProcessor.from_pretrained(model_path("tiny"), padding_side="left").tokenizer
    trainer = make_trainer(
        [{"prompt": "Say red."}],
        cls=cls,
        reward=lambda completions, **columns: [float(len(set(c))) for c in completions],
        extra={"processing_class": tokenizer},
        report_every=1,
        max_steps=2,
        **METHODS[cls][0],
    )
    for group in recorded(trainer):
        for completion in group["completions"]:
            found = signals(completion)
            assert "entropy" in found
            assert "frame_attention" not in found


def test_rewards_of_one_name_are_distinguished(watched, make_trainer):
    def scaled(completions, factor, **columns):
        return [factor * row for row in range(len(completions))]

    rewards = [partial(scaled, factor=1.0), partial(scaled, factor=10.0), letter_variety]
    weights = [1.0, 0.5, 0.0]
    trainer = make_trainer(watched, reward=rewards, reward_weights=weights, report_every=1, max_steps=1)
    (group,) = recorded(trainer)
    assert group["reward_names"] == ["scaled", "scaled_2", "letter_variety"]
    # completion i: 1 * i + 0.5 * 10 * i + 0 = 6 i
    assert [completion["reward"] for completion in group["completions"]] == [0, 6, 12, 18]
    # 0, 1, 2, 3 and ten times that
    assert history(trainer, "rewards/scaled/mean", "rewards/scaled_2/mean") == [[1.5], [15.0]]
