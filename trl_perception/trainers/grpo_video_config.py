"""Configuration of video GRPO: TRL's `GRPOConfig` and what media need."""

from dataclasses import dataclass, fields
from typing import Any

from trl import GRPOConfig

from ..media import MediaLimits, MediaOptions
from ..modeling import check_position_rule
from ..modeling.activation_checkpointing import unify_checkpointing_names
from ..options import documented, require_range

POSITIVE = """video_fps video_min_frames video_max_frames media_cache_mb media_cache_dir_gb generation_micro_batch_size
    report_every report_groups max_nonfinite_skips reward_timeout engine_logp_tolerance"""


@documented
@dataclass
class GRPOVideoConfig(MediaOptions, GRPOConfig):
    """
    Configuration of [`GRPOVideoTrainer`]: every field of TRL's `GRPOConfig`, and the following.

    Parameters:
        video_fps (`float`, *optional*, defaults to `2.0`):
            Frames sampled per second of video.
        video_min_frames (`int`, *optional*, defaults to `4`):
            Fewest frames sampled from a clip that has as many.
        video_max_frames (`int`, *optional*, defaults to `768`):
            Most frames sampled from a clip.
        video_min_pixels, video_max_pixels (`int`, *optional*):
            Size limits of a frame in pixels (height * width). `None` takes the processor's own.
        video_total_pixels (`int`, *optional*):
            Limit of a clip, in pixels over all its frames. `None` takes qwen-vl-utils' own.
        image_min_pixels, image_max_pixels (`int`, *optional*):
            Size limits of an image in pixels. `None` takes the processor's own.
        max_prompt_length (`int`, *optional*):
            Longest prompt in tokens, visual tokens included. A longer one is refused or left out, never cut.
        on_bad_media (`str`, *optional*, defaults to `"error"`):
            What to do with a sample that cannot be decoded or is too long: `"error"` stops and names it, `"skip"`
            leaves it out of loss and rewards, warns, and counts it in `media/skipped`.
        check_rows (`bool`, *optional*, defaults to `True`):
            Whether every row is looked at once before the model is loaded: messages, media and their settings, missing files,
            and the solutions that the accuracy rewards read. Nothing is decoded; rows of a stream are looked at as they come.
        dataloader_pin_memory (`bool`, *optional*, defaults to `False`):
            Whether the loader of rows pins memory. Rows hold text and paths, media are decoded after it: there is
            nothing to pin, and without a GPU PyTorch warns.
        media_workers (`int`, *optional*):
            Threads that decode media, and the processes of `media_prefetch`. `None` takes one a core, at most 8.
        media_prefetch (`int`, *optional*, defaults to `0`):
            How many rollouts ahead media are decoded and processed, in processes beside the training; 0 decodes them when
            their rollout begins. Rows that dynamic sampling and evaluations draw are never read ahead.
        media_cache_mb (`int`, *optional*, defaults to `1024`):
            Memory for decoded media that may be seen again, in MiB per process.
        media_cache_dir (`str`, *optional*):
            A folder that keeps decoded media, sampled and resized, for later epochs and runs; processes may share it.
        media_cache_dir_gb (`float`, *optional*, defaults to `100.0`):
            Most GiB that `media_cache_dir` takes. The media used longest ago are deleted.
        media_max_pixels (`int`, *optional*, defaults to `134217728`):
            Most pixels (height * width) of an image or a frame as it is stored. A larger one counts as bad media.
        media_max_frames (`int`, *optional*, defaults to `1000000`):
            Most frames of a clip, declared in its header or met while it is read. A longer one counts as bad media.
        media_timeout (`float`, *optional*, defaults to `600.0`):
            Most seconds that reading one medium may take, its download included. A slower one counts as bad media.
        position_rule (`str`, *optional*, defaults to `"released"`):
            Where text behind a video starts in Qwen2-VL and Qwen2.5-VL, in every forward and in generation:
            `"released"`, at the largest position of the video + 1, or `"transformers"`, as transformers 5 has it
            (docs/positions.md).
        freeze_vision_tower (`bool`, *optional*, defaults to `False`):
            Whether the vision encoder keeps its weights.
        freeze_merger (`bool`, *optional*, defaults to `False`):
            Whether the projector from vision features to language embeddings keeps its weights.
        group_forward (`str`, *optional*, defaults to `"auto"`):
            Whether the completions of a prompt are forwarded as one packed row that holds the prompt once: `"on"`,
            `"off"`, or `"auto"`, where the model allows it and the tokens it saves are worth it.
        shared_prefill (`bool`, *optional*, defaults to `True`):
            Whether generation reads each distinct prompt once, whose completions share its cache, where the model allows it.
        generation_micro_batch_size (`int`, *optional*):
            Most completions that `generate` decodes together, in whole groups. `None` decodes those of a rollout together.
        reuse_vision_features (`bool`, *optional*, defaults to `True`):
            Whether a frozen vision tower sees each medium once a rollout, its features then serving every forward.
        dynamic_sampling (`bool`, *optional*, defaults to `False`):
            Whether groups whose completions all earn the same reward, and groups left out for their media, are replaced by
            groups of other prompts (DAPO, arXiv:2503.14476). Rewards are logged over everything that was sampled.
        dynamic_sampling_rounds (`int`, *optional*, defaults to `3`):
            Most rounds of sampling again; groups that still lack a spread of rewards then stay.
        hub_strategy (`str`, *optional*, defaults to `"end"`):
            When a run that is pushed to the Hub is: `"end"`, or as in transformers, which then uploads whatever lies in
            the output folder during training.
        report_every (`int`, *optional*):
            Every how many optimisation steps a few groups are kept with their signals under `OUTPUT_DIR/rollouts`, for
            `trl-perception report`. `None` keeps none.
        report_groups (`int`, *optional*, defaults to `4`):
            How many groups are kept at a time, over all processes.
        on_nonfinite (`str`, *optional*, defaults to `"error"`):
            What to do with a reward, a loss or a gradient that is NaN or infinite: `"error"` stops, names the samples and
            writes what is needed to see it again under `OUTPUT_DIR/nonfinite`; `"skip"` leaves out the group of such a
            reward (`nonfinite/rewards`) and the optimisation step of such a loss or gradient (`nonfinite/skipped`).
        max_nonfinite_skips (`int`, *optional*, defaults to `5`):
            Most optimisation steps in a row that `on_nonfinite="skip"` leaves out; one more is an error.
        reward_timeout (`float`, *optional*):
            Most seconds that a call of a reward function may take. `None` sets no limit.
        engine_options (`dict`, *optional*):
            With `use_vllm`: further options of the engine (`vllm.LLM`), such as `max_num_batched_tokens`, the size of its
            encoder cache, which override those of this package and of TRL.
        engine_weight_folder (`str`, *optional*):
            With `vllm_mode="server"`: a folder that trainer and server both see, through which weights go to the server after
            every update. `None` sends them by NCCL, from GPU to GPU.
        engine_logp_tolerance (`float`, *optional*):
            With `use_vllm`: the largest difference between the log-probs of a token in engine and policy; a run stops past
            it and warns past a quarter of it. `None` takes 0.1 for forwards in float32 and 4 in half precision.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "engine_options"]  # noqa: RUF012

    video_fps: float = 2.0
    video_min_frames: int = 4
    video_max_frames: int = 768
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    video_total_pixels: int | None = None
    image_min_pixels: int | None = None
    image_max_pixels: int | None = None
    max_prompt_length: int | None = None
    on_bad_media: str = "error"
    check_rows: bool = True
    dataloader_pin_memory: bool = False
    media_workers: int | None = None
    media_prefetch: int = 0
    media_cache_mb: int = 1024
    media_cache_dir: str | None = None
    media_cache_dir_gb: float = 100.0
    media_max_pixels: int = MediaLimits.max_pixels
    media_max_frames: int = MediaLimits.max_frames
    media_timeout: float = MediaLimits.timeout
    position_rule: str = "released"
    freeze_vision_tower: bool = False
    freeze_merger: bool = False

    group_forward: str = "auto"
    shared_prefill: bool = True
    generation_micro_batch_size: int | None = None
    reuse_vision_features: bool = True
    hub_strategy: str = "end"

    dynamic_sampling: bool = False
    dynamic_sampling_rounds: int = 3
    report_every: int | None = None
    report_groups: int = 4
    on_nonfinite: str = "error"
    max_nonfinite_skips: int = 5
    reward_timeout: float | None = None
    engine_options: dict[str, Any] | str | None = None
    engine_weight_folder: str | None = None
    engine_logp_tolerance: float | None = None

    def __post_init__(self):
        if self.generation_batch_size is None:  # TRL's own refusal names what nobody set
            self._require_whole_groups(self.steps_per_generation or self.gradient_accumulation_steps)
        unify_checkpointing_names(self, to_new=True)
        super().__post_init__()
        self._require_whole_groups(self.steps_per_generation)
        if self.dynamic_sampling and self.scale_rewards == "batch":
            raise ValueError(
                "dynamic_sampling replaces groups one by one, and scale_rewards='batch' scales rewards by the spread of the "
                "whole batch. Set scale_rewards to 'group' or 'none', or dynamic_sampling=False."
            )
        if self.dynamic_sampling and self.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError(
                "dynamic_sampling replaces groups one by one, and multi_objective_aggregation='normalize_then_sum' scales "
                "advantages by the spread of the whole batch. Set it to 'sum_then_normalize', or dynamic_sampling=False."
            )
        if self.dynamic_sampling_rounds < 1:
            raise ValueError(f"dynamic_sampling_rounds is {self.dynamic_sampling_rounds}; 1 or more is wanted.")
        if self.group_forward not in ("auto", "on", "off"):
            raise ValueError(f"group_forward is {self.group_forward!r}; 'auto', 'on' or 'off' wanted.")
        check_position_rule(self.position_rule)
        for name in ("on_bad_media", "on_nonfinite"):
            if getattr(self, name) not in ("error", "skip"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; 'error' or 'skip' wanted.")
        for name in POSITIVE.split():
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a positive number is wanted.")
        require_range(self, "media_prefetch", 0, None)
        _ = self.media_limits  # refuses what is out of its bounds
        if self.video_min_frames > self.video_max_frames:
            raise ValueError(
                f"video_min_frames ({self.video_min_frames}) is larger than video_max_frames "
                f"({self.video_max_frames}). Lower the first or raise the second."
            )

    def _require_whole_groups(self, steps_per_generation: int) -> None:
        local_batch = self.per_device_train_batch_size * steps_per_generation
        if self.num_generations > 1 and local_batch % self.num_generations != 0:
            raise ValueError(
                f"A process samples {local_batch} completions at a time (per_device_train_batch_size "
                f"{self.per_device_train_batch_size} * steps_per_generation {steps_per_generation}), which is no "
                f"multiple of num_generations ({self.num_generations}): a group would be split between processes. Set "
                "per_device_train_batch_size or steps_per_generation so that their product is a multiple of "
                f"{self.num_generations}."
            )

    def __getstate__(self):
        # transformers pickles the configuration beside the weights, where a token would be anybody's.
        return {**self.__dict__, "hub_token": None}

    def method_settings(self) -> dict[str, Any]:
        """Values of the fields that a method adds to [`GRPOVideoConfig`], by name."""
        known = {f.name for f in fields(GRPOVideoConfig)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in known}
