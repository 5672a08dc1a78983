"""Parameters that FSDP2 shards, whole where they are used outside their modules: in sampling, and the head in the loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .head import base_model


@contextmanager
def gather_parameters(model: nn.Module) -> Iterator[None]:
    """Context manager that gathers all parameters of an FSDP2 model on each process, so that forwards need no collectives.

    Sampling runs a forward a token, and transformers runs the vision tower before the first one, outside the model: both
    are collectives with shares of parameters. ZeRO-3 has the same under TRL's `ds3_gather_for_generation`. Any other model
    is unchanged.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    model._get_fsdp_state()._lazy_init()  # the module whose forward comes first would take itself for the root
    kept = {group: group.post_forward_mesh_info for module in sharded for group in _groups(module)}
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
        for group, after_forward in kept.items():
            group.post_forward_mesh_info = after_forward


def keep_lm_head_unsharded(model: nn.Module) -> None:
    """Hooks that gather the head of an FSDP2 model in its forwards, and until the backward of a forward with gradient.

    TRL takes the weight of the head without calling the head. As a share it is gathered there by an operation whose
    backward gives each process a slice of its own gradient; whole, its gradient is averaged over processes as any other.
    """
    base = base_model(model)
    gathered_here = []

    def gather(module: nn.Module, args: tuple) -> None:
        head = base.get_output_embeddings()
        if isinstance(head, FSDPModule) and isinstance(head.weight, DTensor):
            head.unshard()
            if not torch.is_grad_enabled():
                gathered_here.append(head)

    def let_go(module: nn.Module, args: tuple, output: object) -> None:
        while gathered_here:
            gathered_here.pop().reshard()

    base.register_forward_pre_hook(gather)
    base.register_forward_hook(let_go)


def _groups(module: FSDPModule) -> list:
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):  # since torch 2.12; one of them before
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group else []
