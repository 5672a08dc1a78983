"""Positions of text after a video, against the rule written out with loops."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from qwen_vl_utils.vision_process import smart_resize
from transformers import (
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.conftest import write_clip
from tests.helpers import message
from tests.positions import layout_of, slow_positions
from tests.trainers.reference import shaken
from trl_perception.assets import model_path
from trl_perception.cli.ask import ask
from trl_perception.evaluation.generate import complete, generation_config
from trl_perception.evaluation.settings import EvaluationSettings
from trl_perception.media import PromptPreparer
from trl_perception.modeling import apply_position_rule, forward_kwargs, media_masked, position_rule_of, prefill_once

RECIPES = Path(__file__).parents[2] / "recipes"
RULES = ("released", "transformers")
SMALL = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]}}
SIGHT = {"depth": 1, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}


def inputs_of(layouts, tokens_per_second, *, padding=0, side="left"):
    """What `get_rope_index` takes for prompts of these layouts, each padded."""
    kinds, images, videos, seconds = [], [], [], []
    for layout in layouts:
        row = []
        for part in layout:
            if isinstance(part, int):
                row += [0] * part
                continue
            cells, height, width, step = part
            grid = [cells, 2 * height, 2 * width]
            if step is None:
                images.append(grid)
            else:
                videos.append(grid)
                seconds.append(step / tokens_per_second)
            row += [1 if step is None else 2] * (cells * height * width)
        kinds.append(row)
    width = max(map(len, kinds)) + padding
    filled = [[0] * (width - len(row)) for row in kinds]
    masks = [[1] * len(row) for row in kinds]
    joined = [
        [pad + row for pad, row in zip(filled, rows, strict=True)]
        if side == "left"
        else [row + pad for pad, row in zip(filled, rows, strict=True)]
        for rows in (kinds, masks)
    ]
    types, mask = (torch.tensor(rows) for rows in joined)
    inputs = {"input_ids": torch.zeros_like(types), "mm_token_type_ids": types, "attention_mask": mask}
    if images:
        inputs["image_grid_thw"] = torch.tensor(images)
    if videos:
        inputs |= {"video_grid_thw": torch.tensor(videos), "second_per_grid_ts": torch.tensor(seconds)}
    return inputs


def without_steps(layout):
    return [part if isinstance(part, int) else (*part[:3], part[3] or 0) for part in layout]


def assert_positions(model, layouts, rule, **how):
    per_second = getattr(model.config.vision_config, "tokens_per_second", 1)
    inputs = inputs_of(layouts, per_second, **how)
    positions, deltas = model.model.get_rope_index(**inputs)
    for row, layout in enumerate(layouts):
        expected, following = slow_positions(without_steps(layout), rule)
        attended = inputs["attention_mask"][row].bool()
        assert positions[:, row, attended].T.tolist() == [list(axes) for axes in expected]
        assert positions[:, row, ~attended].unique().tolist() in ([], [0])
        assert deltas[row].item() == following - len(expected)


def qwen2_5_vl(tokens_per_second=2):
    vision = {**SIGHT, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64, "window_size": 56}
    vision |= {"fullatt_block_indexes": [0], "tokens_per_second": tokens_per_second}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=SMALL, vision_config=vision)).eval()


def qwen2_vl():
    vision = {**SIGHT, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 1}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=SMALL, vision_config=vision)).eval()


# A video of 1 token a cell outlasts its height at once; one of 3 cells of 8 x 4 does not. None is the step of an image.
LAYOUTS = {
    "video": [[5, (6, 2, 2, 4), 7]],
    "short": [[5, (3, 8, 4, 1), 7]],
    "two videos": [[3, (9, 1, 2, 3), 1, (2, 2, 2, 5), 4]],
    "nothing behind it": [[4, (5, 1, 1, 2)]],
    "images and videos": [[2, (1, 3, 5, None), 3, (7, 2, 1, 4), 2, (1, 2, 2, None), 2, (4, 2, 2, 1), 6]],
    "batch": [[5, (6, 2, 2, 4), 7], [4], [1, (1, 4, 2, None), 9], [2, (8, 1, 1, 3), 2, (1, 2, 2, None), 3]],
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_positions_are_those_of_the_rule(kind, rule, side):
    model = qwen2_5_vl()
    apply_position_rule(model, rule)
    assert_positions(model, LAYOUTS[kind], rule, padding=3, side=side)


@pytest.mark.parametrize("rule", RULES)
def test_qwen2_vl_counts_cells(rule):
    model = qwen2_vl()
    apply_position_rule(model, rule)
    assert_positions(model, [[5, (12, 2, 3, 1), 7], [2, (1, 2, 2, None), 3, (9, 1, 1, 1), 2]], rule)


@pytest.mark.parametrize(
    "layout", [[3, (1, 4, 2, None), 5], [2, (1, 3, 5, None), 1, (1, 2, 2, None), 1, (1, 1, 7, None), 4]]
)
def test_images_have_the_same_positions_by_both_rules(layout):
    model = qwen2_5_vl()
    plain, _ = model.model.get_rope_index(**inputs_of([layout], 2))
    for rule in RULES:
        apply_position_rule(model, rule)
        assert_positions(model, [layout], rule)
        assert torch.equal(model.model.get_rope_index(**inputs_of([layout], 2))[0], plain)


# After "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>", 15 tokens, a cell is
# two frames at 1 frame a second, and Qwen2.5-VL has 2 positions a second: cells stand 4 apart.
# RAL: 128 frames are 64 cells of 11 x 11 tokens: 15 + 63 * 4 + 1 = 268, by transformers' rule 15 + 11 = 26.
# APPO: 16 frames are 8 cells of 8 x 8: 15 + 7 * 4 + 1 = 44, and 15 + 8 = 23.
@pytest.mark.parametrize(
    ("recipe", "rule", "start"),
    [("ral", "released", 268), ("ral", "transformers", 26), ("appo", "released", 44), ("appo", "transformers", 23)],
)
def test_text_behind_a_long_clip_at_the_recipes_settings(recipe, rule, start):
    settings = yaml.safe_load((RECIPES / recipe / "qwen2_5_vl_3b.yaml").read_text())
    height, width = smart_resize(720, 720, factor=28, min_pixels=3136, max_pixels=settings["video_max_pixels"])
    cells = settings["video_max_frames"] // 2
    layout = [15, (cells, height // 28, width // 28, 2 / settings["video_fps"] * 2), 9]
    model = qwen2_5_vl(tokens_per_second=2)
    apply_position_rule(model, rule)
    positions, _ = model.model.get_rope_index(**inputs_of([layout], 2))
    assert positions[:, 0, -9].tolist() == [start] * 3
    assert_positions(model, [layout], rule)


def test_qwen3_vl_is_left_as_it_is():
    """It splits a video into cells with a time stamp before each, where the largest position + 1 is start + max(h, w)."""
    text = {**SMALL, "head_dim": 32, "rope_parameters": {"rope_type": "default", "mrope_section": [6, 5, 5]}}
    vision = {"depth": 1, "num_heads": 2, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64}
    vision |= {"deepstack_visual_indexes": [0], "patch_size": 14}
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()
    layout = [3, (1, 2, 3, 1), 2, (1, 2, 3, 1), 2, (1, 2, 3, 1), 5]
    inputs = inputs_of([layout], 1)
    del inputs["second_per_grid_ts"]
    inputs["video_grid_thw"] = torch.tensor([[3, 4, 6]])  # one video
    for rule in RULES:
        apply_position_rule(model, rule)
        assert position_rule_of(model) is None
        assert "get_rope_index" not in vars(model.model)
        positions, deltas = model.model.get_rope_index(**inputs)
        expected, following = slow_positions(layout, rule)
        assert positions[:, 0].T.tolist() == [list(axes) for axes in expected]
        assert deltas.item() == following - len(expected)


def test_the_rule_is_the_model_objects_own(tmp_path):
    model = qwen2_5_vl()
    model.save_pretrained(tmp_path / "plain")
    apply_position_rule(model)
    assert_positions(model, LAYOUTS["batch"], "released")

    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear", r=2))
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), adapted.get_base_model()):
        assert position_rule_of(same) == "released"
        assert same.model.get_rope_index.backbone is same.model
        assert_positions(same, LAYOUTS["batch"], "released")
    apply_position_rule(adapted, "transformers")  # a later rule replaces it, in this copy only
    assert_positions(adapted.get_base_model(), LAYOUTS["batch"], "transformers")
    assert_positions(model, LAYOUTS["batch"], "released")

    model.save_pretrained(tmp_path / "ruled")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "ruled" / file.name).read_bytes()
    assert position_rule_of(Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "ruled")) is None


def test_another_rule_is_refused():
    with pytest.raises(ValueError, match="position_rule is 'qwen'; 'released' or 'transformers' wanted"):
        apply_position_rule(qwen2_5_vl(), "qwen")
    with pytest.raises(ValueError, match="position_rule is 'new'"):
        EvaluationSettings(model="tiny", data="synthetic", output="out", position_rule="new")


# From here on the clip's last cell is beyond the position where transformers would put the text.


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(model_path("tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """6 seconds: 12 frames at 2 a second are 6 cells, 4 positions apart."""
    return write_clip(tmp_path_factory.mktemp("positions") / "long.mp4", seed=0, frames=24)


@pytest.fixture(scope="module")
def prompt(processor, clip):
    (prepared,) = PromptPreparer(processor)([{"prompt": message("Same?", "video"), "videos": [clip]}])
    return prepared


@pytest.fixture(scope="module")
def plain():
    """No rule applied; distributions far from uniform."""
    return shaken(model_path("tiny")).eval()


def greedy(plain, prompt, rule, length):
    """Tokens by whole forwards of a model without a rule, at positions from the loops."""
    ids = list(prompt.input_ids)
    for done in range(length):
        positions, _ = slow_positions(layout_of(prompt.visual, done), rule)
        media = forward_kwargs(plain, [prompt.visual], len(prompt.input_ids), len(ids))
        with torch.no_grad():
            logits = plain(
                input_ids=torch.tensor([ids]), position_ids=torch.tensor(positions).T[:, None], **media
            ).logits
        logits[..., [plain.config.image_token_id, plain.config.video_token_id]] = -torch.inf  # belong to prompts
        ids.append(logits[0, -1].argmax().item())
    return ids[len(prompt.input_ids) :]


@pytest.fixture(scope="module")
def expected(plain, prompt):
    found = {rule: greedy(plain, prompt, rule, 10) for rule in RULES}
    assert found["released"] != found["transformers"]
    return found


def settings(length=10):
    return EvaluationSettings(model="tiny", data="synthetic", output="out", max_new_tokens=length)


def ruled(plain, processor, rule, length=10):
    model = copy.deepcopy(plain)
    apply_position_rule(model, rule)
    model.generation_config = generation_config(settings(length), model, processor)
    model.generation_config.eos_token_id = [0]  # the whole length
    return model


@pytest.mark.parametrize("rule", RULES)
def test_greedy_generation_is_the_forwards_argmax(plain, processor, prompt, expected, rule):
    model = ruled(plain, processor, rule)
    assert complete(model, processor, [prompt])[0][0].ids == expected[rule]
    # the forward that training makes, at the model's own positions
    ids = torch.tensor([[*prompt.input_ids, *expected[rule]]])
    with torch.no_grad():
        logits = model(
            input_ids=ids, **forward_kwargs(model, [prompt.visual], len(prompt.input_ids), ids.size(1))
        ).logits
    logits[..., [model.config.image_token_id, model.config.video_token_id]] = -torch.inf
    assert logits[0, len(prompt.input_ids) - 1 : -1].argmax(-1).tolist() == expected[rule]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("repeats", [1, 3])
def test_shared_prefill(plain, processor, prompt, expected, rule, repeats):
    model = ruled(plain, processor, rule)
    ids = torch.tensor([prompt.input_ids] * 3)
    with torch.no_grad(), prefill_once(model, [prompt.visual] * 3, repeats):
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=model.generation_config
        )
    assert found[:, ids.size(1) :].tolist() == [expected[rule]] * 3


@pytest.mark.parametrize("rule", RULES)
def test_ask(plain, processor, clip, expected, rule):
    answers = [
        ask(ruled(plain, processor, before), processor, clip, "Same?", max_new_tokens=10, position_rule=rule)
        for before in RULES
    ]
    assert answers == [processor.tokenizer.decode(expected[rule], skip_special_tokens=True)] * 2


@pytest.mark.parametrize("rule", RULES)
def test_the_media_masked_view_keeps_the_text_where_it_stands(plain, processor, prompt, rule):
    model = ruled(plain, processor, rule)
    view = media_masked(model, torch.tensor(prompt.input_ids), prompt.visual, 5)
    positions, _ = slow_positions(layout_of(prompt.visual, 5), rule)
    kinds = [*prompt.visual.token_types.tolist(), *[0] * 5]
    assert view.positions.T.tolist() == [list(axes) for axes, kind in zip(positions, kinds, strict=True) if kind == 0]
