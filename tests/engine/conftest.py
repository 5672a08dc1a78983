"""These tests need vLLM, which has an environment of its own: `make test-vllm`."""

import os
from importlib.util import find_spec

import pytest

from tests.helpers import free_port

os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(free_port())

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def linear_attention_in_float32(request, monkeypatch):
    """For a test of a family that has it; see `tests/engine/linear_attention.py`."""
    from tests.engine.linear_attention import install
    from tests.engine.rollouts import HYBRIDS

    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("family") in HYBRIDS:
        install(monkeypatch)
