"""Ask a model about a video or an image, with transformers' `generate`: `trl-perception ask MODEL MEDIUM QUESTION`."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..assets import from_pretrained, model_path
from .errors import Parser, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from ..media import VideoSettings

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def ask(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    medium: str,
    question: str,
    *,
    video_settings: "VideoSettings | None" = None,
    max_new_tokens: int = 256,
    position_rule: str = "released",
) -> str:
    """The model's greedy answer to a question about one video or image.

    Args:
        medium: path or URL; endings of image files make it an image, anything else is a video.
        video_settings: frame sampling, as in training for figures that can be compared.
        position_rule: where text behind a video starts, as in training (see [`~signals.apply_position_rule`], which is
            applied to `model`).
    """
    import torch  # the command's parser answers first

    from ..media import PromptPreparer, forward_kwargs
    from ..signals import apply_position_rule

    apply_position_rule(model, position_rule)
    kind = "image" if medium.lower().endswith(IMAGE_ENDINGS) else "video"
    row = {"prompt": [{"role": "user", "content": [{"type": kind, kind: medium}, {"type": "text", "text": question}]}]}
    (prompt,) = PromptPreparer(processor, video_settings=video_settings)([row])
    width = len(prompt.input_ids)
    visual = prompt.visual.to(model.device)
    input_ids = torch.tensor([prompt.input_ids], device=model.device)
    with torch.no_grad():
        generated = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            **forward_kwargs([visual], width, width),
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
    return processor.tokenizer.decode(generated[0, width:], skip_special_tokens=True)


@one_line("trl-perception ask")
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="trl-perception ask", description=__doc__)
    parser.add_argument("model", help="'tiny', a folder with a checkpoint or an adapter, or a model on the Hub")
    parser.add_argument("medium", help="a video or an image: path or URL")
    parser.add_argument("question")
    parser.add_argument("--fps", type=float, default=2.0, help="frames sampled per second of video")
    parser.add_argument("--max-frames", type=int, default=768, help="most frames sampled")
    parser.add_argument(
        "--position-rule",
        default="released",
        help="where text behind a video starts, as in training: released or transformers",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that the model brings")
    options = parser.parse_args(argv)
    model_path(options.model)
    if "://" not in options.medium and not Path(options.medium).expanduser().is_file():
        raise FileNotFoundError(
            f"{options.medium} is no file (looked from {Path.cwd()}). Correct the path, or give a URL."
        )
    from ..media import VideoSettings

    print(
        ask(
            *from_pretrained(options.model, dtype="auto", trust_remote_code=options.trust_remote_code),
            options.medium,
            options.question,
            video_settings=VideoSettings(fps=options.fps, max_frames=options.max_frames),
            max_new_tokens=options.max_new_tokens,
            position_rule=options.position_rule,
        )
    )


if __name__ == "__main__":
    main()
