"""One run of the vision tower a forward, whatever the media: what processes that share its parameters have to agree on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..media.visual_inputs import PIXELS
from .cache import CACHE
from .head import base_model
from .vision import family_of_model


class OneTowerRun:
    """Hooks that make every forward of a model run the vision tower exactly once.

    Images and videos go through it together. A forward without media sends the smallest picture of zeros through it and adds
    0 * sum(features)  to its hidden states, so that the backward is the same series of collectives as well.

    Args:
        model: a model of one of the families, before it is wrapped.
    """

    def __init__(self, model: nn.Module):
        self.backbone, self.family = base_model(model).model, family_of_model(model)
        self.paused = False
        self._unseen: Tensor | None = None
        self.backbone.register_forward_pre_hook(self._run_tower, with_kwargs=True)
        self.backbone.register_forward_hook(self._keep_in_graph)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Context manager that disables the hooks."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def _run_tower(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        cache = kwargs.get(CACHE)
        if self.paused or (cache is not None and cache.get_seq_length()):
            return None
        if all(kwargs.get(name) is None for name in PIXELS.values()):
            self._unseen = self.family.run_empty(self.backbone)
            return None
        return args, self.family.run_once(self.backbone, kwargs)

    def _keep_in_graph(self, module: nn.Module, args: tuple, output: Any) -> Any:
        unseen, self._unseen = self._unseen, None
        if unseen is not None:
            states = output.last_hidden_state
            output.last_hidden_state = states + 0 * unseen.sum().to(states)
        return output
