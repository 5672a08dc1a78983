"""Further completions under a view, shaped rewards and factors of completions: what the hooks get and what comes of it."""

import pytest
import torch
from transformers import AutoProcessor

from tests.helpers import history, letter_variety, message
from tests.trainers.reference import build, inputs_of, orders_of, trained
from trl_perception import GRPOVideoTrainer
from trl_perception.assets import model_path
from trl_perception.objectives import TokenWeights
from trl_perception.views import View, frames_kept, frames_shuffled, media_masked, noised, seeded

GREEDY = {"generation_kwargs": {"do_sample": False}, "max_steps": 1, "per_device_train_batch_size": 8}


class Shuffled(GRPOVideoTrainer):
    """Three completions of each video on shuffled frames; keeps the groups that are shaped and their order."""

    def __init__(self, *args, **kwargs):
        self.shaped = []
        super().__init__(*args, **kwargs)

    def view(self, prompt):
        return frames_shuffled(prompt, seeded(0, 0, torch.tensor(prompt.input_ids)))

    def sample_counterfactuals(self):
        return {"shuffled": self.sample_under(self.view, 3)}

    def shape_rewards(self, group):
        self.shaped.append(group)


def generated(trainer, inputs):
    """The greedy completion of one prompt by the model itself."""
    suppressed = trainer.generation_config.suppress_tokens
    with torch.no_grad():
        ids = trainer.model.eval().generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=suppressed)
    return ids[0, inputs["input_ids"].size(1) :].tolist()


@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_completions_under_a_view_are_the_models_own(rows, make_trainer, shared):
    """Greedy: what `generate` makes of the frames permuted before the processor; text and images have none."""
    trainer = make_trainer(
        rows["mixed"], cls=Shuffled, shared_prefill=shared, num_generations=2, learning_rate=0.0, **GREEDY
    )
    trainer.train()
    assert len(trainer.shaped) == 4
    processor = AutoProcessor.from_pretrained(model_path("tiny"))
    differ = 0
    for group in trainer.shaped:
        row = group.prompt.row
        assert set(group.counterfactuals) == ({"shuffled"} if row["videos"] else set())
        for other in group.counterfactuals.values():
            inputs = inputs_of(processor, row)
            lengths = [2 * t for t, _, _ in inputs["video_grid_thw"].tolist()]
            orders = orders_of(0, 0, inputs["input_ids"][0].tolist(), lengths)
            expected = generated(trainer, inputs_of(processor, row, orders))
            assert len(other.completion_ids) == 3
            for ids, mask in zip(other.completion_ids, other.completion_mask, strict=True):
                assert ids[mask].tolist() == expected[: int(mask.sum())]
            assert other.prompt_ids.tolist() == group.prompt_ids.tolist()
            differ += other.completion_ids[0].tolist() != group.completion_ids[0].tolist()
            # the same rewards: different letters of each completion
            texts = trainer.processing_class.batch_decode(other.completion_ids, skip_special_tokens=True)
            wanted = letter_variety([[{"content": text}] for text in texts])
            assert other.rewards["letter_variety"].tolist() == wanted
    assert differ


def test_they_are_not_trained_on_and_logged_nowhere(rows, make_trainer):
    """A run with them has the losses and the log of one without, but for their tokens: greedy, so that no random number moves."""
    logs, tokens = [], []
    for cls in (Shuffled, GRPOVideoTrainer):
        trainer = make_trainer(rows["mixed"], cls=cls, num_generations=2, log_completions=True, **GREEDY)
        trainer.train()
        skipped = ("time", "runtime", "per_second", "num_tokens", "flos")
        logs.append(
            [
                {k: v for k, v in entry.items() if not any(s in k for s in skipped)}
                for entry in trainer.state.log_history
            ]
        )
        logs[-1].append(len(trainer._logs["completion"]))
        tokens.append(history(trainer, "num_tokens")[0][0])
    assert logs[0] == logs[1]
    assert tokens[0] > tokens[1]


class Shaping(GRPOVideoTrainer):
    """The second reward counts twice, and the first completion of a group gets 10."""

    def shape_rewards(self, group):
        assert group.advantages.isnan().all()
        self.log_metric("shaping/groups", 1.0)
        rewards = torch.stack([*group.rewards.values()], dim=1)
        rewards[:, 1] *= 2
        rewards[0, 0] += 10
        return rewards


def test_advantages_are_formed_from_shaped_rewards(rows, make_trainer):
    settings = {"per_device_train_batch_size": 8, "max_steps": 1}
    trainer = trained(build(make_trainer, rows["mixed"], Shaping, **settings))
    # accuracy 1 0 1 0 and spread 0 .5 1 1.5: sums 1 + 10, 1, 1 + 2, 3
    shaped = torch.tensor([11.0, 1.0, 3.0, 3.0])
    for group in trainer.groups:
        torch.testing.assert_close(group.advantages, (shaped - shaped.mean()) / (shaped.std() + 1e-4))
        assert group.rewards["accuracy_reward"].tolist() == [11.0, 0.0, 1.0, 0.0]
    assert history(trainer, "reward", "shaping/groups") == [[4.5], [1.0]]


class Factors(GRPOVideoTrainer):
    def sequence_weights(self, group):
        return torch.tensor([0.5, 1.5, 0.0, 2.0])


class FactorsBesideWeights(Factors):
    def token_weights(self, group):
        return TokenWeights(3.0 * group.completion_mask.float())


@pytest.mark.parametrize(("cls", "weight"), [(Factors, 1.0), (FactorsBesideWeights, 3.0)])
def test_factors_multiply_the_advantages_of_completions(rows, make_trainer, cls, weight):
    trainer = trained(build(make_trainer, rows["mixed"], cls, per_device_train_batch_size=8, max_steps=1))
    for seen in trainer.seen:
        expected = weight * torch.tensor([0.5, 1.5, 0.0, 2.0]).repeat(2)[:, None] * seen.inputs["completion_mask"]
        torch.testing.assert_close(seen.inputs["token_weights"], expected)


@pytest.mark.parametrize(
    ("hook", "returned", "words"),
    [
        ("shape_rewards", torch.zeros(4), r"shape_rewards returned shape \(4,\); finite rewards \(4, 1\) are wanted"),
        ("shape_rewards", torch.full((4, 1), torch.inf), "shape_rewards returned an infinite reward"),
        ("sequence_weights", torch.zeros(4, 1), r"sequence_weights returned \(4, 1\); weights \(4,\)"),
        ("sequence_weights", -torch.ones(4), "sequence_weights returned -1; weights"),
    ],
)
def test_what_cannot_be_taken_is_refused(rows, make_trainer, hook, returned, words):
    cls = type("Wrong", (GRPOVideoTrainer,), {hook: lambda self, group: returned})
    with pytest.raises(ValueError, match=words):
        make_trainer(rows["text"], cls=cls, max_steps=1).train()


def under(view, n=2):
    """A trainer that samples n completions of each prompt under a view of it and its model."""

    class Under(Shuffled):
        def sample_counterfactuals(self):
            return {"view": self.sample_under(lambda prompt: view(prompt, self.model), n)}

    return Under


VIEWS = {
    "masked": lambda prompt, model: media_masked(prompt),
    "some frames": lambda prompt, model: frames_kept(prompt, [0]),
    "noise": lambda prompt, model: noised(prompt, 0.1, torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize(
    ("view", "packing"),
    [
        pytest.param(view, packing, marks=() if (view, packing) == ("some frames", "on") else pytest.mark.slow)
        for view in VIEWS
        for packing in ("on", "off")
    ],
)
def test_what_is_sampled_under_a_view_is_scored_under_it(rows, make_trainer, view, packing):
    """The most likely token of each position, which greedy sampling took, has the largest log-probability under the view."""
    settings = {"num_generations": 2, "learning_rate": 0.0, "freeze_vision_tower": True, "group_forward": packing}
    trainer = make_trainer(rows["several"], cls=under(VIEWS[view]), **settings, **GREEDY)
    trainer.train()
    assert [len(group.counterfactuals["view"].completion_ids) for group in trainer.shaped] == [2] * 4
    for group in trainer.shaped:
        other = group.counterfactuals["view"]
        read = trainer.read(other, states=True)
        head = trainer.head_of(trainer.model)
        logits = read.states @ head.weight.T
        logits[..., trainer.generation_config.suppress_tokens] = -torch.inf
        counted = other.completion_mask
        assert torch.equal(logits.argmax(-1)[counted], other.completion_ids[counted])


@pytest.mark.parametrize(
    ("view", "n", "words"),
    [
        (lambda prompt, model: media_masked(prompt, model), 2, "can be scored but not sampled under"),
        (lambda prompt, model: media_masked(prompt), 0, "n is 0"),
    ],
)
def test_views_that_cannot_be_sampled_under_are_refused(rows, make_trainer, view, n, words):
    with pytest.raises(ValueError, match=words):
        make_trainer(rows["video"], cls=under(view, n), max_steps=1).train()


def test_prompts_that_trl_prepares_are_refused(make_trainer):
    tokenizer = AutoProcessor.from_pretrained(model_path("tiny")).tokenizer
    tokenizer.padding_side = "left"
    view = lambda prompt, model: View(torch.tensor([5, 6]), prompt.visual)  # noqa: E731
    extra = {"processing_class": tokenizer}
    letters = {"reward": lambda completions, **columns: [float(len(set(c))) for c in completions]}
    with pytest.raises(ValueError, match="TRL prepared the images"):
        make_trainer([{"prompt": "Say red."}], cls=under(view), extra=extra, max_steps=1, **letters).train()


def test_a_prompt_that_is_left_out_has_no_further_completions(rows, make_trainer):
    gone = {"prompt": message("Gone?", "video"), "videos": ["/nowhere.mp4"], "images": []}
    options = {"on_bad_media": "skip", "per_device_train_batch_size": 8, "max_steps": 1}
    trainer = make_trainer([gone, rows["video"][0]], cls=Shuffled, **options)
    with pytest.warns(UserWarning, match="Left out"):
        trainer.train()
    (group,) = trainer.shaped
    assert group.prompt.row["videos"] == rows["video"][0]["videos"]
    assert set(group.counterfactuals) == {"shuffled"}


class Kept(Shuffled):
    """Keeps what token_weights gets as well."""

    def token_weights(self, group):
        self.credited = [*getattr(self, "credited", []), group]


@pytest.mark.slow
def test_replaced_groups_bring_their_own(rows, make_trainer):
    """Dynamic sampling: the completions under a view are those of the group that takes the place."""

    def reward(completions, prompts, **columns):
        """Only the completions of the fourth row differ in reward."""
        texts = [prompt[0]["content"][-1]["text"] for prompt in prompts]
        return [float(i % 2) * ("4" in text) for i, text in enumerate(texts)]

    options = {"dynamic_sampling": True, "dynamic_sampling_rounds": 3, "per_device_train_batch_size": 4, "max_steps": 3}
    trainer = make_trainer(rows["video"], cls=Kept, reward=reward, **options)
    trainer.train()
    assert len(trainer.shaped) > len(trainer.credited) == 3
    for group in trainer.credited:
        other = group.counterfactuals["shuffled"]
        assert other.prompt.row["prompt"] == group.prompt.row["prompt"]
        assert other.prompt_ids.tolist() == group.prompt_ids.tolist()
