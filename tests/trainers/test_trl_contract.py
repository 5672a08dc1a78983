"""Every private name of TRL that the base trainer uses, with the signature it was written against."""

import inspect
from pathlib import Path

import pytest
import torch
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import RepeatSampler

import trl_perception
from trl_perception.trainers import TRAINERS, GRPOVideoTrainer

SIGNATURES = {
    "_prepare_inputs": "(self, generation_batch: dict[str, torch.Tensor | typing.Any]) -> "
    "dict[str, torch.Tensor | typing.Any]",
    "_generate_and_score_completions": "(self, inputs: list[dict[str, torch.Tensor | typing.Any]]) -> "
    "dict[str, torch.Tensor | typing.Any]",
    "_tokenize_prompts": "(self, prompts: list)",
    "_generate_single_turn": "(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False)",
    "_generate": "(self, prompts: list)",
    "_calculate_rewards": "(self, inputs, prompts, completions, completion_ids_list)",
    "_log_metric": "(self, name: str, value: float)",
    "_compute_loss": "(self, model, inputs)",
    "_get_per_token_logps_and_entropies": "(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, "
    "compute_entropy=False, compute_aux_loss=False, pixel_values=None, image_grid_thw=None, num_images=None, "
    "pixel_attention_mask=None, spatial_shapes=None, num_tiles=None, image_sizes=None, token_type_ids=None, "
    "mm_token_type_ids=None, image_position_ids=None) -> "
    "tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]",
    "_set_signature_columns_if_needed": "(self)",
    "training_step": "(self, model, inputs, num_items_in_batch)",
    "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
    "create_model_card": "(self, model_name: str | None = None, dataset_name: str | None = None, "
    "tags: str | list[str] | None = None)",
    "train": "(self, resume_from_checkpoint: str | bool | None = None, trial: 'optuna.Trial | dict[str, Any] | None' = None, "
    "ignore_keys_for_eval: list[str] | None = None) -> transformers.trainer_utils.TrainOutput",
    "get_batch_samples": "(self, epoch_iterator: collections.abc.Iterator, num_batches: int, device: torch.device) -> "
    "tuple[list, torch.Tensor | int | None]",
    "_save_checkpoint": "(self, model, trial)",
    "_get_output_dir": "(self, trial: 'optuna.Trial | dict[str, Any] | None') -> str",
    "_push_from_checkpoint": "(self, checkpoint_folder: str) -> None",
    "_load_from_checkpoint": "(self, resume_from_checkpoint: str, model: torch.nn.modules.module.Module | None = None) -> None",
    "_load_best_model": "(self) -> None",
    "_run_epoch": "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
    "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)",
    "save_model": "(self, output_dir: str | None = None, _internal_call: bool = False) -> None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_private_method_is_the_one_we_override(name):
    assert str(inspect.signature(getattr(GRPOTrainer, name))) == SIGNATURES[name]


# Of TRL's generation by vLLM, which `trl_perception.engine` overrides, and the two names that it replaces.
GENERATION = {
    "_init_vllm": "(self)",
    "_iter_named_params": "(self)",
    "sync_weights": "(self)",
    "generate": "(self, prompts: list[list[int]], images: list[list | None] | None, num_generations: int, "
    "profiler: trl.extras.profiling.ProfilingContext | None = None) -> tuple",
}


@pytest.mark.parametrize("name", GENERATION)
def test_a_method_of_generation_by_vllm_is_the_one_we_override(name):
    assert str(inspect.signature(getattr(grpo_trainer.VLLMGeneration, name))) == GENERATION[name]
    assert "LLM(\n" in inspect.getsource(grpo_trainer.VLLMGeneration._init_vllm)


@pytest.mark.parametrize(
    "name",
    ["training_step", "compute_loss", "_compute_loss", "_get_per_token_logps_and_entropies", "create_model_card"],
)
def test_an_override_stands_in_one_place(name):
    ours = [cls for cls in GRPOVideoTrainer.__mro__ if cls.__module__.startswith("trl_perception.")]
    assert [cls for cls in ours if name in vars(cls)] == [GRPOVideoTrainer]


def test_private_attributes_are_set_where_we_read_them():
    source = inspect.getsource(GRPOTrainer)
    for name in (
        "self._buffered_inputs = ",
        "self._step = 0",
        "self._metrics = ",
        "self._logs = ",
        'self._logs["prompt"]',
        "self._tokenizer = ",
        "self.generation_kwargs = generation_kwargs",
        "self.generation_config = GenerationConfig(",
        "self.reward_func_names = []",
        "self.environment_factories = ",
        "self.rollout_func = rollout_func",
        "self.num_generations_eval = ",
        "self.chat_template_kwargs = ",
        "self.log_multimodal = ",
        "self._pending_metrics = defaultdict(list)",
        "self._pending_extra_logs = defaultdict(list)",
    ):
        assert name in source, name


def test_gradients_are_whole_between_training_step_and_clipping():
    source = inspect.getsource(Trainer._run_epoch)
    order = ("self.training_step(", "self._clip_grad_norm(", "self._get_grad_norm(", "self.optimizer.step()")
    places = [source.index(name) for name in order]
    assert places == sorted(places)


def test_callbacks_see_a_log_before_trl_writes_its_table():
    """RolloutTracker.on_log rewrites prompts that the table then shows."""
    source = inspect.getsource(GRPOTrainer.log)
    assert source.index("super().log(") < source.index('self._logs["prompt"]')
    assert "self.callback_handler.on_log(" in inspect.getsource(Trainer.log)


def test_what_transformers_keeps_between_steps_has_the_names_we_restore():
    source = inspect.getsource(Trainer)
    for name in (
        "self._tr_loss = ",
        "self._total_loss_scalar = ",
        "self._globalstep_last_logged = ",
        "epochs_trained=epochs_trained,",
        "train_dataloader=train_dataloader,",
        "resume_from_checkpoint=resume_from_checkpoint,",
    ):
        assert name in source, name
    assert {"num_samples", "shuffle", "generator"} <= vars(RepeatSampler(range(4), 1, seed=0)).keys()
    signature = "(output_dir: str, save_total_limit: int | None = None, best_model_checkpoint: str | None = None, "
    signature += "use_mtime: bool = False, checkpoint_prefix: str = 'checkpoint') -> None"
    assert str(inspect.signature(rotate_checkpoints)) == signature


def test_a_checkpoint_is_pushed_in_one_place():
    """Our override of `_push_from_checkpoint` does nothing, as our `_save_checkpoint` pushes what is complete."""
    sources = [inspect.getsource(cls) for cls in (Trainer, GRPOTrainer)]
    assert sum(source.count("._push_from_checkpoint(") for source in sources) == 1
    assert "self._push_from_checkpoint(output_dir)" in inspect.getsource(Trainer._save_checkpoint)


class Recording(dict):
    """A batch that keeps the names that are read, in their order."""

    def __init__(self, *args, order):
        super().__init__(*args)
        self.order = order

    def __getitem__(self, name):
        self.order.append(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.order.append(name)
        return super().get(name, default)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo"])
def test_trls_loss_takes_the_scores_that_it_is_given(rows, make_trainer, monkeypatch, loss_type):
    """`_compute_loss` passes scores in the model's place. This breaks if TRL's loss does not compute scores exactly once, with
    that object, and before it reads the advantages; or if it uses the object for anything else, which then has no such
    attribute.
    """
    trainer = make_trainer(rows["text"], max_steps=1, loss_type=loss_type)
    batch, order = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))), []
    scores = trainer._scores_of_update(trainer.model, batch, {})
    monkeypatch.setattr(
        trainer, "_get_per_token_logps_and_entropies", lambda model, *args, **kwargs: order.append(model) or scores
    )
    trainer.current_gradient_accumulation_steps = 1
    given = Recording(batch, order=order)
    loss = GRPOTrainer._compute_loss(trainer, scores, given)
    assert [entry for entry in order if entry is scores] == [scores]
    assert next(place for place, entry in enumerate(order) if entry is scores) < order.index("advantages")
    (weight,) = torch.autograd.grad(loss, scores.logps)
    assert weight.abs().sum() > 0


def test_the_trainer_has_one_parent_and_each_override_one_place():
    assert GRPOVideoTrainer.__bases__ == (GRPOTrainer,)
    theirs = {name for name, value in vars(GRPOTrainer).items() if inspect.isfunction(value)}
    theirs |= {name for name, value in vars(Trainer).items() if inspect.isfunction(value)}
    for trainer in {*TRAINERS.values()} - {GRPOVideoTrainer}:
        assert trainer.__bases__ == (GRPOVideoTrainer,)
        assert not theirs & vars(trainer).keys() - {"__init__"}


def test_signatures_are_shown():
    for trainer in TRAINERS.values():
        parameters = inspect.signature(trainer).parameters
        assert {"model", "reward_funcs", "args", "train_dataset", "peft_config"} <= parameters.keys()
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def test_trainers_and_callbacks_stay_small():
    folders = (Path(trl_perception.__file__).parent / name for name in ("trainers", "callbacks"))
    files = {file: len(file.read_text().splitlines()) for folder in folders for file in folder.rglob("*.py")}
    compared = {
        method: [file for file in files if file.name in (f"{method}_trainer.py", f"{method}_config.py")]
        for method in ("papo", "t_grpo", "tw_grpo", "vppo")  # each has an allowance of its own
    }
    for method, pair in compared.items():
        assert len(pair) == 2
        assert sum(files.pop(file) for file in pair) <= 150, method
    assert sum(files.values()) <= 4500


def test_config_fields_that_decide_how_groups_are_cut():
    names = GRPOConfig.__dataclass_fields__
    assert {"steps_per_generation", "num_generations", "num_generations_eval", "num_iterations"} <= set(names)
