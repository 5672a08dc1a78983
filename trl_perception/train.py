"""Train from a recipe: `accelerate launch -m trl_perception.train --config recipes/grpo/tiny.yaml`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from datasets import Dataset
from transformers import ProgressCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig, ModelConfig, TrlParser

from .assets import model_path
from .assets.checkpoint import base_of
from .callbacks.checkpoints import disk_full_guard
from .callbacks.zero_reward import ZERO_REWARD
from .cli.errors import Parser, one_line
from .data.load import load_rows, synthetic_options
from .data.templates import TEMPLATES, get_template
from .hub import UploadError, make_repository, merge_adapter, publish
from .modeling.adapters import adapter_of, require_mergeable
from .modeling.quantization import describe_quantised, quantization_of
from .planning import plan_recipe, world_of
from .provenance import origin_of
from .recipe import (
    RECIPE_OF_RUN,
    config_apart,
    given,
    read_recipe,
    recipe_path,
    require_in_use,
    require_known,
    require_trainer,
    require_types,
    trainer_name,
)
from .reports import reward_curve, reward_gain
from .reports.html import write_report
from .reports.run import reward_stayed_zero
from .rewards import get_reward
from .rewards.registry import split_names
from .trainers import TRAINERS, GRPOVideoTrainer


@dataclass
class TrainArguments:
    """
    Settings of data and rewards; all others are fields of the trainer's configuration or of TRL's `ModelConfig`.

    Parameters:
        trainer (`str`, *optional*, defaults to `"grpo"`):
            Name of the trainer, which determines the configuration class.
        dataset_name (`str`):
            `"synthetic"`, a local JSON, JSONL or parquet file or folder, or a data set on the Hub.
        dataset_config (`str`, *optional*):
            Configuration name of a Hub data set.
        dataset_train_split, dataset_test_split (`str`):
            Names of the splits. The second is read only when evaluation is on.
        dataset_limit (`int`, *optional*):
            Train on the first rows only.
        synthetic (`dict`, *optional*):
            Arguments of `make_synthetic_dataset`, for `dataset_name: synthetic`.
        prompt_template (`str`, *optional*, defaults to `"none"`):
            What follows every question: `think_answer`, `answer_only`, `boxed`, `video_r1`, `video_r1_answer_only`, or one of
            `reason_answer`, `reason_boxed`, `video_r1_reason`, which ask for `<reason>` tags instead of `<think>`.
        reward_funcs (`list[str]`):
            Reward functions, by name or dotted path, with parameters as in `"length_window(low=320, high=512)"`, as a list or
            with commas between them; their weights are `reward_weights`.
        merge_adapter (`bool`, *optional*, defaults to `False`):
            With `use_peft`: whether the run ends with merged weights in the output folder and the adapter in `adapter/`.
    """

    trainer: str = field(default="grpo", metadata={"help": f"One of {', '.join(TRAINERS)}."})
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "'synthetic', a local JSON, JSONL or parquet file or folder, or a Hub data set."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on, where evaluation is on."})
    dataset_limit: int | None = field(default=None, metadata={"help": "Train on the first rows only."})
    synthetic: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of make_synthetic_dataset, as a mapping or JSON."}
    )
    prompt_template: str = field(
        default="none", metadata={"help": f"What follows every question: one of {', '.join(TEMPLATES)}."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Reward functions, by name or dotted path, a list or a,b; weights are reward_weights."},
    )
    merge_adapter: bool = field(
        default=False,
        metadata={"help": "With use_peft: end with merged weights in the output folder, the adapter in adapter/."},
    )

    def __post_init__(self):
        self.synthetic = synthetic_options(self.synthetic)
        self.reward_funcs = split_names(self.reward_funcs or ())
        if not self.dataset_name:
            raise ValueError("No dataset. Set dataset_name: 'synthetic', a local file or folder, or a Hub data set.")
        if not self.reward_funcs:
            raise ValueError("No reward. Set reward_funcs, for example [accuracy, format].")
        get_template(self.prompt_template)


class _Parser(TrlParser):
    """TRL's parser with one-line errors."""

    error = Parser.error


class RewardProgress(ProgressCallback):
    """The progress bar with the reward beside it, instead of a line for every logged dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs and logs.get("reward") is not None:
            self.training_bar.set_postfix(reward=f"{logs['reward']:.3f}", refresh=False)


def parse(args: Sequence[str] | None = None) -> tuple[TrainArguments, GRPOConfig, ModelConfig]:
    """Parse the arguments of a run from `--config recipe.yaml` and the command line, which overrides the recipe.

    Errors: ValueError for an unknown trainer or key, with the nearest known name, for a recipe that is not a YAML
        mapping, and for a value of the wrong type.
    """
    args = config_apart(sys.argv[1:] if args is None else args)
    recipe = {}
    if "--config" in args:
        at = args.index("--config") + 1
        args[at] = str(recipe_path(args[at]))
        recipe = read_recipe(args[at])
    name = trainer_name(args, recipe)
    require_trainer(name, TRAINERS)
    types = (TrainArguments, TRAINERS[name].config_class, ModelConfig)
    require_known(recipe, given(args).keys() - {"help"}, {f.name for of_type in types for f in fields(of_type)}, name)
    for of_type in types:
        require_types(recipe, get_type_hints(of_type), {f.name: f.default for f in fields(of_type)})
    parser = _Parser(
        types,
        prog="trl-perception train",
        usage="%(prog)s --config RECIPE [--KEY VALUE ...]",
        description="RECIPE is a YAML file, or one that ships with the package, such as grpo/tiny. Its keys are these:",
        allow_abbrev=False,
    )
    *parsed, from_recipe, from_command = parser.parse_args_and_config(
        args, return_remaining_strings=True, separate_remaining_strings=True
    )
    for origin, strings in (("recipe", from_recipe), ("command line", from_command)):
        if strings:
            raise ValueError(f"The {origin} has stray values {strings}; every value follows a --key.")
    model = parsed[2]
    require_in_use([*recipe, *given(args)], {"use_peft": model.use_peft, "load_in_4bit": model.load_in_4bit})
    return tuple(parsed)


def build(
    script: TrainArguments, config: GRPOConfig, model: ModelConfig, trainer: type[GRPOVideoTrainer] | None = None
) -> GRPOVideoTrainer:
    """Build the trainer of a recipe, or a subclass of it. Errors: ValueError for a class with another configuration."""
    trainer = trainer or TRAINERS[script.trainer]
    if trainer.config_class is not type(config):
        raise ValueError(
            f"{trainer.__name__} has the configuration {trainer.config_class.__name__}, and the trainer {script.trainer!r} of the "
            f"recipe {type(config).__name__}. Set the recipe's trainer to the method that {trainer.__name__} extends."
        )
    if script.merge_adapter and not model.use_peft:
        raise ValueError("merge_adapter is set, but no adapter is trained. Set use_peft: true, or unset merge_adapter.")
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(config.model_init_kwargs or {}),
    }
    if not model.model_name_or_path:
        raise ValueError("No model. Set model_name_or_path: 'tiny', a path, or a model on the Hub.")
    path = model_path(model.model_name_or_path)
    if base_of(path)[1] is not None:
        raise ValueError(
            f"{path} holds an adapter, and training begins from whole weights. Set model_name_or_path to the merged model of that "
            "run (merge_adapter: true), or resume_from_checkpoint to one of its checkpoints."
        )
    rows, eval_rows = train_rows(script), None
    if config.eval_strategy != "no":
        if Path(script.dataset_name).expanduser().is_file():
            raise ValueError(
                f"eval_strategy is on, and {script.dataset_name} is one file: evaluation would be on the rows that are trained "
                "on. Give dataset_name a folder with two splits, or leave eval_strategy out."
            )
        eval_rows = _rows(script, script.dataset_test_split)
    built = trainer(
        model=path,
        reward_funcs=[get_reward(name) for name in script.reward_funcs],
        args=config,
        train_dataset=rows,
        eval_dataset=eval_rows,
        quantization_config=quantization_of(replace(model, model_name_or_path=path)),
        peft_config=adapter_of(model),
    )
    if script.merge_adapter:
        require_mergeable(built.model)
    if script.merge_adapter and is_deepspeed_zero3_enabled():
        raise ValueError(
            "merge_adapter is set under ZeRO-3, which would split the base model again while one process merges. Set "
            "zero_stage to 2, or unset merge_adapter and merge afterwards with peft."
        )
    if built.pop_callback(ProgressCallback):
        built.add_callback(RewardProgress)
    return built


def train_rows(script: TrainArguments) -> Dataset:
    """Load the training rows of a recipe."""
    rows = _rows(script, script.dataset_train_split)
    return rows if script.dataset_limit is None else rows.select(range(min(script.dataset_limit, len(rows))))


def _rows(script: TrainArguments, split: str) -> Dataset:
    return load_rows(
        script.dataset_name,
        split,
        config=script.dataset_config,
        synthetic=script.synthetic,
        prompt_template=script.prompt_template,
    )


def main(
    args: Sequence[str] | None = None,
    *,
    trainer_class: type[GRPOVideoTrainer] | None = None,
    prepare: Callable[[GRPOVideoTrainer], object] | None = None,
) -> None:
    """Train, save, and print a summary.

    Args:
        trainer_class: a subclass of the recipe's trainer, in place of it.
        prepare: called with the trainer before it trains, for example to add a callback.
    Errors: SystemExit with one message if the run cannot be uploaded to the Hub: at the start if no repository can be
        created, or at the end, after everything is saved, if the upload fails.
    """
    with one_line("trl-perception train"):
        args = config_apart(sys.argv[1:] if args is None else args)
        script, config, model = parse(args)
        recipe = recipe_path(args[args.index("--config") + 1]) if "--config" in args else None
    origin = origin_of(args, recipe, {**vars(model), **vars(config), **vars(script)})
    if config.push_to_hub and config.process_index == 0:
        try:
            name = config.hub_model_id or Path(config.output_dir).resolve().name
            make_repository(name, token=config.hub_token, private=config.hub_private_repo)
        except UploadError as error:
            raise SystemExit(str(error)) from error
    with one_line("trl-perception train"):
        trainer = build(script, config, model, trainer_class)
        trainer.origin = origin
        if prepare is not None:
            prepare(trainer)
        trainer.claim_output_dir(config.resume_from_checkpoint)
    say = trainer.accelerator.print
    say(_before(trainer, script, model))
    folder, failed = Path(config.output_dir), None
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE_OF_RUN).write_text(origin.recipe)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    with disk_full_guard(folder, "The trained model", "Make room, then resume_from_checkpoint: true saves it again."):
        trainer.save_model(config.output_dir, _internal_call=True)  # otherwise it would be pushed before it is complete
        trainer.save_state()  # the log, for the report
    trainer.accelerator.wait_for_everyone()  # every process has written its records
    if trainer.is_world_process_zero():
        if script.merge_adapter:
            base = model_path(model.model_name_or_path)
            merge_adapter(
                folder,
                base,
                revision=model.model_revision,
                dtype=model.dtype,
                trust_remote_code=config.trust_remote_code,
            )
        curve = reward_curve(trainer.state.log_history, folder / "reward_curve.png")
        report = write_report(folder) if config.report_every else None
        learned = not reward_stayed_zero(trainer.state.log_history)
        if learned:
            trainer.create_model_card(model_name=(trainer.hub_model_id or folder.resolve().name).split("/")[-1])
        say(_after(trainer, curve, report))
        if not learned:
            say(f"\nWARNING  {ZERO_REWARD} No model card is written, and nothing is pushed.")
        if config.push_to_hub and learned:
            try:
                url = publish(
                    folder,
                    trainer.hub_model_id,
                    token=config.hub_token,
                    private=config.hub_private_repo,
                    revision=config.hub_revision,
                )
                say(f"  pushed  {url}")
            except UploadError as error:
                failed = error
    trainer.end()
    if failed is not None:
        raise SystemExit(str(failed)) from failed


def _before(trainer: GRPOVideoTrainer, script: TrainArguments, model: ModelConfig) -> str:
    config = trainer.args
    lines = {
        "trainer": f"{type(trainer).__name__}, loss {config.loss_type}, {config.num_generations} completions a prompt",
        "model": "; ".join(filter(None, (model.model_name_or_path, describe_quantised(trainer.model)))),
        "data": f"{script.dataset_name}: {len(trainer.train_dataset):,} rows",
        "rewards": ", ".join(
            f"{weight:g} {name}" for name, weight in zip(trainer.reward_func_names, trainer.reward_weights, strict=True)
        ),
    }
    plan = plan_recipe(
        config,
        model,
        world=world_of(trainer.accelerator),
        rows=trainer.train_dataset,
        preparer=trainer.prompt_preparer,
        device=trainer.accelerator.device.type,
    )
    return "\n".join([*(f"{name:>10}  {text}" for name, text in lines.items()), plan.as_text()])


def _after(trainer: GRPOVideoTrainer, curve: Path | None, report: Path | None) -> str:
    lines = []
    gain = reward_gain(trainer.state.log_history)
    if gain:
        before, after = gain
        lines.append(
            f"  reward  {before:.3f} over the first tenth of steps, {after:.3f} over the last ({after - before:+.3f})"
        )
    lines.append(f"   saved  {trainer.args.output_dir}")
    if curve:
        lines.append(f"   curve  {curve}")
    if report:
        lines.append(f"  report  {report}: opens in a browser, loads nothing")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
