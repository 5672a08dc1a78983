"""Warning about a run whose reward stays 0."""

from typing import Any

from accelerate.logging import get_logger
from transformers import TrainerCallback

from ..reports.run import reward_stayed_zero

logger = get_logger(__name__)

ZERO_REWARD = (
    "The reward was 0 in every step that was logged, so that nothing was learned. Look at completions (log_completions: true): an "
    "answer in another format than the rewards read wants another prompt_template, one that is cut a larger max_completion_length."
)


class ZeroReward(TrainerCallback):
    """Warns when training ends without any reward (see [`reward_stayed_zero`])."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if reward_stayed_zero(state.log_history):
            logger.warning(ZERO_REWARD)
