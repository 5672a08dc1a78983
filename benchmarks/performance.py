"""Savings from doing shared work once instead of G times: `python -m benchmarks.performance [--json FILE]`.

Every figure is the ratio of two paths in one run, on a Qwen2.5-VL with random weights where no other
family is named:

- update: log-probs, loss and backward of a group, one packed row against one row a completion;
- families: the same update with other families;
- rollout: prefilling each distinct prompt once against prefilling every row;
- attention rows of a layer against the eager map;
- methods: a whole optimisation step of each method against GRPO's, and GRPO's against the plain paths;
- short prompts: a whole step of the tiny recipe, packed against plain.

On a GPU: `--device cuda --size 3b --dtype bfloat16`.
"""

import argparse
import copy
import json
import statistics
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import softmax
from transformers import GenerationConfig, TrainerCallback
from transformers.cache_utils import DynamicLayer
from trl.trainer.utils import add_fused_lm_head

from benchmarks.families import FAMILIES, TOKENS_A_CELL, family_model, video_prompt
from benchmarks.measure import machine, now, ratios
from benchmarks.models import SIZES, random_model
from benchmarks.performance_table import as_markdown, methods_as_markdown, plot, with_table
from trl_perception.data import make_synthetic_dataset
from trl_perception.media import VisualInputs
from trl_perception.modeling import (
    LayerAttention,
    attention_rows,
    group_forward,
    prefill_once,
    row_forward,
    token_ratio,
)
from trl_perception.modeling.cache import CACHE
from trl_perception.train import build, parse
from trl_perception.trainers import TRAINERS

PLAIN = {"group_forward": "off", "shared_prefill": False, "reuse_vision_features": False}
METHODS = {
    "appo": {"tokens_per_frame": 16, "accuracy_reward": "variety"},
    "pgpo": {},
    "ktr": {},
    "papo": {},
    "vppo": {},
    "t_grpo": {"accuracy_reward": "variety"},
    "tw_grpo": {},
}


def qwen2_5_vl_prompt(model, cells: int, generator: torch.Generator) -> tuple[torch.Tensor, VisualInputs]:
    """Ids (P,) and visual inputs of a prompt with one video."""
    video = torch.full((cells * TOKENS_A_CELL,), model.config.video_token_id)
    before, after = (torch.randint(20, 500, (size,), generator=generator) for size in (8, 7))
    prompt = torch.cat([before, video, after])
    return prompt, VisualInputs(
        "benchmark",
        (prompt == model.config.video_token_id).long() * 2,
        pixel_values_videos=torch.randn(cells * 4 * TOKENS_A_CELL, 1176, generator=generator),
        video_grid_thw=torch.tensor([[cells, 16, 16]]),
        second_per_grid_ts=torch.tensor([1.0]),
    )


class Group:
    """A prompt with one video of `cells` temporal cells, G completions of R random tokens."""

    def __init__(self, model, cells: int, generations: int, length: int, device: str):
        generator = torch.Generator().manual_seed(0)
        family = model.config.model_type
        if family in FAMILIES:
            prompt, visual = video_prompt(family, cells, generator)
        else:
            prompt, visual = qwen2_5_vl_prompt(model, cells, generator)
        self.prompt, self.visual = prompt.to(device), visual.to(device)
        self.generations, self.length = generations, length
        completions = torch.randint(20, 500, (generations, length), generator=generator).to(device)
        self.ids = torch.cat([self.prompt.expand(generations, -1), completions], dim=1)
        self.labels = self.ids.clone()
        self.labels[:, : len(self.prompt)] = -100
        self.inputs = {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids), "labels": self.labels}

    @property
    def token_ratio(self) -> float:
        count = self.generations
        return token_ratio([len(self.prompt)] * count, [self.length] * count, [count])


def update(model, group: Group, device: str, repeats: int) -> dict[str, float]:
    """Log-probs, a policy-gradient loss, and backward."""
    advantages = torch.linspace(-1, 1, group.generations, device=device)[:, None]
    common = {"completion_width": group.length, **group.inputs, "fused_lm_head": True}
    found = {}

    def learn(name, output):
        logps = output.log_probs[:, -group.length :]
        model.zero_grad(set_to_none=True)
        (-advantages * torch.exp(logps - logps.detach())).sum().backward()
        found[name] = [p.grad for p in model.parameters() if p.grad is not None]

    def slow():
        learn("slow", row_forward(model, visuals=[group.visual] * group.generations, **common))

    def fast():
        learn("fast", group_forward(model, runs=[group.generations], visuals=[group.visual], **common))

    result = ratios(slow, fast, device, repeats)
    plain, packed = (torch.cat([of_one.double().flatten() for of_one in found[name]]) for name in ("slow", "fast"))
    result["gradient_difference"] = ((plain - packed).norm() / plain.norm()).item()
    result["token_ratio"] = group.token_ratio
    return result


def rollout(model, group: Group, device: str, repeats: int) -> dict[str, float]:
    """Sampling R tokens for each of G completions."""
    count, width = group.generations, len(group.prompt)
    ids = group.ids[:, :width]
    config = sampling_of(group.length)

    def sample(share: int):
        with torch.no_grad(), prefill_once(model, [group.visual] * count, share):
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)

    return ratios(lambda: sample(1), lambda: sample(count), device, repeats)


def decoding(model, group: Group, device: str, repeats: int) -> dict[str, float]:
    """R tokens for each of G completions after the prefill: over one copy of the prompt's keys, against one a completion."""
    generate, count, width, found = model.generate, group.generations, len(group.prompt), {}

    def measured(**inputs):
        if CACHE not in inputs:  # the prefill
            return generate(**inputs)

        def decode(layer_of):
            cache = copy.copy(inputs[CACHE])
            cache.layers = [layer_of(layer) for layer in cache.layers]
            return generate(**{**inputs, CACHE: cache})

        found.update(ratios(lambda: decode(_repeated), lambda: decode(copy.copy), device, repeats))
        return inputs["input_ids"]

    def _repeated(layer):
        repeated = DynamicLayer()
        repeated.update(*(part.repeat_interleave(count, 0) for part in (layer.prefix_keys, layer.prefix_values)))
        return repeated

    model.generate = measured
    with torch.no_grad(), prefill_once(model, [group.visual] * count, count):
        ids = group.ids[:, :width]
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=sampling_of(group.length))
    return found


def sampling_of(length: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=length, min_new_tokens=length, do_sample=True, pad_token_id=0, eos_token_id=1
    )


def rows_of_one_layer(
    device: str, repeats: int, *, heads=16, groups=2, dim=128, keys=4096, rows=256
) -> dict[str, float]:
    """APPO's pooled attention of the last `rows` of `keys` positions, against the full eager map."""
    torch.manual_seed(0)
    query, key = torch.randn(1, heads, keys, dim, device=device), torch.randn(1, groups, keys, dim, device=device)
    layer = LayerAttention(layer=0, query=query, key=key, scaling=dim**-0.5)
    pool = torch.zeros(keys, 16, device=device)
    pool[: 16 * 200] = torch.eye(16, device=device).repeat_interleave(200, 0) / 200

    def eager():
        scores = query @ key.repeat_interleave(heads // groups, 1).transpose(2, 3) * layer.scaling
        hidden = torch.ones(keys, keys, dtype=torch.bool, device=device).triu(1)
        return softmax(scores.masked_fill(hidden, float("-inf")), -1).mean(1)[:, -rows:] @ pool

    def tapped():
        return attention_rows(layer, slice(-rows, None), None, pool)

    torch.testing.assert_close(tapped(), eager(), atol=1e-6, rtol=1e-4)
    return ratios(eager, tapped, device, repeats)


class StepTimes(TrainerCallback):
    """Seconds of each optimisation step, its rollout included, and of the hooks in it (their forwards, no backward)."""

    HOOKS = (
        "token_weights",
        "gather_statistics",
        "sequence_weights",
        "rollout_signals",
        "penalty",
        "sample_counterfactuals",
        "shape_rewards",
    )

    def __init__(self, device: str):
        self.device, self.times, self.of_hooks, self.begun = device, [], [], 0.0

    def watch(self, trainer) -> None:
        trainer.add_callback(self)
        for name in self.HOOKS:
            setattr(trainer, name, self._timed(getattr(trainer, name)))

    def _timed(self, hook):
        def timed(*args):
            begun = now(self.device)
            result = hook(*args)
            self.of_hooks[-1] += now(self.device) - begun
            return result

        return timed

    def on_step_begin(self, args, state, control, **kwargs):
        self.of_hooks.append(0.0)
        self.begun = now(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(now(self.device) - self.begun)

    @property
    def typical(self) -> float:
        """Median without the first step."""
        return statistics.median(self.times[1:])

    @property
    def in_hooks(self) -> float:
        """Share of the time spent in the hooks, without the first step."""
        return sum(self.of_hooks[1:]) / sum(self.times[1:])


def methods(
    size: str, device: str, dtype: torch.dtype, steps: int, length: int, rounds: int, names: list[str]
) -> dict[str, dict[str, float]]:
    """Whole steps: G 8, one video prompt of about 1040 tokens, frozen tower as in the papers' recipes."""

    def variety(completions, **columns):
        return [float(len(set(completion[0]["content"])) % 2) for completion in completions]

    def step_time(name, folder, **options):
        model, processor = random_model(size, device=device, dtype=dtype)
        config = TRAINERS[name].config_class(
            output_dir=folder,
            per_device_train_batch_size=8,
            num_generations=8,
            max_completion_length=length,
            generation_kwargs={"min_new_tokens": length},
            max_steps=1 + steps * options.get("num_iterations", 1),  # the first does not count
            freeze_vision_tower=True,
            video_fps=4.0,
            video_max_frames=32,
            gradient_checkpointing=device != "cpu",
            bf16=dtype == torch.bfloat16,
            use_cpu=device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        )
        clip = {"size": 4, "seed": 0, "families": ["static"], "resolution": 224, "seconds": 8.0}
        rows = make_synthetic_dataset(Path(folder) / "clips", **clip)
        trainer = TRAINERS[name](
            model=model, processing_class=processor, reward_funcs=variety, args=config, train_dataset=rows
        )
        times = StepTimes(device)
        times.watch(trainer)
        trainer.train()
        return times.typical, times.in_hooks

    # Each method alternates with its baseline, so that a slowdown of the machine affects both.
    plans = {"grpo": ("grpo", {}), **{name: (name, options) for name, options in METHODS.items()}}
    twice = {"num_iterations": 2}
    plans |= {"grpo, two iterations": ("grpo", twice), "ral": ("ral", twice)}
    baseline = {"ral": "grpo, two iterations"}
    wanted = {name: plans[name] for name in [*dict.fromkeys(baseline.get(name, "grpo") for name in names), *names]}
    times: dict[str, list[float]] = {name: [] for name in wanted}
    shares: dict[str, list[float]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, (trainer, options) in wanted.items():
                seconds, share = step_time(trainer, folder, **options)
                times[name].append(seconds)
                shares[name].append(share)
        everything = {*names} == {*METHODS, "ral"}
        plain = step_time("grpo", folder, **PLAIN)[0] if everything else None  # the slowest of all
    result = {}
    for name in names:
        base = times[baseline.get(name, "grpo")]
        over = [ours / theirs - 1 for ours, theirs in zip(times[name], base, strict=True)]
        result[name] = {
            "seconds": statistics.median(times[name]),
            "over_grpo": statistics.median(over),
            "each": over,
            "in_hooks": statistics.median(shares[name]),
        }
    if plain:
        base = statistics.median(times["grpo"])
        result["grpo"] = {"seconds": base, "plain_seconds": plain, "speedup": plain / base}
    return result


def short_prompts(steps: int) -> dict[str, float]:
    """A whole step of `recipes/grpo/tiny.yaml`: about 55 prompt tokens, at most 48 of a completion."""
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, paths in {"plain": PLAIN, "auto": {}}.items():
            flags = [text for key, value in paths.items() for text in (f"--{key}", str(value))]
            trainer = build(
                *parse(["--config", "grpo/tiny", "--max_steps", str(steps + 1), "--output_dir", folder, *flags])
            )
            watch = StepTimes("cpu")
            watch.watch(trainer)
            trainer.train()
            times[name] = watch.typical
    return {"speedup": times["plain"] / times["auto"], "slow_s": times["plain"], "fast_s": times["auto"]}


def prepare(model, device: str) -> None:
    """Make a model ready to learn, as trainers do."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.train()
    if device != "cpu":
        model.activation_checkpointing_enable({"use_reentrant": False})


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


def decodings(options: argparse.Namespace, device: str, dtype: torch.dtype) -> list[dict]:
    """Decoding for each length of prompt, at the largest group."""
    model, _ = random_model(options.size, device=device, dtype=dtype)
    prepare(model, device)
    groups = [Group(model, cells, max(options.generations), options.length, device) for cells in options.cells]
    return [
        {"P": len(group.prompt), "G": group.generations, "R": group.length}
        | decoding(model, group, device, options.repeats)
        for group in groups
    ]


PARTS = ("shared", "decoding", "families", "attention rows", "methods", "short prompts")


def measure(options: argparse.Namespace) -> dict:
    """Measure the requested parts and keep the others that the file already holds."""
    device, dtype = options.device, getattr(torch, options.dtype)
    result = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    result["machine"] = machine(device)
    if "shared" in options.parts:
        result["shared"] = shared(options, device, dtype, result)
    if "decoding" in options.parts:
        result["decoding"] = decodings(options, device, dtype)
    if "families" in options.parts:
        result["families"] = {**result.get("families", {}), **families(options, device, dtype)}
    if "attention rows" in options.parts:
        result["attention rows"] = rows_of_one_layer(device, options.repeats)
    if "methods" in options.parts:
        sizes = options.steps, options.length, options.repeats
        found = methods(options.size, device, dtype, *sizes, options.methods)
        result["methods"] = {**result.get("methods", {}), **found}
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
    whole = {"shared", "decoding", "attention rows", "methods", "short prompts"} <= result.keys()
    print(as_markdown(result) if whole else methods_as_markdown(result.get("methods", {})))
    if options.json:
        page = options.json.with_suffix(".md")
        if page.exists():
            page.write_text(with_table(page.read_text(), as_markdown(result)))
        plot(result, options.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()
