"""Completes TRL's model card with the training (recipe, command, data, parts) and its results (numbers, a figure)."""

import json
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import ProcessorMixin

from .. import __version__
from ..data.templates import get_template
from ..families import family_of_processor
from ..media import SizeRule, VideoSettings
from ..media.sampling import FRAME_FACTOR, MODEL_SEQ_LEN, VIDEO_MAX_TOKEN_NUM, ClipLimits, pixel_bounds
from ..modeling import position_rule_of
from .card_facts import CardFacts, before_and_after, hardware, parts_trained
from .curve import reward_gain

SAMPLING_IMPORTS = (
    "import torch",
    "from qwen_vl_utils.vision_process import smart_nframes, smart_resize",
    "from torchvision.transforms.functional import InterpolationMode, resize",
)
PACKAGES = ("peft", "accelerate", "qwen-vl-utils", "av")

# TRL's card: its title, its text on the training, the versions of packages and the citations.
TRL_CARD = re.compile(
    r"(.+)\nThis model is a fine-tuned version of .+\n## Training procedure\n(.+)\n### Framework versions\n(.+)",
    re.DOTALL,
)


def require_card_template(name: str | None) -> None:
    """Errors: ValueError if TRL's card template (its file name) is not one that [`complete_card`] supports."""
    path = files("trl") / "templates" / (name or "lm_model_card.md")
    if not TRL_CARD.fullmatch(path.read_text(encoding="utf-8")):
        raise ValueError(
            f"The model card of TRL {version('trl')} ({path}) has not the parts that this package completes: 'This model is a "
            "fine-tuned version of', 'Training procedure' and 'Framework versions'. Install a version of TRL that it supports."
        )


def complete_card(path: Path, facts: CardFacts) -> None:
    """Complete the card that TRL wrote.

    TRL's introduction and example are for a text model from the Hub; this replaces them by those of a vision model.
    """
    card = ModelCard.load(path)
    title, training, versions = TRL_CARD.fullmatch(card.text).groups()
    card.data.pop("licence", None)  # TRL's; the correct key is `license`, and its value is unknown
    card.data.pipeline_tag = "video-text-to-text" if facts.reads_media else "text-generation"
    if facts.is_adapter:
        card.data.library_name = "peft"
    parts = [
        title.strip(),
        *_introduction(facts, card.data.base_model),
        "## Quick start",
        _code("python", _example(facts, card.data.base_model)),
        *_positions(facts),
        "## Training procedure",
        training.strip(),
        *_outcome(facts, path.parent),
        *_procedure(facts),
        "### Framework versions",
        "\n".join(
            [
                f"- trl_perception: {__version__}",
                *(f"- {package}: {version(package)}" for package in PACKAGES),
                versions.strip(),
            ]
        ),
    ]
    card.text = "\n\n".join(parts) + "\n"
    card.save(path)


def _introduction(facts: CardFacts, base: str | None) -> Iterator[str]:
    origin = facts.origin
    local = "A local model" if origin is None else f"`{Path(origin.base).name}`, a local model"
    yield (
        f"{f'[{base}](https://huggingface.co/{base})' if base else local}, post-trained with {facts.trainer._name} by "
        "trl_perception, trainers for [TRL](https://github.com/huggingface/trl)."
    )
    if not facts.trainer._paper:
        parent = next(cls for cls in facts.trainer.__mro__ if getattr(cls, "_paper", None))
        paper = f"[{parent._paper['title']}](https://huggingface.co/papers/{parent._paper['id']})"
        yield f"{facts.trainer._name} is a trainer of its own (`{facts.trainer.__name__}`) on top of {parent._name}: {paper}."
    if facts.is_adapter:
        yield "These weights are an adapter: they are loaded onto that model."
    elif origin is not None and origin.merged:
        yield "An adapter was trained and merged into these weights; it lies in `adapter/` as well."


def _example(facts: CardFacts, base: str | None) -> list[str]:
    """Return code that loads the model with plain transformers, and asks about a clip if the model reads media."""
    name, origin = facts.name, facts.origin
    base = base or ("path/to/its/base" if origin is None else f"path/to/{Path(origin.base).name}")
    model, reader = (
        ("AutoModelForImageTextToText", "AutoProcessor")
        if facts.reads_media
        else ("AutoModelForCausalLM", "AutoTokenizer")
    )
    adapter = facts.is_adapter
    lines = ["from peft import PeftModel"] if adapter else []
    lines.append(f"from transformers import {model}, {reader}")
    if facts.reads_media:
        lines.append("from transformers.video_utils import load_video")
    if facts.prepares_prompts:
        lines = [*SAMPLING_IMPORTS, *lines]
    lines += ["", f'model = {model}.from_pretrained("{base if adapter else name}", device_map="auto")']
    if adapter:
        lines.append(f'model = PeftModel.from_pretrained(model, "{name}")')
    lines.append(f'processor = {reader}.from_pretrained("{name}")')
    if not facts.reads_media:
        return lines
    template = get_template(facts.template)
    asked = "\n".join(filter(None, ["What happens in this clip?", template.suffix("free-form")]))
    family = family_of_processor(facts.processor) if facts.prepares_prompts else None
    as_is = ", do_resize=False" if family and family.sizes(facts.processor).video.factor else ""
    media, shown = f"videos=[frames], video_metadata=[metadata], do_sample_frames=False{as_is}", '{"type": "video"}'
    if family and family.frames_are_images:
        media, shown = "images=list(frames)", '*[{"type": "image"}] * len(frames)'
    return [
        *lines,
        *_frames(facts),
        f'content = [{shown}, {{"type": "text", "text": {json.dumps(asked)}}}]',
        'text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True'
        + "".join(f", {key}={value!r}" for key, value in (facts.settings.chat_template_kwargs or {}).items())
        + ")",
        "inputs = processor(",
        f'    text=[text], {media}{_begun(facts.processor)}, return_tensors="pt"',
        ").to(model.device)",
        f"output = model.generate(**inputs, max_new_tokens={facts.settings.max_completion_length})",
        'print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _begun(processor: ProcessorMixin) -> str:
    """Return the option with which the first token of a chat template that writes it does not come twice."""
    begin = processor.tokenizer.bos_token
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "?"}]}], tokenize=False)
    return ", add_special_tokens=False" if begin and text.startswith(begin) else ""


def _frames(facts: CardFacts) -> list[str]:
    """Return code that reads a clip's frames, as in training if this package prepared the prompts."""
    args, settings = facts.settings, facts.settings.video_settings
    if not facts.prepares_prompts:
        return [f'frames, metadata = load_video("clip.mp4", fps={args.video_fps:g}, backend="pyav")']
    rule = family_of_processor(facts.processor).sizes(facts.processor).video
    return [
        "",
        f'sampling = {{"fps": {args.video_fps:g}, "min_frames": {args.video_min_frames}, "max_frames": {args.video_max_frames}}}',
        "",
        "def sampled(metadata, **_):  # the frames and their size are those of training",
        "    count = smart_nframes(sampling, metadata.total_num_frames, metadata.fps)",
        "    return torch.linspace(0, metadata.total_num_frames - 1, count).round().long().numpy()",
        "",
        'frames, metadata = load_video("clip.mp4", backend="pyav", sample_indices_fn=sampled)',
        *(_resized(rule, settings) if rule.factor else ["frames = torch.from_numpy(frames).permute(0, 3, 1, 2)"]),
    ]


def _resized(rule: SizeRule, settings: VideoSettings) -> list[str]:
    """Return code that resizes frames as in training."""
    limits, per_frame = rule.limits, ""
    if isinstance(limits, ClipLimits):  # of all frames together
        limits, per_frame = (limits.least, limits.most), " / len(frames)"
    low, high, _ = pixel_bounds(FRAME_FACTOR, settings, rule.factor, limits)
    least = f"{low}{'' if settings.min_pixels or settings.max_pixels else per_frame}"
    most = f"{high:.0f}{'' if settings.max_pixels else per_frame}"
    total = settings.total_pixels if settings.total_pixels is not None else MODEL_SEQ_LEN * rule.factor**2 * 0.9
    share = f"{total * FRAME_FACTOR:.0f} / len(frames)"
    clip = f"max(min({VIDEO_MAX_TOKEN_NUM * rule.factor**2}, {share}), int({least} * 1.05))"
    return [
        f"size = smart_resize(*frames.shape[1:3], {rule.factor}, min_pixels={least}, max_pixels=min({most}, {clip}))",
        "frames = resize(torch.from_numpy(frames).permute(0, 3, 1, 2), size, InterpolationMode.BICUBIC, antialias=True)",
    ]


def _positions(facts: CardFacts) -> Iterator[str]:
    """Yield a note on the position of text after a video in training, if other programs use another position."""
    rule = position_rule_of(facts.model)
    if rule == "released":
        yield (
            "Text behind a video starts at the video's largest position + 1 in this model, as in the released one, in vLLM and in "
            "transformers 4 (`position_rule: released`). Plain transformers 5 (up to 5.24) starts it at another position, and answers "
            "about long clips may differ there. `apply_position_rule(model)` from `trl_perception.modeling` sets it right."
        )
    elif rule == "transformers":
        yield (
            "This model was trained with `position_rule: transformers`: text behind a video starts where transformers 5 has it. "
            'vLLM and transformers 4 run it at other positions. `apply_position_rule(model, "transformers")` from '
            "`trl_perception.modeling` gives completions the positions of training."
        )


def _outcome(facts: CardFacts, folder: Path) -> Iterator[str]:
    gain, metrics = reward_gain(facts.log_history), before_and_after(facts.log_history)
    if gain:
        yield f"Mean reward {gain[0]:.3f} over the first tenth of the steps that logged it, {gain[1]:.3f} over the last."
    if (folder / "reward_curve.png").exists():
        yield "![Reward over the steps of training](reward_curve.png)"
    if (folder / "report.html").exists():
        yield "Where credit went, completion by completion: [report.html](report.html)."
    if metrics:
        yield "### Before and after"
        rows = [f"| `{key}` | {before:.4g} | {after:.4g} |" for key, (before, after) in metrics.items()]
        yield "\n".join(["| metric | first tenth | last tenth |", "|---|---:|---:|", *rows])


def _procedure(facts: CardFacts) -> Iterator[str]:
    origin, dataset = facts.origin, facts.dataset
    rows = f"{len(dataset):,} rows" if hasattr(dataset, "__len__") else "a stream of rows"
    yield "### Data"
    if origin is None:
        yield f"{rows[0].upper()}{rows[1:]}."
    else:
        link = f"[{origin.dataset}](https://huggingface.co/datasets/{origin.dataset})"
        yield f"{link if origin.on_hub else f'`{origin.dataset}`'}, split `{origin.split}`, {rows}."
    yield _media(facts)
    yield "### What was trained"
    parts = parts_trained(facts.model).items()
    cells = [f"| {part} | {size:,} | {f'{trained:,}' if trained else 'frozen'} |" for part, (size, trained) in parts]
    yield "\n".join(["| part | parameters | trained |", "|---|---:|---:|", *cells])
    yield f"Hardware: {hardware(facts.accelerator)}."
    if origin is not None:
        yield "### Recipe"
        yield _code("yaml", origin.recipe.strip().splitlines())
        yield f"Run with\n\n{_code('bash', [origin.command])}"


def _media(facts: CardFacts) -> str:
    """Return the media and prompt settings of the training."""
    names = (
        "video_fps",
        "video_min_frames",
        "video_max_frames",
        "video_min_pixels",
        "video_max_pixels",
        "video_total_pixels",
    )
    values = {name: getattr(facts.settings, name) for name in (*names, "image_min_pixels", "image_max_pixels")}
    text = ", ".join(f"`{name}` {value:g}" for name, value in values.items() if value is not None)
    return f"Media: {text}. Prompt template: `{facts.template}`."


def _code(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
