"""TRL's generation by vLLM, for prompts whose media are prepared here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from trl import GRPOConfig
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available
from trl.trainer import grpo_trainer

from ..families import Family, family_of_run
from ..media import MEDIA_KINDS, PromptPreparer, VisualInputs
from ..modeling import base_model, feature_reuse_unsupported_reason
from ..modeling.adapters import require_mergeable
from ..modeling.positions import position_rule_of
from .checks import check_model
from .divergence import forward_dtype
from .media import EngineMedia, engine_media
from .positions import check_positions
from .replaced import replaced, unsharded
from .weights import merged_parameters, saved_buffers
from .worker import WORKER

if TYPE_CHECKING:
    from .client import MediaClient
    from .colocate import MediaLLM

SERVER_WORKER = f"{__package__}.server_worker.ServerWorker"
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
        self.rollouts, self.run = 0, uuid4().hex  # a server also caches what other processes and runs sent
        self.family = family_of_run(base_model(of_trl["model"]), of_trl["processing_class"])
        super().__init__(**of_trl)

    @property
    def engine(self) -> "MediaLLM | MediaClient | None":
        """The engine in this process, or the client of a server; None on processes that leave the server to the main one."""
        return self.llm if self.mode == "colocate" else getattr(self, "vllm_client", None)

    def begin(self, preparer: PromptPreparer, eos_token_ids: Sequence[int]) -> None:
        """Set the engine up for prompts of `preparer`, once the policy is.

        Placeholders are suppressed in completions, which end at the trainer's tokens and no others. Positions are compared.

        Errors: RuntimeError for other positions; ValueError where only features would be kept and the engine wants pixels.
        """
        keeps_features = self.settings.reuse_vision_features and feature_reuse_unsupported_reason(self.model) is None
        if keeps_features and not self.family.engine_takes_features:
            raise ValueError(
                f"The vision tower is frozen, and the engine takes no features of {self.family.name}'s tower, only pixels. Set "
                "reuse_vision_features=False."
            )
        biases = dict.fromkeys(preparer.suppressed_ids, PLACEHOLDER_BIAS)
        given = self.generation_kwargs.get("logit_bias") or {}
        self.generation_kwargs = {
            **self.generation_kwargs,
            "logit_bias": {**given, **biases},
            "ignore_eos": True,
            "stop_token_ids": sorted(eos_token_ids),
        }
        if self.engine is None:
            return
        if (rule := position_rule_of(self.model)) is not None:
            self.engine.use_position_rule(rule)
        check_positions(self.engine, self.model, preparer)

    def media(self, visuals: Sequence[VisualInputs]) -> list[list[EngineMedia]]:
        """Return the media of the rows of a rollout, in the place of their images."""
        self.rollouts += 1
        key = f"{self.run}-{self.rollouts}"
        device = "cpu" if self.tensor_parallel_size > 1 or self.mode == "server" else None
        with self.accelerator.autocast():
            media = engine_media(self.family, base_model(self.model).model, visuals, key, device)
        return [[of_row] for of_row in media]

    def generate(
        self, prompts: list[list[int]], images: list | None, num_generations: int, profiler: Any = None
    ) -> tuple:
        """As in TRL. Errors: ValueError for images that are not prepared here."""
        if any(of_row and not isinstance(of_row[0], EngineMedia) for of_row in images or ()):
            raise ValueError(FOREIGN_IMAGES)
        if self.mode == "server" and images is not None:
            # TRL has the main process ask for n completions of every n-th prompt; an evaluation may end within a group.
            firsts = [images[row - row % num_generations][0] for row in range(len(images))]
            whole = len(images) % num_generations == 0 and all(map(is_, firsts, (of_row[0] for of_row in images)))
            num_generations = num_generations if all(gather_object([whole])) else 1
        while None in (found := super().generate(prompts, images, num_generations, profiler))[0]:
            self.sync_weights()  # the server was lost and is started again
        return found

    def _place_features(self, features: EngineMedia, prompt_ids: list[int]) -> EngineMedia:
        return features

    def sync_weights(self) -> None:
        super().sync_weights()
        if self.mode == "colocate":
            self.llm.llm_engine.reset_encoder_cache()  # TRL resets the prefix cache alone

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        model = base_model(self.model)
        if isinstance(self.model, PeftModel):
            named = merged_parameters(self.model, self._dist.gather_params, self.accelerator.device)
        else:
            named = super()._iter_named_params()
        for name, weight in chain(named, saved_buffers(model)):
            name = self._fix_param_name_to_vllm(name)
            yield (name, weight) if self.family is None else self.family.engine_weight(model.config, name, weight)

    def _init_vllm(self) -> None:
        if self.family is None and self.settings.engine_weight_folder is not None:
            raise ValueError(
                "engine_weight_folder is set, and TRL sends the weights of this model by NCCL. Leave it out."
            )
        if not is_vllm_available() or (self.mode == "server" and self.family is None):
            super()._init_vllm()
            return
        require_mergeable(self.model, "use_vllm")
        if self.family is not None:
            check_model(self.family, base_model(self.model))
        if self.mode == "server":
            from .client import MediaClient

            options = server_options(self.settings, self.model.name_or_path, self.model.dtype, self.family)
            with replaced(vllm_generation, "VLLMClient", partial(MediaClient, self.settings, options)):
                super()._init_vllm()
            return
        from .colocate import MediaLLM, replaceable_weights

        def build(**of_trl: Any) -> MediaLLM:
            with replaceable_weights(), unsharded(), own_configurations(base_model(self.model).config):
                return MediaLLM(**engine_options(self.settings, self.model.dtype, of_trl, self.family))

        with replaced(vllm_generation, "LLM", build):
            super()._init_vllm()


@contextmanager
def own_configurations(config: PreTrainedConfig) -> Iterator[None]:
    """Context manager after which transformers reads configurations of a model's type by its own classes again.

    vLLM replaces those of some families, and no model could be built from what it reads then: a teacher, or a checkpoint.
    """
    parts = (config, *(getattr(config, name) for name in config.sub_configs))
    types = {part.model_type for part in parts if part is not None}
    own = {name: CONFIG_MAPPING[name] for name in types if name in CONFIG_MAPPING}
    try:
        yield
    finally:
        for name, of_type in own.items():
            AutoConfig.register(name, of_type, exist_ok=True)


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
            "moe_backend": moe_backend(),
            # Memory is measured for one of each; prompts may have more.
            "limit_mm_per_prompt": {kind: int(kind in family.engine_modalities) for kind in MEDIA_KINDS},
            "worker_extension_cls": WORKER,
        }
    if length is not None:
        ours["max_num_batched_tokens"] = max(of_trl["max_num_batched_tokens"], length)
        if of_trl["max_model_len"] is None:
            ours["max_model_len"] = length + settings.max_completion_length
    return {**of_trl, **ours, **(settings.engine_options or {})}


def moe_backend() -> str:
    """Return the kernels of experts: those that take weights in the layout in which they are sent."""
    from vllm.platforms import current_platform

    return "auto" if current_platform.is_cpu() else "triton"


def server_options(settings: GRPOConfig, model: str, dtype: torch.dtype, family: Family) -> dict[str, Any]:
    """Return the options of a server's engine: those that TRL and [`engine_options`] give one in the trainer's process.

    Args: model: its folder or name.
    """
    of_trl = {
        "model": model,
        "tensor_parallel_size": settings.vllm_tensor_parallel_size,
        "gpu_memory_utilization": settings.vllm_gpu_memory_utilization,
        "max_model_len": settings.vllm_max_model_length,
        "model_impl": settings.vllm_model_impl,
        "max_num_batched_tokens": 4096,
        "logprobs_mode": "processed_logprobs",
        "trust_remote_code": settings.trust_remote_code,
    }
    ours: dict[str, Any] = {"worker_extension_cls": SERVER_WORKER}
    if settings.engine_weight_folder is None:
        ours["weight_transfer_config"] = {"backend": "nccl"}
    return {**engine_options(settings, dtype, of_trl, family), **ours}


@contextmanager
def media_rollouts(settings: GRPOConfig) -> Iterator[None]:
    """Context manager in which TRL's trainer builds a [`MediaGeneration`]."""
    with replaced(grpo_trainer, "VLLMGeneration", partial(MediaGeneration, settings)):
        yield
