"""Show what training changed: a few held-out clips, answered by the model before and after, with transformers' `generate`."""

from ..assets import from_pretrained, model_path
from ..recipe import recipe_of_run, recipe_path
from .ask import ask
from .errors import Parser, one_line


@one_line("trl-perception show")
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="trl-perception show", description=__doc__)
    parser.add_argument("--model", required=True, help="the trained checkpoint")
    parser.add_argument("--recipe", help="the recipe it was trained with; a run's own by default")
    parser.add_argument("--rows", type=int, default=4, help="how many held-out clips to show")
    options = parser.parse_args(argv)
    model_path(options.model)
    recipe = recipe_of_run(options.model) if options.recipe is None else recipe_path(options.recipe)
    if recipe is None:
        raise ValueError(
            f"{options.model} has no recipe.yaml beside it. Name the recipe that it was trained with: --recipe."
        )
    from ..data.load import load_rows  # a slow import, after the options are parsed
    from ..media import media_columns
    from ..train import parse

    script, config, model = parse(["--config", str(recipe)])
    models = {"before": model.model_name_or_path, "after": options.model}
    loaded = {when: from_pretrained(name, trust_remote_code=config.trust_remote_code) for when, name in models.items()}
    rows = load_rows(
        script.dataset_name,
        script.dataset_test_split,
        config=script.dataset_config,
        synthetic=script.synthetic,
        prompt_template=script.prompt_template,
    )
    with_video = (row for row in rows if len(media_columns(row)["video"]) == 1)
    for row, _ in zip(with_video, range(options.rows), strict=False):
        question = next(block["text"] for block in row["prompt"][-1]["content"] if block["type"] == "text")
        (video,) = media_columns(row)["video"]
        print(f"\n{video}\n  asked   {question}\n  truth   {row['solution']}")
        for when, (policy, processor) in loaded.items():
            answer = ask(
                policy,
                processor,
                video,
                question,
                video_settings=config.video_settings,
                image_pixels=(config.image_min_pixels, config.image_max_pixels),
                max_new_tokens=config.max_completion_length,
                position_rule=config.position_rule,
            )
            print(f"  {when:<7} {answer}")


if __name__ == "__main__":
    main()
