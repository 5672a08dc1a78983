"""Every family outside of training steps: token counts, questions, evaluation, plans, cards, records and reports."""

import json
import re
import shutil

import pytest

from tests.families.test_forwards import OURS
from tests.families.tiny import saved, tiny
from tests.families.training import GEMMA, mixed, trainer_of
from tests.helpers import message
from trl_perception.cli.main import main
from trl_perception.evaluation import EvaluationSettings, evaluate
from trl_perception.media import PromptPreparer, VideoSettings
from trl_perception.media.probe import expected_tokens, probe
from trl_perception.reports.rollouts import read_groups

each_family = pytest.mark.parametrize("name", OURS)
FAST = ("qwen3_vl", "internvl", "gemma4")
fast_families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in OURS]
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Saved models by family."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = saved(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


@pytest.mark.parametrize("settings", [{}, {"max_frames": 4}, {"fps": 1.0}])
@each_family
def test_tokens_counted_from_headers_are_those_of_the_prompt(name, settings, clips, pictures):
    """As `trl-perception prepare` counts them, and `check_rows`."""
    preparer = PromptPreparer(tiny(name).processor, video_settings=VideoSettings(**settings))
    for kind, path in (("video", clips[0]), ("image", pictures[0])):
        block = {"type": kind, kind: path}
        (prompt,) = preparer([{"prompt": [{"role": "user", "content": [block, {"type": "text", "text": "?"}]}]}])
        assert (
            expected_tokens(probe(kind, path), preparer.media_settings.request(block))
            == prompt.visual.visual_tokens
            > 0
        )


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1080, 1920), (64, 900), (30, 40)])
def test_gemma4_counts_pictures_that_its_processor_resizes(height, width):
    """As the processor counts images, with its own sizes (the tiny one does not resize)."""
    from trl_perception.families import family_of_processor

    processor = tiny("gemma4").processor
    image = type(processor.image_processor)(patch_size=14, pooling_kernel_size=2, max_soft_tokens=70)
    resizing = type(processor)(
        processor.feature_extractor, image, processor.tokenizer, processor.video_processor, processor.chat_template
    )
    (wanted,) = resizing._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
    assert family_of_processor(resizing).image_tokens(resizing, height, width) == wanted


@fast_families
def test_the_cards_code_gives_the_trained_tokens(name, clips, pictures, tmp_path, monkeypatch):
    trainer = trainer_of(name, "grpo", tmp_path / "run", mixed(clips, pictures), video_max_frames=8)
    trainer.save_model(str(tmp_path / "run"), _internal_call=True)
    trainer.create_model_card(model_name="seen")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "run" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copy(clips[0], "clip.mp4")
    ran = {}
    exec(code, ran)
    row = {"prompt": message("What happens in this clip?", "video"), "videos": [clips[0]]}
    (wanted,) = trainer._prompt_preparer([row])
    assert ran["inputs"]["input_ids"][0].tolist() == wanted.input_ids


@fast_families
def test_a_saved_model_answers_and_is_evaluated(name, folder_of, clips, pictures, tmp_path, capsys):
    folder = str(folder_of(name))
    for medium in (clips[0], pictures[0]):
        main(["ask", folder, medium, "What comes first?", "--max-new-tokens", "4"])
    capsys.readouterr()
    rows = [
        {**row, "solution": "<answer>A</answer>", "problem_type": "multiple choice", "id": str(number)}
        for number, row in enumerate(mixed(clips, pictures))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"batch_size": 3, "max_new_tokens": 6, "video_max_frames": 4, "resamples": 10}
    found = evaluate(
        EvaluationSettings(folder, data=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "out"), **settings)
    )
    predictions = found.predictions.to_pylist()
    assert [prediction["id"] for prediction in predictions] == ["0", "1", "2", "3", "4"]
    assert not any(prediction["left_out"] for prediction in predictions)
    # A row by itself has the completion that it has in a batch.
    single = {**settings, "batch_size": 1}
    alone = evaluate(
        EvaluationSettings(folder, data=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "one"), **single)
    )
    assert [one["completions"] for one in alone.predictions.to_pylist()] == [one["completions"] for one in predictions]


@fast_families
def test_a_plan_of_a_saved_model(name, folder_of, capsys):
    arguments = ["--dataset_name", "synthetic", "--synthetic", '{"size": 8}', "--use_cpu", "true", "--bf16", "false"]
    main(["plan", "--config", "grpo/tiny", "--model_name_or_path", str(folder_of(name)), *arguments])
    said = capsys.readouterr().out
    for part in ("processes", "parameters", "steps", "prompts", "tokens", "memory", "checkpoint", "weights", "cache"):
        assert part in said


@fast_families
def test_records_show_frames_and_their_report_is_written(name, clips, pictures, tmp_path):
    trainer = trainer_of(name, "appo", tmp_path / "run", mixed(clips, pictures), report_every=1, max_steps=1)
    trainer.train()
    records, _ = read_groups(tmp_path / "run")
    cells = 4 if name in ("internvl", "internvl_moe", "smolvlm", *GEMMA) else 2  # of 4 frames
    assert len(records) == 4
    for record in records:
        kinds = [medium["kind"] for medium in record["media"]]
        assert len(record["frames"]) == kinds.count("image") + cells * kinds.count("video")
        signals = {signal["name"] for signal in record["signals"]}
        assert ("selected_frames" in signals) == bool(kinds)
    main(["report", str(tmp_path / "run")])
    assert "frame_attention" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "kinds"), [("qwen2_5_vl", ("image", "video")), ("gemma4", ("image", "video", "audio"))]
)
def test_completions_never_have_a_placeholder(name, kinds, tmp_path):
    processor = tiny(name).processor
    trainer = trainer_of(name, "grpo", tmp_path, mixed([], [], {"text": ""}))
    assert trainer.generation_config.suppress_tokens == sorted(getattr(processor, f"{kind}_token_id") for kind in kinds)
