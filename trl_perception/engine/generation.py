"""TRL's generation by vLLM, for prompts whose media are prepared here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available
from trl.trainer import grpo_trainer

from ..families import Family, family_of_run
from ..media import MEDIA_KINDS, PromptPreparer, VisualInputs
from ..modeling import base_model
from ..modeling.adapters import require_mergeable
from ..modeling.positions import position_rule_of
from .checks import check_model
from .divergence import forward_dtype
from .media import EngineMedia, engine_media
from .positions import check_positions
from .weights import merged_parameters
from .worker import WORKER

PLACEHOLDER_BIAS = -100.0  # on the logits of placeholders: a sampled one would have no feature
FOREIGN_IMAGES = (
    "The engine would expand the placeholders of this prompt's images once more, since TRL prepared them (tools, an environment, a "
    "rollout_func or a processor of no family in docs/models.md). Set use_vllm=False."
)


class MediaGeneration(VLLMGeneration):
    """TRL's `VLLMGeneration` with an engine that takes our media, is in the trainer's type, and holds nothing stale.

    Args:
        settings: the run's.
        of_trl: what TRL passes.
    """

    def __init__(self, settings: GRPOConfig, **of_trl: Any):
        self.settings = settings
        self.rollouts = 0
        self.family = family_of_run(base_model(of_trl["model"]), of_trl["processing_class"])
        super().__init__(**of_trl)

    def begin(self, preparer: PromptPreparer, eos_token_ids: Sequence[int]) -> None:
        """Set the engine up for prompts of `preparer`, once the policy is.

        Placeholders are suppressed in completions, which end at the trainer's tokens and no others. Positions are compared.

        Errors: RuntimeError for other positions.
        """
        biases = dict.fromkeys(preparer.placeholder_ids.values(), PLACEHOLDER_BIAS)
        given = self.generation_kwargs.get("logit_bias") or {}
        self.generation_kwargs = {
            **self.generation_kwargs,
            "logit_bias": {**given, **biases},
            "ignore_eos": True,
            "stop_token_ids": sorted(eos_token_ids),
        }
        if position_rule_of(self.model) == "transformers":
            self.llm.collective_rpc("use_position_rule", args=("transformers",))
        check_positions(self.llm, self.model, preparer)

    def media(self, visuals: Sequence[VisualInputs]) -> list[list[EngineMedia]]:
        """Return the media of the rows of a rollout, in the place of their images."""
        self.rollouts += 1
        key = f"{self.accelerator.process_index}-{self.rollouts}"
        device = "cpu" if self.tensor_parallel_size > 1 or self.mode == "server" else None
        with self.accelerator.autocast():
            media = engine_media(self.family, base_model(self.model).model, visuals, key, device)
        return [[of_row] for of_row in media]

    def generate(self, prompts: list[list[int]], images: list | None, *args: Any, **kwargs: Any) -> tuple:
        """As in TRL. Errors: ValueError for images that are not prepared here."""
        if any(of_row and not isinstance(of_row[0], EngineMedia) for of_row in images or ()):
            raise ValueError(FOREIGN_IMAGES)
        return super().generate(prompts, images, *args, **kwargs)

    def sync_weights(self) -> None:
        super().sync_weights()
        if self.mode == "colocate":
            self.llm.llm_engine.reset_encoder_cache()  # TRL resets the prefix cache alone

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        return merged_parameters(self.model, super()._iter_named_params)

    def _init_vllm(self) -> None:
        if self.mode != "colocate" or not is_vllm_available():
            super()._init_vllm()
            return
        from vllm import ModelRegistry

        from .colocate import MediaLLM, replaceable_weights

        require_mergeable(self.model, "use_vllm")
        if self.family is not None:
            check_model(self.family, base_model(self.model), ModelRegistry.get_supported_archs())

        def build(**of_trl: Any) -> MediaLLM:
            with replaceable_weights():
                return MediaLLM(**engine_options(self.settings, self.model.dtype, of_trl, self.family))

        with replaced(vllm_generation, "LLM", build):
            super()._init_vllm()


def engine_options(
    settings: GRPOConfig, dtype: torch.dtype, of_trl: Mapping[str, Any], family: Family | None
) -> dict[str, Any]:
    """Return the engine's options: TRL's, ours, and those of `engine_options`, which override both.

    Args:
        dtype: of the policy's weights, in which it is forwarded without mixed precision.
        family: of the model, None where TRL prepares the prompts.
    """
    length = settings.max_prompt_length
    ours: dict[str, Any] = {"dtype": str(forward_dtype(settings, dtype)).removeprefix("torch.")}
    if family is not None:
        ours |= {
            "mm_device_do_normalize": False,  # pixels are normalised here
            # Memory is measured for one of each; prompts may have more.
            "limit_mm_per_prompt": {kind: int(kind in family.engine_modalities) for kind in MEDIA_KINDS},
            "worker_extension_cls": WORKER,
        }
    if length is not None:
        ours["max_num_batched_tokens"] = max(of_trl["max_num_batched_tokens"], length)
        if of_trl["max_model_len"] is None:
            ours["max_model_len"] = length + settings.max_completion_length
    return {**of_trl, **ours, **(settings.engine_options or {})}


@contextmanager
def media_rollouts(settings: GRPOConfig) -> Iterator[None]:
    """Context manager in which TRL's trainer builds a [`MediaGeneration`]."""
    with replaced(grpo_trainer, "VLLMGeneration", partial(MediaGeneration, settings)):
        yield


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Context manager in which a name of a module has another value."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
