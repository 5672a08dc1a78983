"""Post-train vision-language models to see: perception-aware GRPO on video and images, built on TRL."""

from importlib import import_module

__version__ = "0.1.0"

__all__ = [
    "APPOConfig",
    "APPOTrainer",
    "AttnDistillConfig",
    "AttnDistillTrainer",
    "GRPOVideoConfig",
    "GRPOVideoTrainer",
    "Group",
    "KTRConfig",
    "KTRTrainer",
    "PGPOConfig",
    "PGPOTrainer",
    "RALConfig",
    "RALTrainer",
    "from_pretrained",
]


def __getattr__(name: str):
    """Names are imported when asked for: `trl_perception.objectives` needs torch alone."""
    if name not in __all__:
        raise AttributeError(f"module 'trl_perception' has no attribute {name!r}")
    return getattr(import_module(".assets" if name == "from_pretrained" else ".trainers", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
