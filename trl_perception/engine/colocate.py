"""vLLM in the trainer's process, on prompts whose media are prepared here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from vllm import LLM, RequestOutput, SamplingParams
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from .media import EngineMedia, engine_input, features_of, require_fit, require_same_ids
from .replaced import replaced


class MediaLLM(LLM):
    """vLLM's `LLM`, whose `generate` takes an [`EngineMedia`] as the image of a prompt.

    The engine's processor is not run: token ids, pixels or features, grids and times are the trainer's.
    """

    def generate(
        self, prompts: Sequence[dict[str, Any]], sampling_params: SamplingParams | None = None, **options: Any
    ) -> list[RequestOutput]:
        """Sample a completion of each prompt {"prompt_token_ids": ids, "multi_modal_data": {"image": media}}.

        Errors: ValueError naming the sample for a prompt that does not fit, RuntimeError where the engine sampled from other
            tokens.
        """
        media = [(prompt.get("multi_modal_data") or {}).get("image") for prompt in prompts]
        if all(of_row is None for of_row in media):
            return super().generate(prompts, sampling_params, **options)
        rows = [list(prompt["prompt_token_ids"]) for prompt in prompts]
        limits = self.model_config.max_model_len, self.llm_engine.input_processor.mm_encoder_cache_size
        for ids, of_row in zip(rows, media, strict=True):
            require_fit(ids, of_row, sampling_params.max_tokens, *limits)
        outputs = self._sample(rows, media, sampling_params)
        for ids, of_row, output in zip(rows, media, outputs, strict=True):
            require_same_ids(of_row.sample, ids, output.prompt_token_ids)
        return outputs

    def _sample(
        self, rows: Sequence[list[int]], media: Sequence[EngineMedia], sampling_params: SamplingParams
    ) -> list[RequestOutput]:
        engine, numbers, waiting = self.llm_engine, [], {}
        outputs: dict[str, RequestOutput] = {}
        dtype = self.model_config.dtype
        try:
            for index, (ids, of_row) in enumerate(zip(rows, media, strict=True)):
                params = sampling_params.clone()
                params.output_kind = RequestOutputKind.FINAL_ONLY
                if params.seed is not None:  # the rows of a group are one prompt
                    params.seed += index
                numbers.append(number := str(next(self.request_counter)))
                waiting[number] = engine.add_request(number, engine_input(ids, of_row, dtype), params)
            while engine.has_unfinished_requests():
                outputs |= {output.request_id: output for output in engine.step() if output.finished}
        finally:  # what an error leaves unfinished would be sampled with the next rollout
            engine.abort_request([name for number, name in waiting.items() if number not in outputs], internal=True)
        return [outputs[number] for number in numbers]

    def positions(self, prompt_ids: Sequence[int], media: EngineMedia) -> Tensor | None:
        """Return the positions (3,P+1) of a prompt and its first new token; None for models with one axis."""
        given = engine_input(prompt_ids, media, self.model_config.dtype)
        return self.collective_rpc("positions", args=(given["prompt_token_ids"], features_of(given)))[0]

    def use_position_rule(self, rule: str) -> None:
        """Let the engine follow a `position_rule`."""
        self.collective_rpc("use_position_rule", args=(rule,))


@contextmanager
def replaceable_weights() -> Iterator[None]:
    """Context manager in which engines for a CPU are built whose weights can be replaced.

    They would be packed for the CPU's kernels once and for all: linear layers, a head that is tied to the embeddings, and
    experts, which are packed at each use here.

    Errors: ValueError for linear attention, whose convolution has no other kernel than that for packed weights.
    """
    from vllm.model_executor.layers import utils

    if not current_platform.is_cpu():
        yield
        return
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts, cpu_prepack_moe_weight

    def plain(layer: nn.Module, remove_weight: bool) -> None:
        if layer.weight.ndim != 2:
            raise ValueError(
                "use_vllm is not possible with linear attention on a CPU: vLLM packs its weights in bfloat16 there. Set use_vllm=False."
            )
        layer.cpu_linear = nn.functional.linear

    def packed_at_use(experts: CPUUnquantizedExperts, layer: nn.Module) -> None:
        kernel, isa = experts.apply, experts.isa

        def apply(*, w1: Tensor, w2: Tensor, **rest: Any) -> None:
            kernel(w1=cpu_prepack_moe_weight(w1, isa), w2=cpu_prepack_moe_weight(w2, isa), **rest)

        experts.apply = apply

    with (
        replaced(utils, "dispatch_cpu_unquantized_gemm", plain),
        replaced(CPUUnquantizedExperts, "process_weights_after_loading", packed_at_use),
    ):
        yield
