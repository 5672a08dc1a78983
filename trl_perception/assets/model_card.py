"""The README.md that lies beside an embedded model."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

from . import EMBEDDED
from .evaluate_tiny import as_markdown

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [qwen2_5_vl, video, synthetic]
---
# {name}

A real `Qwen2_5_VLForConditionalGeneration` with {parameters:,} float32 parameters, trained from {origin} on
synthetic clips and images. It exists so that training loops, tests and examples run on a CPU in seconds; it knows nothing else.

- Sight: {depth} vision blocks, patches of 14 pixels merged two by two, two frames a temporal step.
- Text: {layers} layers, {heads} heads on {kv_heads} key-value heads, {vocabulary} byte-level BPE tokens.
- Frames: 4 a second, 16 at most, 56 by 56 pixels: a clip of 4 seconds is 32 tokens, an image 4.
- Output: `<think>` what is seen `</think><answer>` the answer `</answer>`.
- Positions: text behind a clip starts at the clip's largest position + 1, as in the released Qwen2.5-VL. Plain transformers 5 starts it
  elsewhere and answers worse; `trl_perception.from_pretrained` applies the rule of training.

## Training
Supervised on reference completions for {steps} steps of {batch_size} rows (loss on completion tokens only):

    python -m trl_perception.assets.train_tiny --config {recipe_path}

{stop}
## Accuracy
Percent on {rows} held-out rows (medium {medium}). `greedy` and `sampled` (temperature 1) are accuracies, a time
question counting as right from a temporal IoU of 0.5; `swapped` is greedy with each row shown another row's clip or
image, so the distance to `greedy` is what the model sees. `reward` is the sampled mean reward, `format` the share of sampled
completions in the right format.

{table}
The same table for clips alone, on other rows:

    python -m trl_perception.assets.evaluate_tiny --model {model}
"""


def write_model_card(
    folder: Path, *, recipe_path: str, recipe, steps: int, model: PreTrainedModel, table: Mapping[str, Mapping]
) -> None:
    """Write the card of a model trained by a `TinyRecipe`; `table` is what `evaluate` returns."""
    text, vision = model.config.text_config, model.config.vision_config
    stop = ""
    if recipe.stop_accuracy < 1:
        stop = (
            f"Training stops once greedy accuracy on validation rows reaches {recipe.stop_accuracy:.2f}. It is left\n"
            "imperfect on purpose: reinforcement learning needs room.\n"
        )
    if recipe.hallucinated:
        stop += f"{recipe.hallucinated:.0%} of the rows with a clip are shown that of another row, so that the model hallucinates.\n"
    card = CARD.format(
        name=f"trl_perception {folder.name}",
        model=folder.name if folder.name in EMBEDDED else str(folder),
        origin="random weights" if recipe.model is None else recipe.model,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        depth=vision.depth,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vocabulary=text.vocab_size,
        steps=steps,
        batch_size=recipe.batch_size,
        recipe_path=recipe_path,
        stop=stop,
        rows=table["all"]["rows"],
        medium=recipe.medium,
        table=as_markdown(table),
    )
    (folder / "README.md").write_text(card)
