"""The console commands."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from trl_perception.assets import model_path
from trl_perception.cli import ask as ask_module
from trl_perception.cli import serve
from trl_perception.cli.ask import ask
from trl_perception.cli.main import COMMANDS, main
from trl_perception.media import VideoSettings
from trl_perception.media.prompts import UnusableSampleError


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_usage_names_every_command(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = "".join(capsys.readouterr())
    assert all(f"  {name}" in said for name in COMMANDS)
    assert stop.value.code == (0 if argv == ["--help"] else 2)


def test_ask_takes_the_settings_that_a_run_was_trained_with(clips, tmp_path, monkeypatch):
    """From the run's folder or from a checkpoint in it; options take precedence."""
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    settings = ("video_fps: 4.0", "video_max_frames: 8", "image_max_pixels: 784", "prompt_template: think_answer")
    settings += ("chat_template_kwargs: {enable_thinking: false}",)
    (tmp_path / "run" / "recipe.yaml").write_text("\n".join(settings))
    asked = []
    monkeypatch.setattr(ask_module, "from_pretrained", lambda *args, **kwargs: (None, None))
    monkeypatch.setattr(ask_module, "ask", lambda *args, **kwargs: asked.append(kwargs))
    for model in ("run", "run/checkpoint-3", "tiny"):
        main(["ask", str(tmp_path / model) if model != "tiny" else model, clips[0], "What?"])
    main(
        [
            "ask",
            str(tmp_path / "run"),
            clips[0],
            "What?",
            "--fps",
            "1",
            "--image-max-pixels",
            "1568",
            "--template",
            "none",
        ]
    )
    of_run = (VideoSettings(fps=4.0, max_frames=8), (None, 784), "think_answer")
    seen = [(given["video_settings"], given["image_pixels"], given["template"]) for given in asked]
    off = {"enable_thinking": False}
    assert [given["chat_template_kwargs"] for given in asked] == [off, off, None, off]
    assert seen == [
        of_run,
        of_run,
        (VideoSettings(), (None, None), "none"),
        (VideoSettings(fps=1.0, max_frames=8), (None, 1568), "none"),
    ]


def test_show_wants_a_recipe_where_the_model_has_none():
    with pytest.raises(SystemExit, match=r"tiny has no recipe\.yaml beside it"):
        main(["show", "--model", "tiny"])


def test_ask_answers_about_a_clip_and_a_picture(clips, pictures, capsys):
    main(["ask", "tiny", clips[0], "What color is scene 1?", "--fps", "4", "--max-new-tokens", "40"])
    answered = capsys.readouterr().out
    assert "<answer>" in answered
    assert "</answer>" in answered
    model, processor = (
        loader.from_pretrained(model_path("tiny")) for loader in (AutoModelForImageTextToText, AutoProcessor)
    )
    assert ask(model, processor, clips[0], "What color is scene 1?", max_new_tokens=5) != ""
    assert ask(model, processor, pictures[0], "What color is panel 1?", max_new_tokens=5) != ""
    refusing = {"chat_template": "{{ raise_exception('thinking is ' ~ enable_thinking) }}", "enable_thinking": False}
    with pytest.raises(UnusableSampleError, match="thinking is False"):
        ask(model, processor, clips[0], "What?", chat_template_kwargs=refusing)


def test_serve_reads_no_rows(monkeypatch, tmp_path):
    """The data of a run need not be where its server is."""
    monkeypatch.chdir(tmp_path)
    served = []
    monkeypatch.setattr(serve, "_serve", lambda args, *where: served.append((args, where)))
    main(["serve", "--config", "grpo/qwen2_5_vl_7b", "--dataset_name", "data/mine.jsonl", "--port", "9", "--seed", "1"])
    ((args, where),) = served
    assert where == (None, 9)
    assert "data/mine.jsonl" not in args
    assert args[args.index("--vllm_mode") + 1] == "server"
    assert args[args.index("--seed") + 1] == "1"
