"""Errors on the command line: one line each, without importing torch."""

import subprocess
import sys
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from trl import ModelConfig

from trl_perception.cli.errors import one_line
from trl_perception.cli.main import main
from trl_perception.cli.preflight import trainer_names, training_hints
from trl_perception.train import TrainArguments, build, parse
from trl_perception.trainers import TRAINERS

TINY = ("train", "--config", "grpo/tiny")
MISTAKES = {
    "command": (("trian",), "unknown command 'trian'. Did you mean 'train'?"),
    "recipe": (("train", "--config", "grpo/tyni"), "There is no recipe grpo/tyni, as a file or among those shipped. Did you"),
    "no recipe": (("train",), "No recipe. Name one, such as --config grpo/tiny"),
    "recipe without its key": (("train", "grpo/tiny"), "The command line has stray values ['grpo/tiny']; every value follows"),
    "recipe's file": (("train", "--config", "./mine.yaml"), "There is no recipe ./mine.yaml"),
    "key": ((*TINY, "--lerning_rate", "1"), "Unknown key 'lerning_rate' in the command line for trainer 'grpo'. Did you"),
    "key of another method": ((*TINY, "--alpha", "1"), "Unknown key 'alpha' in the command line for trainer 'grpo'."),
    "number": ((*TINY, "--max_steps", "abc"), "--max_steps is 'abc'; int is wanted."),
    "trainer": ((*TINY, "--trainer", "app"), "Unknown trainer 'app'. Did you mean 'appo'?"),
    "reward": ((*TINY, "--reward_funcs", "acuracy,format"), "unknown reward 'acuracy'; did you mean 'accuracy'?"),
    "template": ((*TINY, "--prompt_template", "think"), "unknown prompt template 'think'; did you mean"),
    "data": ((*TINY, "--dataset_name", "no/rows.jsonl"), "Dataset file or folder no/rows.jsonl does not exist"),
    "model": ((*TINY, "--model_name_or_path", "./no"), "The model ./no is no folder"),
    "accelerate": ((*TINY, "--accelerate_config", "dpd"), "There is no accelerate configuration dpd, as a file or among those"),
    "processes": ((*TINY, "--num_processes", "2"), "--num_processes is for accelerate launch. Name a configuration too"),
    "evaluate": (("evaluate", "--modle", "tiny"), "Unknown option or stray value '--modle'. Did you mean '--model'?"),
    "evaluate's data": (("evaluate", "--model", "tiny", "--data", "./no.jsonl"), "./no.jsonl does not exist"),
    "ask": (("ask", "tiny"), "the following arguments are required: medium, question"),
    "ask's clip": (("ask", "tiny", "no.mp4", "What?"), "no.mp4 is no file"),
    "prepare": (("prepare", "vidoe-r1", "--source", ".", "--output", "x"), "unknown data set 'vidoe-r1'; did you mean 'video-r1'"),
    "prepare's source": (("prepare", "jsonl", "--source", "no", "--output", "x"), "The source no does not exist"),
    "report": (("report", "no"), "no is no folder"),
    "serve": (("serve",), "the following arguments are required: --config"),
    "serve's key": (("serve", "--config", "grpo/tiny", "--vllm_prot", "1"), "Unknown key 'vllm_prot' in the command line"),
    "push": (("push", "no"), "no holds no weights"),
    "show": (("show", "--model", "./no", "--recipe", "grpo/tiny"), "The model ./no is no folder"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv, said = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    message = capsys.readouterr().err.strip() if isinstance(stop.value.code, int) else stop.value.code
    assert said in message
    assert "\n" not in message
    assert stop.value.code != 0
    assert not any(tmp_path.iterdir())


def test_no_mistake_imports_torch():
    """All errors in one process, after which neither torch nor a package that imports it may be loaded."""
    tried = [list(argv) for argv, _ in MISTAKES.values()]
    code = f"""
import sys
from trl_perception.cli.main import main
for argv in {[*tried, ["--version"], ["--help"], ["recipes"], ["ask", "--help"], ["prepare", "--help"]]!r}:
    try:
        main(argv)
    except SystemExit:
        pass
    loaded = [name for name in ("torch", "transformers", "trl", "datasets", "peft", "accelerate") if name in sys.modules]
    assert not loaded, (argv, loaded)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_settings_read_from_sources_are_those_of_the_classes(trainer):
    types = (ModelConfig, TRAINERS[trainer].config_class, TrainArguments)
    real = {f.name: get_type_hints(of_type)[f.name] for of_type in types for f in fields(of_type)}
    read = training_hints(trainer)
    assert read.keys() == real.keys()
    assert {key: hint for key, hint in read.items() if hint is not Any and hint != real[key]} == {}
    assert trainer_names() == {name: of_class.__name__ for name, of_class in TRAINERS.items()}


def test_what_is_nobodys_mistake_keeps_its_traceback(monkeypatch):
    with pytest.raises(SystemExit, match=r"train: no\.jsonl does not exist"), one_line("train"):
        raise FileNotFoundError("no.jsonl\ndoes not exist")
    with (
        pytest.raises(ValueError, match="of a library's"),
        one_line("train"),
    ):  # raised in this file, not in the package
        raise ValueError("of a library's")
    with pytest.raises(KeyError), one_line("train"):
        raise KeyError
    monkeypatch.setenv("TRL_PERCEPTION_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError), one_line("train"):
        raise FileNotFoundError


def test_reward_names_may_stand_between_commas(tmp_path):
    for given in (["accuracy,length_window(low=1, high=9)"], ["accuracy", "length_window(low=1, high=9)"]):
        arguments = [
            "--config",
            "grpo/tiny",
            "--use_cpu",
            "true",
            "--output_dir",
            str(tmp_path),
            "--reward_funcs",
            *given,
        ]
        script, config, model = parse(arguments)
        assert script.reward_funcs == ["accuracy", "length_window(low=1, high=9)"]
    config.reward_weights = None
    names = build(script, config, model).reward_func_names
    assert names[0] == "accuracy_reward"
    assert len(names) == 2


def test_version_recipes_and_names(capsys):
    import trl_perception

    main(["--version"])
    assert capsys.readouterr().out == f"trl-perception {trl_perception.__version__}\n"
    main(["recipes"])
    listed = capsys.readouterr().out
    assert "  ral_zero/tiny              ral           RAL-zero on the embedded model" in listed
    assert "  ddp                        A copy of the model on each of eight GPUs." in listed
    assert "sft/" not in listed
    assert {"APPOTrainer", "GRPOVideoConfig", "from_pretrained"} <= set(dir(trl_perception))


def test_accelerate_configurations_go_by_name(monkeypatch):
    from accelerate.commands import launch

    launched = []
    monkeypatch.setattr(launch, "launch_command", launched.append)
    main(
        [
            *TINY,
            "--max_steps",
            "-1",
            "--accelerate_config=cpu",
            "--num-processes",
            "2",
            "--reward_funcs",
            "accuracy",
            "format",
        ]
    )
    (options,) = launched
    assert options.config_file.endswith("accelerate_configs/cpu.yaml")
    assert options.num_processes == 2
    assert (options.module, options.training_script) == (True, "trl_perception.train")
    said = ["--config", "grpo/tiny", "--max_steps", "-1", "--reward_funcs", "accuracy", "format"]
    assert options.training_script_args == said
