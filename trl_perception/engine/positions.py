"""Do the engine and the policy place text behind a video alike?"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..media import PreparedPrompt, PromptPreparer, VideoSettings
from ..modeling import base_model
from ..modeling.vision import family_of_model
from .media import EngineMedia, engine_media

FRAMES = 32  # at 1 a second: in Qwen2.5-VL 16 cells of 2 seconds each, a question of a few tokens behind them


class HasPositions(Protocol):
    """An engine, in this process or behind a server."""

    def positions(self, prompt_ids: Sequence[int], media: EngineMedia) -> Tensor | None:
        """Return the positions (3,P+1) of a prompt and its first new token; None for models with one axis."""


def check_positions(engine: HasPositions, model: nn.Module, preparer: PromptPreparer) -> None:
    """Compare the positions of engine and policy on a prompt whose video outlasts its question.

    Errors: RuntimeError with the first token at which they differ.
    """
    family = family_of_model(model)
    prompt = _long_clip(preparer)
    if prompt.left_out:  # its chat template shows no clip
        return
    (media,) = engine_media(family, base_model(model).model, [prompt.visual], "positions", "cpu")
    found = engine.positions(prompt.input_ids, media)
    if found is None:
        return
    ids = torch.tensor(prompt.input_ids)
    wanted = family.positions(base_model(model), ids, prompt.visual, len(ids) + 1)
    require_same_positions(wanted.cpu(), found.cpu())


def require_same_positions(policys: Tensor, engines: Tensor) -> None:
    """Errors: RuntimeError where positions (A,S) differ."""
    differ = (policys != engines).any(0).nonzero()
    if len(differ):
        token = int(differ[0])
        raise RuntimeError(
            f"Engine and policy place token {token} of a prompt with a video differently, at {engines[:, token].tolist()} and "
            f"{policys[:, token].tolist()}. This vLLM follows another position_rule: install the version that docs/vllm.md "
            "names, or set use_vllm=False."
        )


def _long_clip(preparer: PromptPreparer) -> PreparedPrompt:
    frames = torch.zeros(FRAMES, 3, 56, 56, dtype=torch.uint8)
    blocks = [{"type": "video", "video": frames, "sample_fps": 1.0}, {"type": "text", "text": "?"}]
    settings, kwargs = VideoSettings(fps=1.0, max_frames=FRAMES), preparer.chat_template_kwargs
    plain = PromptPreparer(preparer.processor, video_settings=settings, chat_template_kwargs=kwargs)
    (prompt,) = plain([{"prompt": [{"role": "user", "content": blocks}]}], on_unusable="skip")
    return prompt
