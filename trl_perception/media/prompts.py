"""Prepares dataset rows as model inputs: decodes media, applies the chat template, tokenizes, and checks lengths."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import ProcessorMixin

from ..families import family_of_processor, supported
from .errors import MediaError
from .limits import MediaLimits
from .loader import MediaLoader, MediaRequest, Reading
from .messages import ID_COLUMNS, conversation, media_blocks, without_payloads
from .requests import MediaSettings
from .settings import VideoSettings
from .video import VideoClip
from .visual_inputs import TOKEN_TYPE, VisualInputs, check_placeholders


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """One prompt, tokenized, with its visual inputs.

    Args:
        row: the original dataset row.
        messages: the prompt with media filled in (or the plain string of a standard prompt).
        logged: the same without image and video objects, for logs.
        input_ids: the P prompt tokens.
        visual: its visual inputs; None if they are not made here.
        images: its images as PIL, for engines that take PIL images.
        frames: per video, the sampled frames (F,3,H,W) uint8.
        frame_times: per video, the time of each sampled frame in seconds.
        preparer: what prepared it, for views of its media; None where nothing did, and for a prompt that was restored.
        left_out: the reason why the sample is left out, else "". A left-out prompt is one token without media that
            keeps its place in the batch and does not contribute to the loss.
    """

    row: Mapping[str, Any]
    messages: Any
    logged: Any
    input_ids: list[int]
    visual: VisualInputs | None
    images: list = field(default_factory=list)
    frames: list[torch.Tensor] = field(default_factory=list)
    frame_times: list[list[float]] = field(default_factory=list)
    preparer: "PromptPreparer | None" = None
    left_out: str = ""


class UnusableSampleError(ValueError):
    """A sample whose media cannot be decoded or whose prompt is too long; `on_unusable` selects an error or a skip."""


class PromptPreparer:
    """Turns rows into `PreparedPrompt`s with one processor.

    Args:
        processor: a processor of one of the [`FAMILIES`].
        loader: decodes and caches media.
        video_settings: frame sampling and sizes; a message block overrides them key by key.
        image_min_pixels, image_max_pixels: size limits of images; None leaves sizes to the processor.
        media_limits: resource limits for reading one medium; None means MediaLimits().
        max_prompt_length: longest prompt in tokens, visual tokens included; None for no limit.
        chat_template_kwargs: passed to the chat template.
    Errors: ValueError for another processor.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        loader: MediaLoader | None = None,
        video_settings: VideoSettings | None = None,
        image_min_pixels: int | None = None,
        image_max_pixels: int | None = None,
        media_limits: MediaLimits | None = None,
        max_prompt_length: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.processor, self.family = processor, family_of_processor(processor)
        if self.family is None:
            raise ValueError(f"{type(processor).__name__} is the processor of no supported family: {supported()}.")
        self.loader = loader or MediaLoader()
        self.media_settings = MediaSettings(
            video_settings or VideoSettings(),
            image_min_pixels,
            image_max_pixels,
            media_limits or MediaLimits(),
            self.family.sizes(processor),
        )
        self.max_prompt_length = max_prompt_length
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.placeholder_ids = self.family.placeholder_ids(processor)
        self.suppressed_ids = self.family.suppressed_ids(processor)

    def __call__(self, rows: Sequence[Mapping[str, Any]], *, on_unusable: str = "error") -> list[PreparedPrompt]:
        """Prepare one prompt per row, in order; media of all rows are decoded together, each distinct one once.

        Args:
            rows: dataset rows with `prompt` and, if it has media, `images`/`videos` (or `image`/`video`).
            on_unusable: "error" raises for the first row whose media cannot be decoded, that the processor rejects or
                that is too long; "skip" replaces it by a prompt whose `left_out` is the reason.
        Errors: ValueError for a malformed row, under either policy.
        """
        conversations, requests = [], []
        for index, row in enumerate(rows):
            try:
                conversations.append(conversation(row))
                requests.append(self._requests(conversations[-1]))
            except ValueError as error:
                raise ValueError(f"{sample_name(row, index)}: {error}") from error
        loaded = iter(self.loader.readings([request for of_row in requests for request in of_row]))
        prepared = []
        for index, (row, messages, of_row) in enumerate(zip(rows, conversations, requests, strict=True)):
            readings = [next(loaded) for _ in of_row]
            try:
                prepared.append(self._prepare(row, sample_name(row, index), messages, of_row, readings))
            except UnusableSampleError as reason:
                if on_unusable == "error":
                    raise
                prepared.append(self._left_out(row, reason))
        return prepared

    def read_ahead(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Start to read and process the media of rows in processes, for a later call with them (see `MediaLoader.read_ahead`).

        Raises nothing for a row that is malformed: the later call does.
        """
        requests = []
        for row in rows:
            with suppress(ValueError):
                requests += self._requests(conversation(row))
        self.loader.read_ahead(requests, partial(self.family.process, self.processor))

    def _requests(self, messages: Sequence[Mapping[str, Any]]) -> list[MediaRequest]:
        return [self.media_settings.request(block) for block in media_blocks(messages)]

    def _prepare(self, row, sample, messages, requests, readings: Sequence[Reading]) -> PreparedPrompt:
        media = [reading.medium for reading in readings]
        for medium in media:
            if isinstance(medium, MediaError):
                raise UnusableSampleError(f"{sample}: {medium}") from medium
        images = [medium for request, medium in zip(requests, media, strict=True) if request.kind == "image"]
        clips = [medium for request, medium in zip(requests, media, strict=True) if request.kind == "video"]
        logged = without_payloads(messages) if messages else row["prompt"]
        messages = messages or row["prompt"]
        kinds = [request.kind for request in requests]
        try:
            text = self._template(messages, logged, clips)
            input_ids, visual = self._encoded(sample, text, list(zip(kinds, readings, strict=True)))
        except (ValueError, TemplateError) as error:
            raise UnusableSampleError(f"{sample}: {error}") from error
        check_placeholders(torch.tensor([input_ids]), torch.ones(1, len(input_ids)), self.placeholder_ids, [visual])
        if self.max_prompt_length is not None and len(input_ids) > self.max_prompt_length:
            raise UnusableSampleError(
                f"{sample}: the prompt has {len(input_ids)} tokens, {visual.visual_tokens} of them visual; the limit "
                f"is max_prompt_length={self.max_prompt_length}. Prompts are never cut: raise max_prompt_length, or lower "
                "video_max_frames, video_max_pixels or image_max_pixels."
            )
        return PreparedPrompt(
            row=row,
            messages=messages,
            logged=logged,
            input_ids=input_ids,
            visual=visual,
            images=images,
            frames=[clip.frames for clip in clips],
            frame_times=[[float(time) for time in clip.times] for clip in clips],
            preparer=self,
        )

    def _template(self, messages: Any, logged: Any, clips: list[VideoClip]) -> str:
        """Return the text of a prompt, before its media are put in. Errors: TemplateError."""
        if isinstance(logged, str):
            return logged
        messages = self.family.messages(logged, [len(clip.frames) for clip in clips])
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )

    def _encoded(self, sample: str, text: str, media: Sequence[tuple[str, Reading]]) -> tuple[list[int], VisualInputs]:
        """Put media into the text of a prompt, and tokenize it: P token ids, and the visual inputs.

        Each medium goes through the processor by itself, so that media of any sizes and lengths fit into one prompt.
        Errors: ValueError if the processor rejects a medium, or placeholders and media differ in number.
        """
        processor, family = self.processor, self.family
        processed = [(kind, of.processed or family.process(processor, kind, of.medium)) for kind, of in media]
        texts = [(kind, text) for kind, of_medium in processed for text in of_medium.texts]
        tokens = {kind: family.template_token(processor, kind) for kind in self.placeholder_ids}
        text, texts = _filled(text, tokens, texts)
        begun = bool(processor.tokenizer.bos_token) and text.startswith(
            processor.tokenizer.bos_token
        )  # by the template
        input_ids = processor.tokenizer([text], add_special_tokens=not begun)["input_ids"][0]
        token_types = _token_types(processor.tokenizer, input_ids, self.placeholder_ids, texts)
        fields = [of_medium.fields for _, of_medium in processed]
        names = dict.fromkeys(name for of_medium in fields for name in of_medium)
        values = {name: [of_medium[name] for of_medium in fields if name in of_medium] for name in names}
        tensors = {name: torch.cat(of_name) for name, of_name in values.items() if isinstance(of_name[0], torch.Tensor)}
        merge = {"merge_size": values["merge_size"][0]} if fields else {}
        return input_ids, VisualInputs(sample=sample, token_types=token_types, **tensors, **merge)

    def pixels(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `pixel_values_videos` of clips (F,3,H,W) uint8 that were read for this processor."""
        return torch.cat([self.family.video_pixels(self.processor, clip) for clip in clips])

    def read_again(
        self, prompt: PreparedPrompt, change: Callable[[], Callable[[torch.Tensor], torch.Tensor]]
    ) -> tuple[list, list[torch.Tensor]]:
        """Decode the media of a prompt once more, with their pixels changed before they are resized.

        Args:
            change: called for each medium, returns what changes its pixels (3,H,W) uint8, image by image or frame by frame.
        Returns: images (PIL) and frames, as in [`PreparedPrompt`].
        Errors: MediaError for a medium that can no longer be read.
        """
        media = [(request.kind, request.read(change=change())) for request in self._requests(prompt.messages)]
        return [m for kind, m in media if kind == "image"], [m.frames for kind, m in media if kind == "video"]

    def repainted(
        self, prompt: PreparedPrompt, *, images: Sequence = (), frames: Sequence[torch.Tensor] = ()
    ) -> VisualInputs:
        """Return the visual inputs of a prompt with other pixels of the same sizes; features of the earlier ones are dropped.

        Args:
            images, frames: all images (PIL), or the frames of all videos; an empty kind stays as it is.
        """
        pixels = {}
        if images:
            processed = [self.family.process(self.processor, "image", image).fields for image in images]
            pixels["pixel_values"] = torch.cat([fields["pixel_values"] for fields in processed])
        if frames:
            pixels["pixel_values_videos"] = self.pixels(frames)
        return replace(prompt.visual, **pixels)

    def _left_out(self, row: Mapping[str, Any], reason: UnusableSampleError) -> PreparedPrompt:
        text = f"Left out: {reason}"
        shown = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        return PreparedPrompt(
            row=row,
            messages=text if isinstance(row["prompt"], str) else shown,
            logged=text if isinstance(row["prompt"], str) else shown,
            # With one token there would be nothing to prefill, and processes that generate together would run different forwards.
            input_ids=[self.processor.tokenizer.eos_token_id] * 2,
            visual=VisualInputs(sample="left out", token_types=torch.zeros(2, dtype=torch.long)),
            left_out=str(reason),
        )


def sample_name(row: Mapping[str, Any], index: int) -> str:
    """Return the name of a row for errors: its id if it has one, else its index in the batch and the prompt's start."""
    for key in ID_COLUMNS:
        if row.get(key) is not None:
            return f"sample {row[key]}"
    return f"row {index} of the batch (prompt {str(row.get('prompt'))[:80]!r})"


def _filled(
    text: str, tokens: Mapping[str, str], texts: Sequence[tuple[str, str]]
) -> tuple[str, list[tuple[str, str]]]:
    """Replace the token of each medium in a text by what its processor writes.

    Args: tokens: by kind of medium; texts: (kind, text), those of a kind in order.
    Returns: the text, and the entries of texts in its order.
    Errors: ValueError where tokens and media differ in number.
    """
    for token in dict.fromkeys(tokens.values()):
        kinds = [kind for kind in tokens if tokens[kind] == token]
        wanted = sum(kind in kinds for kind, _ in texts)
        if (found := text.count(token)) != wanted:
            raise ValueError(
                f"the prompt has {found} placeholders {token} for {wanted} {'s and '.join(kinds)}s. One written into a text has no "
                f"medium: take it out of the text (blocks {{'type': '{kinds[0]}'}} make the placeholders)."
            )
    waiting = {token: iter([entry for entry in texts if tokens[entry[0]] == token]) for token in tokens.values()}
    parts = re.split(f"({'|'.join(map(re.escape, waiting))})", text)
    shown = [next(waiting[token]) for token in parts[1::2]]
    parts[1::2] = [filled for _, filled in shown]
    return "".join(parts), shown


def _token_types(
    tokenizer: Any, input_ids: list[int], placeholder_ids: Mapping[str, int], texts: Sequence[tuple[str, str]]
) -> torch.Tensor:
    """Return (P,) 0 text, 1 image, 2 video: the placeholders belong to the media in their order.

    Errors: ValueError where the prompt has placeholders beside those of its media.
    """
    ids = torch.tensor(input_ids)
    token_types = torch.zeros_like(ids)
    where = torch.isin(ids, torch.tensor(list(placeholder_ids.values()))).nonzero()[:, 0]
    placeholders = {kind: tokenizer.convert_ids_to_tokens(token_id) for kind, token_id in placeholder_ids.items()}
    types = [TOKEN_TYPE[kind] for kind, text in texts for _ in range(text.count(placeholders[kind]))]
    if len(types) != len(where):
        raise ValueError(
            f"the prompt has {len(where)} placeholder tokens, and its media are {len(types)} of them. Take the other ones "
            f"({', '.join(dict.fromkeys(placeholders.values()))}) out of the text."
        )
    token_types[where] = torch.tensor(types, dtype=torch.long)
    return token_types
