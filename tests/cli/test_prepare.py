"""`trl-perception prepare` as users call it, up to the trainer that reads its folder."""

import json

import pytest

from tests.conftest import write_clip
from trl_perception.cli.main import main
from trl_perception.cli.prepare import build_parser, read_options, recipe_settings
from trl_perception.data.adapters import ADAPTERS
from trl_perception.data.export_synthetic import export_synthetic
from trl_perception.data.load import load_rows
from trl_perception.data.preparation import run as run_module
from trl_perception.media import ProcessorSizes, VideoSettings
from trl_perception.train import build, parse


@pytest.fixture
def exported(tmp_path):
    return str(export_synthetic(tmp_path / "export", size=10).parent)


def command(exported, tmp_path, *more):
    return ["prepare", "video-r1", "--source", exported, "--output", str(tmp_path / "rows"), *more]


def test_the_command_prints_what_it_kept(exported, tmp_path, capsys):
    main(command(exported, tmp_path, "--check", "decode", "--recipe", "grpo/tiny", "--limit", "8"))
    said = capsys.readouterr().out
    assert "Video-R1-260k, split train: 8 records, 8 rows kept" in said
    # the recipe takes 16 frames of 56 x 56 pixels: 8 cells of 4 tokens
    assert "visual tokens (estimate): min 32, median 32, 95 % 32, max 32, mean 32; 8 rows" in said
    assert "visual tokens with fps 4, min_frames 4, max_frames 16" in said
    main(command(exported, tmp_path, "--check", "decode", "--recipe", "grpo/tiny", "--limit", "8"))
    assert capsys.readouterr().out == said  # finished: read, not repeated


def test_a_trainer_takes_the_folder_and_the_recipes_template(exported, tmp_path):
    main(command(exported, tmp_path))
    recipe = ["--config", "grpo/tiny", "--use_cpu", "true", "--output_dir", str(tmp_path / "run")]
    arguments = ["--dataset_name", str(tmp_path / "rows"), "--prompt_template", "video_r1"]
    trainer = build(*parse([*recipe, *arguments]))
    rows = trainer.train_dataset
    assert len(rows) == 10
    assert all("<think>" in row["prompt"][0]["content"][-1]["text"] for row in rows)
    with pytest.raises(ValueError, match="unknown prompt template 'video-r1'; did you mean 'video_r1'"):
        parse([*recipe, "--dataset_name", "x", "--prompt_template", "video-r1"])


def test_options_come_from_recipe_and_command_line_which_wins():
    assert recipe_settings("grpo/qwen2_5_vl_3b") == {
        "video_fps": 1.0,
        "video_max_frames": 16,
        "video_max_pixels": 50176,
        "model": "Qwen/Qwen2.5-VL-3B-Instruct",
    }
    parser = build_parser()
    parser.set_defaults(**recipe_settings("grpo/qwen2_5_vl_3b"))
    given = parser.parse_args(["video-r1", "--source", "a", "--output", "b", "--video-max-frames", "8"])
    options = read_options(given)
    assert options.video == VideoSettings(fps=1.0, max_frames=8, max_pixels=50176)
    assert options.sizes == ProcessorSizes()  # as published, without a download


def test_the_recipes_model_sizes_media_as_in_training(tmp_path, capsys):
    write_clip(tmp_path / "a.mp4", seed=0, size=280)
    row = {"question": "?", "video": "a.mp4", "problem_type": "numerical", "answer": "1"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    given = ["prepare", "jsonl", "--source", str(tmp_path), "--recipe", "grpo/tiny"]
    main([*given, "--output", str(tmp_path / "rows")])
    # the tiny model's processor allows 50176 pixels: 224 x 224, 64 tokens a cell, 8 cells of 16 frames
    assert load_rows(str(tmp_path / "rows"), "train")["visual_tokens"] == [512]
    recipe = ["--config", "grpo/tiny", "--use_cpu", "true", "--output_dir", str(tmp_path / "run")]
    trainer = build(*parse([*recipe, "--dataset_name", str(tmp_path / "rows")]))
    (prompt,) = trainer._prompt_preparer(list(trainer.train_dataset))
    assert prompt.visual.visual_tokens == 512
    # the published processors allow 280 x 280: 100 tokens a cell
    main([*given, "--output", str(tmp_path / "other"), "--model", "Qwen/Qwen2.5-VL-7B-Instruct"])
    assert load_rows(str(tmp_path / "other"), "train")["visual_tokens"] == [800]
    with pytest.raises(SystemExit, match="The processor of nowhere/model cannot be read"):
        main([*given, "--output", str(tmp_path / "third"), "--model", "nowhere/model"])


def test_help_names_every_data_set(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in ADAPTERS)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--limit", "0"], "limit is 0"),
        (["--template", "think"], "did you mean 'think_answer'"),
        (["--pass-rates", "nowhere.parquet", "--max-pass-rate", "0.5"], r"nowhere\.parquet"),
        (["--max-pass-rate", "0.5"], "need pass_rates"),
        (["--media", "elsewhere"], "No row is left of 10 records: 10 media missing"),
    ],
)
def test_errors_are_reported_in_one_line(exported, tmp_path, more, words):
    with pytest.raises(SystemExit, match=words):
        main(command(exported, tmp_path, *more))


def test_a_malformed_record_names_the_option_that_drops_it(exported, tmp_path):
    file = tmp_path / "export" / "Video-R1-260k.json"
    records = json.loads(file.read_text())
    del records[3]["problem"]
    file.write_text(json.dumps(records))
    with pytest.raises(SystemExit, match=r"record 4 .*field 'problem' is missing.*--malformed drop"):
        main(command(exported, tmp_path))
    main(command(exported, tmp_path, "--malformed", "drop"))
    assert len(load_rows(str(tmp_path / "rows"), "train")) == 9


def test_a_file_that_is_not_json_names_no_such_option(exported, tmp_path):
    (tmp_path / "export" / "Video-R1-260k.json").write_text("{")
    for more in ([], ["--malformed", "drop"]):
        with pytest.raises(SystemExit, match=r"is not JSON.* Fetch the file again\.$"):
            main(command(exported, tmp_path, *more))


def test_an_unknown_data_set_names_the_nearest(tmp_path):
    with pytest.raises(SystemExit, match="did you mean 'next-gqa'"):
        main(["prepare", "nextgqa", "--source", str(tmp_path), "--output", str(tmp_path / "rows")])


def test_an_interruption_says_how_to_resume(exported, tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Worker, "chunk", interrupt)
        with pytest.raises(SystemExit) as stop:
            main(command(exported, tmp_path))
    assert stop.value.code == 130
    assert "The same command resumes" in capsys.readouterr().err
    main(command(exported, tmp_path))
    assert "10 rows kept" in capsys.readouterr().out
