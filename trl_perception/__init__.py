"""Post-train vision-language models to see: perception-aware GRPO on video and images, built on TRL.

Trainers, their configurations and [`Group`] are imported from here: `from trl_perception import APPOConfig, APPOTrainer`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Names are imported when asked for: `trl_perception.objectives` needs torch alone."""
    if name == "from_pretrained":
        return import_module(".assets", __name__).from_pretrained
    if name == "__all__":
        trainers = import_module(".trainers", __name__).__all__
        return sorted([*(name for name in trainers if name[0].isupper()), "from_pretrained"])
    if name[0].isupper() and name in (trainers := import_module(".trainers", __name__)).__all__:
        return getattr(trainers, name)
    raise AttributeError(f"module 'trl_perception' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
