"""Linear attention of the engine on a CPU in plain PyTorch: vLLM's own kernels compute in bfloat16 alone there."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, normalize, sigmoid, silu, softplus

from trl_perception.engine import colocate
from trl_perception.engine.replaced import replaced


def core(mixed_qkv, b, a, core_attn_out, layer_name) -> None:
    """Gated DeltaNet of all tokens of a step, token by token, in place of vLLM's `cpu_gdn_attention_core`.

    For each head, with q and k of norm 1 and q divided by the square root of their size:

        S <- exp(-exp(A_log) softplus(a + dt_bias)) S
        S <- S + k (sigmoid(b) (v - S' k))'
        o = S' q

    Args: mixed_qkv: (N,C) before the convolution; b, a: (N,H); core_attn_out: (N,H,V), written.
    """
    from vllm.forward_context import get_forward_context
    from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
    from vllm.utils.torch_utils import _resolve_layer_name

    context = get_forward_context()
    if context.attn_metadata is None:  # the engine measures its memory
        return
    layer = context.no_compile_layers[_resolve_layer_name(layer_name)]
    step = context.attn_metadata[layer.prefix]
    windows, states = layer.kv_cache[:2]
    if is_conv_state_dim_first():
        windows = windows.transpose(1, 2)
    weight = layer.conv1d.weight[:, 0].T  # (W,C)
    bounds, slots = step.non_spec_query_start_loc.tolist(), step.non_spec_state_indices_tensor.tolist()
    resumed = [True] * step.num_decodes
    if step.num_prefills:
        resumed += step.has_initial_state[step.num_decodes :].tolist()
    for row, known in enumerate(resumed):
        (start, end), slot = bounds[row : row + 2], slots[row]
        if not known:
            windows[slot], states[slot] = 0, 0
        window = torch.cat([windows[slot], mixed_qkv[start:end]])
        windows[slot] = window[end - start :]
        mixed = silu(sum(weight[i] * window[i : i + end - start] for i in range(len(weight))))
        query, key, value = (part[0] for part in layer.rearrange_mixed_qkv(mixed))
        shared = value.size(1) // key.size(1)
        query, key = (normalize(part, dim=-1).repeat_interleave(shared, 1) for part in (query, key))
        query = query / key.size(-1) ** 0.5
        decay = torch.exp(-layer.A_log.exp() * softplus(a[start:end] + layer.dt_bias))
        rate = sigmoid(b[start:end])
        state = states[slot].transpose(1, 2)  # (H,K,V)
        for i in range(end - start):
            state = decay[i, :, None, None] * state
            wrong = value[i] - torch.einsum("hkv,hk->hv", state, key[i])
            state = state + torch.einsum("hk,hv->hkv", key[i], rate[i, :, None] * wrong)
            core_attn_out[start + i] = torch.einsum("hkv,hk->hv", state, query[i])
        states[slot] = state.transpose(1, 2)


def install(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Let engines for a CPU compute linear attention by [`core`], with weights as they were loaded."""
    monkeypatch = monkeypatch or pytest.MonkeyPatch()  # never undone
    from vllm.model_executor.layers import utils
    from vllm.model_executor.layers.mamba.gdn import qwen_gdn_linear_attn as layers

    class Operators:
        cpu_gdn_attention_core = staticmethod(core)

    class Namespaces:
        vllm = Operators

    class Torch:
        ops = Namespaces

        def __getattr__(self, name):
            return getattr(torch, name)

    def plain(layer: nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = linear

    of_others = colocate.replaceable_weights

    @contextmanager
    def replaceable_weights() -> Iterator[None]:
        with of_others(), replaced(utils, "dispatch_cpu_unquantized_gemm", plain):
            yield

    monkeypatch.setattr(layers, "torch", Torch())
    monkeypatch.setattr(colocate, "replaceable_weights", replaceable_weights)
