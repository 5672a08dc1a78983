"""Attention policies as they are kept for later updates."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trl_perception.modeling import attention_policy
from trl_perception.modeling.attention_policy import kept, padded


@pytest.mark.parametrize(("dtype", "bytes_a_key"), [("float32", 4), ("float16", 2)])
def test_rows_are_kept_in_a_format_and_used_in_their_own(dtype, bytes_a_key):
    policy = torch.rand(2, 3, 4).softmax(-1)
    waiting = kept(policy, dtype)
    assert waiting.nbytes == 24 * bytes_a_key
    batch = padded([None, *waiting], torch.zeros(3, 3, 6))
    assert batch.dtype == torch.float32
    assert batch[0].eq(0).all()
    assert batch[:, :, :2].eq(0).all()
    # A rounding is at most half of the last place: 2^-11 of a float16 (normal numbers).
    bound = {"float32": 0.0, "float16": 2**-11}[dtype]
    assert ((batch[1:, :, 2:] - policy).abs() <= bound * policy).all()


def test_large_rows_wait_on_the_host(monkeypatch):
    monkeypatch.setattr(attention_policy, "LARGEST_ON_DEVICE", 4 * 24)
    with FakeTensorMode(allow_non_fake_inputs=True):
        small, large = (torch.empty(2, 3, width, device="cuda") for width in (4, 5))
        assert kept(small, "float32").device.type == "cuda"
        assert kept(large, "float32").device.type == "cpu"
        assert kept(large, "float16").device.type == "cuda"
