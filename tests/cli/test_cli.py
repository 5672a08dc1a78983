"""The console commands."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from trl_perception.assets import model_path
from trl_perception.cli.ask import ask
from trl_perception.cli.main import COMMANDS, main


@pytest.mark.parametrize("argv", [[], ["--help"], ["trian"]])
def test_usage_names_every_command(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = "".join(capsys.readouterr())
    assert all(f"  {name}" in said for name in COMMANDS)
    assert stop.value.code == (0 if argv == ["--help"] else 2)
    assert ("Unknown command 'trian'" in said) == (argv == ["trian"])


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
