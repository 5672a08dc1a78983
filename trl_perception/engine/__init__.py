"""Rollouts by vLLM on media that are prepared here: the engine samples from the tokens and tensors that training sees."""

from .checks import check_engine
from .divergence import LogProbCheck, log_prob_check
from .generation import MediaGeneration, media_rollouts, server_options

__all__ = ["LogProbCheck", "MediaGeneration", "check_engine", "log_prob_check", "media_rollouts", "server_options"]
