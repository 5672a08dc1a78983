"""What a family of vision-language models does its own way, with the answers that most families share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..media.requests import ProcessorSizes, SizeRule
from ..media.visual_inputs import FORWARD_KEYS, PIXELS, VisualInputs

# What `process` asks of a processor: the text that replaces a medium's token, and nothing of the prompt around it.
ALONE = {"return_tensors": "pt", "return_text_replacement_offsets": True, "return_mm_token_type_ids": False}

Features = Mapping[str, Tensor]
"""Features of one prompt by kind of medium, "image" or "video"."""


class Processed(NamedTuple):
    """One medium after the processor.

    Args:
        texts: what replaces the tokens that the chat template writes for the medium, one text a token.
        fields: fields of [`VisualInputs`], for this medium alone.
    """

    texts: list[str]
    fields: dict[str, Tensor]


class EngineItem(NamedTuple):
    """One medium, or one picture of it, as the family's model in vLLM takes it.

    Args:
        modality: what the engine takes it for, "image" or "video".
        kind: what it is in [`VisualInputs`]: its placeholders have this type.
        tokens: number of its visual tokens.
        lead: tokens before its first placeholder in which the engine looks for its beginning.
        joined: tensors by name that are concatenated over media. stacked: those that are stacked. facts: small ones that are
            stacked and stay on the CPU.
    """

    modality: str
    kind: str
    tokens: int
    joined: dict[str, Tensor]
    stacked: dict[str, Tensor]
    facts: dict[str, Tensor]
    lead: int = 0


class Family:
    """One family, without state: the rest of the package asks it and knows no model type.

    The base class answers for models that have no family here, of which only text is read, and for what is common: one
    position axis; media concatenated over prompts; features in the order of their placeholders.

    A model's backbone is `model.model`. Features are (tokens, D); a family whose tower gives D features at several depths
    has them side by side, (tokens, depths * D). Features from before the mergers are (tokens, patches a token, C).
    """

    name = ""  # for people
    model_types: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()
    # What the numbers of a box are that the models write, by model type, where it is known.
    boxes: Mapping[str, str] = {}
    # The argument of the model's forward that takes the token types of prompts with media, if it has one.
    types_keyword: str | None = None
    has_position_rules = False  # whether transformers 5 places text after a video elsewhere than in training
    has_windows = False  # whether some layers attend to the last tokens alone
    frames_are_images = False  # whether a conversation shows the frames of a video as images
    returns_router_logits = True  # whether the forward of a model with experts can, for their balancing loss
    sharding_unsupported_reason: str | None = "its vision tower is unknown"
    engine_modalities: tuple[str, ...] = ("image", "video")  # what its model in vLLM is given
    engine_takes_features = True  # whether it takes features of a frozen tower for pixels

    # Preparation

    def sizes(self, processor: ProcessorMixin) -> ProcessorSizes:
        """Return how images and videos are sized. The default leaves it to the processor."""
        return ProcessorSizes(
            image=SizeRule(None, tokens=lambda frames, height, width: self.image_tokens(processor, height, width)),
            video=SizeRule(
                None, tokens=lambda frames, height, width: frames * self.frame_tokens(processor, height, width)
            ),
        )

    def image_tokens(self, processor: ProcessorMixin, height: int, width: int) -> int:
        """Return the visual tokens of an image of height x width pixels, of a processor that resizes it itself."""
        raise NotImplementedError

    def frame_tokens(self, processor: ProcessorMixin, height: int, width: int) -> int:
        """Return the visual tokens of a frame of height x width pixels, of a processor that resizes it itself."""
        raise NotImplementedError

    def template_token(self, processor: ProcessorMixin, kind: str) -> str:
        """Return what the chat template writes for a medium."""
        return getattr(processor, f"{kind}_token")

    def placeholder_ids(self, processor: ProcessorMixin) -> dict[str, int]:
        """Return the token that stands for a feature, for each kind of medium. They may be one token."""
        return {kind: getattr(processor, f"{kind}_token_id") for kind in PIXELS}

    def suppressed_ids(self, processor: ProcessorMixin) -> list[int]:
        """Return the tokens that completions must not have: placeholders, which have no feature there."""
        return sorted({*self.placeholder_ids(processor).values()})

    def messages(self, messages: Any, frames: Sequence[int]) -> Any:
        """Return a conversation as the chat template takes it; frames: number of frames of each of its videos."""
        return messages

    def process(self, processor: ProcessorMixin, kind: str, medium: Any) -> Processed:
        """Run the processor on one medium: a PIL image, or a [`VideoClip`]."""
        raise NotImplementedError

    def video_pixels(self, processor: ProcessorMixin, clip: Tensor) -> Tensor:
        """Return `pixel_values_videos` of the frames of a clip (F,3,H,W) uint8 that `process` could take."""
        raise NotImplementedError

    # Forwards

    def forward_kwargs(self, visuals: Sequence[VisualInputs], *, pixels: bool = True) -> dict[str, Any]:
        """Return the media of several prompts as keyword arguments of the model, with or without pixels."""
        keys = [key for key in FORWARD_KEYS if pixels or key not in PIXELS.values()]
        given = {key: [value for v in visuals if (value := getattr(v, key)) is not None] for key in keys}
        present = {key: [value for value in values if not value.is_meta] for key, values in given.items()}
        return {key: torch.cat(values) for key, values in present.items() if values}

    def type_kwargs(self, token_types: Tensor) -> dict[str, Tensor]:
        """Return token types (B,S) of a batch with media as a keyword argument of the model."""
        return {} if self.types_keyword is None else {self.types_keyword: token_types}

    def positions(self, model: nn.Module, prompt_ids: Tensor, visual: VisualInputs | None, total: int) -> Tensor:
        """Return the positions of a prompt (P,) and the text after it as the model takes them: (A,total) for A axes."""
        return torch.arange(total, device=prompt_ids.device)[None]

    def mask_at_positions(self, model: nn.Module, attention_mask: Tensor, positions: Tensor) -> Any:
        """Return the attention mask of rows (B,S) from which tokens were taken out; positions: (A,S), of the whole prompt."""
        return attention_mask

    # The vision side of a backbone

    def tower(self, backbone: nn.Module) -> nn.Module:
        """Return the vision tower."""
        raise NotImplementedError

    def pixels_dtype(self, backbone: nn.Module) -> torch.dtype | None:
        """Return the number format to which the tower casts pixels first of all; None if it computes on them before."""
        return next(value.dtype for value in self.tower(backbone).parameters() if value.is_floating_point())

    def mergers(self, backbone: nn.Module) -> list[nn.Module]:
        """Return the modules that turn the tower's states into features of the language model, one for each depth."""
        raise NotImplementedError

    def patches_per_token(self, config: Any) -> int:
        """Return how many patches of the tower make a visual token."""
        raise NotImplementedError

    def run_tower(self, backbone: nn.Module, visual: VisualInputs, kind: str) -> Tensor:
        """Return the features of a prompt's media of one kind, (tokens, depths * D)."""
        raise NotImplementedError

    def before_mergers(self, backbone: nn.Module, visual: VisualInputs, kind: str) -> Tensor:
        """Return what the mergers get for a prompt's media of one kind: (tokens, patches a token, depths * C)."""
        caught: dict[nn.Module, Tensor] = {}
        mergers = self.mergers(backbone)
        with ExitStack() as stack:
            for merger in mergers:
                hook = merger.register_forward_pre_hook(_keep_input(caught), with_kwargs=True)
                stack.callback(hook.remove)
            features = self.run_tower(backbone, visual, kind)
        states = torch.cat([caught[merger].reshape(-1, caught[merger].size(-1)) for merger in mergers], dim=-1)
        return self.in_token_order(backbone, states.unflatten(0, (len(features), -1)), visual, kind)

    def in_token_order(self, backbone: nn.Module, states: Tensor, visual: VisualInputs, kind: str) -> Tensor:
        """Return states before the mergers (tokens, patches a token, C) in the order of tokens."""
        return states

    def merge(self, backbone: nn.Module, states: Tensor) -> Tensor:
        """Return the features of states before the mergers (tokens, patches a token, depths * C), with gradient."""
        mergers = self.mergers(backbone)
        dtype = next(mergers[0].parameters()).dtype
        parts = states.to(dtype).flatten(0, 1).chunk(len(mergers), dim=-1)
        merged = [
            merger(self.merger_input(backbone, part.contiguous())) for merger, part in zip(mergers, parts, strict=True)
        ]
        return torch.cat([part.reshape(len(states), -1) for part in merged], dim=-1)

    def merger_input(self, backbone: nn.Module, states: Tensor) -> Tensor:
        """Return states (patches, C) in the shape in which the tower hands them to a merger."""
        return states

    def encoder_outputs(
        self, backbone: nn.Module, visuals: Sequence[VisualInputs], features: Sequence[Features]
    ) -> dict[str, Any]:
        """Return the features of several prompts as the model takes them: `mm_encoder_outputs`."""
        by_kind = {kind: [of_prompt[kind] for of_prompt in features if kind in of_prompt] for kind in PIXELS}
        return {kind: self.encoder_output(backbone, parts) for kind, parts in by_kind.items() if parts}

    def encoder_output(self, backbone: nn.Module, parts: Sequence[Tensor]) -> BaseModelOutputWithPooling:
        """Return features, one tensor a prompt, as the output of the model's tower."""
        return BaseModelOutputWithPooling(pooler_output=tuple(parts))

    # The engine (vLLM)

    def sees_both_ways(self, config: Any) -> bool:
        """Return whether the tokens of a picture attend to each other in both directions."""
        return False

    def engine_weight(self, config: Any, name: str, weight: Tensor) -> tuple[str, Tensor]:
        """Return a weight of the policy by the name and in the layout that the engine reads, those of published checkpoints."""
        return name, weight

    def engine_items(self, visual: VisualInputs) -> list[EngineItem]:
        """Return a prompt's media for the engine: merged features where they are known, else pixels."""
        items = []
        for kind in PIXELS:
            sizes, features = self.engine_sizes(visual, kind), getattr(visual, f"{kind}_features")
            if sizes:
                rows = visual.pixels(kind) if features is None else features
                parts = rows.split([len(rows) * size // sum(sizes) for size in sizes])
                items += [self.engine_item(visual, kind, index, part) for index, part in enumerate(parts)]
        return items

    def engine_sizes(self, visual: VisualInputs, kind: str) -> list[int]:
        """Return the visual tokens of each item of a kind of medium."""
        return visual.tokens_of_media(kind)

    def engine_item(self, visual: VisualInputs, kind: str, index: int, rows: Tensor) -> EngineItem:
        """Return item `index` of a kind, whose features or, where they are not known, pixels are `rows`."""
        raise NotImplementedError

    # Processes that share parameters run the tower once a forward, whatever its media.

    def run_once(self, backbone: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Run the tower once, before the rest of a forward with pixels, and return its arguments with features for pixels."""
        raise NotImplementedError

    def run_empty(self, backbone: nn.Module) -> Tensor:
        """Return the features of the smallest picture, for a forward without media."""
        raise NotImplementedError


class PicturesOnly(Family):
    """Families whose forward knows pictures alone: frames are pictures, and one placeholder stands for both kinds.

    Images and videos stay apart in `VisualInputs`, so that views treat videos as in any family; pixels and features are put
    in the order of the prompt where they enter a forward.
    """

    sharding_unsupported_reason = None
    engine_modalities = ("image",)

    def placeholder_ids(self, processor: ProcessorMixin) -> dict[str, int]:
        return dict.fromkeys(PIXELS, processor.image_token_id)

    def forward_kwargs(self, visuals: Sequence[VisualInputs], *, pixels: bool = True) -> dict[str, Any]:
        rows = [visual for visual in visuals if pixels and self.has_pixels(visual)]
        return {"pixel_values": torch.cat([self.pictures(visual) for visual in rows])} if rows else {}

    def has_pixels(self, visual: VisualInputs) -> bool:
        """Whether pixels are there, and not freed."""
        return any((value := getattr(visual, key)) is not None and not value.is_meta for key in PIXELS.values())

    def pictures(self, visual: VisualInputs) -> Tensor:
        """Return the pixels of a prompt's images and frames in the order in which the model sees them."""
        return in_prompt_order(visual, {kind: getattr(visual, key) for kind, key in PIXELS.items()})

    def encoder_outputs(
        self, backbone: nn.Module, visuals: Sequence[VisualInputs], features: Sequence[Features]
    ) -> dict[str, Any]:
        parts = [in_prompt_order(v, of_prompt) for v, of_prompt in zip(visuals, features, strict=True) if of_prompt]
        return {"image": self.encoder_output(backbone, parts)} if parts else {}


def in_prompt_order(visual: VisualInputs, rows: Mapping[str, Tensor | None]) -> Tensor:
    """Return rows of images and of videos in the order of their tokens.

    Args:
        visual: the prompt, whose token types say which token is of an image and which of a video.
        rows: {kind: (N,...)}, each row of n tokens, or each token of n rows, with one n for the prompt.
    """
    given = [rows[kind] for kind in PIXELS if rows.get(kind) is not None]
    if len(given) == 1:
        return given[0]
    together = torch.cat(given)
    types = visual.token_types[visual.token_types > 0]
    if len(together) <= len(types):
        types = types[:: len(types) // len(together)]
    else:
        types = types.repeat_interleave(len(together) // len(types))
    place = torch.argsort(torch.argsort(types, stable=True))
    return together[place.to(together.device)]


def _keep_input(caught: dict[nn.Module, Tensor]) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        caught[module] = args[0] if args else next(iter(kwargs.values()))

    return hook
