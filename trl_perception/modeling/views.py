"""What a group may be shown: its prompt as it is, without its media, or with its videos out of order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..media import MEDIA_KINDS, PreparedPrompt, PromptPreparer, VisualInputs
from ..media.frames import not_identity, shuffle_cells
from ..transfer import to_device
from .head import base_model
from .positions import position_rule_of
from .vision import family_of_model


@dataclass(frozen=True, eq=False)
class View:
    """A prompt that a forward reads before the G completions of its group.

    Args:
        prompt_ids: (P,) int.
        visual: the visual inputs that the prompt's placeholders stand for.
        positions: the positions of the prompt and of at least one token after it, where they are not the ones that the
            model would take itself: (A,P+1) int or wider with A axes (3 for mRoPE), or None. Later tokens continue by one.
    """

    prompt_ids: Tensor
    visual: VisualInputs
    positions: Tensor | None = None

    def to(self, device: torch.device) -> "View":
        """Return the view with tokens and positions on `device`; a forward moves the media that it reads."""
        positions = None if self.positions is None else to_device(self.positions, device)
        return replace(self, prompt_ids=to_device(self.prompt_ids, device), positions=positions)

    def positions_until(self, total: int) -> Tensor | None:
        """Positions of the prompt and a completion, `total` tokens together: (A,total), or None."""
        return None if self.positions is None else continued(self.positions, total)


# (A,P+1) of prompts with media, by their visual inputs: what it depends on -> positions.
_positions: WeakKeyDictionary[VisualInputs, dict[tuple, Tensor]] = WeakKeyDictionary()


def continued(positions: Tensor, total: int) -> Tensor:
    """Positions (A,n) that go on by one until there are `total`, (A,total); unchanged where there are as many."""
    further = torch.arange(1, total - positions.size(1) + 1, device=positions.device)
    return torch.cat([positions, positions[:, -1:] + further], dim=1) if len(further) else positions


def with_media(prompt_ids: Tensor, visual: VisualInputs) -> View:
    """The unchanged prompt."""
    return View(prompt_ids, visual)


def media_masked(model: nn.Module, prompt_ids: Tensor, visual: VisualInputs, completion_width: int) -> View:
    """The prompt with masked visual tokens; the other tokens keep their positions.

    No token attends to a masked visual token, so the text tokens are forwarded alone with their positions of the full
    prompt: the same computation on a few hundred tokens instead of thousands.

    Args:
        model: the policy, for its family's rule of positions.
        prompt_ids: (P,) int. visual: its visual inputs. completion_width: T.
    Source: PGPO, arXiv:2604.01840, appendix A; Video-KTR, arXiv:2601.19686, section 3.2.
    """
    if not visual.visual_tokens:
        return View(prompt_ids, visual)
    positions = original_positions(model, prompt_ids, visual, completion_width)
    size = len(prompt_ids)
    kept = text_tokens(visual)
    keep = to_device(torch.cat([kept, torch.arange(size, size + completion_width)]), prompt_ids.device)
    return View(prompt_ids[keep[: len(kept)]], without_media(visual), positions[:, keep])


def media_masked_recomputed(prompt_ids: Tensor, visual: VisualInputs) -> View:
    """The prompt without its visual tokens, with recomputed positions: later text tokens take the places of masked ones.

    Source: zywang0104/Video-KTR, which recomputes positions for its no-video pass.
    """
    return View(prompt_ids[to_device(text_tokens(visual), prompt_ids.device)], without_media(visual))


def text_tokens(visual: VisualInputs) -> Tensor:
    """Places of the prompt's tokens that are text, on the host."""
    return (visual.token_types == 0).nonzero()[:, 0]


def zeroed(model: nn.Module, prompt_ids: Tensor, visual: VisualInputs) -> View:
    """The prompt with zeros for the features of its images and videos; tokens, positions and attention are unchanged.

    The vision tower is not run. Zeros take the place of the merged features, which the language model reads.

    Args:
        model: the policy, for its family and the width of its features.
        prompt_ids: (P,) int. visual: its visual inputs.
    Source: Video-KTR, arXiv:2601.19686, section 3.2.
    """
    base = base_model(model)
    width = base.config.get_text_config().hidden_size * len(family_of_model(model).mergers(base.model))
    zeros = {
        f"{kind}_features": torch.zeros(visual.features(kind), width, device=prompt_ids.device)
        for kind in MEDIA_KINDS
        if visual.features(kind)
    }
    no_pixels = {
        "pixel_values": None,
        "pixel_values_videos": None,
        "image_features_of": None,
        "video_features_of": None,
    }
    return View(prompt_ids, replace(visual, **no_pixels, **zeros))


def shuffled(prompt_ids: Tensor, visual: VisualInputs, generator: torch.Generator) -> View | None:
    """The prompt with the temporal cells of its videos permuted; None where no video has two.

    Source: Video-KTR, arXiv:2601.19686, section 3.2. Differs: whole cells instead of raw frames (see
    [`frames_shuffled`]), so that a vision tower that sees each cell alone gives the same features in another order.
    """
    other, orders = shuffle_cells(visual, generator)
    if all(order == sorted(order) for order in orders):
        return None
    return View(prompt_ids, other)


def frames_shuffled(
    prompt: PreparedPrompt, prompt_ids: Tensor, preparer: PromptPreparer, generator: torch.Generator
) -> View | None:
    """The prompt with the raw frames of its videos permuted before the processor; None where no video has two cells.

    Source: zywang0104/Video-KTR.
    """
    grid = prompt.visual.video_grid_thw
    if grid is None or int(grid[:, 0].max()) < 2:
        return None
    orders = [not_identity(len(frames), generator) for frames in prompt.frames]
    pixels = preparer.pixels([frames[order] for frames, order in zip(prompt.frames, orders, strict=True)])
    shown = replace(prompt.visual, pixel_values_videos=to_device(pixels, prompt_ids.device))
    return View(prompt_ids, shown)


def original_positions(
    model: nn.Module, prompt_ids: Tensor, visual: VisualInputs | None, completion_width: int
) -> Tensor:
    """Positions of prompt and completion as the model takes them itself: (A,P+T) int, A axes (3 for mRoPE).

    Those of a prompt with media and the token after it are kept with its visual inputs; text continues by one.
    """
    total, base, family = len(prompt_ids) + completion_width, base_model(model), family_of_model(model)
    if visual is None or not visual.visual_tokens:
        return family.positions(base, prompt_ids, visual, total)
    of_prompt, key = _positions.setdefault(visual, {}), (id(base.config), position_rule_of(base), prompt_ids.device)
    if key not in of_prompt:
        of_prompt[key] = family.positions(base, prompt_ids, visual, len(prompt_ids) + 1)
    return continued(of_prompt[key], total)


def without_media(visual: VisualInputs) -> VisualInputs:
    """No media, and token types of the text tokens alone."""
    text_types = visual.token_types[visual.token_types == 0]
    return VisualInputs(sample=visual.sample, token_types=text_types)


def seeded(seed: int, step: int, prompt_ids: Tensor | Sequence[int]) -> torch.Generator:
    """A generator that gives each prompt of each rollout its own numbers, the same ones on every process and rerun.

    A list (`prompt.input_ids`) spares the wait for a tensor of the device.
    """
    ids = prompt_ids.tolist() if isinstance(prompt_ids, Tensor) else list(prompt_ids)
    digest = hashlib.sha256(repr((seed, step, ids)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
