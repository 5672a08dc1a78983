"""A model of which each process holds a share: what makes every process come to the same collectives, and what is refused."""

import torch
from accelerate.utils import is_peft_model
from torch import nn
from trl import GRPOTrainer

from ..modeling import Head, OneTowerRun, base_model, keep_lm_head_unsharded, paused
from ..modeling.activation_checkpointing import without_checkpointing
from ..modeling.vision import VISION_FAMILIES
from .distributed import CollectiveScheduler


class Sharding(GRPOTrainer):
    """[`GRPOVideoTrainer`]'s conduct among several processes. In one, and with plain DDP, nothing is added."""

    def setup_distributed(self) -> None:
        """To be called when the models of the run are there."""
        self._collectives = CollectiveScheduler(self.accelerator, self._shards_parameters, self._empty_forward)
        self._tower_runs: list[OneTowerRun] = []
        if self.accelerator.num_processes == 1:
            return
        self._refuse_what_would_hang()
        self._share_with_the_others(self.model)
        if self.is_fsdp_enabled:
            keep_lm_head_unsharded(self.model)
        if self.ref_model is not None:
            self._share_with_the_others(self.ref_model)

    def _share_with_the_others(self, model: nn.Module) -> None:
        """A model that is placed as the policy is: every process runs its forwards together with the others."""
        self._collectives.share(model)
        if self.accelerator.num_processes > 1 and self._waits_for_every_gradient and _has_tower(model):
            self._tower_runs.append(OneTowerRun(model))

    def head_of(self, model: nn.Module) -> Head:
        """The language-model head of the policy or another model of the run, as it is now, for [`token_weights`]."""
        return self._collectives.head_of(model)

    @property
    def _shards_parameters(self) -> bool:
        return self.is_fsdp_enabled or self._zero_stage == 3

    @property
    def _zero_stage(self) -> int:
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return 0 if plugin is None else plugin.zero_stage

    @property
    def _waits_for_every_gradient(self) -> bool:
        """Whether a process without media would leave the others waiting for its tower's gradients or parameters."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled or not self.args.ddp_find_unused_parameters

    def _refuse_what_would_hang(self) -> None:
        """Errors: ValueError naming the setting, before anything is sampled."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return
        family = base_model(self.model).config.model_type
        if self._is_vlm and family not in VISION_FAMILIES:
            raise ValueError(
                f"{family} has a vision tower that is not known here ({', '.join(VISION_FAMILIES)} are): under FSDP and "
                "DeepSpeed, processes whose prompts differ in media would wait for each other forever. Use DDP "
                "(recipes/accelerate_configs/ddp.yaml), or a model of those families."
            )
        if self._zero_stage == 3 and not self.args.ds3_gather_for_generation:
            raise ValueError(
                "ds3_gather_for_generation is False: completions would be sampled with shares of parameters, and processes "
                "whose prompts differ in media would wait for each other forever. Set ds3_gather_for_generation=True."
            )
        if self._zero_stage == 3 and self.args.on_bad_media == "skip" and is_peft_model(self.model):
            raise ValueError(
                "on_bad_media is 'skip' with an adapter under ZeRO-3, which gathers an adapter's parameters by themselves: a "
                "process that leaves a sample out would gather other ones than its neighbours. Set on_bad_media='error' "
                "(`trl-perception prepare` finds bad rows beforehand), or use FSDP2 or ZeRO-2."
            )
        if not self.is_fsdp_enabled:
            return
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ValueError(f"fsdp_version is {plugin.fsdp_version}; set it to 2 in the accelerate configuration.")
        if self.ref_model is not None:
            self._require_weights_everywhere(f"the reference model (beta is {self.args.beta:g})")

    def _require_weights_everywhere(self, model: str) -> None:
        """Errors: ValueError where FSDP loads weights on the first process only and nobody hands on this model's."""
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
            raise ValueError(
                f"fsdp_cpu_ram_efficient_loading is set: the first process alone loads weights, and those of {model} would "
                "not reach the others. Set fsdp_cpu_ram_efficient_loading: false in the accelerate configuration."
            )

    @torch.no_grad()
    def _empty_forward(self, model: nn.Module) -> None:
        """The collectives of a forward, for three tokens of padding."""
        ids = torch.full((1, 3), self._tokenizer.pad_token_id, device=self.accelerator.device)
        with paused(self._taps_of_update), without_checkpointing(self.model), self.accelerator.autocast():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True)


def _has_tower(model: nn.Module) -> bool:
    base = base_model(model)
    return base.config.model_type in VISION_FAMILIES and hasattr(base.model, "visual")
