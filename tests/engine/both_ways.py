"""Attention of the engine on a CPU where the tokens of a picture see each other in both directions, in plain PyTorch."""

import pytest
import torch


def install(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Let engines for a CPU attend in both directions within the ranges that vLLM gives to its kernels for GPUs.

    In place of vLLM's kernel, for a query at position p and a key at j:

        seen = (j <= p and p - j < window) or (p and j in one range)

    where layers that say so (`mm_prefix_clamp_sliding_window`) keep the second part within p - j < window.
    """
    monkeypatch = monkeypatch or pytest.MonkeyPatch()  # never undone
    from vllm.v1.attention.backends import cpu_attn

    backend, builder, kernel = (
        cpu_attn.CPUAttentionBackend,
        cpu_attn.CPUAttentionMetadataBuilder,
        cpu_attn.CPUAttentionBackendImpl,
    )
    of_vllm, update = builder.build, kernel.do_kv_cache_update

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        step = of_vllm(self, common_prefix_len, common_attn_metadata, fast_build)
        step.mm_prefix_range = common_attn_metadata.mm_req_doc_ranges
        return step

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping) -> None:
        update(self, layer, key, value, kv_cache, slot_mapping)
        if not hasattr(layer, "plain_cache"):  # the kernel's own has keys in an order of its own
            slots = kv_cache.size(0) * kv_cache.size(2)
            layer.plain_cache = torch.zeros(2, slots, *key.shape[1:]), kv_cache.size(2)
        layer.plain_cache[0][:, slot_mapping] = torch.stack([key, value])[:, : len(slot_mapping)]

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, **scales):
        if attn_metadata is None:  # the engine measures its memory
            return output
        held, size = layer.plain_cache
        window = self.sliding_window if self.sliding_window > 0 else 2**30
        starts = attn_metadata.query_start_loc.tolist()
        for row, length in enumerate(attn_metadata.seq_lens.tolist()):
            start, end = starts[row : row + 2]
            keys = torch.arange(length)
            slots = attn_metadata.block_table[row, keys // size] * size + keys % size
            rows = torch.arange(length - (end - start), length)[:, None]
            near = rows - keys < window
            seen = (keys <= rows) & near
            for first, last in (attn_metadata.mm_prefix_range or {}).get(row, ()):
                both = (first <= rows) & (rows <= last) & (first <= keys) & (keys <= last)
                seen |= both & near if layer.mm_prefix_clamp_sliding_window else both
            heads = held[:, slots].repeat_interleave(self.num_queries_per_kv, 2)  # (2,L,H,D)
            scores = torch.einsum("qhd,khd->hqk", query[start:end], heads[0]) * self.scale
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            output[start:end] = torch.einsum("hqk,khd->qhd", weights, heads[1])
        return output

    monkeypatch.setattr(backend, "supports_mm_prefix", classmethod(lambda cls: True))
    monkeypatch.setattr(builder, "build", build)
    monkeypatch.setattr(kernel, "do_kv_cache_update", do_kv_cache_update)
    monkeypatch.setattr(kernel, "forward", forward)
