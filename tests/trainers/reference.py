"""Independent implementations of the methods as in their papers: float64, raw logits, eager attention maps, one completion at a time.

Only two things come from the package, as they must be the same on both sides: the decoder of videos (`read_video`)
and the generator that Video-KTR draws its permutations from (`seeded`). Loops instead of tensors: slow and simple.
"""

import ast
import copy
import functools
import gc
import inspect
import itertools
import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from tests.helpers import history, poster
from tests.positions import layout_of, slow_positions
from trl_perception import GRPOVideoTrainer
from trl_perception.assets import model_path
from trl_perception.media import read_video
from trl_perception.modeling import seeded

LENGTHS = (8, 5, 1, 7)  # completions are cut to these, so that lengths, denominators and padding matter


# Models


def default_path(make_trainer) -> str:
    """The folder of the model that `make_trainer` takes by default."""
    return model_path(inspect.signature(make_trainer).parameters["model"].default)


def shaken(path, seed=0, size=0.1):
    """The model at `path` with noise on its weights: attention and distributions far from uniform, regardless of its training."""
    return copy.deepcopy(_shaken(path, seed, size))


@functools.cache
def _shaken(path, seed, size):
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def weights_of(model, *, adapter=True) -> dict:
    """A copy of the weights under plain names; LoRA's are added to the base (W + alpha/r B A), or left out."""
    state = {name.removeprefix("base_model.model."): value.detach() for name, value in model.state_dict().items()}
    plain = {}
    for name, value in state.items():
        if "lora_" in name or (".modules_to_save." if not adapter else ".original_module.") in name:
            continue
        stem = name.removesuffix(".base_layer.weight")
        for part in (".base_layer", ".modules_to_save.default", ".original_module"):
            name = name.replace(part, "")
        plain[name] = value.clone()
        if adapter and f"{stem}.lora_A.default.weight" in state:
            lora = model.peft_config["default"]
            up, down = (state[f"{stem}.lora_{side}.default.weight"] for side in "BA")
            plain[name] += lora.lora_alpha / lora.r * up @ down
    return plain


class Recorder:
    """Trainer mixin that keeps each micro-batch with loss, gradients and weights, each group, each view scored."""

    def __init__(self, *args, **kwargs):
        self.seen, self.groups, self.penalties, self.views = [], [], [], []
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, *args, **kwargs):
        completion_ids, logprobs = super()._generate_single_turn(*args, **kwargs)
        return [ids[: LENGTHS[i % 4]] for i, ids in enumerate(completion_ids)], logprobs

    def _generate_and_score_completions(self, inputs):
        if self.model.training:
            self.sampled_with, self.sampled_at = weights_of(self.model), self.state.global_step
        return super()._generate_and_score_completions(inputs)

    def rollout_signals(self, group):
        self.groups.append(group)
        return super().rollout_signals(group)

    def read(self, group, view=None, **kwargs):
        self.views.append(view)
        return super().read(group, view, **kwargs)

    def penalty(self, inputs):
        result = super().penalty(inputs)
        self.penalties.append(None if result is None else result.loss.item())
        return result

    def _compute_loss(self, model, inputs):
        given = dict(inputs)
        loss = super()._compute_loss(model, inputs)
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        known = zip(parameters, gradients, strict=True)
        lora = self.model.peft_config["default"] if hasattr(self.model, "peft_config") else None
        self.seen.append(
            Seen(
                inputs=given,
                loss=loss.item(),
                gradients={name: gradient for name, gradient in known if gradient is not None},
                adapter={name: p.detach().clone() for name, p in parameters.items() if "lora_" in name},
                adapter_scale=lora.lora_alpha / lora.r if lora else 0.0,
                weights=weights_of(self.model),
                sampled_with=self.sampled_with,
                sampled_at=self.sampled_at,
                step=self.state.global_step,
            )
        )
        return loss


@dataclass
class Seen:
    """A micro-batch: its inputs and outputs, its weights, the weights that sampled it, and the steps of both."""

    inputs: dict
    loss: float
    gradients: dict
    adapter: dict
    adapter_scale: float
    weights: dict
    sampled_with: dict
    sampled_at: int
    step: int

    def gradient_of(self, name, full):
        """The gradient of a trained weight, from those of plain weights: dB = s dW A', dA = s B' dW for W + s B A."""
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        if "lora_" not in name:
            return full.get(plain)
        stem, side = plain.removesuffix(".default.weight").split(".lora_")
        other = self.adapter[name.replace(*(("lora_A", "lora_B") if side == "A" else ("lora_B", "lora_A")))].double()
        weight = full[f"{stem}.weight"]
        return self.adapter_scale * (other.T @ weight if side == "A" else weight @ other.T)


@functools.cache
def recorded(cls):
    return type(f"Recorded{cls.__name__}", (Recorder, cls), {})


def accuracy_reward(completions, **columns):
    """Every other completion succeeds, regardless of its text: 1 0 1 0 ..."""
    return [float(i % 2 == 0) for i in range(len(completions))]


def spread_reward(completions, **columns):
    """0 0.5 1 1.5 0 0.5 ..."""
    return [0.5 * (i % 4) for i in range(len(completions))]


def build(make_trainer, rows, cls, **config):
    """A recorded trainer on the shaken model with two rewards; `reward` and `model` may be given."""
    config = {"reward": [accuracy_reward, spread_reward], "gradient_checkpointing": False, **config}
    if "model" not in config:
        config["model"] = shaken(default_path(make_trainer))
    return make_trainer(rows, cls=recorded(cls), **config)


def trained(trainer):
    """The trainer after `train()`, with earlier imports excluded from its full garbage collections."""
    gc.freeze()
    try:
        trainer.train()
    finally:
        gc.unfreeze()
    return trainer


# Forwards


@dataclass
class Reading:
    """One forward over a prompt of P tokens and a completion of T.

    Args:
        ids: the completion. logits: (T,N) rows that predict it. maps: per layer (H,P+T,P+T). prompt: P.
        kinds: per prompt token "text", "image" or "video". frames: per prompt token its frame, None on text.
    """

    ids: list
    logits: torch.Tensor
    maps: list
    prompt: int
    kinds: list = field(default_factory=list)
    frames: list = field(default_factory=list)

    def log_probs(self, temperature):
        return torch.log_softmax(self.logits / temperature, -1)

    def logps(self, temperature):
        return [row[token] for row, token in zip(self.log_probs(temperature), self.ids, strict=True)]

    def entropies(self, temperature):
        return [-(row.exp() * row).sum() for row in self.log_probs(temperature)]


@functools.cache
def eager_model(path, vocabulary=None):
    model = AutoModelForImageTextToText.from_pretrained(path, attn_implementation="eager", dtype=torch.float64)
    if vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model.eval()


@functools.cache
def _processor(path):
    return AutoProcessor.from_pretrained(path)


class Eager:
    """The model at `path` in float64 with eager attention and given weights."""

    def __init__(self, path, weights):
        self.processor = _processor(path)
        self.model = eager_model(path, len(weights["lm_head.weight"]))
        self.model.load_state_dict(weights)

    def read(self, row, ids, *, grad=False, media_masking=None, cells=None, frames=None, patches=None) -> Reading:
        """One completion under one view of its prompt.

        Args:
            media_masking: "mask" forbids text to attend to visual tokens, at original positions; "delete" takes them out;
                "zero" replaces the vision tower's output by zeros.
            cells: per video the order in which its temporal cells are shown; frames: the same for raw frames.
            patches: (seed, step, p, mask) of random patches in black, see `blackening`.
        """
        inputs = inputs_of(self.processor, row, frames, patches)
        length, prompt = len(ids), inputs["input_ids"].size(1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, length).long()], 1)
        names = {self.processor.image_token_id: "image", self.processor.video_token_id: "video"}
        kinds = [names.get(token, "text") for token in inputs["input_ids"][0, :prompt].tolist()]
        inputs["position_ids"] = _positions(kinds, inputs, length)
        of_token = _frames(kinds, inputs, self.processor.image_processor.merge_size)
        if cells:
            inputs["pixel_values_videos"] = _permute_cells(inputs, cells)
        if media_masking == "mask":
            inputs = self._masked(inputs, kinds)
        elif media_masking == "delete":
            kept = torch.tensor([kind == "text" for kind in kinds] + [True] * length)
            inputs = {
                "input_ids": inputs["input_ids"][:, kept],
                "attention_mask": torch.ones(1, int(kept.sum())).long(),
            }  # and positions as for text
        zeros = zeroed_tower(self.model) if media_masking == "zero" else nullcontext()
        with torch.set_grad_enabled(grad), zeros:
            out = self.model(**inputs, output_attentions=True)
        maps = [layer[0] for layer in out.attentions]
        return Reading(ids, out.logits[0, -length - 1 : -1], maps, prompt, kinds, of_token)

    def _masked(self, inputs, kinds):
        """The inputs with a mask (1,1,S,S) that hides visual keys from text queries, at the positions of the full view."""
        size = inputs["input_ids"].size(1)
        visual = [kind != "text" for kind in kinds] + [False] * (size - len(kinds))
        mask = [
            [-math.inf if key > query or (visual[key] and not visual[query]) else 0.0 for key in range(size)]
            for query in range(size)
        ]
        mask = torch.tensor(mask, dtype=torch.float64)[None, None]
        return {**inputs, "attention_mask": mask}


@contextmanager
def zeroed_tower(model):
    """Context manager that multiplies what the vision tower of `model` returns by 0."""

    def zero(module, args, output):
        output.pooler_output = 0 * output.pooler_output

    handle = model.model.visual.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def inputs_of(processor, row, orders=None, patches=None):
    """The processor's output for a row's prompt; `orders` permutes the raw frames of each video first, `patches` blackens."""
    text = processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    media = tuple(row["videos"]), tuple(row["images"])
    if patches is not None:
        seed, step, p, mask = patches
        prompt_ids = inputs_of(processor, row)["input_ids"][0]
        patches = tuple(blackening(seeded(seed, step, prompt_ids), p, mask, sum(map(len, media))))
    return dict(_processed(processor, text, *media, str(orders or ""), patches))


def blackening(generator, p, mask, count):
    """For each medium a function of pixels (3,H,W): patches of 14x14 are 0 where a number drawn for them is below p.

    The numbers of a picture are drawn when it is read; with `mask="tube"` those of a clip's first frame serve all.
    """

    def of_medium():
        drawn = []

        def blacken(pixels):
            rows, columns = (math.ceil(side / 14) for side in pixels.shape[1:])
            if mask == "frames" or not drawn:
                drawn[:] = torch.rand(rows, columns, generator=generator).tolist()
            pixels = pixels.clone()
            for y, x in itertools.product(range(rows), range(columns)):
                if drawn[y][x] < p:
                    pixels[:, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14] = 0
            return pixels

        return blacken

    return [of_medium() for _ in range(count)]


@functools.lru_cache(maxsize=64)
def _processed(processor, text, videos, images, orders, patches=None):
    size = processor.video_processor.size
    limits = (size["shortest_edge"], size["longest_edge"])
    changes = patches or [None] * len(videos + images)
    pairs = zip(videos, changes, strict=False)
    clips = [read_video(path, factor=28, size_limits=limits, change=change) for path, change in pairs]
    pictures = [poster(path) for path in images]
    if patches:
        pixels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
        masked = [change(of_one) for change, of_one in zip(changes[len(videos) :], pixels, strict=True)]
        pictures = [Image.fromarray(of_one.permute(1, 2, 0).contiguous().numpy()) for of_one in masked]
    frames = [clip.frames for clip in clips]
    if orders:
        frames = [of_clip[order] for of_clip, order in zip(frames, ast.literal_eval(orders), strict=True)]
    metadata = [VideoMetadata(total_num_frames=16, fps=4, frames_indices=clip.indices) for clip in clips]
    return processor(
        text=[text],
        images=pictures or None,
        videos=frames or None,
        return_tensors="pt",
        **({"do_sample_frames": False, "video_metadata": metadata} if clips else {}),
    )


def _positions(kinds, inputs, length):
    """(3,1,P+T) by the released rule, independent of transformers' own."""
    media = {"image_grid_thw": None, "video_grid_thw": None, "second_per_grid_ts": None, **inputs}
    types = torch.tensor([["text", "image", "video"].index(kind) for kind in kinds])
    positions, _ = slow_positions(layout_of(SimpleNamespace(**{**media, "token_types": types}), length))
    return torch.tensor(positions).T[:, None]


def _frames(kinds, inputs, merge):
    """Frame of each prompt token: the temporal cells of videos and the images, numbered as they come."""
    sizes = {
        kind: [
            h * w // merge**2
            for t, h, w in inputs.get(f"{kind}_grid_thw", torch.zeros(0, 3)).tolist()
            for _ in range(int(t))
        ]
        for kind in ("image", "video")
    }
    frames, frame, left = [], -1, 0
    for kind in kinds:
        if kind == "text":
            frames.append(None)
            continue
        if left == 0:
            frame, left = frame + 1, int(sizes[kind].pop(0))
        frames.append(frame)
        left -= 1
    return frames


def _permute_cells(inputs, orders):
    """Patches of videos, cell i showing what cell order[i] showed."""
    start, rows = 0, []
    for (t, h, w), order in zip(inputs["video_grid_thw"].tolist(), orders, strict=True):
        for cell in order:
            rows += range(start + cell * h * w, start + (cell + 1) * h * w)
        start += t * h * w
    return inputs["pixel_values_videos"][rows]


def groups_of(make_trainer, rows, cls, **config):
    """A trainer after one rollout and an update that changes nothing, and its groups: signals can be computed again."""
    size = 4 * len(rows)
    settings = {"per_device_train_batch_size": size, "max_steps": 1, "learning_rate": 0.0, "temperature": 0.8}
    trainer = trained(build(make_trainer, rows, cls, **{**settings, **config}))
    return trainer, trainer.groups


def read_group(trainer, group, **view):
    """A forward over each completion of a group with the trainer's weights."""
    eager = Eager(trainer.model.config._name_or_path, weights_of(trainer.model))
    return [eager.read(group.prompt.row, ids, **view) for ids in completions_of(group)]


def completions_of(group):
    return [ids[mask].tolist() for ids, mask in zip(group.completion_ids, group.completion_mask, strict=True)]


def asked_again(trainer, group, option):
    """The token weights of a group with some options set for this one call."""
    before = {name: getattr(trainer.args, name) for name in option}
    for name, value in option.items():
        setattr(trainer.args, name, value)
    with torch.no_grad():
        credit = trainer.token_weights(group)
    for name, value in before.items():
        setattr(trainer.args, name, value)
    return credit


def assert_group_weights(credit, expected, name=""):
    """Token weights (G,T) are these lists, and 0 on padding."""
    for got, wanted in zip(credit.weights, expected, strict=True):
        padded = torch.zeros(len(got))
        padded[: len(wanted)] = torch.tensor(wanted)
        difference = (got - padded).abs().max().item()
        assert difference < 1e-4, (name, difference)


# A recorded update, read again


@dataclass
class Sampled:
    """A completion: its dataset row, its place in the rollout, the micro-batch and the row of it where it was seen."""

    row: dict
    place: int
    ids: list
    micro: int
    index: int


class Update:
    """The micro-batches of one optimisation step, as completions that can be evaluated with any weights."""

    def __init__(self, trainer, rows, step):
        self.micro = [seen for seen in trainer.seen if seen.step == step]
        self.path, self.temperature = trainer.model.config._name_or_path, trainer.temperature
        self.size, self.args = trainer.num_generations, trainer.args
        self.completions = []
        for number, seen in enumerate(self.micro):
            for index, place in enumerate(seen.inputs["row"].tolist()):
                mask = seen.inputs["completion_mask"][index].bool()
                prompt = trainer.processing_class.decode(seen.inputs["prompt_ids"][index])
                (row,) = (row for row in rows if row["prompt"][0]["content"][-1]["text"] in prompt)
                ids = seen.inputs["completion_ids"][index][mask].tolist()
                self.completions.append(Sampled(row, place, ids, number, index))
        self.completions.sort(key=lambda completion: completion.place)
        first = self.micro[0]
        rollout = {seen.inputs["row"].tolist()[0]: seen for seen in trainer.seen if seen.sampled_at == first.sampled_at}
        self.rollout_tokens = sum(int(seen.inputs["completion_mask"].sum()) for seen in rollout.values())
        self.weights, self.sampled_with, self.sampled_at = first.weights, first.sampled_with, first.sampled_at

    def read(self, weights, completions=None, *, path=None, grad=False, **view):
        eager = Eager(path or self.path, weights)
        return [eager.read(c.row, c.ids, grad=grad, **view) for c in completions or self.completions]

    def groups(self):
        """The completions of each prompt."""
        return [self.completions[i : i + self.size] for i in range(0, len(self.completions), self.size)]

    def advantages(self):
        """(r - mean) / (std + 1e-4) of the two rewards' sum, within each group."""
        found = []
        for group in self.groups():
            rewards = torch.tensor([float(c.place % 2 == 0) + 0.5 * (c.place % 4) for c in group], dtype=torch.float64)
            found += ((rewards - rewards.mean()) / (rewards.std() + 1e-4)).tolist()
        return found

    def assert_weights(self, expected):
        """The token weights that the update received are these."""
        for completion, weights in zip(self.completions, expected, strict=True):
            got = self.micro[completion.micro].inputs["token_weights"][completion.index]
            assert got.dtype == torch.float32
            torch.testing.assert_close(got[: len(weights)], torch.tensor(weights), atol=1e-4, rtol=0)

    def mean_over_tokens(self, values):
        """Per completion its tokens' share of the mean over all tokens of the step."""
        tokens = sum(len(c.ids) for c in self.completions)
        return [[value / tokens for value in of_one] for of_one in values]

    def assert_losses(self, *terms):
        """Each micro-batch's loss and gradient are the sums of the terms, which hold per completion its tokens' shares."""
        model = eager_model(self.path, len(self.weights["lm_head.weight"]))
        names, parameters = zip(*model.named_parameters(), strict=True)
        sizes = []
        for number, seen in enumerate(self.micro):
            mine = [i for i, completion in enumerate(self.completions) if completion.micro == number]
            expected = sum(sum(term[i]) for term in terms for i in mine)
            assert abs(seen.loss - expected.item()) < 1e-4, (seen.loss, expected.item())
            found = torch.autograd.grad(expected, parameters, allow_unused=True)
            full = {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
            pairs = [(gradient.double(), seen.gradient_of(name, full)) for name, gradient in seen.gradients.items()]
            pairs = [pair for pair in pairs if pair[1] is not None]
            got, wanted = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
            assert len(pairs) > 4
            assert (got - wanted).norm() < 1e-3 * wanted.norm() + 1e-6, ((got - wanted).norm(), wanted.norm())
            sizes.append(wanted.norm())
        assert max(sizes) > 1e-2  # a micro-batch may be clipped as a whole


def clipped(logp, old, advantage, low, high):
    """-min(rho A, clip(rho, 1 - low, 1 + high) A)."""
    ratio = torch.exp(logp - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def policy_terms(update, now, old, credit, *, reference=None, kept=None):
    """Per completion the losses of its tokens, so normalised that a micro-batch's sum is its loss.

    "grpo": 1/(completions of the micro-batch) 1/|o_i|, over the accumulation; "dapo": 1/(tokens of an accumulation window).

    Args:
        credit: per completion its tokens' advantages. reference: readings of the KL reference. kept: per completion its
            tokens' keys: others leave the loss, their KL term and the denominator.
    """
    args, temperature = update.args, update.temperature
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    terms = []
    for i, (new, before) in enumerate(zip(now, old, strict=True)):
        losses = [
            clipped(logp, was.detach(), advantage, args.epsilon, high)
            for logp, was, advantage in zip(new.logps(temperature), before.logps(temperature), credit[i], strict=True)
        ]
        if reference:
            assert args.use_bias_correction_kl  # TRL's default: the KL estimate times the ratio
            triples = zip(*(of_one.logps(temperature) for of_one in (reference[i], new, before)), strict=True)
            k3 = [(torch.exp(ref - logp) - (ref - logp) - 1) * torch.exp(logp - was) for ref, logp, was in triples]
            losses = [loss + args.beta * kl for loss, kl in zip(losses, k3, strict=True)]
        count = len(losses)
        if kept:
            losses = [loss for loss, keep in zip(losses, kept[i], strict=True) if keep]
            count = max(1, len(losses))
        if args.loss_type == "grpo":
            of_micro = sum(c.micro == update.completions[i].micro for c in update.completions)
            count = count * of_micro * args.gradient_accumulation_steps
        else:
            assert args.loss_type == "dapo"
            count = update.rollout_tokens * args.gradient_accumulation_steps / args.steps_per_generation
        terms.append([loss / count for loss in losses])
    return terms


# APPO, arXiv:2602.23823


def look_at_frames(reading, layers):
    """A[j][f]: mean over the last layers, heads and the frame's tokens of the row that predicts token j."""
    count = max(frame for frame in reading.frames if frame is not None) + 1
    keys = [[v for v, of_token in enumerate(reading.frames) if of_token == frame] for frame in range(count)]
    rows = slice(reading.prompt - 1, reading.prompt - 1 + len(reading.ids))
    maps = [head[rows].tolist() for layer in reading.maps[-layers:] for head in layer]
    looks = []
    for j in range(len(reading.ids)):
        of_frames = [[of_head[j][v] for of_head in maps for v in of_frame] for of_frame in keys]
        looks.append([sum(weights) / len(weights) for weights in of_frames])
    return looks


def appo_weights(
    readings,
    accuracy,
    temperature,
    *,
    attention_layers=3,
    top_tokens=15,
    top_frames=3,
    tokens_per_frame=64,
    reward_threshold=0.5,
    strategy="soft",
    alpha=0.7,
    divergence="kl",
    normalizer="groups",
    missing_ranks="skip",
):
    """w[i][j] of one group."""
    if not any(kind != "text" for kind in readings[0].kinds):
        return [[1.0] * len(reading.ids) for reading in readings]
    looks = [look_at_frames(reading, attention_layers) for reading in readings]
    votes = {True: set(), False: set()}
    for look, reward in zip(looks, accuracy, strict=True):
        strength = []
        for frame in range(len(look[0])):
            best = sorted((row[frame] for row in look), reverse=True)[:top_tokens]
            strength.append(sum(best) / len(best))
        votes[reward >= reward_threshold] |= set(sorted(range(len(strength)), key=lambda f: -strength[f])[:top_frames])
    everyone = votes[True] | votes[False]
    of_strategy = {"soft": votes[True], "hard": votes[True] - votes[False], "all": everyone}
    selected = {**of_strategy, "soft_or_all": votes[True] or everyone}[strategy]

    credits = [[[] for _ in reading.ids] for reading in readings]
    for frame in selected:
        chosen = []
        for look in looks:
            best = sorted(range(len(look)), key=lambda j: -look[j][frame])[:tokens_per_frame]
            chosen.append(sorted(best))
        disagreement = {}
        for rank in range(max(len(tokens) for tokens in chosen)):
            members = [(i, tokens[rank]) for i, tokens in enumerate(chosen) if rank < len(tokens)]
            if len(members) > 1 or missing_ranks == "uniform":
                log_p = torch.stack([readings[i].log_probs(temperature)[j] for i, j in members])
                if missing_ranks == "uniform":
                    absent = torch.full_like(log_p[:1], -math.log(log_p.size(-1)))
                    log_p = torch.cat([log_p, absent.expand(len(chosen) - len(members), -1)])
                disagreement[rank] = _disagreement(log_p, divergence)
        low, high = min(disagreement.values(), default=0.0), max(disagreement.values(), default=0.0)
        for i, tokens in enumerate(chosen):
            for rank, j in enumerate(tokens):
                scaled = (disagreement[rank] - low) / (high - low) if rank in disagreement and high > low else 0.0
                credits[i][j].append(scaled)

    def divisor(given):
        return len(given) if normalizer == "groups" else len(selected)

    return [[1 + alpha * sum(given) / divisor(given) if given else 1.0 for given in of_row] for of_row in credits]


def _disagreement(log_p, divergence):
    if divergence == "release":
        c = (log_p.mean(0) - log_p).clamp(-11, 11)
        return (c.exp() - c - 1).sum(-1).mean().item()
    mixture = log_p.exp().mean(0)
    return sum((row.exp() * (row - mixture.log())).sum().item() for row in log_p) / len(log_p)


# PGPO, arXiv:2604.01840


def pgpo_weights(
    with_media,
    media_masked,
    temperature,
    *,
    dependency="k3",
    dependency_clamp=10.0,
    dependency_threshold=0.4,
    threshold_mode="absolute",
    visual_boost=2.0,
    weight_floor=0.0,
    conserve_mass=True,
    max_weight=None,
    eps=1e-8,
):
    """w~ of one completion; `media_masked` None for a prompt without media."""
    count = len(with_media.ids)
    if media_masked is None or count == 1:
        return [1.0] * count
    if dependency == "kl":
        pairs = zip(with_media.log_probs(temperature), media_masked.log_probs(temperature), strict=True)
        scores = [(p.exp() * (p - q)).sum().item() for p, q in pairs]
    else:
        pairs = zip(with_media.logps(temperature), media_masked.logps(temperature), strict=True)
        logs = [(without - seen).item() for seen, without in pairs]  # ln r
        if dependency_clamp is not None:
            logs = [min(20.0, max(-20.0, log)) for log in logs]
        scores = [math.exp(log) - 1 - log for log in logs]
        if dependency_clamp is not None:
            scores = [min(score, dependency_clamp) for score in scores]
    damped = [math.log(1 + score) for score in scores]
    low, high = min(damped), max(damped)
    if high - low <= eps:
        return [1.0] * count
    importance = [(value - low) / (high - low + eps) for value in damped]
    tau = dependency_threshold
    if threshold_mode == "quantile":
        tau = torch.tensor(importance, dtype=torch.float64).quantile(tau).item()
    weights = [
        value / (tau + eps) if value < tau else 1 + visual_boost * (value - tau) / (1 - tau + eps)
        for value in importance
    ]
    weights = [max(weight, weight_floor) for weight in weights]
    if sum(weights) <= eps:
        return [1.0] * count
    if conserve_mass:
        weights = [weight * count / sum(weights) for weight in weights]
    if max_weight is not None:
        weights = [min(weight, max_weight) for weight in weights]
        if conserve_mass:
            weights = [weight * count / sum(weights) for weight in weights]
    return weights


# PAPO, arXiv:2507.06448, and VPPO, arXiv:2510.09285


def k3(shown, masked, bound):
    """exp(d) - d - 1, d = masked - shown within +-bound."""
    d = (masked - shown).clamp(-bound, bound)
    return torch.exp(d) - d - 1


def masked_readings(update, p, mask="frames", weights=None):
    """Each completion with random patches of its media in black; a prompt without media as it is."""
    view = {"patches": (update.args.seed, update.sampled_at, p, mask)}
    found = []
    for completion in update.completions:
        media = completion.row["videos"] or completion.row["images"]
        found += update.read(weights or update.sampled_with, [completion], **(view if media else {}))
    return found


# Video-KTR, arXiv:2601.19686


def orders_of(seed, step, prompt_ids, lengths):
    """The permutations of a prompt at a step: drawn again while they are the identity, none for fewer than two things."""
    generator = seeded(seed, step, torch.tensor(prompt_ids))
    orders = []
    for length in lengths:
        order = list(range(length))
        while length > 1 and order == list(range(length)):
            order = torch.randperm(length, generator=generator).tolist()
        orders.append(order)
    return orders


def ktr_signals(
    eager, pairs, temperature, *, seed, step, shuffle="grid", masked_view_positions="original", visual_view="masked"
):
    """(dv, dt, H) of each (row, ids) of a group, lists; dv None without media, dt None without a video of two cells."""
    row = pairs[0][0]
    inputs = inputs_of(eager.processor, row)
    grid = inputs["video_grid_thw"].tolist() if row["videos"] else []
    view = None
    if any(t > 1 for t, _, _ in grid):
        lengths = [t if shuffle == "grid" else 2 * t for t, _, _ in grid]
        orders = orders_of(seed, step, inputs["input_ids"][0].tolist(), lengths)
        assert all(order != sorted(order) for order in orders if len(order) > 1)
        view = {"cells" if shuffle == "grid" else "frames": orders}
    found = []
    for completion in pairs:
        with_media = eager.read(*completion)
        seen = with_media.logps(temperature)

        def differences(other, seen=seen):
            return [(a - b).item() for a, b in zip(seen, other.logps(temperature), strict=True)]

        visual = temporal = None
        if row["videos"] or row["images"]:
            way = "zero" if visual_view == "zeroed" else "mask" if masked_view_positions == "original" else "delete"
            visual = differences(eager.read(*completion, media_masking=way))
        if view:
            temporal = differences(eager.read(*completion, **view))
        found.append((visual, temporal, [entropy.item() for entropy in with_media.entropies(temperature)]))
    return found


def ktr_keys(signals, *, visual=0.2, temporal=0.2, entropy=0.2, preset="paper"):
    """Per completion of one group, whether each token is a key token."""
    keys = [[False] * len(entropies) for _, _, entropies in signals]
    for which, ratio in enumerate((visual, temporal, entropy)):
        scores = [of_one[which] for of_one in signals]
        if ratio == 0 or scores[0] is None:
            continue
        if preset == "release":
            pooled = torch.tensor([score for of_one in scores for score in of_one], dtype=torch.float64)
            # Completions of a group that begin alike tie there; the forwards differ by rounding.
            cut = pooled.quantile(1 - ratio).item() - 1e-6
        for i, of_one in enumerate(scores):
            if preset == "release":
                best = [t for t, score in enumerate(of_one) if score >= cut]
            else:
                size = [score if which == 2 else abs(score) for score in of_one]
                best = sorted(range(len(size)), key=lambda t: -size[t])[: math.ceil(ratio * len(size) - 1e-9)]
            for t in best:
                keys[i][t] = True
    return keys


# RAL and attention distillation, arXiv:2602.04884


def attention_policies(reading, *, attn_layers=1, attn_query="token", attn_keys="all"):
    """p_t over the positions before token t, for each t: head mean, then the token itself dropped, then renormalised."""
    averaged = sum(layer.mean(0) for layer in reading.maps[-attn_layers:]) / attn_layers
    policies = []
    for t in range(len(reading.ids)):
        position = reading.prompt + t
        row = averaged[position if attn_query == "token" else position - 1]
        keys = [i for i in range(position) if attn_keys == "all" or (i < reading.prompt and reading.kinds[i] != "text")]
        kept = row[keys]
        policies.append(kept / kept.sum() if keys else kept)
    return policies


def jensen_shannon(p, q):
    """1/2 KL(p||m) + 1/2 KL(q||m), m = (p+q)/2."""
    m = (p + q) / 2
    return 0.5 * (torch.xlogy(p, p / m).sum() + torch.xlogy(q, q / m).sum())


def gkd(student, teacher, *, mix=1.0, temperature=1.0):
    """Divergence of next-token distributions at each token: 0 KL(t||s), 1 KL(s||t), else the generalised JSD."""
    size = min(student.logits.size(-1), teacher.logits.size(-1))
    found = []
    for mine, theirs in zip(student.logits[:, :size], teacher.logits[:, :size], strict=True):
        log_s, log_t = torch.log_softmax(mine / temperature, -1), torch.log_softmax(theirs.detach() / temperature, -1)
        s, t = log_s.exp(), log_t.exp()
        if mix == 0:
            found.append((t * (log_t - log_s)).sum())
        elif mix == 1:
            found.append((s * (log_s - log_t)).sum())
        else:
            log_m = ((1 - mix) * s + mix * t).log()
            found.append(mix * (t * (log_t - log_m)).sum() + (1 - mix) * (s * (log_s - log_m)).sum())
    return found


def size_of(term):
    """The largest share of any completion: what a comparison to 1e-4 would notice."""
    return max(abs(float(sum(of_one))) for of_one in term)


# Common to every method

OBJECTIVES = {  # micro-batches that cut groups of four in two, and micro-batches of two groups of every kind
    "video": {"per_device_train_batch_size": 2, "num_generations": 4, "gradient_checkpointing": True},
    "mixed": {"per_device_train_batch_size": 4, "num_generations": 2},
}
TWO_UPDATES = {
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
    "max_steps": 2,
    "learning_rate": 3e-5,  # ratios inside the clip and outside
    "temperature": 0.8,
}

FEW_STEPS = {"num_generations": 2, "max_steps": 2, "learning_rate": 3e-5, "gradient_checkpointing": False}
RUNS = {
    "mixed": ("mixed", {}),
    "images": ("image", {}),
    "adapter": ("mixed", {}),
    "checkpointed": ("video", {"gradient_checkpointing": True}),
    "kl": ("mixed", {"beta": 0.1}),
    "two iterations": ("mixed", {"num_iterations": 2}),
    "stale slices": ("mixed", {"num_iterations": 1, "steps_per_generation": 2, "gradient_accumulation_steps": 1}),
}


def assert_runs(make_trainer, rows, cls, run, metric, **config):
    """A few steps of one of `RUNS`: finite losses, gradients, and the method's metric at least once."""
    kind, settings = RUNS[run]
    adapter = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])} if run == "adapter" else {}
    trainer = make_trainer(
        rows[kind],
        cls=cls,
        model=shaken(default_path(make_trainer)),
        reward=[accuracy_reward, spread_reward],
        extra={**config.pop("extra", {}), **adapter},
        **{**FEW_STEPS, **config, **settings},
    )
    trained(trainer)
    losses, gradients, metrics = history(trainer, "loss", "grad_norm", metric)
    assert len(losses) == len(gradients) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert all(0 < norm < 1e6 for norm in gradients)
    assert metrics
    assert all(math.isfinite(value) for value in metrics)
    return trainer


def outcome(make_trainer, rows, cls, **config):
    """Losses and gradient norms of a run on the shaken model."""
    model = shaken(default_path(make_trainer))
    settings = {"reward": [accuracy_reward, spread_reward], "gradient_checkpointing": False, **config}
    return history(trained(make_trainer(rows, cls=cls, model=model, **settings)), "loss", "grad_norm")


def assert_neutral(make_trainer, rows, cls, neutral, other, **config):
    """Five steps: with the neutral settings the method is GRPO, with others it is not."""
    defaults = cls.config_class("defaults", use_cpu=True, bf16=False, num_iterations=2)
    shared = {name: getattr(defaults, name) for name in ("loss_type", "epsilon_high")}
    shared |= {"num_generations": 2, "num_iterations": 2, "learning_rate": 3e-5}
    grpo = outcome(make_trainer, rows, GRPOVideoTrainer, **shared)
    same = outcome(make_trainer, rows, cls, **shared, **config, **neutral)
    different = outcome(make_trainer, rows, cls, **shared, **config, **other, max_steps=2)
    assert len(grpo[0]) == 5
    for mine, theirs in zip(same, grpo, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6, rel=1e-6)
    assert abs(different[0][1] - grpo[0][1]) > 1e-4
    assert abs(different[1][1] / grpo[1][1] - 1) > 1e-3


def assert_refused(tmp_path, cls, settings, words):
    with pytest.raises(ValueError, match=words):
        cls.config_class(str(tmp_path), use_cpu=True, bf16=False, **settings)
