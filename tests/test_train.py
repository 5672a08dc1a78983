"""Recipes and the command that runs them."""

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from trl_perception.cli.ask import ask
from trl_perception.cli.evaluate import settings_of_recipe
from trl_perception.data.templates import TEMPLATES
from trl_perception.recipe import recipe_path
from trl_perception.rewards import get_reward
from trl_perception.train import build, main, parse
from trl_perception.trainers import TRAINERS

RECIPES = Path(__file__).parent.parent / "recipes"
SIZES = {
    "qwen2_5_vl_3b": ("Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "qwen2_5_vl_7b": ("Qwen2.5-VL-7B", "Qwen/Qwen2.5-VL-7B-Instruct"),
    "qwen3_vl_4b": ("Qwen3-VL-4B", "Qwen/Qwen3-VL-4B-Instruct"),
    "qwen3_vl_8b": ("Qwen3-VL-8B", "Qwen/Qwen3-VL-8B-Instruct"),
    "qwen3_5_4b": ("Qwen3.5-4B", "Qwen/Qwen3.5-4B"),
    "qwen3_5_9b": ("Qwen3.5-9B", "Qwen/Qwen3.5-9B"),
}
COMPARED = ("qwen2_5_vl_7b", "qwen3_vl_8b")  # of methods that are there to compare with
ON_CPU = ["--bf16", "false", "--use_cpu", "true"]


FOLDERS = {**{name: name for name in TRAINERS}, "ral_zero": "ral"}  # folder -> trainer


def trainer_recipes():
    return sorted(path for name in FOLDERS for path in (RECIPES / name).glob("*.yaml"))


def test_there_is_a_recipe_for_each_trainer_and_size():
    for name in FOLDERS:
        sizes = COMPARED if name in ("papo", "t_grpo", "tw_grpo", "vppo") else SIZES
        assert {path.stem for path in (RECIPES / name).glob("*.yaml")} == {"tiny", *sizes}


PUBLISHED = [path for path in trainer_recipes() if path.stem != "tiny"]


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_value_has_the_letter_of_a_source(recipe):
    header, _, body = recipe.read_text().partition("# Model\n")
    letters = set(re.findall(r"\[(\w)\] ", header.partition("Sources:")[2]))
    assert {"O", "T"} < letters
    for line in body.splitlines():
        key, _, comment = line.partition("  # ")
        if line.startswith("#") or not line or key.partition(":")[0] in ("trainer", "output_dir"):
            continue
        found = set(re.findall(r"\[(\w)\]", comment))
        assert found <= letters, line
        assert found or line == "dataset_name: data/train.jsonl", line


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_batch_is_what_its_comments_say(recipe):
    text = recipe.read_text()
    written = yaml.safe_load(text)
    for processes, prompts in re.findall(r"gradient_accumulation_steps: .* with (\d+) processes: (\d+) prompts", text):
        # completions of a step / completions of a prompt
        rows = written["per_device_train_batch_size"] * written["gradient_accumulation_steps"] * int(processes)
        assert rows == int(prompts) * written["num_generations"]
    for processes, prompts in re.findall(r"steps_per_generation: .* with (\d+) processes: (\d+) prompts", text):
        rows = written["per_device_train_batch_size"] * written["steps_per_generation"] * int(processes)
        assert rows == int(prompts) * written["num_generations"]
    assert re.search(r"gradient_accumulation_steps: .* with 8 processes: \d+ prompts", text)


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_names_itself_and_its_model(recipe):
    text, written = recipe.read_text(), yaml.safe_load(recipe.read_text())
    shown, model = SIZES[recipe.stem]
    assert shown in text.partition("\n")[0]
    assert f"--config {recipe.parent.name}/{recipe.stem} " in text
    assert written["output_dir"] == f"runs/{recipe.parent.name.replace('_', '-')}-{shown.lower()}"
    assert written["model_name_or_path"] in (model, "Video-R1/Qwen2.5-VL-7B-COT-SFT")


OF_THE_MODEL = {"model_name_or_path", "teacher_model_name_or_path", "output_dir", "prompt_template", "reward_funcs"}
OF_THE_MODEL |= {
    "entropy_penalty",
    "chat_template_kwargs",
    "video_min_pixels",
    "video_max_pixels",
    "image_min_pixels",
    "image_max_pixels",
}
NEW = [path for path in trainer_recipes() if path.stem.startswith("qwen3")]


@pytest.mark.parametrize("recipe", NEW, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_of_later_models_keep_the_methods_settings(recipe):
    """Only what depends on the model differs from the recipe for Qwen2.5-VL-7B; media have the same numbers of tokens."""
    new, old = (yaml.safe_load(path.read_text()) for path in (recipe, recipe.with_stem("qwen2_5_vl_7b")))
    assert {key: new[key] for key in new if key not in OF_THE_MODEL} == {
        key: old[key] for key in old if key not in OF_THE_MODEL
    }
    for key in (key for key in old if key.endswith("_pixels")):
        # whole tokens; 5 % above 128 * 32 * 32 = 131072 is 137625.6, as 105369 is 5 % above 128 * 28 * 28
        assert new[key] == (137625 if old[key] == 105369 else old[key] // (28 * 28) * 32 * 32)
        assert new[key] % (32 * 32) == 0 or old[key] == 105369
    assert new.get("chat_template_kwargs") == ({"enable_thinking": False} if "qwen3_5" in recipe.stem else None)


@pytest.mark.parametrize("recipe", NEW, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_of_later_models_think_in_plain_text(recipe):
    """Prompt and rewards have the same tags, which are no tokens of the vocabulary."""
    script, *_ = parse(["--config", str(recipe), *ON_CPU])
    asked = TEMPLATES[script.prompt_template].instruction
    assert "think>" not in asked
    answer = "\\boxed{B}" if "boxed" in asked else "<answer>B</answer>"
    thinking = ("<reason>why</reason>", "<think>why</think>") if "<reason>" in asked else ("", "<think>why</think>")
    columns = {"prompts": ["?"] * 2, "problem_type": ["multiple choice"] * 2, "solution": ["B"] * 2}
    scores = [
        get_reward(name)(completions=[tags + answer for tags in thinking], **columns)
        for name in script.reward_funcs
        if not name.startswith("length_window")
    ]
    assert scores == [[1.0, 1.0], [1.0, 0.0]]  # accuracy ignores tags around the answer, the format does not


@pytest.mark.parametrize("recipe", trainer_recipes(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_parses_into_what_it_says(recipe):
    written = yaml.safe_load(recipe.read_text())
    script, config, model = parse(["--config", str(recipe), *ON_CPU])
    parsed = {**vars(model), **vars(config), **vars(script)}
    for key, value in written.items():
        if key == "report_to":
            assert parsed[key] == ([] if value == "none" else [value])
        elif key not in ("bf16", "use_cpu"):
            assert parsed[key] == value, key
    assert isinstance(config, TRAINERS[FOLDERS[recipe.parent.name]].config_class)


@pytest.mark.parametrize("recipe", trainer_recipes(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_with_a_kl_term_name_its_form(recipe):
    """The papers' KL term is the plain k3; TRL's default is not."""
    written = yaml.safe_load(recipe.read_text())
    if written["beta"] > 0:
        assert written["use_bias_correction_kl"] is False
        line = next(line for line in recipe.read_text().splitlines() if line.startswith("use_bias_correction_kl"))
        letter = re.search(r"^beta: .*?(\[\w\])", recipe.read_text(), re.MULTILINE)[1]
        assert letter in line, "the KL term's form has the source of its coefficient"
        _, config, _ = parse(["--config", str(recipe), *ON_CPU])
        assert config.use_bias_correction_kl is False


@pytest.mark.parametrize("recipe", trainer_recipes(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_keeps_float32_master_weights(recipe):
    """Its weights are float32, or the launcher that it names is DeepSpeed in bf16, which keeps float32 copies."""
    written = yaml.safe_load(recipe.read_text())
    if written["dtype"] == "float32":
        return
    (launcher,) = re.findall(r"--accelerate_config (\w+)", recipe.read_text())
    launched = yaml.safe_load((RECIPES / "accelerate_configs" / f"{launcher}.yaml").read_text())
    assert (launched["distributed_type"], launched["mixed_precision"]) == ("DEEPSPEED", "bf16")


def test_every_command_keeps_float32_master_weights():
    """In the docs a launcher without its own master weights is used with a recipe whose weights are float32."""
    found = 0
    for page in [RECIPES.parent / "README.md", *sorted((RECIPES.parent / "docs").glob("*.md"))]:
        for launcher, recipe in re.findall(r"--accelerate_config (\w+) .*--config (\w+/qwen\w+)", page.read_text()):
            found += 1
            dtype = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["dtype"]
            assert dtype == "float32" or launcher.startswith("zero"), (page.name, launcher, recipe)
    assert found >= 2


@pytest.mark.parametrize("recipe", sorted((RECIPES / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_accelerate_config_is_one(recipe):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(recipe)).num_processes >= 1


def test_the_command_line_wins_over_the_recipe():
    tiny = ["--config", str(RECIPES / "grpo" / "tiny.yaml"), *ON_CPU]
    _, config, _ = parse([*tiny, "--learning_rate", "0.5", "--video_max_frames", "6"])
    assert (config.learning_rate, config.video_max_frames) == (0.5, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--video_max_frame", "4"],
            r"Unknown key 'video_max_frame' in the command line.*Did you mean 'video_max_frames'",
        ),
        (["--trainer", "grp"], r"Unknown trainer 'grp'\. Did you mean 'grpo'"),
        (["--reward_funcs", "acuracy"], "accuracy"),
        (["--dataset_name", "./nowhere.jsonl"], r"nowhere\.jsonl does not exist"),
        (["--on_bad_media", "ignore"], "on_bad_media"),
    ],
)
def test_wrong_arguments_name_the_right_ones(arguments, words, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        build(*parse(["--config", str(RECIPES / "grpo" / "tiny.yaml"), *ON_CPU, *arguments]))


def written(tmp_path, *lines):
    """A recipe with these lines appended to the tiny one."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("\n".join([(RECIPES / "grpo" / "tiny.yaml").read_text(), *lines, ""]))
    return str(recipe)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max_steps: 2.5", r"max_steps is 2\.5 in the recipe, of type float; int is wanted"),
        ("max_steps: [3]", r"max_steps is \[3\] in the recipe, of type list; int is wanted"),
        ("learning_rate: null", "learning_rate is None .*float is wanted"),
        ("video_fps: true", "video_fps is True .*float is wanted"),
        ("freeze_vision_tower: 3", "freeze_vision_tower is 3 .*bool is wanted"),
        ("reward_weights: 1.0", r"reward_weights is 1\.0 .*list\[float\]"),
        ('reward_weights: "1.0"', r"reward_weights is '1\.0' .*list\[float\]"),
        ("reward_weights: [a, b]", r"reward_weights is \['a', 'b'\] .*list\[float\]"),
        ("synthetic: {sizes: 8}", "synthetic has the key 'sizes'; did you mean 'size'"),
        ('synthetic: "{size: 8}"', "synthetic is '{size: 8}', no JSON"),
        ("synthetic: [8]", r"synthetic is \[8\]; a mapping is wanted"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(line, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        parse(["--config", written(tmp_path, line), *ON_CPU])


def test_what_argparse_converts_or_a_field_allows_is_taken(tmp_path):
    lines = ("learning_rate: 5e-4", "reward_weights: [1]", "reward_funcs: accuracy", "video_max_pixels: null")
    lora = ("use_peft: true", "lora_target_modules: all-linear", "resume_from_checkpoint: true")
    script, config, model = parse(["--config", written(tmp_path, *lines, *lora), *ON_CPU])
    assert (config.learning_rate, config.reward_weights, config.video_max_pixels) == (5e-4, [1], None)
    assert script.reward_funcs == ["accuracy"]
    assert model.lora_target_modules == "all-linear"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lora_r: 8", "lora_r is set, but use_peft is not, so that it would do nothing. Set use_peft: true"),
        ("lora_r: 16", "lora_r is set"),  # TRL's default, and still no adapter
        ("use_peft: false\nlora_target_modules: [q_proj]", "lora_target_modules is set"),
        ("use_dora: true", "use_dora is set"),
        ("use_peft: true\nbnb_4bit_quant_type: fp4", "bnb_4bit_quant_type is set, but load_in_4bit is not"),
    ],
)
def test_settings_of_an_adapter_need_an_adapter(line, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        parse(["--config", written(tmp_path, line), *ON_CPU])


def test_settings_of_an_adapter_on_the_command_line_need_one_too():
    with pytest.raises(ValueError, match="lora_r is set, but use_peft is not"):
        parse(["--config", "grpo/tiny", *ON_CPU, "--lora_r", "8"])
    assert parse(["--config", "grpo/tiny", *ON_CPU, "--lora_r", "8", "--use_peft"])[2].lora_r == 8


def test_a_wrong_value_on_the_command_line_is_reported_without_every_key(capsys):
    with pytest.raises(SystemExit):
        parse(["--config", "grpo/tiny", "--max_steps", "abc"])
    said = capsys.readouterr().err
    assert "argument --max_steps/--max-steps: invalid int value: 'abc'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer: grpo\n  model: [", "mine.yaml is no YAML: mapping values"),
        ("", "mine.yaml holds nothing; lines of"),
        ("- grpo\n", "mine.yaml holds a list; lines of"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(text, words, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    for read in (lambda: parse(["--config", str(recipe)]), lambda: settings_of_recipe(str(recipe))):
        with pytest.raises(ValueError, match=words):
            read()


def test_the_recipe_may_follow_an_equals_sign_and_must_follow(tmp_path):
    config = f"--config={written(tmp_path, 'max_steps: 7')}"
    assert parse([config, *ON_CPU])[1].max_steps == 7
    assert parse([config, *ON_CPU, "--hub_revision", ""])[1].hub_revision == ""
    for missing in (["--config"], ["--config="]):
        with pytest.raises(ValueError, match="--config names no recipe"):
            parse(missing)


def test_evaluation_on_the_rows_that_are_trained_on_is_refused(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "?", "solution": "a", "problem_type": "free-form"}\n' * 16)
    arguments = ["--dataset_name", str(rows), "--eval_strategy", "steps"]
    with pytest.raises(ValueError, match="is one file: evaluation would be on the rows that are trained on"):
        build(*parse(["--config", written(tmp_path), *ON_CPU, *arguments]))


@pytest.mark.parametrize("name", ["grpo/tiny", "grpo/tiny.yaml", "recipes/grpo/tiny.yaml"])
def test_shipped_recipes_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_path(name).read_text() == (RECIPES / "grpo" / "tiny.yaml").read_text()
    with pytest.raises(FileNotFoundError, match=r"no recipe grpo/tini.*Did you mean 'grpo/tiny'"):
        recipe_path("grpo/tini")


def test_an_unknown_recipe_key_names_the_nearest(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((RECIPES / "grpo" / "tiny.yaml").read_text() + "\nnum_generation: 4\n")
    with pytest.raises(ValueError, match=r"Unknown key 'num_generation' in the recipe.*Did you mean 'num_generations'"):
        parse(["--config", str(recipe), *ON_CPU])


def test_a_tiny_run_trains_saves_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path / "cache"))
    main(
        [
            *("--config", str(RECIPES / "grpo" / "tiny.yaml"), *ON_CPU),
            *("--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--synthetic", '{"size": 16}'),
            *("--per_device_train_batch_size", "8", "--disable_tqdm", "true", "--reward_funcs", "accuracy,format"),
        ]
    )
    said = capsys.readouterr().out
    assert "GRPOVideoTrainer" in said
    assert "of them visual" in said
    assert "over the first tenth of steps" in said
    assert (tmp_path / "run" / "reward_curve.png").stat().st_size > 10_000
    assert (tmp_path / "run" / "model.safetensors").exists()
    # The saved recipe runs again, under its original name.
    again = str(tmp_path / "run" / "recipe.yaml")
    main(["--config", again, "--max_steps", "1", "--output_dir", str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "run.json").read_text())["recipe"] == "grpo/tiny"
    assert (tmp_path / "again" / "README.md").exists()
    # The folder loads with plain transformers, and answers about an MP4.
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    clip = next((tmp_path / "cache").rglob("*.mp4"))
    answer = ask(model, AutoProcessor.from_pretrained(tmp_path / "run"), str(clip), "What color is scene 1?")
    assert "<answer>" in answer
