"""Views of a prompt: what a model is shown instead of it, as [`GRPOVideoTrainer.score`] and `sample_under` take it.

A view is pixels, features and positions that belong together: whatever a view changes, features that were computed from
other pixels do not come with it, so that a frozen tower runs again on pixels that it has not seen. Every function takes the
prompt (`group.prompt`) first and returns a [`View`], or None where the prompt has nothing that the view could change. Random
views draw from `generator`, on the CPU; [`seeded`] makes one for each prompt of each rollout.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .media import PreparedPrompt, PromptPreparer, VisualInputs
from .media.frames import keep_cells, token_frames
from .media.images import from_pixels, to_pixels
from .media.visual_inputs import UNKNOWN_MEDIA
from .modeling import View, seeded  # noqa: F401 (beside the views, for their users)
from .modeling import frames_shuffled as _frames_shuffled
from .modeling import media_masked as _media_masked
from .modeling import media_masked_recomputed as _media_masked_recomputed
from .modeling.views import original_positions
from .modeling.vision import family_of_model

__all__ = ["frames_kept", "frames_shuffled", "media_masked", "noised", "patches_masked"]

PATCH = 14  # pixels
MASKS = ("frames", "tube")


def patches_masked(
    prompt: PreparedPrompt, p: float, generator: torch.Generator, *, mask: str = "frames", patch: int = PATCH
) -> View | None:
    """The prompt with random patches of its images and frames in black.

    Patches of `patch` x `patch` pixels are blackened independently with probability p, on the pixels before they are
    resized: the media are decoded once more.

    Args:
        p: in [0, 1]. mask: "frames" draws the patches of each frame of a video, "tube" once for all its frames.
    Errors: ValueError for another p or mask, or a prompt without its media; MediaError where they can no longer be read.
    Source: PAPO, arXiv:2507.06448; VPPO, arXiv:2510.09285. Both mask images; masks of videos are ours.
    """
    if not 0 <= p <= 1 or mask not in MASKS:
        raise ValueError(f"p is {p} and mask {mask!r}; p in [0, 1] and a mask of {MASKS} are wanted.")

    def medium() -> Callable[[Tensor], Tensor]:
        drawn: list[Tensor] = []

        def blacken(pixels: Tensor) -> Tensor:
            height, width = pixels.shape[-2:]
            if mask == "frames" or not drawn or drawn[0].shape != (height, width):
                cells = torch.rand(-(-height // patch), -(-width // patch), generator=generator) >= p
                drawn[:] = [cells.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width]]
            return pixels * drawn[0]

        return blacken

    if not _visual(prompt).visual_tokens:
        return None
    preparer = _preparer(prompt)
    images, frames = preparer.read_again(prompt, medium)
    return _view(prompt, preparer.repainted(prompt, images=images, frames=frames))


def noised(prompt: PreparedPrompt, std: float, generator: torch.Generator) -> View | None:
    """The prompt with Gaussian noise on its images and frames, as the processor gets them.

    x' = clamp(x + std * 255 * e, 0, 255), rounded, e normal, for each pixel and colour

    Args:
        std: at least 0, a share of the range of a pixel.
    Errors: ValueError for another std, or a prompt without its media.
    """
    if not 0 <= std < float("inf"):
        raise ValueError(f"std is {std}; a finite number of at least 0 is wanted.")

    def add(pixels: Tensor) -> Tensor:
        noise = torch.randn(pixels.shape, generator=generator)
        return (pixels + 255 * std * noise).round().clamp(0, 255).to(torch.uint8)

    if not _visual(prompt).visual_tokens:
        return None
    preparer = _preparer(prompt)
    images = [from_pixels(add(to_pixels(image))) for image in prompt.images]
    return _view(prompt, preparer.repainted(prompt, images=images, frames=[add(clip) for clip in prompt.frames]))


def frames_shuffled(prompt: PreparedPrompt, generator: torch.Generator) -> View | None:
    """The prompt with the raw frames of its videos in random order, never as they were; None where no video has two cells.

    Errors: ValueError for a prompt without its media.
    Source: Video-R1 (T-GRPO), arXiv:2503.21776; Video-KTR, arXiv:2601.19686.
    """
    if _visual(prompt).video_grid_thw is None:
        return None
    return _frames_shuffled(prompt, _ids(prompt), _preparer(prompt), generator)


def media_masked(prompt: PreparedPrompt, model: nn.Module | None = None) -> View | None:
    """The prompt without its visual tokens: what a mask over them gives, for no token attends to a masked one.

    Args:
        model: the policy, under which the other tokens keep their positions (to score); None takes positions of the text
            alone (to score or to sample).
    Source: PGPO, arXiv:2604.01840, appendix A.
    """
    if not _visual(prompt).visual_tokens:
        return None
    if model is None:
        return _media_masked_recomputed(_ids(prompt), prompt.visual)
    return _media_masked(model, _ids(prompt), prompt.visual, completion_width=1)


def frames_kept(prompt: PreparedPrompt, indices: Sequence[int], model: nn.Module | None = None) -> View | None:
    """The prompt with some of its frames alone; the tokens of the others are taken out.

    A frame is a temporal cell of a video or an image, numbered through the prompt as by `media.frames.token_frames`. Text
    between frames, such as their times, stays.

    Args:
        indices: the frames that are kept, in any order.
        model: the policy, under which every token keeps its position (to score), as if the other frames were masked; None
            takes the positions of the shorter prompt (to score or to sample).
    Errors: ValueError for an index that is no frame of the prompt, and for `model` of Gemma 3 or 4.
    """
    if not _visual(prompt).visual_tokens:
        return None
    frames = token_frames(prompt.visual)
    count = int(frames.max()) + 1
    if wrong := [index for index in indices if not 0 <= index < count]:
        raise ValueError(
            f"{prompt.visual.sample}: index {wrong[0]} is given, and the prompt has {count} frames, from 0."
        )
    kept = torch.zeros(count, dtype=torch.bool)
    kept[list(indices)] = True
    tokens = (frames < 0) | kept.to(frames.device)[frames.clamp(min=0)]
    ids = _ids(prompt)
    positions = None
    if model is not None:
        if (family := family_of_model(model)).has_windows:
            raise ValueError(
                f"{family.name}: frames cannot be left out at the positions of the others, because pictures see themselves in "
                "both directions in layers with windows. Leave `model` out."
            )
        positions = original_positions(model, ids, prompt.visual, 1)
        positions = positions[:, torch.cat([tokens, tokens.new_ones(1)])]
    return View(ids[tokens], keep_cells(prompt.visual, kept), positions)


def _visual(prompt: PreparedPrompt) -> VisualInputs:
    if prompt.visual is None:
        raise ValueError(UNKNOWN_MEDIA)
    return prompt.visual


def _ids(prompt: PreparedPrompt) -> Tensor:
    return torch.tensor(prompt.input_ids)


def _view(prompt: PreparedPrompt, visual: VisualInputs) -> View:
    return View(_ids(prompt), visual)


def _preparer(prompt: PreparedPrompt) -> PromptPreparer:
    if prompt.preparer is None:
        raise ValueError(
            f"{prompt.visual.sample}: this view needs the prompt's images and frames, and a prompt that was restored from disk "
            "has none. Make the view while its rollout is in memory."
        )
    return prompt.preparer
