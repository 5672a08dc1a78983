"""External input (a model, a recipe, a checkpoint, a data set) is read and never executed."""

import builtins
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.helpers import letter_variety, message
from trl_perception.assets import from_pretrained, model_path
from trl_perception.cli.ask import main as ask
from trl_perception.cli.evaluate import main as evaluate
from trl_perception.data.load import load_rows
from trl_perception.evaluation.settings import EvaluationSettings
from trl_perception.rewards import get_reward
from trl_perception.train import main as train
from trl_perception.train import parse
from trl_perception.trainers import GRPOVideoConfig, GRPOVideoTrainer

# What transformers pickles into a checkpoint and reads again as tensors and plain values only (torch's weights_only).
PICKLED_BY_TRANSFORMERS = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}
CLASSES = {
    "AutoConfig": "brought.Config",
    "AutoModelForImageTextToText": "brought.Model",
    "AutoProcessor": "brought.Processor",
    "AutoTokenizer": ["brought.Tokenizer", "brought.Tokenizer"],
    "AutoImageProcessor": "brought.Images",
    "AutoVideoProcessor": "brought.Videos",
}


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A file that is created when foreign code runs. Prompts are answered with yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return tmp_path / "trace"


class Pickled:
    """Unpickling it runs code."""

    def __init__(self, trace):
        self.code = f"open({str(trace)!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.code,)


def test_the_traps_of_these_tests_work(trace):
    pickle.loads(pickle.dumps(Pickled(trace)))
    assert trace.exists()


def model_with(folder, **changes):
    """A copy of the embedded model with other entries in its configuration."""
    shutil.copytree(model_path("tiny"), folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return str(folder)


@pytest.fixture
def brings_code(tmp_path, trace):
    """A model of a custom type, with its classes in the same folder."""
    model = model_with(tmp_path / "brings_code", model_type="of_its_own", auto_map=CLASSES)
    (tmp_path / "brings_code" / "brought.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    return model


def short_run(model, folder):
    return [
        *("--config", "grpo/tiny", "--model_name_or_path", model, "--output_dir", str(folder), "--use_cpu", "true"),
        *("--synthetic", '{"size": 4}', "--max_steps", "1"),
    ]


def entries(model, folder, clip):
    """The commands that load a model, as calls."""
    data = ["--data", "synthetic", "--synthetic", '{"size": 4}', "--output", str(folder / "evaluation")]
    return {
        "train": lambda: train(short_run(model, folder / "run")),
        "evaluate": lambda: evaluate(["--model", model, *data, "--device", "cpu"]),
        "ask": lambda: ask([model, clip, "Which colour?"]),
        "from_pretrained": lambda: from_pretrained(model),
    }


@pytest.mark.parametrize("entry", ["train", "evaluate", "ask", "from_pretrained"])
def test_code_that_a_model_brings_is_not_run(entry, brings_code, trace, tmp_path, clips):
    with pytest.raises(ValueError, match="trust_remote_code"):
        entries(brings_code, tmp_path, clips[0])[entry]()
    assert not trace.exists()


def test_code_beside_a_known_model_is_not_run(trace, tmp_path):
    model = model_with(tmp_path / "model", auto_map=CLASSES)
    for name in ("processor_config.json", "tokenizer_config.json"):
        file = tmp_path / "model" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": CLASSES}))
    (tmp_path / "model" / "brought.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    loaded, processor = from_pretrained(model)
    assert type(loaded).__module__.startswith("transformers.models.")
    assert type(processor).__module__.startswith("transformers.models.")
    assert not trace.exists()


def test_it_is_off_until_it_is_asked_for():
    assert not GRPOVideoConfig("out", use_cpu=True, bf16=False).trust_remote_code
    assert not parse(["--config", "grpo/qwen2_5_vl_7b", "--use_cpu", "true", "--bf16", "false"])[1].trust_remote_code
    assert not EvaluationSettings(model="tiny", data="synthetic", output="out").trust_remote_code


def test_it_is_run_where_it_is_asked_for(brings_code, trace):
    with pytest.raises(AttributeError, match="brought"):  # without a class: running it is enough
        from_pretrained(brings_code, trust_remote_code=True)
    assert trace.exists()


def test_pickled_weights_are_not_unpickled(trace, tmp_path):
    model = model_with(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Pickled(trace)}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        from_pretrained(model)
    assert not trace.exists()


def test_a_chat_template_cannot_reach_python(trace, tmp_path, clips):
    model = model_with(tmp_path / "model")
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(trace) + "') }}"
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    with pytest.raises(SystemExit, match="unsafe"):
        ask([model, clips[0], "Which colour?"])
    assert not trace.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/object/new:os.system ['touch {}']"]
)
def test_a_recipe_makes_no_objects(tag, trace, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("trainer: grpo\nrun_name: " + tag.format(trace) + "\n")
    with pytest.raises(ValueError, match="could not determine a constructor"):
        parse(["--config", str(recipe)])
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "__import__('pathlib').Path('{}').touch()",
        "length_window(low=__import__('pathlib').Path('{}').touch())",
        "length_window(low=(lambda: open('{}', 'w'))())",
        "format; open('{}', 'w')",
        "[open('{}', 'w')]",
    ],
)
def test_the_name_of_a_reward_is_not_an_expression(name, trace):
    with pytest.raises(ValueError, match="reward"):
        get_reward(name.format(trace))
    assert not trace.exists()


@pytest.mark.parametrize("ending", [".py", ".pkl", ".pt"])
def test_a_data_set_is_data(ending, trace, tmp_path):
    file = tmp_path / f"rows{ending}"
    file.write_bytes(pickle.dumps(Pickled(trace)))
    if ending == ".py":
        file.write_text(f"open({str(trace)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="file; one of"):
        load_rows(str(file), "train")
    assert not trace.exists()


def test_a_script_in_the_folder_of_a_data_set_is_not_run(trace, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    (folder / "data.jsonl").write_text('{"prompt": "a", "solution": "b"}\n')
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        load_rows(str(folder), "train")
    (folder / "data.jsonl").rename(folder / "train.jsonl")
    assert len(load_rows(str(folder), "train")) == 1
    assert not trace.exists()


def trainer_in(folder, **config):
    settings = {"max_steps": 2, "save_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2}
    settings |= {"max_completion_length": 4, "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    rows = Dataset.from_list([{"prompt": message(f"Say {word}."), "images": []} for word in ("red", "blue", "a", "b")])
    return GRPOVideoTrainer("tiny", letter_variety, GRPOVideoConfig(str(folder), **settings, **config), rows)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run that was saved at each of two steps, with everything that can be written."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = trainer_in(folder, report_every=1, num_iterations=2)
    trainer.train()
    trainer.save_model()
    return folder


def test_weights_are_safetensors_and_nothing_else_is_pickled(saved):
    files = [path for path in saved.rglob("*") if path.is_file()]
    weights = {path.parent.name for path in files if path.name == "model.safetensors"}
    assert weights == {saved.name, "checkpoint-1", "checkpoint-2"}
    read_as_data = {".safetensors", ".json", ".jsonl", ".md", ".jinja", ".parquet"}
    others = {path.name for path in files if path.suffix not in read_as_data}
    assert others == PICKLED_BY_TRANSFORMERS
    for path in files:
        assert path.name in PICKLED_BY_TRANSFORMERS or not path.read_bytes().startswith((b"\x80", b"PK\x03\x04")), path


def rewrite_listing(checkpoint):
    """Whoever plants a file can also write its size into the list of files, which is not a signature."""
    listed = checkpoint / "complete.json"
    listed.unlink()
    listed.write_text(json.dumps({"files": {path.name: path.stat().st_size for path in checkpoint.iterdir()}}))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_pickle_planted_in_a_checkpoint_is_not_run(name, saved, trace, tmp_path):
    checkpoint = shutil.copytree(saved / "checkpoint-1", tmp_path / "run" / "checkpoint-1")
    torch.save({"state": Pickled(trace)}, checkpoint / name)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    rewrite_listing(checkpoint)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        trainer_in(tmp_path / "run", num_iterations=2).train(resume_from_checkpoint=str(checkpoint))
    assert not trace.exists()


def test_the_settings_in_a_checkpoint_are_not_unpickled(saved, trace, tmp_path):
    checkpoint = Path(shutil.copytree(saved / "checkpoint-1", tmp_path / "run" / "checkpoint-1"))
    torch.save(Pickled(trace), checkpoint / "training_args.bin")
    rewrite_listing(checkpoint)
    trainer_in(tmp_path / "run", num_iterations=2).train(resume_from_checkpoint=str(checkpoint))
    assert not trace.exists()
