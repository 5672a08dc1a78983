"""Plan runs on 8 and 64 GPUs of 80 GB: `python -m benchmarks.cluster` writes the tables of docs/cluster.md.

Memory is what `trl-perception plan` estimates, on models without weights. Times follow from operations, bytes and the
constants below: `make gpu-check` measures the first two on one GPU. Nothing was run on several.
"""

from pathlib import Path

import torch

from benchmarks.models import random_model
from benchmarks.performance_table import with_table
from trl_perception.modeling.freezing import freeze_vision
from trl_perception.planning.memory import Batch, Engine, World, memory_parts, peak

MATRIX_RATE = 800e12  # operations a second of matrix products in bfloat16; measured on an H100
USED = 0.15  # of it by a packed update; measured on an H100 (Qwen3-VL-4B, P 2k, G 8)
MEMORY_RATE = 3.35e12  # bytes a second of a GPU's memory; the manufacturer's
LINK = {8: 450e9, 64: 50e9}  # bytes a second and GPU in one direction: in a node, and between nodes; the manufacturer's
GROUP, COMPLETION, GROUPS = 8, 512, 2  # completions a prompt, tokens of each, groups a GPU and step
TOKENS_A_CELL, TEXT = 120, 200  # of two frames of 420 x 224; of a question and its template
CARD = 0.9 * 80 * 2**30  # fragmentation and the CUDA context take the rest
PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"


def row_of(size: str, model: torch.nn.Module, gpus: int, frames: int) -> dict[str, float]:
    """Memory of a GPU in bytes by part, and seconds of the parts of a step."""
    visual = frames // 2 * TOKENS_A_CELL
    prompt, engines = visual + TEXT, 1 if size == "7b" else 4
    batch = Batch(
        sampled=GROUP * GROUPS,
        sampled_prompts=GROUPS,
        updated=GROUP,
        prompts=1,
        prompt=prompt,
        visual=visual,
        completion=COMPLETION,
        packed=True,
    )
    world = World(gpus, "zero3", bf16=True)
    engine = Engine(shares=engines, sleeps=True)
    parts = memory_parts(model, batch, world, checkpointing=True, optimizer="adamw_torch", engine=engine)
    sizes = {part.name: part.size for part in parts}
    states = sum(sizes[name] for name in ("weights", "master weights", "optimizer", "gradients"))
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # 2 operations a weight and token forward, once more where the layer is computed again, twice backward; and attention,
    # 4 operations a key, query and value of its width, of half the prefix and of the whole for the segments
    text = model.config.get_text_config()
    pairs = prompt**2 / 2 + GROUP * COMPLETION * (prompt + COMPLETION / 2)
    forward = 2 * trained * batch.tokens + 4 * text.num_hidden_layers * text.hidden_size * pairs
    # ZeRO-3 gathers the weights forward, when they are computed again, and backward, and scatters the gradients
    passes = 4 * 2 * weights * (gpus - 1) / gpus
    # a step of decoding reads the engine's weights, and the keys and values of each of its rows
    keys = 2 * text.num_hidden_layers * text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    read = 2 * weights / engines + 2 * keys * batch.sampled * (prompt + COMPLETION / 2)
    return {
        "prompt": prompt,
        "states": states,
        "engine": sizes["engine weights"] + sizes["engine cache"],
        "activations": sizes["activations"] + sizes["one layer"] + sizes["logits"],
        "peak": peak(parts),
        "update": GROUPS * 4 * forward / (USED * MATRIX_RATE),
        "decoding": COMPLETION * read / MEMORY_RATE,
        "traffic": GROUPS * passes / LINK[gpus],
        "checkpoint": 2 * weights + 12 * trained,
    }


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| model | GPUs | frames | prompt tokens | weights, gradients, optimizer | engine | activations | peak | fits | update, s | "
        "decoding, s | traffic, s | checkpoint |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for size in ("7b", "32b"):
        model, _ = random_model(size, device="meta", dtype=torch.bfloat16)
        freeze_vision(model, tower=True, merger=True)
        for gpus in LINK:
            for frames in (16, 64, 256):
                row = row_of(size, model, gpus, frames)
                memory = " | ".join(f"{row[name] / 2**30:.0f}" for name in ("states", "engine", "activations", "peak"))
                times = " | ".join(f"{row[name]:.1f}" for name in ("update", "decoding", "traffic"))
                fits = "yes" if row["peak"] < CARD else "no"
                start = f"| {size[:-1]}B | {gpus} | {frames} | {row['prompt']:,} |"
                lines.append(f"{start} {memory} | {fits} | {times} | {row['checkpoint'] / 2**30:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    found = table()
    print(found)
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    main()
