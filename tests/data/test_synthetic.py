import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from trl_perception.data import make_synthetic_dataset, reference_completion
from trl_perception.data.drawing import COLORS
from trl_perception.data.synthetic import FAMILIES, draw_row
from trl_perception.data.synthetic_image import IMAGE_FAMILIES
from trl_perception.data.synthetic_spec import SceneSettings

ROWS = 3 * len(FAMILIES) * 2


def decode(path):
    """Frames (F,H,W,3) uint8 of a clip, and its frame rate and codec."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, float(stream.average_rate), stream.codec_context.name


def covered(pixels, color, tolerance=70):
    """How many pixels of each frame (F,H,W,3) are nearest to the named color, and near at all. Returns (F,)."""
    names = [*COLORS, "gray", "white"]
    palette = np.array([*COLORS.values(), (65, 65, 65), (250, 250, 250)])
    distance = np.linalg.norm(pixels[..., None, :].astype(float) - palette, axis=-1)
    hit = (distance.argmin(-1) == names.index(color)) & (distance.min(-1) < tolerance)
    return hit.reshape(len(pixels), -1).sum(-1)


def inside(evidence, total, fps):
    """Frames (F,) bool whose start lies in one of the spans."""
    times = np.arange(total) / fps
    return np.any([(start <= times) & (times < end) for start, end in evidence], axis=0)


def question_of(row):
    return row["prompt"][0]["content"][-1]["text"]


def answer_text(row):
    """The solution as text: for multiple choice the text of the option it names."""
    if row["problem_type"] != "multiple choice":
        return row["solution"]
    return dict(option.split(". ") for option in row["options"])[row["solution"]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return list(make_synthetic_dataset(tmp_path_factory.mktemp("clips"), size=ROWS, seed=3))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return list(make_synthetic_dataset(tmp_path_factory.mktemp("images"), size=ROWS, seed=3, medium="image"))


def family(rows, name):
    chosen = [row for row in rows if row["family"] == name]
    assert len(chosen) >= 6
    return chosen


def test_clips_are_h264_of_the_asked_length_rate_and_size(tmp_path):
    rows = make_synthetic_dataset(tmp_path, size=2, families=["static"], seconds=3, fps=6, resolution=(56, 84))
    for row in rows:
        frames, fps, codec = decode(row["videos"][0])
        # 3 s * 6 frames a second = 18 frames
        assert (frames.shape, fps, codec, row["duration"]) == ((18, 56, 84, 3), 6.0, "h264", 3.0)


def test_same_arguments_give_the_same_rows_and_bytes(tmp_path):
    first = make_synthetic_dataset(tmp_path / "a", size=9, seed=5, medium="mixed", num_workers=1)
    second = make_synthetic_dataset(tmp_path / "b", size=9, seed=5, medium="mixed", num_workers=4)
    for one, other in zip(first, second, strict=True):
        for column in set(one) - {"videos", "images"}:
            assert one[column] == other[column]
        for path, twin in zip(one["videos"] + one["images"], other["videos"] + other["images"], strict=True):
            assert Path(path).read_bytes() == Path(twin).read_bytes()


def test_a_larger_dataset_starts_with_the_rows_of_a_smaller_one(tmp_path):
    small = make_synthetic_dataset(tmp_path / "small", size=7)
    large = make_synthetic_dataset(tmp_path / "large", size=9)
    assert small["reasoning"] == large["reasoning"][:7]


@pytest.mark.parametrize("change", [{"split": "test"}, {"seed": 1}])
def test_splits_and_seeds_share_no_clip(tmp_path, change):
    here = make_synthetic_dataset(tmp_path / "here", size=28, families=["scene_color", "event_order"])
    there = make_synthetic_dataset(tmp_path / "there", size=28, families=["scene_color", "event_order"], **change)
    contents = [{Path(row["videos"][0]).read_bytes() for row in rows} for rows in (here, there)]
    assert len(contents[0]) == len(contents[1]) == 28
    assert not contents[0] & contents[1]
    assert not set(here["id"]) & set(there["id"])


def test_a_folder_is_reused_and_never_overwritten(tmp_path):
    rows = make_synthetic_dataset(tmp_path, size=2)
    marked = Path(rows[0]["videos"][0])
    marked.write_bytes(b"")
    make_synthetic_dataset(tmp_path, size=2)
    assert marked.read_bytes() == b""  # reused, not written again
    with pytest.raises(ValueError, match="differs in noise"):
        make_synthetic_dataset(tmp_path, size=2, noise=0)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        make_synthetic_dataset(tmp_path, size=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"families": ["scene_colour"]}, "scene_color"),
        ({"families": ["event_time"], "medium": "image"}, "event_time"),
        ({"medium": "audio"}, "video, image, mixed"),
        ({"fps": 3}, "even"),
        ({"seconds": 4.2}, "multiple of 0.5"),
        ({"scenes": (2, 9)}, "scenes"),
        ({"resolution": 27}, "resolution"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_synthetic_dataset(tmp_path / "rows", size=1, **arguments)
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("medium", ["video", "image", "mixed"])
def test_every_medium_has_its_families_and_files(tmp_path, medium):
    rows = list(make_synthetic_dataset(tmp_path, size=42, medium=medium))
    expected = {*IMAGE_FAMILIES, "text_only"} if medium == "image" else set(FAMILIES)
    assert {row["family"] for row in rows} == expected
    kinds = {(bool(row["videos"]), bool(row["images"])) for row in rows if row["family"] != "text_only"}
    assert (
        kinds == {"video": {(True, False)}, "image": {(False, True)}, "mixed": {(True, False), (False, True)}}[medium]
    )
    for row in rows:
        blocks = [block["type"] for block in row["prompt"][0]["content"]]
        assert blocks == ["video"] * len(row["videos"]) + ["image"] * len(row["images"]) + ["text"]
        for path in row["images"]:
            assert Image.open(path).size == (56, 56)
        for path in row["videos"]:
            assert len(decode(path)[0]) == 16


def test_answers_fit_their_problem_type(clips, images):
    seen = set()
    for row in clips + images:
        seen.add(row["problem_type"])
        if row["problem_type"] == "multiple choice":
            letters, texts = zip(*(option.split(". ") for option in row["options"]), strict=True)
            assert letters == tuple("ABCD"[: len(texts)])
            assert len(set(texts)) == len(texts) >= 2
            assert row["solution"] in letters
            assert all(option in question_of(row) for option in row["options"])
        else:
            assert row["options"] == []
        if row["problem_type"] == "numerical":
            assert row["solution"].isdigit()
        if row["problem_type"] == "temporal grounding":
            assert re.fullmatch(r"\d+\.\d to \d+\.\d", row["solution"])
    assert seen == {"multiple choice", "numerical", "free-form", "temporal grounding"}


def test_the_trace_of_a_multiple_choice_row_ends_with_its_option(clips, images):
    for row in clips + images:
        ending = f", {answer_text(row)} {row['solution']}"
        assert row["reasoning"].endswith(ending) == (row["problem_type"] == "multiple choice")


def test_scene_color_evidence_is_the_scene_of_that_color(clips):
    for row in family(clips, "scene_color"):
        frames, fps, _ = decode(row["videos"][0])
        shown = answer_text(row)
        if row["problem_type"] == "numerical":
            shown = re.search(r"is (\w+)\?", question_of(row))[1]
        # a scene fills the frame but for one small distractor: 5 * 5 of 56 * 56 pixels, and its blurred edge
        fills = covered(frames, shown) > 0.9 * 56 * 56
        assert np.array_equal(fills, inside(row["evidence"], len(frames), fps))


def test_scene_color_counts_scenes_from_one(clips):
    for row in family(clips, "scene_color"):
        frames, fps, _ = decode(row["videos"][0])
        middle = [[np.median(frame[..., channel]) for channel in range(3)] for frame in frames]
        changes = [i for i in range(1, len(frames)) if np.abs(np.subtract(middle[i], middle[i - 1])).max() > 25]
        number = 1 + sum(change / fps <= row["evidence"][0][0] for change in changes)
        if row["problem_type"] == "numerical":
            assert row["solution"] == str(number)
        else:
            ordinal = ("first", "second", "third", "fourth")[number - 1]
            assert f"scene {number}?" in question_of(row) or f"{ordinal} scene" in question_of(row)


def test_event_order_names_the_shape_that_is_seen_first(clips):
    for row in family(clips, "event_order"):
        frames, fps, _ = decode(row["videos"][0])
        names = re.search(r"the (\w+ \w+) or the (\w+ \w+)\?", question_of(row)).groups()
        visible = {name: covered(frames, name.split()[0]) > 25 for name in names}
        first = min(names, key=lambda name: visible[name].argmax())
        assert answer_text(row) == first
        either = visible[names[0]] | visible[names[1]]
        assert np.array_equal(either, inside(row["evidence"], len(frames), fps))


def test_flash_count_is_the_number_of_white_spans(clips):
    for row in family(clips, "flash_count"):
        frames, fps, _ = decode(row["videos"][0])
        white = covered(frames, "white") > 0.9 * 56 * 56
        assert np.array_equal(white, inside(row["evidence"], len(frames), fps))
        starts = int(white[0]) + int((~white[:-1] & white[1:]).sum())
        assert answer_text(row) == str(starts) == str(len(row["evidence"]))


def test_event_time_is_when_the_named_shape_is_visible(clips):
    for row in family(clips, "event_time"):
        frames, fps, _ = decode(row["videos"][0])
        color = re.search(r"the (\w+) \w+", question_of(row))[1]
        visible = np.flatnonzero(covered(frames, color) > 25)
        # the span ends when the last frame that shows it ends
        assert row["solution"] == f"{visible[0] / fps:.1f} to {(visible[-1] + 1) / fps:.1f}"
        assert row["evidence"] == [[visible[0] / fps, (visible[-1] + 1) / fps]]


def test_needle_is_seen_in_its_evidence_only(clips):
    for row in family(clips, "needle"):
        frames, fps, _ = decode(row["videos"][0])
        color = re.search(rf"\b({'|'.join(COLORS)})\b", row["reasoning"])[1]
        assert np.array_equal(covered(frames, color) > 25, inside(row["evidence"], len(frames), fps))
        assert answer_text(row) in row["reasoning"].split()


def test_static_evidence_is_the_whole_clip_and_every_frame_shows_it(clips):
    for row in family(clips, "static"):
        frames, _, _ = decode(row["videos"][0])
        color = re.search(rf"\b({'|'.join(COLORS)})\b", row["reasoning"])[1]
        assert (covered(frames, color) > 25).all()
        assert row["evidence"] == [[0.0, row["duration"]]]


@pytest.mark.parametrize("name", ["scene_color", "needle", "static"])
def test_image_boxes_hold_the_color_and_the_rest_does_not(images, name):
    for row in family(images, name):
        image = np.array(Image.open(row["images"][0]))[None]
        text = row["reasoning"] if name != "scene_color" else f"{answer_text(row)} {question_of(row).split('?')[0]}"
        color = re.search(rf"\b({'|'.join(COLORS)})\b", text)[1]
        within = sum(int(covered(image[:, y0:y1, x0:x1], color)[0]) for x0, y0, x1, y1 in row["evidence_boxes"])
        assert within == covered(image, color)[0] > 25


def test_dots_are_counted(images):
    for row in family(images, "flash_count"):
        image = np.array(Image.open(row["images"][0]))[None]
        # a dot is 12 by 12 pixels: radius 56 // 9 = 6
        assert covered(image, "white")[0] == 144 * int(answer_text(row)) == 144 * len(row["evidence_boxes"])


def test_left_of_names_the_shape_further_left(images):
    for row in family(images, "event_order"):
        image = np.array(Image.open(row["images"][0]))
        halves = image[None, :, :28], image[None, :, 28:]
        left, right = (covered(half, answer_text(row).split()[0])[0] for half in halves)
        assert left > 25
        assert right == 0


def test_text_only_needs_no_medium_and_half_of_its_rows_have_none(clips):
    rows = family(clips, "text_only")
    with_clip = [row for row in rows if row["videos"]]
    assert len(with_clip) == len(rows) // 2
    for row in rows:
        assert row["evidence"] == []
        if sum := re.fullmatch(r"What is (\d) (plus|minus) (\d)\?", question_of(row)):
            one, word, other = int(sum[1]), sum[2], int(sum[3])
            assert row["solution"] == str(one + other if word == "plus" else one - other)


def test_reference_completion_is_the_trace_and_the_solution():
    row = {"reasoning": "scene 1 red scene 2 blue", "solution": "B"}
    assert reference_completion(row) == "<think>scene 1 red scene 2 blue</think><answer>B</answer>"


@pytest.mark.parametrize(
    ("knobs", "low", "high"), [({}, 0.0, 0.5), ({"distractors": 3}, 0.5, 9.0), ({"noise": 20}, 9.0, 99.0)]
)
def test_distractors_and_noise_change_a_still_clip(tmp_path, knobs, low, high):
    rows = make_synthetic_dataset(tmp_path, size=3, families=["static"], **{"distractors": 0, "noise": 0} | knobs)
    # mean change of a pixel between frames, in levels: two noises of sigma 20 differ by 20 * 2 / sqrt(pi) = 22.6
    for row in rows:
        change = np.abs(np.diff(decode(row["videos"][0])[0].astype(int), axis=0)).mean()
        assert low <= change < high


def test_tint_shifts_each_channel_of_a_clip_alike():
    spec = {"seed": 3, "split": "test", "families": ["event_order"], "medium": "video"}
    row, plain = draw_row(spec, SceneSettings(noise=0.0), 0)
    tinted_row, tinted = draw_row(spec, SceneSettings(noise=0.0, tint=40.0), 0)
    assert tinted_row == row
    inside = (plain >= 40) & (plain <= 215)  # no shift of 40 levels reaches the ends of the range
    shifts = [np.unique((tinted.astype(int) - plain)[..., c][inside[..., c]]) for c in range(3)]
    assert all(len(of_channel) == 1 and 0 < abs(of_channel[0]) <= 40 for of_channel in shifts)
    assert len({int(of_channel[0]) for of_channel in shifts}) == 3


@pytest.mark.parametrize("name", ["distractors", "noise", "tint"])
def test_negative_knobs_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is -1.*0 or more"):
        make_synthetic_dataset(tmp_path, size=1, **{name: -1})


def test_a_folder_of_before_a_setting_existed_is_reused(tmp_path):
    rows = make_synthetic_dataset(tmp_path, size=2)
    marked, file = Path(rows[0]["videos"][0]), tmp_path / "spec.json"
    marked.write_bytes(b"")
    spec = json.loads(file.read_text())
    assert spec.pop("tint") == 0
    file.write_text(json.dumps(spec))
    make_synthetic_dataset(tmp_path, size=2)
    assert marked.read_bytes() == b""
    with pytest.raises(ValueError, match=r"differs in tint\)"):
        make_synthetic_dataset(tmp_path, size=2, tint=8)
