"""Settings that a trainer refuses before it samples."""

from typing import Any

from ..families import family_of_processor


def refuse_vllm(processor: Any) -> None:
    """Refuse vLLM where prompts are prepared here: the engine would expand placeholders that are expanded already.

    Errors: ValueError.
    """
    if family_of_processor(processor) is not None:
        raise ValueError(
            f"use_vllm=True is not supported with the prompts of {type(processor).__name__}, whose images and videos are prepared "
            "here. Set use_vllm=False."
        )
