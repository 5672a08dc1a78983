"""Media: decoding, frame sampling, and the visual inputs of prompts."""

from .errors import MediaError
from .limits import MediaLimits
from .loader import MediaLoader, MediaRequest
from .messages import (
    MEDIA_COLUMNS,
    MEDIA_KINDS,
    conversation,
    fill_media,
    media_blocks,
    media_columns,
    without_payloads,
)
from .prompts import PreparedPrompt, PromptPreparer, has_visual_grids, placeholder_ids, sample_name
from .requests import MediaSettings, ProcessorSizes
from .settings import VideoSettings
from .video import VideoClip, frames_at, read_video
from .visual_inputs import (
    FORWARD_KEYS,
    VisualInputs,
    check_placeholders,
    forward_kwargs,
    padded_token_types,
    stack_media,
)

__all__ = [
    "FORWARD_KEYS",
    "MEDIA_COLUMNS",
    "MEDIA_KINDS",
    "MediaError",
    "MediaLimits",
    "MediaLoader",
    "MediaRequest",
    "MediaSettings",
    "PreparedPrompt",
    "ProcessorSizes",
    "PromptPreparer",
    "VideoClip",
    "VideoSettings",
    "VisualInputs",
    "check_placeholders",
    "conversation",
    "fill_media",
    "forward_kwargs",
    "frames_at",
    "has_visual_grids",
    "media_blocks",
    "media_columns",
    "padded_token_types",
    "placeholder_ids",
    "read_video",
    "sample_name",
    "stack_media",
    "without_payloads",
]
