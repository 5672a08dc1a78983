"""The forward of training sees what a plain forward sees, and the media matter to it."""

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForImageTextToText
from transformers.video_utils import VideoMetadata

from tests.helpers import poster
from trl_perception import GRPOVideoTrainer
from trl_perception.assets import model_path
from trl_perception.batch import MicroBatch
from trl_perception.media import read_video
from trl_perception.modeling import apply_position_rule


class Recorder(GRPOVideoTrainer):
    """Keeps every micro-batch and the log-probabilities in its loss."""

    def __init__(self, *args, **kwargs):
        self.seen = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.seen.append((inputs, loss.detach()))
        return loss

    def logps(self, inputs):
        inputs = MicroBatch.of(inputs)
        width = inputs["completion_ids"].size(1)
        given = inputs.input_ids, inputs.attention_mask, width, inputs["visual_inputs"]
        return self._reader.score_rows(self.model, *given).logps


def plain_logps(model, processor, row, completion_ids, temperature=1.0):
    """log p(completion) of one row from `model(**processor(...))`, sharing no code with the trainer but the decoder."""
    size = processor.video_processor.size
    limits = (size["shortest_edge"], size["longest_edge"])
    clips = [read_video(path, factor=28, size_limits=limits) for path in row["videos"]]
    text = processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    inputs = processor(
        text=[text],
        images=[poster(path) for path in row["images"]] or None,
        videos=[clip.frames for clip in clips] or None,
        return_tensors="pt",
        **(
            {
                "do_sample_frames": False,
                "video_metadata": [
                    VideoMetadata(total_num_frames=16, fps=4, frames_indices=clip.indices) for clip in clips
                ],
            }
            if clips
            else {}
        ),
    )
    length = len(completion_ids)
    completion = torch.tensor([completion_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], completion], 1)
    for key in ("attention_mask", "mm_token_type_ids"):
        if key in inputs:
            filler = torch.full_like(completion, 1 if key == "attention_mask" else 0)
            inputs[key] = torch.cat([inputs[key], filler], 1)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -length - 1 : -1] / temperature
    return log_softmax(logits.float(), -1).gather(1, completion[0, :, None])[:, 0]


@pytest.mark.parametrize("kind", ["video", "image", "several", "text", "mixed"])
def test_logps_equal_a_plain_forward(rows, make_trainer, kind):
    # 2 groups of 2: rows of different length and kind side by side, left-padded
    trainer = make_trainer(rows[kind], cls=Recorder, num_generations=2, max_steps=2, learning_rate=0.0, temperature=0.7)
    trainer.train()
    plain = AutoModelForImageTextToText.from_pretrained(model_path("tiny")).eval()
    apply_position_rule(plain)
    by_prompt = {str(row["prompt"][0]["content"][-1]["text"]): row for row in rows[kind]}
    compared = 0
    for inputs, _ in trainer.seen:
        logps = trainer.logps(inputs)
        for index in range(len(logps)):
            ids = inputs["completion_ids"][index][inputs["completion_mask"][index].bool()].tolist()
            prompt = trainer.processing_class.tokenizer.decode(inputs["prompt_ids"][index])
            (row,) = (row for question, row in by_prompt.items() if question in prompt)
            expected = plain_logps(plain, trainer.processing_class, row, ids, temperature=0.7)
            torch.testing.assert_close(logps[index, : len(ids)], expected, atol=1e-5, rtol=1e-5)
            compared += 1
    assert compared == 8


def test_the_same_visual_tensors_serve_rollout_and_updates(rows, make_trainer):
    trainer = make_trainer(rows["video"], cls=Recorder, num_iterations=2, max_steps=2)
    trainer.train()
    (first, _), (second, _) = trainer.seen
    assert all(a is b for a, b in zip(first["visual_inputs"], second["visual_inputs"], strict=True))
    assert len({id(visual) for visual in first["visual_inputs"]}) == 1  # one object for the four completions


def test_the_video_matters_to_logps_loss_and_gradients(rows, make_trainer):
    """Stale updates (num_iterations 2) give a loss that depends on the ratio, and so on the video."""
    trainer = make_trainer(rows["video"][:2], cls=Recorder, num_iterations=2, max_steps=2, beta=0.1)
    trainer.train()
    inputs = trainer.seen[-1][0]
    other = trainer._prompt_preparer([rows["video"][3]])[0].visual
    swapped = {**inputs, "visual_inputs": [other] * len(inputs["visual_inputs"])}

    def outcome(batch):
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        gradients = {
            part: torch.cat([p.grad.flatten() for name, p in trainer.model.named_parameters() if part in name])
            for part in ("visual", "language_model")
        }
        return trainer.logps(batch).detach(), loss.detach(), gradients

    mine, again, others = outcome(inputs), outcome(inputs), outcome(swapped)
    assert torch.equal(mine[0], again[0])
    assert torch.equal(mine[1], again[1])
    assert (mine[0] - others[0]).abs().max() > 1e-3
    assert (mine[1] - others[1]).abs() > 1e-6
    for part in ("visual", "language_model"):
        assert mine[2][part].abs().max() > 0
        assert (mine[2][part] - others[2][part]).norm() > 1e-3 * mine[2][part].norm()


@pytest.mark.parametrize("lost", ["the list", "one sample's pixels", "another sample's"])
def test_a_forward_without_its_media_stops(rows, make_trainer, lost):
    trainer = make_trainer(rows["video"], cls=Recorder, max_steps=1)
    trainer.train()
    inputs = dict(trainer.seen[0][0])
    empty = trainer._prompt_preparer([rows["text"][0]])[0].visual
    if lost == "the list":
        del inputs["visual_inputs"]
    elif lost == "one sample's pixels":
        inputs["visual_inputs"] = [*inputs["visual_inputs"][:3], empty]
    else:
        inputs["visual_inputs"] = [trainer._prompt_preparer([rows["several"][2]])[0].visual] * 4
    features = 32 if lost == "another sample's" else 0  # two clips of 8 frames: 2 * 4 cells * 4 tokens
    with pytest.raises(ValueError, match=f"has 16 video placeholder tokens but {features} video features"):
        trainer._compute_loss(trainer.model, inputs)


def test_placeholders_cannot_be_sampled(rows, make_trainer):
    """With a head that prefers placeholders, none is sampled, even if a user suppresses other ids."""
    trainer = make_trainer(rows["video"], max_steps=1, generation_kwargs={"suppress_tokens": [1]})
    config = trainer.model.config
    assert {1, config.image_token_id, config.video_token_id} <= set(trainer.generation_config.suppress_tokens)

    def only_placeholders(module, args, logits):
        logits[..., [config.image_token_id, config.video_token_id]] += 1e4
        return logits

    trainer.model.lm_head.register_forward_hook(only_placeholders)
    trainer.train()  # a sampled placeholder would stop the update


def test_a_placeholder_in_a_completion_is_refused_by_name(rows, make_trainer):
    trainer = make_trainer([{**row, "id": f"v{i}"} for i, row in enumerate(rows["video"])], cls=Recorder, max_steps=1)
    trainer.train()
    inputs = dict(trainer.seen[0][0])
    inputs["completion_ids"] = inputs["completion_ids"].clone()
    inputs["completion_ids"][0, 0] = trainer.model.config.video_token_id
    with pytest.raises(ValueError, match=r"sample v\d: the forward has 17 video placeholder tokens but 16"):
        trainer._compute_loss(trainer.model, inputs)
