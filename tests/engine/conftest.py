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
def engines_of_a_family(request, monkeypatch):
    """What the engine of a family needs on a CPU, in one process with those of the tests before."""
    from tests.engine.rollouts import EXPERTS, install_plain

    family = getattr(request.node, "callspec", None) and request.node.callspec.params.get("family")
    install_plain(family, monkeypatch)
    if family in EXPERTS:
        from vllm.distributed.parallel_state import destroy_model_parallel

        destroy_model_parallel()  # the groups of a model without experts lack one
