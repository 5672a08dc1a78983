"""Media: decoding, frame sampling, and the visual inputs of prompts."""

from importlib import import_module

_MODULES = {
    "cache": ("MediaCache",),
    "config": ("DecoderOptions", "MediaOptions"),
    "errors": ("MediaError",),
    "limits": ("MediaLimits",),
    "loader": (
        "MediaLoader",
        "MediaRequest",
    ),
    "messages": (
        "MEDIA_COLUMNS",
        "MEDIA_KINDS",
        "conversation",
        "fill_media",
        "media_blocks",
        "media_columns",
        "without_payloads",
    ),
    "prefetch": ("RowsAhead",),
    "prompts": (
        "PreparedPrompt",
        "PromptPreparer",
        "sample_name",
    ),
    "requests": (
        "MediaSettings",
        "ProcessorSizes",
        "SizeRule",
    ),
    "settings": ("VideoSettings",),
    "video": (
        "VideoClip",
        "frames_at",
        "read_video",
    ),
    "visual_inputs": (
        "VisualInputs",
        "check_placeholders",
        "padded_token_types",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "MEDIA_COLUMNS",
    "MEDIA_KINDS",
    "DecoderOptions",
    "MediaCache",
    "MediaError",
    "MediaLimits",
    "MediaLoader",
    "MediaOptions",
    "MediaRequest",
    "MediaSettings",
    "PreparedPrompt",
    "ProcessorSizes",
    "PromptPreparer",
    "RowsAhead",
    "SizeRule",
    "VideoClip",
    "VideoSettings",
    "VisualInputs",
    "check_placeholders",
    "conversation",
    "fill_media",
    "frames_at",
    "media_blocks",
    "media_columns",
    "padded_token_types",
    "read_video",
    "sample_name",
    "without_payloads",
]


def __getattr__(name: str):
    """Import names lazily: messages, paths and settings do not need torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
