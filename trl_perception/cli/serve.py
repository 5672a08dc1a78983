"""Run vLLM's server with the engine of a recipe: `trl-perception serve --config RECIPE [--KEY VALUE ...]`."""

import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from .errors import Parser, one_line
from .preflight import check_training


@one_line("trl-perception serve")
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the rollouts of a run that has the same recipe and options."""
    parser = Parser(prog="trl-perception serve", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="the run's recipe, a file or a name such as grpo/qwen2_5_vl_7b")
    parser.add_argument("--host", help="where to listen (default: vllm_server_host)")
    parser.add_argument(
        "--port", type=int, help="where to listen (default: that of vllm_server_base_url, or vllm_server_port)"
    )
    parser.add_argument(
        "--dataset_name", "--dataset-name", help="of the run; a server reads no rows, and need not have it"
    )
    options, others = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    args = ["--config", options.config, *others, "--dataset_name", "synthetic"]
    check_training(args)
    _serve([*args, "--use_vllm", "true", "--vllm_mode", "server"], options.host, options.port)


def _serve(args: list[str], host: str | None, port: int | None) -> None:
    from transformers import AutoProcessor  # a slow import, after the options are parsed

    from ..assets import model_path
    from ..engine import check_engine, server_options
    from ..families import family_of_processor, supported
    from ..modeling import base_model
    from ..planning.skeleton import policy_skeleton
    from ..train import parse

    _, config, model = parse([*args, "--use_cpu", "true"])  # the process of the engine, not this one, takes the GPU
    check_engine(config, quantised=model.load_in_4bit or model.load_in_8bit)
    path = model_path(model.model_name_or_path)
    processor = AutoProcessor.from_pretrained(
        path, revision=model.model_revision, trust_remote_code=config.trust_remote_code
    )
    family = family_of_processor(processor)
    if family is None:
        raise ValueError(
            f"{path} is of no family whose prompts are prepared here ({supported()}). Start `vllm serve` for it."
        )
    dtype = base_model(policy_skeleton(config, model)).dtype
    from ..engine.server import serve

    at = urlsplit(config.vllm_server_base_url or "").port or config.vllm_server_port
    serve(server_options(config, path, dtype, family), host or config.vllm_server_host, port or at)


if __name__ == "__main__":
    main()
