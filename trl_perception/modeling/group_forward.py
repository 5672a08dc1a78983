"""The group forward: rows that share a prompt in one packed row, so that the prompt is paid for once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from ..families import TEXT_ONLY, supported
from ..media import VisualInputs
from .attention import attention_implementation, decoder_of, self_attentions, window_of
from .head import base_model
from .packed_attention import BACKENDS, SPLIT, mask_of
from .packed_linear_attention import follow_packings_of_states, linear_attentions
from .packing import PackedMask, Packing, pack, packed_positions
from .views import original_positions
from .vision import family_of_model, media_kwargs

# Kinds of layers (config.layer_types) of hybrid models of which rows are packed.
LINEAR_AND_FULL = {"linear_attention", "full_attention"}


def group_forward(
    model: nn.Module,
    *,
    runs: Sequence[int],
    visuals: Sequence[VisualInputs | None],
    completion_width: int,
    positions: Tensor | None = None,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    **inputs: Any,
) -> FusedCausalLMOutput:
    """`model(input_ids, attention_mask, labels, fused_lm_head=True)` with rows of the same prompt packed into one row.

    The log-probabilities and gradients are the same, with  sum over runs of P + G + sum_g R_g  tokens instead of  B (P + T).

    Args:
        model: with TRL's fused head, in its wrappers or not; see [`packing_unsupported_reason`].
        runs: sizes of the runs of neighbours with one prompt.
        visuals: the visual inputs of each run's prompt, or None for prompts without.
        completion_width: T.
        positions: (A,P+T) int for every run, where they are not the ones that the model takes itself.
        input_ids, attention_mask, labels: (B,S), as TRL makes them: left-padded prompts, right-padded completions;
            `inputs` are passed to the model.
    Returns: log_probs and entropy (B,T), 0 where there is no label.
    """
    packing = pack(attention_mask, completion_width, runs)
    mask = _mask(model, packing)
    width = input_ids.size(1)
    predictors = torch.arange(width - completion_width - 1, width - 1, device=input_ids.device)
    at = packing.index[:, predictors]  # (B,T)
    wanted = labels[:, -completion_width:]
    counted = wanted != -100
    shift_labels = input_ids.new_full((packing.length + 1,), -100)  # one more, for places that are not counted
    shift_labels[torch.where(counted, at, packing.length)] = wanted
    of_runs = [
        original_positions(model, prompt, visual, completion_width) if positions is None else positions
        for prompt, visual in zip(_prompts(packing, input_ids), visuals, strict=True)
    ]
    position_ids = packed_positions(packing, of_runs, completion_width)
    output = model(
        input_ids=input_ids.flatten()[packing.source][None],
        attention_mask=mask,
        position_ids=position_ids if position_ids.size(0) > 1 else position_ids[0],
        shift_labels=shift_labels[None, :-1],
        **media_kwargs(model, [visual for visual in visuals if visual is not None]),
        **inputs,
    )
    layers = len(decoder_of(model).layers)
    if attention_implementation(model) in SPLIT and packing.served != layers:
        raise RuntimeError(
            f"{packing.served} of {layers} layers followed the packed row's layout. Set group_forward='off' for this model."
        )

    def rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(counted, values[0][at], 0.0)

    return FusedCausalLMOutput(loss=output.loss, log_probs=rows(output.log_probs), entropy=rows(output.entropy))


def shared_runs(prompt_ids: Tensor, prompt_mask: Tensor, visuals: Sequence[VisualInputs] | None) -> list[int]:
    """Sizes of the runs of neighbours that share prompt and media.

    Args:
        prompt_ids, prompt_mask: (B,P); visuals: B visual inputs, one object for the rows of a group, or None.
    """
    ids = prompt_ids.masked_fill(prompt_mask == 0, -1)
    alike = (ids[1:] == ids[:-1]).all(dim=1).tolist()
    runs = [1]
    for row, same in enumerate(alike):
        if same and (visuals is None or visuals[row] is visuals[row + 1]):
            runs[-1] += 1
        else:
            runs.append(1)
    return runs


def packing_unsupported_reason(model: nn.Module) -> str | None:
    """Returns the reason why rows of this model cannot be packed, or None."""
    base = base_model(model)
    config = base.config
    text = config.get_text_config()
    if text is not config and family_of_model(model) is TEXT_ONLY:
        return f"{config.model_type} is not among the families {supported()}"
    if attention_implementation(model) not in BACKENDS:
        return f"attn_implementation is {attention_implementation(model)!r}, not one of {', '.join(BACKENDS)}"
    decoder = decoder_of(model)
    attentions = self_attentions(decoder)
    kinds = set(getattr(text, "layer_types", None) or ())
    linear = linear_attentions(decoder) if kinds <= LINEAR_AND_FULL else {}
    if others := len(decoder.layers) - len(attentions) - len(linear):
        return f"{others} decoder layers have neither softmax self-attention nor a linear attention that can be packed"
    if any(window_of(module) for module in attentions.values()):
        return "some decoder layers attend to a sliding window"
    peft = getattr(model, "active_peft_config", None)
    if peft is not None and getattr(peft, "is_prompt_learning", False):
        return f"{peft.peft_type} puts virtual tokens before each row"
    return None


def token_ratio(prompt_sizes: Sequence[int], completion_sizes: Sequence[int], runs: Sequence[int]) -> float:
    """Tokens of the padded rows over tokens of the packed row: B (P_max + R_max) / sum over runs of P + G + sum R.

    Args:
        prompt_sizes, completion_sizes: P and R of each of the B rows.
        runs: sizes of the runs of neighbours with one prompt.
    """
    packed = row = 0
    for count in runs:
        packed += prompt_sizes[row] - 1 + sum(1 + size for size in completion_sizes[row : row + count])
        row += count
    return len(prompt_sizes) * (max(prompt_sizes) + max(completion_sizes)) / packed


def _mask(model: nn.Module, packing: Packing) -> Any:
    """What the model takes as the `attention_mask` of the packed row: one for each kind of layer in a hybrid."""
    mask = mask_of(packing, attention_implementation(model))
    linear = linear_attentions(decoder_of(model))
    if not linear:
        return mask
    for module_class in {type(module) for module in linear.values()}:
        follow_packings_of_states(module_class)
    return {"full_attention": mask, "linear_attention": PackedMask.of(packing)}


def _prompts(packing: Packing, input_ids: Tensor) -> list[Tensor]:
    """The prompt of each run, without padding."""
    ids = input_ids.flatten()[packing.source]
    return [ids[run.start : run.start + run.prefix + 1] for run in packing.runs]
