"""Prompts with media on their way to the engine: our token ids, our tensors, and where each medium is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..families import EngineItem, Family
from ..media import MEDIA_KINDS, VisualInputs
from ..media.visual_inputs import TOKEN_TYPE

if TYPE_CHECKING:
    from vllm.inputs.engine import MultiModalInput, TokensInput
    from vllm.multimodal.inputs import MultiModalFeatureSpec

IN_THE_BODY = 2**62  # bytes up to which vLLM's encoder writes a tensor beside the rest, not into a buffer of its own


@dataclass(frozen=True, eq=False)
class EngineMedia:
    """The media of a prompt for the engine. TRL passes it on unread, where it takes it for an image.

    Args:
        sample: name of the sample for errors.
        key: under it the engine caches what it computes. No two prompts and no two rollouts share one, so that nothing
            in a cache is older than the weights.
        token_types: (P,) int, 0 text, 1 image, 2 video.
        items: its media, images before videos.
    """

    sample: str
    key: str
    token_types: Tensor
    items: Sequence[EngineItem]


@torch.no_grad()
def engine_media(
    family: Family, backbone: nn.Module, visuals: Sequence[VisualInputs], key: str, device: str | None
) -> list[EngineMedia]:
    """Return the media of B rows; rows with the same visual inputs share one object and one key.

    Args:
        backbone: the policy's, whose mergers finish features from before them.
        key: begins the keys of these rows. device: where tensors are moved, None to leave them.
    """
    made: dict[int, EngineMedia] = {}
    for visual in visuals:
        if id(visual) in made:
            continue
        given = visual if device is None else visual.to(device)
        items = family.engine_items(_merged(family, backbone, given))
        made[id(visual)] = EngineMedia(visual.sample, f"{key}-{len(made)}", visual.token_types.cpu(), items)
    return [made[id(visual)] for visual in visuals]


def require_fit(prompt_ids: Sequence[int], media: EngineMedia, new_tokens: int, longest: int, largest: int) -> None:
    """Refuse a prompt for which the engine has no room.

    Args: longest: tokens of a prompt and its completion in the engine. largest: visual tokens of a medium in its encoder cache.
    Errors: ValueError naming the sample.
    """
    if len(prompt_ids) + new_tokens > longest:
        raise ValueError(
            f"{media.sample}: the prompt has {len(prompt_ids)} tokens, and with max_completion_length {new_tokens} the engine would "
            f"cut the completion at vllm_max_model_length {longest}. Raise it to {len(prompt_ids) + new_tokens}, or lower "
            "max_prompt_length."
        )
    for item in media.items:
        if item.tokens > largest:
            raise ValueError(
                f"{media.sample}: its {item.kind} has {item.tokens} visual tokens, and the engine's encoder cache holds {largest}. "
                f"Set engine_options {{max_num_batched_tokens: {item.tokens}}} or more, or lower the size of its media."
            )


def require_same_ids(sample: str, ours: Sequence[int], engines: Sequence[int]) -> None:
    """Errors: RuntimeError where the engine sampled a completion of other tokens than the prompt's."""
    if list(ours) != list(engines):
        raise RuntimeError(
            f"{sample}: the prompt has {len(ours)} tokens, and the engine sampled from {len(engines)} others. This vLLM changes "
            "prompts that are prepared: install the version that docs/vllm.md names, or set use_vllm=False."
        )


def engine_input(prompt_ids: Sequence[int], media: EngineMedia, dtype: torch.dtype) -> "TokensInput | MultiModalInput":
    """Return a prompt as the engine's own processor would: it is not run again.

    Args: dtype: of the engine, in which pixels and features are passed.
    """
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItem, MultiModalKwargsItems, PlaceholderRange

    if not media.items:
        return tokens_input(list(prompt_ids))
    places = {kind: _places(media.token_types, kind, media.items) for kind in MEDIA_KINDS}
    items: dict[str, list[Any]] = {}
    ranges: dict[str, list[PlaceholderRange]] = {}
    keys: dict[str, list[str]] = {}
    for number, item in enumerate(media.items):
        items.setdefault(item.modality, []).append(MultiModalKwargsItem(_fields(item, dtype)))
        ranges.setdefault(item.modality, []).append(PlaceholderRange(*next(places[item.kind])))
        keys.setdefault(item.modality, []).append(f"{media.key}-{number}")
    return mm_input(list(prompt_ids), MultiModalKwargsItems(items), keys, ranges)


def packed(given: "TokensInput | MultiModalInput", sampling: Mapping[str, Any]) -> bytes:
    """Return a prompt and the options of its sampling as they travel to a server; tensors on the CPU keep their type."""
    from vllm.v1.serial_utils import MsgpackEncoder

    media = [given.get(name, {}) for name in ("mm_kwargs", "mm_hashes", "mm_placeholders")]
    (body,) = MsgpackEncoder(size_threshold=IN_THE_BODY).encode([given["prompt_token_ids"], *media, sampling])
    return body


def unpacked(body: bytes) -> "tuple[TokensInput | MultiModalInput, dict[str, Any]]":
    """Return what was [`packed`]."""
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
    from vllm.v1.serial_utils import MsgpackDecoder

    places = dict[str, list[PlaceholderRange]]
    parts = tuple[list[int], MultiModalKwargsItems, dict[str, list[str]], places, dict[str, Any]]
    prompt_ids, *media, sampling = MsgpackDecoder(parts).decode(body)
    return mm_input(prompt_ids, *media) if media[0] else tokens_input(prompt_ids), sampling


def features_of(given: "MultiModalInput") -> "list[MultiModalFeatureSpec]":
    """Return the media of a prompt as a request of the engine holds them."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    return [
        MultiModalFeatureSpec(data=item, modality=kind, identifier=key, mm_position=place, mm_hash=key)
        for kind, items in given["mm_kwargs"].items()
        for item, key, place in zip(items, given["mm_hashes"][kind], given["mm_placeholders"][kind], strict=True)
    ]


def _fields(item: EngineItem, dtype: torch.dtype) -> dict[str, Any]:
    """Return the tensors of a medium with what the engine does to join them with those of other media."""
    from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem, MultiModalFlatField

    def typed(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    joined = {
        name: MultiModalFieldElem(typed(value), MultiModalFlatField(slices=[slice(0, len(value))]))
        for name, value in item.joined.items()
    }
    stacked = {
        name: MultiModalFieldElem(typed(value), MultiModalBatchedField()) for name, value in item.stacked.items()
    }
    on_cpu = MultiModalBatchedField(keep_on_cpu=True)
    return joined | stacked | {name: MultiModalFieldElem(value.cpu(), on_cpu) for name, value in item.facts.items()}


def _places(types: Tensor, kind: str, items: Sequence[EngineItem]) -> Iterator[tuple[int, int, Tensor | None]]:
    """Yield offset, length and, where text stands between placeholders, the mask of them, for each item of a kind."""
    of_kind, items = (types == TOKEN_TYPE[kind]).nonzero()[:, 0], [item for item in items if item.kind == kind]
    for item, places in zip(items, of_kind.split([item.tokens for item in items]), strict=True):
        first, last = int(places[0]) - item.lead, int(places[-1])
        mask = types[first : last + 1] == TOKEN_TYPE[kind]
        yield first, last + 1 - first, None if mask.all() else mask


def _merged(family: Family, backbone: nn.Module, visual: VisualInputs) -> VisualInputs:
    """Return the inputs with features from before the mergers passed through them as they are now."""
    before = {name: getattr(visual, name) for name in (f"{kind}_features" for kind in MEDIA_KINDS)}
    merged = {
        name: family.merge(backbone, states)
        for name, states in before.items()
        if states is not None and states.ndim == 3
    }
    return replace(visual, **merged) if merged else visual
