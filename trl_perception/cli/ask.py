"""Ask a model about a video or an image, with transformers' `generate`: `trl-perception ask MODEL MEDIUM QUESTION`.

The folder of a run, or one of its checkpoints, brings the settings that it was trained with; options win.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..assets import from_pretrained, model_path
from ..data.templates import get_template, templated_prompt
from ..recipe import read_recipe, recipe_of_run
from .errors import Parser, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from ..media import VideoSettings

VIDEO_KEYS = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def ask(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    medium: str,
    question: str,
    *,
    video_settings: "VideoSettings | None" = None,
    image_pixels: tuple[int | None, int | None] = (None, None),
    template: str = "none",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_new_tokens: int = 256,
    position_rule: str = "released",
) -> str:
    """Generate the model's greedy answer to a question about one video or image.

    Args:
        medium: path or URL; an image if it has the suffix of an image file, else a video.
        video_settings: frame sampling; use that of training for comparable figures.
        image_pixels: min and max pixels of an image; None leaves them to the processor.
        template: prompt template to append to the question.
        chat_template_kwargs: arguments of the chat template, as in training.
        position_rule: where text after a video starts, as in training (see [`~modeling.apply_position_rule`], which is
            applied to `model`).
    """
    import torch  # a slow import, after the options are parsed

    from ..media import PromptPreparer
    from ..modeling import apply_position_rule, forward_kwargs

    apply_position_rule(model, position_rule)
    kind = "image" if medium.lower().endswith(IMAGE_ENDINGS) else "video"
    row = {"prompt": [{"role": "user", "content": [{"type": kind, kind: medium}, {"type": "text", "text": question}]}]}
    row["prompt"] = templated_prompt(row["prompt"], template, "free-form")
    low, high = image_pixels
    preparer = PromptPreparer(
        processor,
        video_settings=video_settings,
        image_min_pixels=low,
        image_max_pixels=high,
        chat_template_kwargs=chat_template_kwargs,
    )
    (prompt,) = preparer([row])
    width = len(prompt.input_ids)
    input_ids = torch.tensor([prompt.input_ids], device=model.device)
    with torch.no_grad():
        generated = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            **forward_kwargs(model, [prompt.visual], width, width),
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
    return processor.tokenizer.decode(generated[0, width:], skip_special_tokens=True)


def settings_of_run(model: str) -> dict[str, Any]:
    """Return the media and prompt settings of a run's folder; empty for any other model."""
    recipe = recipe_of_run(model)
    return {} if recipe is None else read_recipe(str(recipe))


@one_line("trl-perception ask")
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="trl-perception ask", description=__doc__)
    parser.add_argument("model", help="'tiny', a folder with a checkpoint or an adapter, or a model on the Hub")
    parser.add_argument("medium", help="a video or an image: path or URL")
    parser.add_argument("question")
    parser.add_argument("--fps", type=float, help="frames sampled per second of video")
    for name in ("min-frames", "max-frames", "min-pixels", "max-pixels", "total-pixels"):
        parser.add_argument(f"--{name}", type=int, help="of a video, as the recipe's video_ setting")
    for name in ("image-min-pixels", "image-max-pixels"):
        parser.add_argument(f"--{name}", type=int, help="of an image")
    parser.add_argument("--template", help="prompt template that follows the question")
    parser.add_argument(
        "--position-rule", help="where text behind a video starts, as in training: released (default) or transformers"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that the model brings")
    options = parser.parse_args(argv)
    model_path(options.model), get_template(options.template or "none")
    if "://" not in options.medium and not Path(options.medium).expanduser().is_file():
        raise FileNotFoundError(
            f"{options.medium} is no file (looked from {Path.cwd()}). Correct the path, or give a URL."
        )
    from ..media import VideoSettings

    def setting(option: str, key: str, default: Any = None) -> Any:
        value = getattr(options, option)
        return trained_with.get(key, default) if value is None else value

    trained_with = {key: value for key, value in settings_of_run(options.model).items() if value is not None}
    video = {key: setting(key, f"video_{key}") for key in VIDEO_KEYS}
    print(
        ask(
            *from_pretrained(options.model, dtype="auto", trust_remote_code=options.trust_remote_code),
            options.medium,
            options.question,
            video_settings=VideoSettings(**{key: value for key, value in video.items() if value is not None}),
            image_pixels=tuple(setting(key, key) for key in ("image_min_pixels", "image_max_pixels")),
            template=setting("template", "prompt_template", "none"),
            chat_template_kwargs=trained_with.get("chat_template_kwargs"),
            max_new_tokens=options.max_new_tokens,
            position_rule=setting("position_rule", "position_rule", "released"),
        )
    )


if __name__ == "__main__":
    main()
