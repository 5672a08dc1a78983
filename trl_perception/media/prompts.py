"""Prepares dataset rows as model inputs: decodes media, applies the chat template, tokenizes, and checks lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import ProcessorMixin

from .errors import MediaError
from .limits import MediaLimits
from .loader import MediaLoader
from .messages import ID_COLUMNS, MEDIA_KINDS, conversation, media_blocks, without_payloads
from .requests import MediaSettings, ProcessorSizes
from .settings import VideoSettings
from .visual_inputs import FORWARD_KEYS, TOKEN_TYPE, VisualInputs, check_placeholders


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """One prompt, tokenized, with its visual inputs.

    Args:
        row: the original dataset row.
        messages: the prompt with media filled in (or the plain string of a standard prompt).
        logged: the same without image and video objects, for logs.
        input_ids: the P prompt tokens.
        visual: its visual inputs; None if they are not made here.
        images: its images as PIL, for engines that take PIL images.
        frames: per video, the sampled frames (F,3,H,W) uint8.
        frame_times: per video, the time of each sampled frame in seconds.
        left_out: the reason why the sample is left out, else "". A left-out prompt is one token without media that
            keeps its place in the batch and does not contribute to the loss.
    """

    row: Mapping[str, Any]
    messages: Any
    logged: Any
    input_ids: list[int]
    visual: VisualInputs | None
    images: list = field(default_factory=list)
    frames: list[torch.Tensor] = field(default_factory=list)
    frame_times: list[list[float]] = field(default_factory=list)
    left_out: str = ""

    def to(self, device: torch.device | str) -> "PreparedPrompt":
        """Return the prompt with its visual inputs on `device`."""
        return replace(self, visual=self.visual and self.visual.to(device))


class UnusableSampleError(ValueError):
    """A sample whose media cannot be decoded or whose prompt is too long; `on_unusable` selects an error or a skip."""


class PromptPreparer:
    """Turns rows into `PreparedPrompt`s with one processor.

    Args:
        processor: a processor with image and video grids (the Qwen-VL families).
        loader: decodes and caches media.
        video_settings: frame sampling and sizes; a message block overrides them key by key.
        image_min_pixels, image_max_pixels: size limits of images; None leaves sizes to the processor.
        media_limits: resource limits for reading one medium; None means MediaLimits().
        max_prompt_length: longest prompt in tokens, visual tokens included; None for no limit.
        chat_template_kwargs: passed to the chat template.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        loader: MediaLoader | None = None,
        video_settings: VideoSettings | None = None,
        image_min_pixels: int | None = None,
        image_max_pixels: int | None = None,
        media_limits: MediaLimits | None = None,
        max_prompt_length: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.processor = processor
        self.loader = loader or MediaLoader()
        self.media_settings = MediaSettings(
            video_settings or VideoSettings(),
            image_min_pixels,
            image_max_pixels,
            media_limits or MediaLimits(),
            ProcessorSizes.of(processor),
        )
        self.max_prompt_length = max_prompt_length
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.placeholder_ids = placeholder_ids(processor)

    def __call__(self, rows: Sequence[Mapping[str, Any]], *, on_unusable: str = "error") -> list[PreparedPrompt]:
        """Prepare one prompt per row, in order; media of all rows are decoded together, each distinct one once.

        Args:
            rows: dataset rows with `prompt` and, if it has media, `images`/`videos` (or `image`/`video`).
            on_unusable: "error" raises for the first row whose media cannot be decoded, that the processor rejects or
                that is too long; "skip" replaces it by a prompt whose `left_out` is the reason.
        Errors: ValueError for a malformed row, under either policy.
        """
        conversations, requests = [], []
        for index, row in enumerate(rows):
            try:
                conversations.append(conversation(row))
                requests.append([self.media_settings.request(block) for block in media_blocks(conversations[-1])])
            except ValueError as error:
                raise ValueError(f"{sample_name(row, index)}: {error}") from error
        loaded = iter(self.loader.load([request for of_row in requests for request in of_row]))
        prepared = []
        for index, (row, messages, of_row) in enumerate(zip(rows, conversations, requests, strict=True)):
            media = [next(loaded) for _ in of_row]
            try:
                prepared.append(self._prepare(row, sample_name(row, index), messages, of_row, media))
            except UnusableSampleError as reason:
                if on_unusable == "error":
                    raise
                prepared.append(self._left_out(row, reason))
        return prepared

    def _prepare(self, row, sample, messages, requests, media) -> PreparedPrompt:
        for medium in media:
            if isinstance(medium, MediaError):
                raise UnusableSampleError(f"{sample}: {medium}") from medium
        images = [medium for request, medium in zip(requests, media, strict=True) if request.kind == "image"]
        clips = [medium for request, medium in zip(requests, media, strict=True) if request.kind == "video"]
        logged = without_payloads(messages) if messages else row["prompt"]
        messages = messages or row["prompt"]
        try:
            inputs = self._processed(logged, images, clips)
        except (ValueError, TemplateError) as error:
            raise UnusableSampleError(f"{sample}: {error}") from error
        input_ids = inputs["input_ids"][0].tolist()
        token_types = torch.zeros(len(input_ids), dtype=torch.long)
        for kind, token_id in self.placeholder_ids.items():
            token_types[inputs["input_ids"][0] == token_id] = TOKEN_TYPE[kind]
        media = {key: inputs.get(key) for key in FORWARD_KEYS}
        seconds = media["second_per_grid_ts"]
        visual = VisualInputs(
            sample=sample,
            token_types=token_types,
            **media
            | {"second_per_grid_ts": None if seconds is None else torch.as_tensor(seconds, dtype=torch.float32)},
            merge_size=self.processor.image_processor.merge_size,
        )
        check_placeholders(inputs["input_ids"], torch.ones(1, len(input_ids)), self.placeholder_ids, [visual])
        if self.max_prompt_length is not None and len(input_ids) > self.max_prompt_length:
            raise UnusableSampleError(
                f"{sample}: the prompt has {len(input_ids)} tokens, {visual.visual_tokens} of them visual; the limit "
                f"is max_prompt_length={self.max_prompt_length}. Prompts are never cut: raise max_prompt_length, or lower "
                "video_max_frames, video_max_pixels or image_max_pixels."
            )
        return PreparedPrompt(
            row=row,
            messages=messages,
            logged=logged,
            input_ids=input_ids,
            visual=visual,
            images=images,
            frames=[clip.frames for clip in clips],
            frame_times=[[float(time) for time in clip.times] for clip in clips],
        )

    def _processed(self, messages: Any, images: list, clips: list) -> Any:
        """Process one prompt. Errors: ValueError, TemplateError if the processor or its template rejects it."""
        text = messages
        if not isinstance(messages, str):
            text = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
            )
        for kind, media in (("image", images), ("video", clips)):
            token = getattr(self.processor, f"{kind}_token")
            if (found := text.count(token)) != len(media):
                raise ValueError(
                    f"the prompt has {found} placeholders {token} for {len(media)} {kind}s. One written into a text has no "
                    f"medium: take it out of the text (blocks {{'type': '{kind}'}} make the placeholders)."
                )
        return self.processor(
            text=[text],
            images=images or None,
            videos=[clip.frames for clip in clips] or None,
            images_kwargs={"do_resize": False},  # images and frames already have their final size
            videos_kwargs=_as_decoded(clips),
            return_tensors="pt",
        )

    def pixels(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return patches (video patches, patch dimension) of clips (F,3,H,W) uint8 that have their final size."""
        settings = {"do_sample_frames": False, "do_resize": False, "cap_pixels_per_frame": False}
        processed = self.processor.video_processor(videos=list(clips), return_tensors="pt", **settings)
        return processed["pixel_values_videos"]

    def _left_out(self, row: Mapping[str, Any], reason: UnusableSampleError) -> PreparedPrompt:
        text = f"Left out: {reason}"
        shown = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        return PreparedPrompt(
            row=row,
            messages=text if isinstance(row["prompt"], str) else shown,
            logged=text if isinstance(row["prompt"], str) else shown,
            input_ids=[self.processor.tokenizer.eos_token_id],
            visual=VisualInputs(sample="left out", token_types=torch.zeros(1, dtype=torch.long)),
            left_out=str(reason),
        )


def placeholder_ids(processor: ProcessorMixin) -> dict[str, int]:
    """{"image": id, "video": id} of the tokens that stand for visual features."""
    return {kind: getattr(processor, f"{kind}_token_id") for kind in MEDIA_KINDS}


def has_visual_grids(processor: Any) -> bool:
    """Whether the processor describes media as grids of patches, as the Qwen-VL families do and video needs here."""
    return isinstance(processor, ProcessorMixin) and all(
        f"{kind}_grid_thw" in getattr(getattr(processor, f"{kind}_processor", None), "model_input_names", ())
        for kind in MEDIA_KINDS
    )


def sample_name(row: Mapping[str, Any], index: int) -> str:
    """Return the name of a row for errors: its id if it has one, else its index in the batch and the prompt's start."""
    for key in ID_COLUMNS:
        if row.get(key) is not None:
            return f"sample {row[key]}"
    return f"row {index} of the batch (prompt {str(row.get('prompt'))[:80]!r})"


def _as_decoded(clips: Sequence) -> dict[str, Any]:
    """Return video keywords for frames that are already sampled and resized."""
    if not clips:
        return {}
    return {
        "video_metadata": [clip.metadata for clip in clips],
        "do_sample_frames": False,
        "do_resize": False,
        "cap_pixels_per_frame": False,
    }
