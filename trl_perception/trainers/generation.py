"""Rollouts: TRL's generation and rewards, on prompts whose media are prepared here, once each."""

import warnings
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from trl import GRPOTrainer

from ..batch import REPEATED, Rollout, unprepared
from ..data.columns import undecoded_videos
from ..media import MEDIA_COLUMNS, PreparedPrompt
from ..modeling import encode, gather_parameters, prefill_once
from .refusals import refuse_media_lost

logger = get_logger(__name__)


class Sampling(GRPOTrainer):
    """TRL's rollout for [`GRPOVideoTrainer`], which has the preparer, the forwards and `_seeing`."""

    keeps_pixels = False
    # Prompts that training drew, those of them that were left out, over all processes, and why the first one was.
    _drawn = 0
    _left_out = 0
    _why_left_out: str | None = None

    def _require_rows_used(self, *, at_the_end: bool = False) -> None:
        """Stop a run that leaves out every row: after an epoch of them, or at its end.

        Errors: ValueError with the first reason.
        """
        enough = at_the_end or (hasattr(self.train_dataset, "__len__") and self._drawn >= len(self.train_dataset))
        if enough and self._drawn and self._drawn == self._left_out:
            raise ValueError(
                f"All {self._drawn} prompts that were drawn were left out (on_bad_media='skip'), so that nothing was trained. The "
                f"first: {self._why_left_out or 'see the other processes'}. Correct the data, or raise the limit that it names."
            )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """A stream's prompts come once for each completion, as in evaluations; transformers hands them on one by one."""
        if isinstance(test_dataset, IterableDataset):
            return self.get_eval_dataloader(test_dataset)
        return super().get_test_dataloader(undecoded_videos(test_dataset))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._metrics["eval"].clear()  # of a prediction, which logs none, or of an evaluation that stopped
        return super().evaluation_loop(*args, **kwargs)

    def _sample(self, inputs: list[dict[str, Any]]) -> tuple[Rollout, dict[str, Any]]:
        self._rollout = rollout = self._prepare_rollout(inputs)
        with self._seeing([prompt.visual for prompt in rollout.prompts]):
            output = super()._generate_and_score_completions(rollout.trl_rows if self._prepares_prompts else inputs)
        self._rollout = None
        return rollout, output

    def _prepare_rollout(self, inputs: list[dict[str, Any]]) -> Rollout:
        """Prepare each distinct prompt once; the rows of a group share the result."""
        device = self.accelerator.device
        if not self._prepares_prompts:
            refuse_media_lost(inputs, self.processing_class)
            return Rollout(inputs, [unprepared(row) for row in inputs], torch.zeros(len(inputs), device=device))
        repeats = self.num_generations if self.model.training else self.num_generations_eval
        step = repeats if len(inputs) % repeats == 0 else 1
        prompts = [p.to(device) for p in self._prompt_preparer(inputs[::step], on_unusable=self.args.on_bad_media)]
        if self._reuses_features:
            with self.accelerator.autocast():
                prompts = [
                    replace(prompt, visual=encode(self.model, prompt.visual, keep_pixels=self.keeps_pixels))
                    for prompt in prompts
                ]
        for prompt in prompts:
            if prompt.left_out:
                warnings.warn(f"Left out (on_bad_media='skip'): {prompt.left_out}", stacklevel=2)
        prompts = [prompt for prompt in prompts for _ in range(step)]
        left_out = self._over_processes(*(float(bool(prompt.left_out)) for prompt in prompts))
        self._metrics[self._mode]["media/skipped"].append(left_out.sum().item() / repeats)
        if self.model.training:
            self._drawn, self._left_out = (
                self._drawn + len(left_out) // repeats,
                self._left_out + left_out.sum().item() // repeats,
            )
            self._why_left_out = self._why_left_out or next((p.left_out for p in prompts if p.left_out), None)
            self._require_rows_used()
        if not self.model.training and (counted := self._rows_that_count(len(prompts))) is not None:
            prompts[counted:] = [replace(prompt, left_out=REPEATED) for prompt in prompts[counted:]]
            left_out = self._over_processes(*(float(bool(prompt.left_out)) for prompt in prompts))
        return Rollout(inputs, prompts, left_out)

    def _rows_that_count(self, rows: int) -> int | None:
        """How many of this process's rows in an evaluation's last batch are not repetitions; None in every other batch.

        Where the rows do not divide by the processes, accelerate fills the last batches with the first rows once more.
        """
        state, processes = self.accelerator.gradient_state, self.accelerator.num_processes
        if processes == 1 or not state.end_of_dataloader:
            return None
        dataset = state.active_dataloader.dataset
        if not isinstance(dataset, Dataset):  # a stream, whose length nobody knows
            return None
        in_last = len(dataset) * self.num_generations_eval % (rows * processes)
        if not in_last:
            return None
        return min(max(in_last - rows * self.accelerator.process_index, 0), rows)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple:
        """TRL's, with the loss of the batch on all processes: which part has the rows that count differs."""
        loss, *others = super().prediction_step(*args, **kwargs)
        return self.accelerator.gather(loss).mean(), *others

    def _tokenize_prompts(self, prompts: list) -> tuple[list, list | None, dict[str, Any]]:
        if not self._prepares_prompts:
            return super()._tokenize_prompts(prompts)
        return [prompt.input_ids for prompt in self._rollout.prompts], None, {}

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        shares = self._prefills and _are_groups(prompt_ids, num_generations)
        with ExitStack() as stack:
            if not self.use_vllm:
                stack.enter_context(gather_parameters(self.model))
            for tower in self._tower_runs:
                stack.enter_context(tower.pause())
            if self._prepares_prompts or shares:
                repeats = num_generations if shares else 1
                stack.enter_context(prefill_once(self.model, self._visual_inputs, repeats))
            completion_ids, logprobs = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
            )
        for row, prompt in enumerate(self._rollout.prompts):
            if prompt.left_out and prompt.left_out != REPEATED:
                completion_ids[row] = [self._tokenizer.eos_token_id]
                if logprobs is not None:
                    logprobs[row] = [0.0]
        return completion_ids, logprobs

    def _generate(self, prompts: list) -> tuple:
        generated = super()._generate(prompts)
        repeats = self.num_generations if self.model.training else self.num_generations_eval
        batch = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        self._forwards.select(generated[0], generated[1], min(repeats, batch), self.accelerator)
        if not self._prepares_prompts:
            return generated
        prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, _, tool_images = generated
        if any(prompt.left_out for prompt in self._rollout.prompts):
            # TRL's own mask for tokens that the policy is not trained on.
            pairs = zip(completion_ids, self._rollout.prompts, strict=True)
            tool_mask = [[0 if prompt.left_out else 1] * len(ids) for ids, prompt in pairs]
        # Without images TRL makes no visual inputs of its own: ours are in place for every forward.
        return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, None, tool_images

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        rollout = self._rollout
        if self._prepares_prompts:
            inputs, prompts = rollout.rows, [_for_rewards(prompt) for prompt in rollout.prompts]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._prepares_prompts:
            rewards[rollout.left_out.bool()] = torch.nan
            self._log_frames(rollout)
        unscored = rewards.isnan().all(dim=1) & ~rollout.left_out.bool()
        if unscored.any() and self.reward_funcs:
            raise ValueError(
                f"Every reward function ({', '.join(self.reward_func_names)}) returned None for "
                f"{int(unscored.sum())} of {len(rewards)} completions. At least one must apply to each row: check the "
                "rows' problem_type, or add a reward that applies to all."
            )
        start = self.accelerator.process_index * len(prompts)
        rollout.rewards_per_func = rewards[start : start + len(prompts)]
        return rewards

    def _over_processes(self, *values: float) -> Tensor:
        return self.accelerator.gather(torch.tensor(values, device=self.accelerator.device))


def _are_groups(prompt_ids: list, size: int) -> bool:
    """Whether every `size` neighbours are one prompt; an environment may write another for each of them."""
    firsts = [prompt_ids[index - index % size] for index in range(len(prompt_ids))]
    return len(prompt_ids) % size == 0 and prompt_ids == firsts


def _for_rewards(prompt: PreparedPrompt) -> Any:
    """A prompt as rewards get it: media in place; strings of a data set without media as they were given, as in TRL."""
    given = prompt.row["prompt"]
    if prompt.left_out or isinstance(given, str) or any(column in prompt.row for column in MEDIA_COLUMNS):
        return prompt.messages
    return prompt.messages if any(isinstance(message.get("content"), list) for message in given if message) else given
