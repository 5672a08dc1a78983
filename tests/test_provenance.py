"""The provenance of a run on its card: every setting, and no secret."""

import pytest
import yaml

from trl_perception.provenance import given, origin_of, used_settings, without_token
from trl_perception.recipe import recipe_path
from trl_perception.train import parse


def parsed_of(args):
    script, config, model = parse(args)
    return {**vars(model), **vars(config), **vars(script)}


def test_the_command_line_is_read_as_the_parser_reads_it():
    args = [
        "--config",
        "grpo/tiny",
        "--learning_rate=-1",
        "--reward_funcs",
        "accuracy",
        "format",
        "--no-bf16",
        "--seed",
        "-3",
    ]
    assert given(args) == {
        "learning_rate": ["-1"],
        "reward_funcs": ["accuracy", "format"],
        "no_bf16": [],
        "seed": ["-3"],
    }


def test_the_recipe_as_used_has_the_command_lines_values():
    args = [
        "--config",
        "grpo/tiny",
        "--use_cpu",
        "--learning_rate",
        "1e-3",
        "--save_strategy",
        "no",
        "--no_shared_prefill",
        "--resume_from_checkpoint",  # a rerun of the recipe has none
        "true",
    ]
    used = used_settings(args, recipe_path("grpo/tiny"), parsed_of(args))
    written = yaml.safe_load(recipe_path("grpo/tiny").read_text())
    changed = {"use_cpu": True, "learning_rate": 0.001, "save_strategy": "no", "shared_prefill": False}
    assert used == {**written, **changed}
    assert list(used)[: len(written)] == list(written)


def test_tokens_are_in_neither_recipe_nor_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "s3cret-of-an-enterprise-hub")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        recipe_path("grpo/tiny").read_text()
        + "\nenv: {SOME_API_KEY: key-0123}\nhub_token: hf_abcdefghijklmnopqrstuvwx\n"
        "model_init_kwargs: {token: tok-0123, revision: main}\nrun_name: s3cret-of-an-enterprise-hub\n"
    )
    monkeypatch.setenv("SOME_API_KEY", "")  # the parser sets what `env` names
    args = [
        "--config",
        str(recipe),
        "--use_cpu",
        "true",
        "--hub_token",
        "tok-4567",
        "--hub_model_id",
        "hf_abcdefghijklmnopqrstuvwx",
    ]
    origin = origin_of(args, recipe, parsed_of(args))
    for secret in ("s3cret", "key-0123", "hf_abc", "tok-0123", "tok-4567"):
        assert secret not in origin.recipe + origin.command
    assert "revision: main" in origin.recipe
    assert origin.command.endswith("--hub_token '***' --hub_model_id '***'")


@pytest.mark.parametrize(
    ("dataset", "on_hub"), [("synthetic", False), ("lmms-lab/some-clips", True), ("rows.jsonl", False)]
)
def test_only_data_sets_of_the_hub_are_linked(dataset, on_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}")
    args = ["--config", "grpo/tiny", "--use_cpu", "true", "--dataset_name", dataset]
    origin = origin_of(args, recipe_path("grpo/tiny"), parsed_of(args))
    assert (origin.dataset, origin.on_hub, origin.split) == (dataset, on_hub, "train")
    assert origin.command == f"trl-perception train --config grpo/tiny --use_cpu true --dataset_name {dataset}"


def test_a_text_without_tokens_is_left_alone():
    assert without_token("hf_transfer and hf_xet are packages") == "hf_transfer and hf_xet are packages"
