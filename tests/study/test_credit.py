"""Credit that knows the evidence or nothing: what it is for each frame and token, against the methods that it extends."""

import pytest
import torch

from trl_perception.data import make_synthetic_dataset
from trl_perception.media.frames import token_frames
from trl_perception.objectives import pgpo_token_weights, visual_dependency
from trl_perception.rewards import accuracy_reward, format_reward
from trl_perception.study.credit import EvidenceFramesTrainer, OracleTrainer, RandomFramesTrainer, evidence_frames
from trl_perception.trainers import APPOTrainer, PGPOTrainer
from trl_perception.views import frames_kept


@pytest.fixture(scope="module")
def clips_with_evidence(tmp_path_factory):
    return make_synthetic_dataset(tmp_path_factory.mktemp("clips"), size=4, families=["needle", "static"])


def credit_of(trainer_class, rows, folder, **settings):
    """(group, credit) of the groups of one step, with the trainer."""
    found = []

    class Watched(trainer_class):
        def token_weights(self, group):
            credit = super().token_weights(group)
            found.append((group, credit))
            self.check(group, credit)
            return credit

        def check(self, group, credit):
            pass

    for name, value in settings.pop("also", {}).items():
        setattr(Watched, name, value)
    config = trainer_class.config_class(
        str(folder),
        num_generations=4,
        per_device_train_batch_size=16,
        max_completion_length=24,
        video_fps=4.0,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        temperature=1.5,
        **settings,
    )
    Watched("tiny", [accuracy_reward, format_reward], config, rows).train()
    return found


APPO = {"top_tokens": 5, "top_frames": 2, "tokens_per_frame": 4, "strategy": "soft_or_all"}


@pytest.mark.slow
def test_credit_lies_on_the_frames_that_a_subclass_chooses(clips_with_evidence, tmp_path):
    none = {"choose": lambda self, group, selected: selected & False}
    without = credit_of(APPOTrainer, clips_with_evidence, tmp_path / "none", also=none, **APPO)
    appo = credit_of(APPOTrainer, clips_with_evidence, tmp_path / "appo", **APPO)
    assert all(credit.weights.equal(group.completion_mask.float()) for group, credit in without)
    assert any((credit.weights > 1).any() for _, credit in appo)


@pytest.mark.slow
def test_random_frames_are_as_many_and_drawn_by_step_and_prompt(clips_with_evidence, tmp_path):
    drawn = []

    def check(self, group, credit):
        selected = torch.tensor([True, False, True, False, False, False, True, False])
        drawn.append(tuple(self.choose(group, selected).tolist()))
        assert self.choose(group, selected).sum() == 3
        assert self.choose(group, ~selected).sum() == 5
        assert self.choose(group, selected).equal(self.choose(group, selected))
        assert not self.choose(group, selected & False).any()

    credit_of(RandomFramesTrainer, clips_with_evidence, tmp_path, also={"check": check}, **APPO)
    assert len(set(drawn)) > 1


@pytest.mark.slow
def test_evidence_frames_are_those_that_overlap_the_spans(clips_with_evidence, tmp_path):
    def check(self, group, credit):
        shown, row = evidence_frames(group.prompt), group.prompt.row
        # 16 frames of 4 a second in 8 cells of half a second.
        wanted = [any(start < (cell + 1) / 2 and cell / 2 < end for start, end in row["evidence"]) for cell in range(8)]
        assert shown.tolist() == wanted
        assert all(shown) == (row["family"] == "static")
        some = torch.ones(8, dtype=torch.bool)
        assert self.choose(group, some).tolist() == wanted
        assert not self.choose(group, ~some).any()

    credit_of(EvidenceFramesTrainer, clips_with_evidence, tmp_path, also={"check": check}, **APPO)


def test_the_oracle_weighs_by_the_dependency_on_the_evidence(clips_with_evidence, tmp_path):
    families = []

    def check(self, group, credit):
        families.append(group.prompt.row["family"])
        if group.prompt.row["family"] == "static":  # all of it is evidence
            wanted = PGPOTrainer.token_weights(self, group).weights
        else:
            shown = evidence_frames(group.prompt).tolist()
            hidden = frames_kept(group.prompt, [i for i in range(8) if not shown[i]], self.model)
            gone = (token_frames(group.visual)[token_frames(group.visual) >= 0]).numel() * sum(shown) / 8
            assert len(group.prompt_ids) - len(hidden.prompt_ids) == gone
            seen, unseen = self.score(group)[0], self.score(group, hidden)[0]
            dependency = visual_dependency(seen, unseen)
            wanted = pgpo_token_weights(dependency, group.completion_mask).weights
        torch.testing.assert_close(credit.weights, wanted, rtol=1e-4, atol=1e-5)

    credit_of(OracleTrainer, clips_with_evidence, tmp_path, also={"check": check})
    assert set(families) == {"needle", "static"}


@pytest.mark.slow
def test_rows_without_evidence_keep_their_credit(clips_with_evidence, tmp_path):
    rows = clips_with_evidence.remove_columns("evidence")
    assert all(credit is None for _, credit in credit_of(OracleTrainer, rows, tmp_path))
