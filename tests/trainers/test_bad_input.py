"""Bad input stops with one clear error; under `on_bad_media: skip` it is skipped, counted, and changes nothing else."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor

from tests.helpers import history, letter_variety, message, rows_of
from trl_perception import GRPOVideoTrainer
from trl_perception.assets import from_pretrained, model_path
from trl_perception.rewards import accuracy_reward


@pytest.fixture(scope="module")
def broken(tmp_path_factory, clips) -> dict[str, str]:
    """Files that hold no readable video, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("broken")
    data = Path(clips[0]).read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: len(data) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    with av.open(str(folder / "no_frames.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        container.start_encoding()  # the header
    with av.open(str(folder / "audio.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = np.zeros((1, 16000), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return {
        "missing": str(folder / "missing.mp4"),
        "truncated": str(folder / "truncated.mp4"),
        "zero frames": str(folder / "no_frames.mp4"),
        "audio only": str(folder / "audio.m4a"),
        "empty": str(folder / "empty.mp4"),
    }


def row(video, name="bad-row"):
    return {"prompt": message("Colour of scene 1?", "video"), "videos": [video], "id": name}


@pytest.mark.parametrize("fault", ["missing", "truncated", "zero frames", "audio only", "empty"])
def test_unreadable_media_stop_and_name_file_and_row(make_trainer, broken, fault):
    trainer = make_trainer([row(broken[fault])], max_steps=1, check_rows=False)
    with pytest.raises(ValueError, match="sample bad-row") as error:
        trainer.train()
    assert Path(broken[fault]).name in str(error.value)


def test_rows_are_checked_before_the_model_is_loaded(make_trainer, broken, clips):
    rows = [
        row(clips[0]),
        row(broken["missing"]),
        {**row(clips[1]), "prompt": [{**message("?", "video")[0], "role": None}]},
    ]
    with pytest.raises(ValueError, match="2 of 3 rows of the training data cannot be used") as error:
        make_trainer(rows, model="nowhere/no-model")
    assert f"row 2 (id bad-row): {broken['missing']}" in str(error.value)
    assert "Message 1 has the role None" in str(error.value)
    with pytest.raises(ValueError, match="rows of the evaluation data cannot be used"):
        make_trainer(rows[:1], extra={"eval_dataset": Dataset.from_list(rows[1:2])})
    with pytest.raises(ValueError, match="rows of the evaluation data hard cannot be used"):
        make_trainer(rows[:1], extra={"eval_dataset": {"hard": Dataset.from_list(rows[1:2])}})


def test_solutions_are_checked_for_the_rewards_that_read_them(make_trainer, clips):
    bad = [{**row(clips[0]), "problem_type": "numerical", "solution": "many"}]
    make_trainer(bad)
    with pytest.raises(ValueError, match="'many' does not suit problem_type 'numerical'"):
        make_trainer(bad, reward=[letter_variety, accuracy_reward])
    make_trainer(bad, reward=accuracy_reward, check_rows=False)


def test_missing_files_are_reported_once_where_they_are_skipped(make_trainer, broken, clips, caplog):
    make_trainer([row(clips[0]), row(broken["missing"])], on_bad_media="skip")
    (said,) = [record.message for record in caplog.records if "will be left out" in record.message]
    assert "1 of 2 rows of the training data will be left out (on_bad_media='skip')" in said


def test_a_stream_is_checked_as_it_comes(make_trainer, broken):
    stream = Dataset.from_list([row(broken["missing"])]).to_iterable_dataset()
    trainer = make_trainer(stream, max_steps=1)
    with pytest.raises(ValueError, match="sample bad-row"):
        trainer.train()


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids", "log_metric"])
def test_columns_named_as_arguments_of_rewards_are_refused(make_trainer, name):
    with pytest.raises(
        ValueError, match=f"has a column '{name}', which is an argument that TRL passes to every reward"
    ):
        make_trainer([{"prompt": message("Say a."), name: "x"}])


def test_a_model_without_trainable_weights_is_refused(make_trainer):
    model = from_pretrained("tiny")[0].requires_grad_(False)
    with pytest.raises(ValueError, match="No weight of the model has requires_grad"):
        make_trainer([{"prompt": message("Say a.")}], model=model)


MALFORMED = {
    "no prompt": ({"prompt": None}, "no prompt. Found columns"),
    "no media column": ({"prompt": message("Colour?", "video")}, "1 video placeholder.* holds 0"),
    "too few videos": (
        {"prompt": [{"role": "user", "content": "<video><video> Which is longer?"}], "videos": ["a.mp4"]},
        "2 video placeholder.* holds 1",
    ),
    "too many images": (
        {"prompt": message("Colour?", "image"), "images": ["a.png", "b.png"]},
        "1 image placeholder.* holds 2",
    ),
    "plain string with media": ({"prompt": "Colour?", "videos": ["a.mp4"]}, "must be conversational"),
    "media in two columns": ({"prompt": message("?", "video"), "video": "a.mp4", "videos": ["a.mp4"]}, "both columns"),
    "unknown block key": (
        {"prompt": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", "max_frame": 4}]}]},
        "max_frames",
    ),
}


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_rows_stop_under_either_policy(make_trainer, clips, fault, policy):
    bad, words = MALFORMED[fault]
    trainer = make_trainer([row(clips[0])], max_steps=1, on_bad_media=policy)
    with pytest.raises(ValueError, match=words):
        trainer._generate_and_score_completions([{**bad, "id": "bad-row"}] * 4)


def test_a_dataset_without_prompts_is_refused_at_once(make_trainer):
    with pytest.raises(ValueError, match=r"columns \['question'\] and no 'prompt'"):
        make_trainer([{"question": "Colour?"}])


def test_a_long_prompt_is_never_cut(make_trainer, clips):
    # 8 frames at 2 fps: 4 cells * 4 tokens = 16 visual tokens
    trainer = make_trainer([row(clips[0])], max_steps=1, max_prompt_length=20)
    with pytest.raises(
        ValueError, match=r"16 of them visual; the limit is max_prompt_length=20\. Prompts are never cut"
    ):
        trainer.train()


BAD_REWARDS = {
    "None": (lambda completions, **columns: None, "returned NoneType; a list"),
    "NaN": (lambda completions, **columns: [0.0, float("nan"), 0.0, 0.0], "returned nan for completion 1"),
    "too few": (lambda completions, **columns: [1.0], "returned 1 rewards for 4 completions"),
    "text": (lambda completions, **columns: ["good"] * 4, "returned 'good' for completion 0"),
    "None for all": (lambda completions, **columns: [None] * 4, "returned None for 4 of 4 completions"),
}


@pytest.mark.parametrize("fault", BAD_REWARDS)
def test_a_bad_reward_stops_and_is_named(make_trainer, clips, fault):
    reward, words = BAD_REWARDS[fault]
    trainer = make_trainer([row(clips[0])], reward=reward, max_steps=1)
    with pytest.raises((ValueError, TypeError), match=words):
        trainer.train()


class Batches(GRPOVideoTrainer):
    def __init__(self, *args, **kwargs):
        self.batches = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.batches.append((inputs, loss.detach()))
        return loss


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo", "luspo"])
def test_a_skipped_sample_leaves_the_loss_of_the_others_as_it_is(make_trainer, clips, broken, loss_type):
    """With one good and one unreadable sample the loss and gradient are those of the good one."""
    trainer = make_trainer(
        [row(clips[0], "good"), row(broken["truncated"])],
        cls=Batches,
        per_device_train_batch_size=8,
        on_bad_media="skip",
        loss_type=loss_type,
        max_steps=1,
        beta=0.1,
        entropy_coef=0.5,
    )
    with pytest.warns(UserWarning, match=r"Left out \(on_bad_media='skip'\): sample bad-row"):
        trainer.train()
    assert history(trainer, "media/skipped") == [[1.0]]
    (batch, _), *_ = trainer.batches
    good = [i for i, visual in enumerate(batch["visual_inputs"]) if visual.visual_tokens]
    assert len(good) == 4
    alone = rows_of(batch, good)
    alone["row_scale"] = torch.tensor(1.0)
    assert trainer._compute_loss(trainer.model, alone).item() == pytest.approx(
        trainer._compute_loss(trainer.model, batch).item(), abs=1e-7
    )
    rewards = history(trainer, "rewards/letter_variety/mean")[0]
    texts = trainer.processing_class.batch_decode(batch["completion_ids"][good], skip_special_tokens=True)
    assert rewards == pytest.approx([np.mean(letter_variety([[{"content": text}] for text in texts]))])


def test_everything_skipped_trains_on_nothing(make_trainer, broken):
    trainer = make_trainer([row(broken["empty"])], on_bad_media="skip", max_steps=1, learning_rate=0.1)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.warns(UserWarning, match="Left out"), pytest.raises(ValueError, match="All 1 prompts that were drawn"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize(("shuffled", "which"), [(True, "others each time"), (False, "always the last ones")])
def test_what_an_epoch_leaves_out_is_reported(make_trainer, caplog, shuffled, which):
    # 5 prompts; a rollout takes 8 / 4 = 2 of them: 2 rollouts an epoch, 1 prompt left
    rows = [{"prompt": message(f"Say {word}.")} for word in ("a", "b", "c", "d", "e")]
    options = {"per_device_train_batch_size": 8, "shuffle_dataset": shuffled, "max_steps": -1, "num_train_epochs": 1}
    trainer = make_trainer(rows, **options)
    trainer.train()
    assert trainer.state.global_step == 2
    (said,) = [record.message for record in caplog.records if "An epoch leaves out" in record.message]
    assert f"An epoch leaves out 1 of 5 prompts ({which}" in said


def test_rows_that_come_out_even_are_not_mentioned(make_trainer, caplog):
    make_trainer([{"prompt": message(f"Say {word}.")} for word in "abcd"], max_steps=1).train()
    assert "An epoch leaves out" not in caplog.text


def test_fewer_rows_than_a_rollout_takes_are_refused(make_trainer):
    rows = [{"prompt": message("Say a.")}]
    with pytest.raises(ValueError, match="have 1 prompts and a rollout takes 2: nothing would be trained"):
        make_trainer(rows, per_device_train_batch_size=8).train()


def test_videos_are_refused_where_their_prompts_are_not_ours(make_trainer, clips):
    def own_rollout(prompts, trainer):
        raise AssertionError("never reached")

    said = "videos are not supported with tools, environments or a rollout_func"
    with pytest.raises(ValueError, match=said):  # at the start
        make_trainer([row(clips[0])], extra={"rollout_func": own_rollout})
    trainer = make_trainer([row(clips[0])], max_steps=1, check_rows=False, extra={"rollout_func": own_rollout})
    with pytest.raises(ValueError, match=said):
        trainer.train()


@pytest.mark.parametrize("place", ["column", "message"])
def test_images_are_refused_where_a_tokenizer_alone_reads_the_prompts(make_trainer, pictures, place):
    tokenizer = AutoProcessor.from_pretrained(model_path("tiny"), padding_side="left").tokenizer
    rows = {
        "column": {"prompt": message("Colour?", "image"), "images": pictures[:1]},
        "message": {"prompt": [{"role": "user", "content": [{"type": "image", "image": pictures[0]}]}]},
    }
    with pytest.raises(ValueError, match=r"has an image, and the processing_class is a \w+, which reads text alone"):
        make_trainer([rows[place]], extra={"processing_class": tokenizer})
