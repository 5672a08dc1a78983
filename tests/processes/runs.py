"""What the workers run: short trainings whose completions depend only on their prompt and index in the group."""

import gc
import hashlib
import math
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from trl_perception.batch import REPEATED
from trl_perception.objectives import Penalty
from trl_perception.trainers import TRAINERS, NonFiniteError

LENGTHS = (8, 5, 1, 7)  # tokens of a group's completions, in an order that depends on the prompt
LETTERS = range(40, 64)  # token ids of single characters
CONFIG = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
}
TIMES = ("time", "_runtime", "per_second", "epoch", "num_tokens", "total_flos")


class Scripted:
    """Trainer mixin that samples as usual and replaces the samples with scripted completions."""

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        sampled, logprobs = super()._generate_single_turn(
            prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
        )
        written = [script(ids, row % num_generations) for row, ids in enumerate(prompt_ids)]
        left_out = [prompt.left_out and prompt.left_out != REPEATED for prompt in self._rollout.prompts]
        return [was if out else ids for was, out, ids in zip(sampled, left_out, written, strict=True)], logprobs


class Failing(Scripted):
    """In the second step only the last process has a loss that is not finite."""

    def penalty(self, inputs):
        last = self.accelerator.process_index == self.accelerator.num_processes - 1
        bad = last and self.state.global_step == 1
        return Penalty(torch.tensor(math.nan if bad else 0.0, device=self.accelerator.device), {})


class Measured(Scripted):
    """Keeps the penalty's part of the loss on this process and the gradient, for each step.

    All completions but the longest end, so that only the longest ones are truncated.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.added, self.gradients, self._added = [], [], 0.0
        self.add_callback(AtTheStep(self))

    def _generate_single_turn(self, *args, **kwargs):
        completions, logprobs = super()._generate_single_turn(*args, **kwargs)
        end = [self._tokenizer.eos_token_id]
        return [ids if len(ids) == max(LENGTHS) else ids + end for ids in completions], logprobs

    def penalty(self, inputs):
        penalty = super().penalty(inputs)
        self._added += penalty.loss.item() / self.current_gradient_accumulation_steps
        return penalty


class AtTheStep(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        trainer = self.trainer
        trainer.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        trainer.added.append(trainer._added)
        trainer._added = 0.0


def script(prompt_ids: list[int], index: int) -> list[int]:
    digest = hashlib.sha256(repr(prompt_ids).encode()).digest()
    length = LENGTHS[(digest[0] + index) % len(LENGTHS)]
    generator = torch.Generator().manual_seed(int.from_bytes(digest[1:7], "big") + index)
    return [LETTERS[i] for i in torch.randint(len(LETTERS), (length,), generator=generator).tolist()]


def variety(prompts, completions, **columns):
    """The number of different letters, or the same value for all if the prompt contains "flat"."""
    texts = [completion[0]["content"] for completion in completions]
    return [
        0.0 if "flat" in str(prompt) else float(len(set(text))) for prompt, text in zip(prompts, texts, strict=True)
    ]


def accuracy_reward(prompts, completions, **columns):
    """Half of the completions, by their text; none if the prompt contains "flat"."""
    texts = [completion[0]["content"] for completion in completions]
    return [float("flat" not in str(p) and sum(map(ord, t)) % 2) for p, t in zip(prompts, texts, strict=True)]


def trained(folder: Path, job: dict, run: dict) -> dict:
    """The log of a trainer, without times."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=job["patience"]))
    method = TRAINERS[run["trainer"]]
    config = {
        **CONFIG,
        "output_dir": str(folder / run["name"]),
        "use_cpu": True,
        **run.get("config", {}),
    }
    args, kwargs = method.config_class(**config), {}
    be_what_the_job_says(job)
    if "lora" in run:
        from peft import LoraConfig

        kwargs["peft_config"] = LoraConfig(**run["lora"])
    conduct = {"fails": Failing, "measured": Measured}.get(run.get("conduct"), Scripted)
    trainer = type(f"{conduct.__name__}{method.__name__}", (conduct, method), {})(
        model=run.get("model", "tiny"),
        reward_funcs=[accuracy_reward, variety],
        args=args,
        train_dataset=Dataset.from_list(run["rows"]),
        eval_dataset=Dataset.from_list(run["eval_rows"]) if "eval_rows" in run else None,
        **kwargs,
    )
    if run.get("scheduled") is False:  # the control: each process runs its own forwards, independent of the others
        trainer._collectives.active = False
    gc.freeze()  # keep imported objects out of the trainer's full garbage collections
    trainer.train(resume_from_checkpoint=run.get("resume"))
    gc.unfreeze()
    kind, held = trainer.accelerator.distributed_type.value, share_of_parameters(trainer.model)
    logged = [{k: v for k, v in entry.items() if not any(t in k for t in TIMES)} for entry in trainer.state.log_history]
    print(f"{run['name']}: {len(logged)} entries", flush=True)
    weights = sum(part.double().abs().sum().item() for part in own_parts(trainer.model))
    if run.get("conduct") == "measured":
        torch.save(trainer.gradients, folder / f"{run['name']}-gradients.pt")  # the same on every process
    added = getattr(trainer, "added", None)
    return {"logged": logged, "as": kind, "held": held, "weights": weights, "added": added}


def be_what_the_job_says(job: dict) -> None:
    """accelerate silently skips FSDP on a CPU; if the job asks for it, pretend that the CPU supports it."""
    state = PartialState()
    if job.get("sharding") == "fsdp2" and state.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def own_parts(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The part of each parameter that this process holds between forwards."""
    for parameter in model.parameters():
        if hasattr(parameter, "ds_tensor"):
            yield parameter.ds_tensor.detach()
        else:
            yield (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()


def share_of_parameters(model: torch.nn.Module) -> float:
    """Share of the model that this process holds between forwards, in [0, 1]."""
    whole = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    return sum(part.numel() for part in own_parts(model)) / whole


def refused(folder: Path, job: dict, run: dict) -> str:
    """The trainer's error instead of training."""
    try:
        trained(folder, job, run)
    except ValueError as error:
        return str(error)
    return ""


def stopped(folder: Path, job: dict, run: dict) -> dict:
    """The trainer's error for a loss that is not finite, and the weights after it."""
    try:
        trained(folder, job, run)
    except NonFiniteError as error:
        torch.distributed.barrier()  # the first process writes the weights
        return {
            "said": str(error),
            "weights": sorted(path.name for path in (error.folder / "weights").glob("*.safetensors")),
        }
    return {"said": "", "weights": []}
