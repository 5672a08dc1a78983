"""Size, length and visual tokens from headers; the estimate equals the processor's count."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from tests.helpers import message
from trl_perception.assets import model_path
from trl_perception.families import family_of_processor
from trl_perception.media import MediaError, MediaSettings, PromptPreparer, VideoSettings, read_video
from trl_perception.media.probe import MediaFacts, expected_tokens, probe, read_tokens, visual_tokens


def test_facts_of_a_clip_and_a_picture(clips, pictures):
    assert probe("video", clips["plain"]) == MediaFacts("video", 56, 112, frames=30, fps=10.0)
    assert probe("video", clips["plain"]).seconds == 3.0  # 30 frames / 10
    assert probe("video", clips["plain"].read_bytes()) == probe("video", clips["plain"])
    assert probe("image", pictures[0]) == MediaFacts("image", 56, 84)
    assert probe("image", pictures[0]).seconds == 0.0


@pytest.mark.parametrize(
    "name", ["plain", "one_frame", "ntsc", "long", "late_start", "webm", "vp8", "avi", "stream", "with_sound"]
)
def test_the_header_agrees_with_the_frames(clips, name):
    facts, clip = probe("video", clips[name]), read_video(clips[name], VideoSettings(fps=1.0, max_pixels=56 * 112))
    assert facts.seconds == pytest.approx(clip.total_frames / clip.fps, rel=0.05, abs=0.11)


def test_packets_are_counted_where_the_header_gives_no_length(clips):
    assert probe("video", clips["rawest"]).frames == 30


def test_tokens_by_hand():
    settings = VideoSettings(fps=1.0, max_frames=16, max_pixels=112 * 56)
    # 60 s at 1 frame a second, 16 at most: 8 cells; frames become 56 x 112 pixels: 2 * 4 tokens a cell
    assert visual_tokens(MediaFacts("video", 360, 720, frames=1800, fps=30.0), settings) == 8 * 2 * 4
    # 5 s: 4 frames (an even number), 2 cells
    assert visual_tokens(MediaFacts("video", 360, 720, frames=150, fps=30.0), settings) == 2 * 2 * 4
    # an image of 280 x 560 pixels: 10 * 20 tokens; half its sides within 140 * 280 pixels
    assert visual_tokens(MediaFacts("image", 280, 560), settings) == 200
    assert visual_tokens(MediaFacts("image", 280, 560), settings, image_limits=(1, 140 * 280)) == 50


@pytest.mark.parametrize("settings", [VideoSettings(), VideoSettings(fps=4.0, max_frames=8), VideoSettings(fps=1.0)])
def test_the_estimate_is_what_the_processor_makes(clips, pictures, tmp_path, settings):
    wide = str(tmp_path / "wide.png")
    Image.fromarray(np.zeros((100, 300, 3), np.uint8)).save(wide)
    processor = AutoProcessor.from_pretrained(model_path("tiny"))
    parts = {"video": processor.video_processor.size, "image": processor.image_processor.size}
    limits = {f"{kind}_limits": (size["shortest_edge"], size["longest_edge"]) for kind, size in parts.items()}
    media = [("video", str(clips["plain"])), ("video", str(clips["long"])), ("image", pictures[0]), ("image", wide)]
    rows = [{"prompt": message("?", kind), f"{kind}s": [path]} for kind, path in media]
    prepared = PromptPreparer(processor, video_settings=settings)(rows)
    for (kind, path), prompt in zip(media, prepared, strict=True):
        assert visual_tokens(probe(kind, path), settings, **limits) == prompt.visual.visual_tokens
        request = MediaSettings(settings, sizes=family_of_processor(processor).sizes(processor)).request(
            {"type": kind, kind: path}
        )
        assert expected_tokens(probe(kind, path), request) == prompt.visual.visual_tokens
        assert read_tokens(request.read(), request) == prompt.visual.visual_tokens


def test_what_is_no_medium_is_named(tmp_path, clips):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for kind in ("video", "image"):
        with pytest.raises(MediaError, match=r"a\.mp4"):
            probe(kind, str(tmp_path / "a.mp4"))
    with pytest.raises(MediaError, match="audio streams, and a video stream is wanted"):
        probe("video", clips["sound_only"])
    with pytest.raises(MediaError, match=r"nowhere\.mp4: the file cannot be opened"):
        probe("video", str(tmp_path / "nowhere.mp4"))
    with pytest.raises(MediaError, match="1x300 pixels are not within an aspect ratio of 200"):
        visual_tokens(MediaFacts("image", 1, 300), VideoSettings())
