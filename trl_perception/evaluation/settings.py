"""The settings of an evaluation."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.load import mapping_of, synthetic_options
from ..data.templates import TEMPLATES, get_template
from ..media import DecoderOptions, MediaLimits
from ..modeling import check_position_rule
from ..rewards.registry import split_names

SUMMARY_ONLY = ("output", "resamples", "check_rows", "media_cache_dir", "media_cache_dir_gb")
"""Settings that do not affect predictions."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class EvaluationSettings(DecoderOptions):
    """
    Settings of one evaluation: model, data, media, generation and scores. The media settings have the names and the
    defaults of `GRPOVideoConfig`.

    Parameters:
        model (`str`):
            `"tiny"`, a checkpoint folder, a folder with a LoRA adapter, or a model on the Hub.
        adapter (`str`, *optional*):
            LoRA adapter for `model`; not needed where `model` is the adapter's folder and its base model is where it was.
        revision (`str`, *optional*):
            Revision of a model on the Hub.
        data (`str`):
            `"synthetic"`, a local JSON, JSONL or parquet file or folder, or a data set on the Hub.
        data_config (`str`, *optional*):
            Configuration name of a Hub data set.
        split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on.
        limit (`int`, *optional*):
            Evaluate the first rows only.
        synthetic (`dict`, *optional*):
            Arguments of `make_synthetic_dataset`, for `data="synthetic"`.
        prompt_template (`str`, *optional*, defaults to `"none"`):
            What follows every question, as in training: a key of `TEMPLATES`.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template, as in training.
        output (`str`):
            Folder of the predictions and the summary.
        rewards (`list[str]`, *optional*, defaults to `["accuracy", "format"]`):
            Reward functions, by name or dotted path.
        right_by (`str`, *optional*, defaults to `"accuracy"`):
            The reward that says what is right: from 0.5.
        by (`list[str]`, *optional*, defaults to `["problem_type"]`):
            Columns whose values get figures of their own.
        samples (`int`, *optional*, defaults to `1`):
            Completions of each row.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        top_p, top_k (*optional*, default to `1.0` and `0`):
            What sampling keeps; the defaults keep the whole vocabulary.
        seed (`int`, *optional*, defaults to `0`):
            Of sampling and of the intervals.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest completion in tokens.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows that a process completes at a time.
        video_fps, video_min_frames, video_max_frames, video_min_pixels, video_max_pixels, video_total_pixels:
            Frame sampling and sizes, as in training.
        image_min_pixels, image_max_pixels (`int`, *optional*):
            Size limits of an image in pixels.
        media_max_pixels, media_max_frames, media_timeout:
            What one medium may cost, as in training.
        media_cache_dir (`str`, *optional*):
            Folder that keeps decoded media, for other evaluations and for training.
        media_cache_dir_gb (`float`, *optional*, defaults to `100.0`):
            Most GiB that `media_cache_dir` takes.
        max_prompt_length (`int`, *optional*):
            Longest prompt in tokens, visual tokens included. A longer one follows `on_bad_media`; it is never cut.
        on_bad_media (`str`, *optional*, defaults to `"error"`):
            What to do with a row whose media cannot be used: `"error"` stops and names it, `"skip"` leaves it out of the
            figures, counts it and lists it.
        position_rule (`str`, *optional*, defaults to `"released"`):
            Where text behind a video starts in Qwen2-VL and Qwen2.5-VL, as in training.
        check_rows (`bool`, *optional*, defaults to `True`):
            Whether every row is looked at once before the model is loaded, as in training.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Of the weights; `"auto"` takes the checkpoint's.
        device (`str`, *optional*):
            `"cpu"`, `"cuda"`, ...; `None` takes what accelerate finds.
        attn_implementation (`str`, *optional*):
            `"sdpa"`, `"flash_attention_2"`, ...
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that the model brings is run.
        resamples (`int`, *optional*, defaults to `2000`):
            Bootstrap means behind each interval.
    """

    model: str | None = field(
        default=None, metadata={"help": "'tiny', a checkpoint or LoRA adapter folder, or a model on the Hub."}
    )
    adapter: str | None = field(default=None, metadata={"help": "LoRA adapter for the model."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a model on the Hub."})
    data: str | None = field(
        default=None,
        metadata={"help": "'synthetic', a local JSON, JSONL or parquet file or folder, or a Hub data set."},
    )
    data_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    limit: int | None = field(default=None, metadata={"help": "Evaluate the first rows only."})
    synthetic: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of make_synthetic_dataset, as a mapping or JSON."}
    )
    prompt_template: str = field(
        default="none", metadata={"help": f"What follows every question: one of {', '.join(TEMPLATES)}."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the chat template, as in training, as a mapping or JSON."}
    )
    output: str | None = field(default=None, metadata={"help": "Folder of the predictions and the summary."})
    rewards: list[str] = field(
        default_factory=lambda: ["accuracy", "format"], metadata={"help": "Reward functions, by name or dotted path."}
    )
    right_by: str = field(
        default="accuracy", metadata={"help": "The reward that says which completions are right: those from 0.5."}
    )
    by: list[str] = field(
        default_factory=lambda: ["problem_type"], metadata={"help": "Columns whose values get figures of their own."}
    )
    samples: int = field(default=1, metadata={"help": "Completions of each row: avg@k and pass@k from 2."})
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Probability mass that sampling keeps."})
    top_k: int = field(default=0, metadata={"help": "Tokens that sampling keeps; 0 for all."})
    seed: int = field(default=0, metadata={"help": "Of sampling and of the intervals."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest completion in tokens."})
    batch_size: int = field(default=8, metadata={"help": "Rows that a process completes at a time."})
    video_fps: float = field(default=2.0, metadata={"help": "Frames sampled per second of video."})
    video_min_frames: int = field(default=4, metadata={"help": "Fewest frames sampled from a clip that has as many."})
    video_max_frames: int = field(default=768, metadata={"help": "Most frames sampled from a clip."})
    video_min_pixels: int | None = field(default=None, metadata={"help": "Fewest pixels of a frame."})
    video_max_pixels: int | None = field(default=None, metadata={"help": "Most pixels of a frame."})
    video_total_pixels: int | None = field(default=None, metadata={"help": "Most pixels of a clip over its frames."})
    image_min_pixels: int | None = field(default=None, metadata={"help": "Fewest pixels of an image."})
    image_max_pixels: int | None = field(default=None, metadata={"help": "Most pixels of an image."})
    media_max_pixels: int = field(
        default=MediaLimits.max_pixels, metadata={"help": "Most pixels of an image or a frame as it is stored."}
    )
    media_max_frames: int = field(default=MediaLimits.max_frames, metadata={"help": "Most frames of a clip."})
    media_timeout: float = field(default=MediaLimits.timeout, metadata={"help": "Most seconds for one medium."})
    media_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder that keeps decoded media, for other evaluations and for training."}
    )
    media_cache_dir_gb: float = field(default=100.0, metadata={"help": "Most GiB that media_cache_dir takes."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longest prompt in tokens; a longer one follows on_bad_media, never cut."}
    )
    on_bad_media: str = field(
        default="error",
        metadata={"help": "Rows whose media cannot be used: 'error' stops, 'skip' leaves out, counts and lists them."},
    )
    position_rule: str = field(
        default="released",
        metadata={
            "help": "Where text behind a video starts in Qwen2-VL and Qwen2.5-VL: 'released' or 'transformers', as in training."
        },
    )
    check_rows: bool = field(
        default=True, metadata={"help": "Whether every row is looked at once before the model is loaded."}
    )
    dtype: str = field(default="auto", metadata={"help": f"Of the weights: {', '.join(DTYPES)}."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; by default what accelerate finds."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, flash_attention_2, eager, ..."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that the model brings."})
    resamples: int = field(default=2000, metadata={"help": "Bootstrap means behind each interval."})

    def __post_init__(self):
        self.synthetic = synthetic_options(self.synthetic)
        self.chat_template_kwargs = mapping_of(
            "chat_template_kwargs", self.chat_template_kwargs, example={"enable_thinking": False}
        )
        self.rewards, self.by = (list(dict.fromkeys(split_names(names))) for names in (self.rewards, self.by))
        for name in ("model", "data", "output"):
            if not getattr(self, name):
                raise ValueError(f"No {name}. Set {name}.")
        if self.right_by not in self.rewards:
            raise ValueError(
                f"right_by is {self.right_by!r}, which is not among the rewards ({', '.join(self.rewards)}). Add it to "
                "rewards, or set right_by to the reward that says which completions are right."
            )
        if self.on_bad_media not in ("error", "skip"):
            raise ValueError(f"on_bad_media is {self.on_bad_media!r}; 'error' or 'skip' wanted.")
        check_position_rule(self.position_rule)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; one of {', '.join(DTYPES)} is wanted.")
        for name in ("samples", "max_new_tokens", "batch_size", "resamples", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; 1 or more is wanted.")
        if self.media_cache_dir_gb <= 0:
            raise ValueError(f"media_cache_dir_gb is {self.media_cache_dir_gb}; a positive number is wanted.")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: wanted are temperature >= 0, "
                "top_k >= 0 and 0 < top_p <= 1."
            )
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"{self.samples} samples at temperature 0 would be the same completion {self.samples} times. Set "
                "temperature, for example 1.0, or samples to 1."
            )
        if not self.temperature and (self.top_p < 1 or self.top_k):
            raise ValueError(
                "top_p and top_k are for sampling, and temperature 0 is greedy. Set temperature, or neither."
            )
        get_template(self.prompt_template)
        _ = self.video_settings, self.media_limits  # validates their bounds

    @property
    def sampling(self) -> bool:
        """Whether completions are sampled (temperature above 0) or greedy."""
        return self.temperature > 0

    def of_predictions(self) -> dict[str, Any]:
        """Return the settings that predictions depend on."""
        return {key: value for key, value in asdict(self).items() if key not in SUMMARY_ONLY}
