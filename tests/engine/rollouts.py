"""Trainers with the real engine on the tiny models, and what one rollout of theirs holds."""

from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import tiny as families
from tests.families.training import trainer_of
from trl_perception.modeling import base_model
from trl_perception.modeling.vision import family_of_model, forward_kwargs

SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 2**26, "skip_mm_profiling": True}
"""An engine that is built in a second."""
HYBRIDS = ("qwen3_5", "qwen3_5_moe")
"""Families with linear attention."""
EXPERTS = ("qwen3_vl_moe", "qwen3_5_moe", "internvl_moe", "glm4v_moe")
BOTH_WAYS = ("gemma3", "gemma4_large")
"""Families whose pictures see themselves in both directions."""
PLAIN = {**dict.fromkeys(HYBRIDS, "linear_attention"), **dict.fromkeys(BOTH_WAYS, "both_ways")}
"""What is in plain PyTorch where vLLM for CPUs has no kernel, a module of `tests.engine` by family."""
ENGINE = {"use_vllm": True, "vllm_mode": "colocate", "engine_options": SMALL}
GREEDY = {"generation_kwargs": {"temperature": 0.0}}
EXACT, SUPPRESSED = 1e-5, 4e-4  # of log-probs in float32; the second with the mass of placeholders taken away


def install_plain(family: str, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Let engines in this process compute what `PLAIN` says."""
    if family in PLAIN:
        import_module(f"tests.engine.{PLAIN[family]}").install(monkeypatch)


def exact(family: str) -> float:
    """`EXACT`, more for linear attention, whose sums the policy takes by chunks and the engine token by token."""
    return 3e-5 if family in HYBRIDS else EXACT


def wide(family: str) -> families.Tiny:
    """A family's tiny model with heads of 32 values at least, which vLLM's attention on a CPU wants, and experts that are not square."""
    narrow = families.decoder

    def decoder(**changes):
        if "moe_intermediate_size" in changes:
            changes["moe_intermediate_size"] = 128
        if "head_dim" in changes:
            return narrow(**changes)
        text = narrow(**{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, **changes})
        rope = text.get("rope_parameters", {})
        if "mrope_section" in rope:
            text["rope_parameters"] = {**rope, "mrope_section": [2 * size for size in rope["mrope_section"]]}
        return text

    with mock.patch.object(families, "decoder", decoder):
        made = families.FAMILIES[family]()
    # As the published configurations say; vLLM reads it, and transformers' models have these biases, and norm, always.
    made.model.config.text_config.attention_bias = "glm" in family
    made.model.config.text_config.norm_topk_prob = True
    if "gemma4" in family:
        made.model.config.vision_config.default_output_length = 280
    return made


def saved(made: families.Tiny, folder: Path) -> None:
    """Write model and processor as they are published."""
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    family, config, file = family_of_model(made.model), made.model.config, folder / "model.safetensors"
    # transformers reads the layouts of published weights, and writes some otherwise.
    published = dict(family.engine_weight(config, *named) for named in load_file(file).items())
    save_file(published, file, {"format": "pt"})


def engine_trainer(family: str, folder, rows: list[dict], method: str = "grpo", **config: Any):
    """A trainer on a family's tiny model in `folder`/model, G 2, all rows in one rollout, with the engine unless told not to."""
    path = folder / "model"
    if not path.is_dir():
        saved(wide(family), path)
    count = config.pop("num_generations", 2)
    defaults = {"per_device_train_batch_size": count * len(rows), "num_generations": count, **ENGINE}
    return trainer_of(family, method, folder / "run", rows, model=str(path), **{**defaults, **config})


def rollout(trainer) -> dict[str, Any]:
    """One rollout of every row of the training data, in training."""
    trainer.model.train()
    inputs = [given for given in trainer.train_dataset for _ in range(trainer.num_generations)]
    return trainer._generate_and_score_completions(inputs)


@torch.no_grad()
def largest_difference(trainer, output: dict[str, Any]) -> float:
    """Between the log-probs of sampling and those of the policy, by a forward of each row, without suppressed placeholders."""
    model, worst = base_model(trainer.model), 0.0
    suppressed = trainer.prompt_preparer.suppressed_ids
    for row, visual in enumerate(output["visual_inputs"]):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
        completion = output["completion_ids"][row][output["completion_mask"][row].bool()]
        ids = torch.cat([prompt, completion])[None]
        media = forward_kwargs(model, [visual], len(prompt), ids.size(1))
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **media).logits[0, len(prompt) - 1 : -1]
        logits[:, suppressed] = -torch.inf
        wanted = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        worst = max(worst, float((output["sampling_per_token_logps"][row, : len(completion)] - wanted).abs().max()))
    return worst


def after_update(trainer) -> dict[str, Any]:
    """A rollout with other weights than those of the last one."""
    noise(trainer.model)
    trainer.state.global_step += 1
    return rollout(trainer)


def noise(model, scale: float = 0.02, seed: int = 0) -> None:
    """What an update does: every trained weight moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
