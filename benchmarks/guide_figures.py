"""The figures of docs/guide.md: `python -m benchmarks.guide_figures --output docs/figures`.

One synthetic clip, one question, one group of completions that the embedded model samples with a fixed seed. Each method's
own trainer, with the settings of its `tiny` recipe, assigns credit to that group; the signals and the credit are
drawn. Nothing is computed here that the trainers do not compute.
"""

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PrinterCallback, set_seed

from benchmarks.guide_drawing import DRAWINGS
from trl_perception.data import make_synthetic_dataset
from trl_perception.media.frames import shuffle_cells, token_frames
from trl_perception.modeling import divergence, head_of, seeded
from trl_perception.modeling.attention_policy import padded, policy_of, visual_keys
from trl_perception.objectives import jensen_shannon, select_frames
from trl_perception.objectives.video_ktr import key_token_mask
from trl_perception.rewards import accuracy_reward, format_reward
from trl_perception.train import parse
from trl_perception.trainers import TRAINERS

METHODS = ("appo", "pgpo", "ktr", "ral", "attn_distill")
CLIP_SEED = 38
SAMPLING_SEED = 1


@dataclass
class Example:
    """The result of one method on the group.

    Args:
        row: the dataset row. frames: (F,3,H,W) uint8, two a temporal cell. times: seconds of each frame.
        tokens: the strings of each completion's tokens. accuracy, advantages: (G,).
        shown: the completions that are drawn, the best and the worst one.
        values: signals and credit of the method, by name.
    """

    row: dict
    frames: Tensor
    times: list[float]
    tokens: list[list[str]]
    accuracy: list[float]
    advantages: list[float]
    shown: tuple[int, int]
    values: dict[str, Tensor] = field(default_factory=dict)


def recording(base: type) -> type:
    """The trainer, which keeps the group it sampled and every forward output, credit and penalty for it."""

    class Recording(base):
        def __init__(self, *args, **kwargs):
            self.readings, self.groups, self.credit, self.policies, self.gkd = [], [], None, [], None
            super().__init__(*args, **kwargs)

        def read(self, *args, **kwargs):
            self.readings.append(super().read(*args, **kwargs))
            return self.readings[-1]

        def rollout_signals(self, group):
            self.groups.append(group)
            return super().rollout_signals(group)

        def token_weights(self, group):
            self.readings.clear()
            self.credit = super().token_weights(group)
            return self.credit

        def penalty(self, inputs):
            if base is TRAINERS["ral"]:
                policy = self._now(*self.taps[0].results[-1], inputs)
                result = super().penalty(inputs)
                self.policies.append((policy, padded(inputs["reference_policy"], policy)))
                return result
            return super().penalty(inputs)

        def _attention(self, caught, inputs, counted):
            policy = self._now(*caught, inputs)
            self.policies.append((policy, padded(inputs["teacher_policy"], policy)))
            return super()._attention(caught, inputs, counted)

        def _gkd(self, states, inputs, counted):
            width = counted.size(1)
            heads = head_of(self.model), head_of(self.teacher)
            student, teacher = states.at(slice(-width - 1, -1)).detach(), torch.stack(inputs["teacher_states"])
            options = self.args
            with torch.no_grad():
                self.gkd = divergence(
                    heads[0], student, heads[1], teacher, mix=options.gkd_mix, temperature=options.gkd_temperature
                )
            return super()._gkd(states, inputs, counted)

        def _now(self, layers, mask, inputs):
            width = inputs["completion_ids"].size(1)
            return policy_of(
                layers, mask, width, visual_keys(inputs), query=self.args.attn_query, keys=self.args.attn_keys
            ).detach()

    return Recording


def example(method: str, folder: Path) -> Example:
    """One group under one method, with the settings of its `tiny` recipe; two updates where credit needs a stale policy."""
    steps = 2 if method == "ral" else 1
    options = {"max_steps": steps, "per_device_train_batch_size": 8, "warmup_steps": 0, "output_dir": folder / "run"}
    command = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    _, config, _ = parse(["--config", f"{method}/tiny", *command, "--use_cpu", "true", "--logging_strategy", "no"])
    config.disable_tqdm, config.report_every = True, None
    rows = make_synthetic_dataset(
        folder / "clips", size=1, seed=CLIP_SEED, split="guide", families=["event_order"], distractors=0, noise=0.0
    )
    trainer = recording(TRAINERS[method])(
        model="tiny", reward_funcs=[accuracy_reward, format_reward], args=config, train_dataset=rows
    )
    trainer.pop_callback(PrinterCallback)
    set_seed(SAMPLING_SEED)
    trainer.train()
    (group,) = trainer.groups
    lengths = group.completion_mask.sum(1).tolist()
    decode = trainer.processing_class.tokenizer.decode
    tokens = [
        [decode([token]) for token in ids[:length]]
        for ids, length in zip(group.completion_ids.tolist(), lengths, strict=True)
    ]
    accuracy, advantages = group.rewards["accuracy_reward"].tolist(), group.advantages.tolist()
    shown = advantages.index(max(advantages)), advantages.index(min(advantages))
    (frames,), (times,) = group.prompt.frames, group.prompt.frame_times
    found = Example(group.prompt.row, frames, times, tokens, accuracy, advantages, shown)
    found.values = VALUES[method](trainer, group)
    return found


def of_appo(trainer, group) -> dict[str, Tensor]:
    (reading,) = trainer.readings
    options = trainer.args
    selected = select_frames(
        reading.attention,
        group.rewards[trainer.accuracy_name],
        group.completion_mask,
        top_tokens=options.top_tokens,
        top_frames=options.top_frames,
        reward_threshold=options.reward_threshold,
        strategy=options.strategy,
    )
    return {"weights": trainer.credit.weights, "attention": reading.attention, "selected": selected}


def of_pgpo(trainer, group) -> dict[str, Tensor]:
    with_media, masked = (reading.logps for reading in trainer.readings)
    return {"weights": trainer.credit.weights, "with_media": with_media, "media_masked": masked}


def of_ktr(trainer, group) -> dict[str, Tensor]:
    with_media, masked, shuffled = trainer.readings
    valid, options = group.completion_mask, trainer.args
    scores = {
        "visual": ((with_media.logps - masked.logps).abs(), options.visual_keep_ratio),
        "temporal": ((with_media.logps - shuffled.logps).abs(), options.temporal_keep_ratio),
        "entropy": (with_media.entropies, options.entropy_keep_ratio),
    }
    keys = {name: key_token_mask(score, valid, ratio) for name, (score, ratio) in scores.items()}
    generator = seeded(options.seed, 0, group.prompt_ids)
    (order,) = shuffle_cells(group.visual, generator)[1]
    return {"weights": trainer.credit.weights, "order": torch.tensor(order), **keys}


def of_policies(trainer, group) -> dict[str, Tensor]:
    """The last update's attention policies: divergence of each token, and the share of each frame, mean over tokens."""
    policy, other = trainer.policies[-1]
    frames = token_frames(group.visual)
    members = torch.stack([frames == frame for frame in range(int(frames.max()) + 1)]).float()  # (F,P)
    mask = group.completion_mask.float()

    def to_frames(rows: Tensor) -> Tensor:
        shares = rows[..., : len(frames)] @ members.T  # (G,T,F)
        return (shares * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    found = {"jsd": jensen_shannon(policy, other), "now": to_frames(policy), "other": to_frames(other)}
    return found if trainer.gkd is None else {**found, "gkd": trainer.gkd}


VALUES = {"appo": of_appo, "pgpo": of_pgpo, "ktr": of_ktr, "ral": of_policies, "attn_distill": of_policies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        with tempfile.TemporaryDirectory() as folder:
            found = example(method, Path(folder))
        path = options.output / f"guide_{method}.png"
        DRAWINGS[method](found, path)
        print(f"{path}  {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
