"""Post-train vision-language models to see: perception-aware GRPO on video and images, built on TRL."""

__version__ = "0.1.0"
