"""Savings from doing shared work once instead of G times: `python -m benchmarks.performance [--json FILE]`.

Every figure is the ratio of two paths in one run, on a Qwen2.5-VL with random weights where no other
family is named:

- update: log-probs, loss and backward of a group, one packed row against one row a completion;
- families: the same update with other families;
- segments: the packed update with the prefix read where it stands against a copy of its keys a segment;
- rollout: prefilling each distinct prompt once against prefilling every row;
- attention rows of a layer against the eager map;
- methods: a whole optimisation step of each method against GRPO's, and GRPO's against the plain paths;
- peer: a step of GRPO on an image of 1,024 tokens by TRL's trainer, and by this package's;
- short prompts: a whole step of the tiny recipe, packed against plain.

On a GPU: `--device cuda --size 3b --dtype bfloat16`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.families import FAMILIES, family_model
from benchmarks.measure import machine
from benchmarks.models import SIZES, random_model
from benchmarks.paths import Group, decoding, prepare, rollout, rows_of_one_layer, segments, update
from benchmarks.performance_table import as_markdown, methods_as_markdown, plot, with_table
from benchmarks.steps import METHODS, methods, peer, short_prompts


def millions(model) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def families(options: argparse.Namespace, device: str, dtype: torch.dtype) -> dict[str, dict]:
    """The update of a group by family, for the second length of prompt and the largest group of the options."""
    found = {}
    for name in options.families:
        model = family_model(name, options.size, device=device, dtype=dtype)
        prepare(model, device)
        group = Group(model, sorted(options.cells)[:2][-1], max(options.generations), options.length, device)
        sizes = {"P": len(group.prompt), "G": group.generations, "R": group.length}
        found[name] = {"millions": millions(model), **sizes, "update": update(model, group, device, options.repeats)}
        print(f"{name}: update {found[name]['update']['speedup']:.1f} x", flush=True)
    return found


def shared(options: argparse.Namespace, device: str, dtype: torch.dtype, result: dict) -> list[dict]:
    """Update and rollout for each length of prompt and size of group."""
    model, _ = random_model(options.size, device=device, dtype=dtype)
    prepare(model, device)
    result["model"] = f"{millions(model):.0f} M parameters, {options.dtype}"
    cases = []
    for generations in options.generations:
        for cells in options.cells:
            group = Group(model, cells, generations, options.length, device)
            case = {"P": len(group.prompt), "G": generations, "R": options.length}
            case["update"] = update(model, group, device, options.repeats)
            case["rollout"] = rollout(model, group, device, options.repeats)
            cases.append(case)
            print(f"P {case['P']}, G {generations}: update {case['update']['speedup']:.1f} x", flush=True)
    return cases


def at_largest_group(part: Callable, options: argparse.Namespace, device: str, dtype: torch.dtype) -> list[dict]:
    """A part for each length of prompt, at the largest group."""
    model, _ = random_model(options.size, device=device, dtype=dtype)
    prepare(model, device)
    groups = [Group(model, cells, max(options.generations), options.length, device) for cells in options.cells]
    return [
        {"P": len(group.prompt), "G": group.generations, "R": group.length}
        | part(model, group, device, options.repeats)
        for group in groups
    ]


PARTS = ("shared", "segments", "decoding", "families", "attention rows", "methods", "peer", "short prompts")


def measure(options: argparse.Namespace) -> dict:
    """Measure the requested parts and keep the others that the file already holds."""
    device, dtype = options.device, getattr(torch, options.dtype)
    result = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    result["machine"] = machine(device)
    if "shared" in options.parts:
        result["shared"] = shared(options, device, dtype, result)
    for name, part in (("segments", segments), ("decoding", decoding)):
        if name in options.parts:
            result[name] = at_largest_group(part, options, device, dtype)
    if "families" in options.parts:
        result["families"] = {**result.get("families", {}), **families(options, device, dtype)}
    if "attention rows" in options.parts:
        result["attention rows"] = rows_of_one_layer(device, options.repeats)
    if "methods" in options.parts:
        sizes = options.steps, options.length, options.repeats
        found = methods(options.size, device, dtype, *sizes, options.methods)
        result["methods"] = {**result.get("methods", {}), **found}
    if "peer" in options.parts:
        plan = {"model": options.size, "device": device, "dtype": dtype, "resolution": 224}
        result["peer"] = peer({**plan, "generations": max(options.generations), "length": options.length})
    if "short prompts" in options.parts:
        result["short prompts"] = short_prompts(options.steps)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="20m", choices=SIZES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--cells", type=int, nargs="+", default=[4, 16, 32], help="temporal cells of 64 tokens")
    parser.add_argument("--generations", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--length", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs; medians are compared")
    parser.add_argument("--steps", type=int, default=3, help="optimisation steps a trainer; their median counts")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "ral"], choices=[*METHODS, "ral"])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument(
        "--json", type=Path, help="where the figures are kept; the plot, and the table in a .md file, beside it"
    )
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    result = measure(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    whole = {"shared", "segments", "decoding", "attention rows", "methods", "peer", "short prompts"} <= result.keys()
    print(as_markdown(result) if whole else methods_as_markdown(result.get("methods", {})))
    if options.json:
        page = options.json.with_suffix(".md")
        if page.exists():
            page.write_text(with_table(page.read_text(), as_markdown(result)))
        plot(result, options.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()
