"""Placeholders and media, matched or refused."""

import pytest

from trl_perception.media import fill_media, media_blocks, media_columns, without_payloads

TEXT = {"type": "text", "text": "Which?"}


def user(*content):
    return [{"role": "user", "content": list(content)}]


def test_placeholders_take_the_media_of_their_column_in_order():
    prompt = user({"type": "video"}, TEXT, {"type": "image"}, {"type": "video"})
    messages = fill_media(prompt, images=["i"], videos=["a", "b"])
    assert messages == user(
        {"type": "video", "video": "a"}, TEXT, {"type": "image", "image": "i"}, {"type": "video", "video": "b"}
    )
    assert prompt == user({"type": "video"}, TEXT, {"type": "image"}, {"type": "video"})  # the row is not modified


def test_a_block_with_its_own_medium_takes_none_of_the_column():
    own = {"type": "video", "video": "own.mp4", "fps": 1.0}
    assert fill_media(user(own, {"type": "video"}), videos=["a"]) == user(own, {"type": "video", "video": "a"})


def test_arrow_nones_do_not_count():
    prompt = [
        {"role": "user", "content": [
            {"type": "video", "text": None, "video": "a.mp4", "fps": None},
            {"type": "text", "text": "Which?", "video": None, "fps": None},
        ]}
    ]  # fmt: skip
    assert fill_media(prompt) == user({"type": "video", "video": "a.mp4"}, TEXT)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Which?", [{"type": "image", "image": "i"}, {"type": "video", "video": "v"}, TEXT]),
        (
            "<video>Which?<image>",
            [{"type": "video", "video": "v"}, TEXT, {"type": "image", "image": "i"}],
        ),
    ],
)
def test_strings_get_their_media_at_their_tags_or_before_the_text(content, expected):
    prompt = [{"role": "system", "content": "Look."}, {"role": "user", "content": content}]
    messages = fill_media(prompt, images=["i"], videos=["v"])
    assert messages[0]["content"] == [{"type": "text", "text": "Look."}]
    assert messages[1]["content"] == expected


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "url": "http://x/i.png"},
        {"type": "image", "path": "http://x/i.png"},
        {"image": "http://x/i.png"},
        {"type": "image_url", "image_url": {"url": "http://x/i.png"}},
    ],
)
def test_the_spellings_of_other_libraries_are_understood(block):
    assert fill_media(user(block)) == user({"type": "image", "image": "http://x/i.png"})


@pytest.mark.parametrize(
    ("prompt", "images", "videos", "words"),
    [
        (user({"type": "video"}, {"type": "video"}), [], ["a"], "2 video placeholder.*holds 1"),
        (user(TEXT), ["i"], [], "0 image placeholder.*holds 1"),
        ([{"role": "user", "content": "<video><video>?"}], [], ["a"], "2 video placeholder.*holds 1"),
        ([{"role": "system", "content": "Look."}], ["i"], [], "no user message"),
        (user({"type": "audio", "audio": "a.wav"}), [], [], "type 'audio'"),
    ],
)
def test_media_and_placeholders_that_do_not_match_are_refused(prompt, images, videos, words):
    with pytest.raises(ValueError, match=words):
        fill_media(prompt, images, videos)


def test_a_tag_without_media_of_its_kind_is_text():
    prompt = [{"role": "user", "content": "What does <video> mean in HTML, and <image>?"}]
    assert fill_media(prompt) == user({"type": "text", "text": "What does <video> mean in HTML, and <image>?"})
    # the image's tag is its place, the other stays text
    assert fill_media(prompt, images=["i"]) == user(
        {"type": "text", "text": "What does <video> mean in HTML, and "},
        {"type": "image", "image": "i"},
        {"type": "text", "text": "?"},
    )


def test_limits_beside_an_url_stay():
    block = {"type": "image_url", "image_url": {"url": "http://x/i.png"}, "max_pixels": 784}
    assert fill_media(user(block)) == user({"type": "image", "image": "http://x/i.png", "max_pixels": 784})
    assert fill_media(user({"type": "video_url", "video_url": "http://x/v.mp4"})) == user(
        {"type": "video", "video": "http://x/v.mp4"}
    )


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"role": "user", "content": "?"}, "The prompt is a dict; a string or a list of messages is wanted"),
        (["What?"], "Message 1 is a str"),
        ([{"content": "?"}], r"Message 1 has the role None and keys \['content'\]; its 'role' must be one of"),
        ([{"from": "human", "value": "?"}], r"role None and keys \['from', 'value'\]"),
        ([{"role": "human", "content": "?"}], "has the role 'human'"),
        (
            [{"role": "user", "content": {"type": "text", "text": "?"}}],
            r"message 1 \(user\) is a dict; a text or a list",
        ),
        ([{"role": "user", "content": 3}], r"message 1 \(user\) is a int"),
        (user("What?"), "A content block is the str 'What\\?'"),
        (user({"type": "text", "text": None}), "A text block holds None"),
        (user({"type": "text", "txt": "?"}), r"keys \['txt', 'type'\]; text is wanted in its 'text'"),
        ([{"role": "user", "content": None}], r"Message 1 \(user\) is empty"),
        (user({"type": "text", "text": " "}), r"Message 1 \(user\) is empty"),
        (user({"type": "image", "image": "i", "video": "v"}), "holds 'video' as well"),
        (user({"type": "video", "video": "v", "text": "What?"}), "holds 'text' as well"),
        (user({"type": "video", "video": ["a.mp4"]}), r"a list that holds the clip 'a\.mp4'.*column 'videos'"),
        (user({"type": "image", "image": ["a.png", "b.png"]}), "a list of 2; one image is wanted"),
        (user({"type": "image", "image": 3}), "An? image is 3, of type int"),
        (user({"type": "video", "video": ""}), "A video is ''"),
    ],
)
def test_what_is_no_message_block_or_medium_is_one_sentence(prompt, words):
    with pytest.raises(ValueError, match=words):
        fill_media(prompt)


def test_frames_given_as_a_list_are_one_clip():
    frames = ["1.png", "2.png"]
    assert fill_media(user({"type": "video"}, TEXT), videos=[frames])[0]["content"][0]["video"] == frames


def test_an_assistant_may_say_nothing_beside_its_calls():
    prompt = [{"role": "assistant", "content": None, "tool_calls": []}, *user(TEXT)]
    assert fill_media(prompt)[0] == {"role": "assistant", "content": [], "tool_calls": []}


def test_columns_in_both_spellings():
    assert media_columns({"video": "a", "images": ["i", None]}) == {"image": ["i"], "video": ["a"]}
    assert media_columns({"video": None, "videos": None}) == {"image": [], "video": []}
    with pytest.raises(ValueError, match="both columns 'video' and 'videos'"):
        media_columns({"video": "a", "videos": ["b"]})
    with pytest.raises(ValueError, match="'videos' holds str"):
        media_columns({"videos": "a.mp4"})


def test_logs_keep_paths_and_lose_objects():
    messages = user({"type": "video", "video": "a.mp4"}, {"type": "image", "image": object()}, TEXT)
    assert without_payloads(messages) == user({"type": "video", "video": "a.mp4"}, {"type": "image"}, TEXT)
    assert len(list(media_blocks(messages))) == 2
