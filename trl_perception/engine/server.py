"""vLLM's server, with routes for prompts whose media the trainer prepared."""

import os
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import uuid4

import uvloop
from fastapi import APIRouter, Body, FastAPI, Request, Response
from msgspec import msgpack
from vllm import SamplingParams
from vllm.entrypoints.launchers.api_server import entry
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup, with_cancellation
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser

from .checks import engine_version
from .client import FACTS, GENERATE
from .media import unpacked
from .replaced import replaced

router = APIRouter()


def serve(options: Mapping[str, Any], host: str, port: int) -> None:
    """Run vLLM's server with an engine of these options until it is stopped."""
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # its routes for weights and caches
    cli_env_setup()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--host", host, "--port", str(port)])
    vars(args).update(options)
    validate_parsed_serve_args(args)
    build_app = entry.build_app

    def with_routes(*given: Any) -> FastAPI:
        app = build_app(*given)
        app.include_router(router)
        return app

    with replaced(entry, "build_app", with_routes):
        uvloop.run(entry.run_server(args))


@router.get(FACTS)
async def facts(raw_request: Request) -> dict[str, Any]:
    """What the engine is, how long prompts and how large media may be, and which weights it holds."""
    state = raw_request.app.state
    engine, model = state.engine_client, state.vllm_config.model_config
    versions = set(await engine.collective_rpc("held_version"))
    return {
        "model": state.args.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "mm_device_do_normalize": model.multimodal_config.mm_device_do_normalize,
        "logprobs_mode": model.logprobs_mode,
        "vllm": engine_version(),
        "max_model_len": model.max_model_len,
        "encoder_cache": engine.input_processor.mm_encoder_cache_size,
        "weights": versions.pop() if len(versions) == 1 else None,
    }


@router.post(GENERATE)
@with_cancellation
async def generate(
    body: Annotated[bytes, Body(media_type="application/octet-stream")], raw_request: Request
) -> Response:
    """Sample n completions of a prompt; returns its ids, and ids and log-probs of each completion."""
    prompt, sampling = unpacked(body)
    params = SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)
    async for output in raw_request.app.state.engine_client.generate(prompt, params, uuid4().hex):
        sampled = output
    completions = [
        (list(one.token_ids), [found[token].logprob for token, found in zip(one.token_ids, one.logprobs, strict=True)])
        for one in sampled.outputs
    ]
    return Response(msgpack.encode((list(sampled.prompt_token_ids), completions)))
