"""A second device on the CPU: tensors that say "cuda", so that copies and waits between host and device can be counted.

A tensor of this device holds its values on the host and computes there. As on a GPU, an operation on tensors of both devices
fails, and what the host learns of values, or copies to or from them, makes it wait for the device.
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary
from trl.kernels import chunked_divergence, chunked_logprob

import trl_perception

DEVICE = torch.device("cuda", 0)
PACKAGE = str(Path(trl_perception.__file__).parent)
aten = torch.ops.aten
pinned = WeakTensorKeyDictionary()  # the tensors in pinned memory
# What a GPU's host waits for: a value, or a number of elements that depends on values.
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
VALUES = {Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class DeviceTensor(Tensor):
    """A tensor of the device; `held` has its values on the host."""

    @staticmethod
    def __new__(cls, held):
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self, **kwargs):
        return f"DeviceTensor({self.held})"

    def as_subclass(self, cls):
        """The marks of the package around a tensor, with which nothing is computed, stay on the host."""
        return self.held.as_subclass(cls)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is Tensor.tolist:
            return args[0].cpu().tolist()
        if function in VALUES:
            for waits in Waits.active:
                waits.lines[where() + " value"] += 1
            return function(args[0].held)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def compute(function, args, kwargs):
    """The result of an operation, on the device where its inputs or its `device` are."""
    if function is aten._fused_sdp_choice.default:
        return 0  # the kernel in plain operations
    if function is aten.is_pinned.default:
        return args[0] in pinned
    if function is aten._pin_memory.default:
        pinned[copy := args[0].clone()] = True
        return copy
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    to = kwargs.get("device")
    here = any(isinstance(value, DeviceTensor) for value in given)
    result_here = here if to is None else torch.device(to).type == DEVICE.type
    copies = function in (aten._to_copy.default, aten.copy_.default)
    if here and not copies and function not in INDEXING:
        for value in given:
            if not isinstance(value, DeviceTensor) and value.ndim and value.device.type == "cpu":
                raise RuntimeError(f"{function}: Expected all tensors to be on the same device, found cuda:0 and cpu.")
    if to is not None:
        kwargs = {**kwargs, "device": "cpu" if result_here else to}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    held = tree_map_only(DeviceTensor, lambda value: value.held, (args, kwargs))
    result = function(*held[0], **held[1])
    known = {id(value.held): value for value in given if isinstance(value, DeviceTensor)}

    def wrap(value):
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return DeviceTensor(value) if result_here else value

    if function is aten.copy_.default:
        return args[0]
    return tree_map(wrap, result)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device, by line of the package; `lines` has "file:line kind" -> number.

    A wait outside the package counts for the nearest line of the package that led to it, "..." before its kind.
    """

    active: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.lines = Counter()

    def __enter__(self):
        Waits.active.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        Waits.active.remove(self)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (kind := wait_of(function, args, kwargs)) is not None:
            self.lines[where() + " " + kind] += 1
        return compute(function, args, kwargs)


def wait_of(function, args, kwargs):
    """The name of what makes the host wait in this operation, or None."""
    given = tree_leaves((args, kwargs))
    here = any(isinstance(value, DeviceTensor) for value in given)
    if function is aten._to_copy.default and kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == DEVICE.type
        if there != here and not (args[0].is_meta or torch.device(kwargs["device"]).type == "meta"):
            if there and kwargs.get("non_blocking") and args[0] in pinned:
                return None
            return "to the device" if there else "to the host"
    if function is aten.copy_.default:
        into, source = (isinstance(value, DeviceTensor) for value in args[:2])
        if into != source:
            return "to the device" if into else "to the host"
    if not here:
        return None
    if function in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype == torch.bool for index in indices):
            return "index by bool"
        if any(not isinstance(index, DeviceTensor) for index in indices):
            return "to the device"
    if function in WAITS or (function is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
        return str(function).removeprefix("aten.")
    return None


def where():
    frame, direct = sys._getframe(2), True
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{name[len(PACKAGE) + 1 :]}:{frame.f_lineno}" + ("" if direct else " ...")
        if "/torch/" not in name and not name.endswith("fake_device.py"):
            direct = False
        frame = frame.f_back
    return "elsewhere"


def move_parameters(model: nn.Module):
    """Move parameters and buffers to the device; tied ones stay tied."""
    moved = {}

    def to(value):
        if id(value) not in moved:
            there = DeviceTensor(value.detach())
            moved[id(value)] = nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there
        return moved[id(value)]

    for module in model.modules():
        for of_module in (module._parameters, module._buffers):
            for name, value in of_module.items():
                if value is not None:
                    of_module[name] = to(value)


@contextmanager
def on_device(trainer):
    """Context manager in which a trainer's models and batches are on the device; yields the [`Waits`]."""
    torch._C._ensureCUDADeviceGuardSet()
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for kernels in (chunked_logprob, chunked_divergence):
        monkeypatch.setattr(kernels, "_use_triton", lambda device: False, raising=False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state())
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "device", DEVICE)
    monkeypatch.setattr(type(trainer.args), "device", DEVICE)

    def backward(loss, **options):  # autograd's engine asks the driver, which is not there
        for value in trainer.model.parameters():
            value.grad = torch.zeros_like(value) if value.requires_grad else None

    monkeypatch.setattr(trainer.accelerator, "backward", backward)
    models = [trainer.model, trainer.ref_model, getattr(trainer, "teacher", None)]
    for model in models:
        if model is not None:
            move_parameters(model)
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device)` copies where the mode sees it
    with ExitStack() as stack:
        stack.callback(monkeypatch.undo)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        waits = stack.enter_context(Waits())
        yield waits
