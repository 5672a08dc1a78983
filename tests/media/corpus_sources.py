"""Sources that name no medium, name it oddly, or hold frames of the wrong kind; and servers that misbehave."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.media.case import PIXELS, SIX_OF_THIRTY, Case
from tests.media.corpus_images import red, saved, written
from tests.media.corpus_videos import plain
from tests.media.drawn import draw
from trl_perception.media import MediaLimits

WORDS = "secret words of another file\n" * 50
SHORT = MediaLimits(timeout=1.0)


def linked(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def looped(folder: Path) -> Path:
    linked(folder / "a.mp4", "b.mp4")
    return linked(folder / "b.mp4", "a.mp4")


def beside(folder: Path, good: str) -> str:
    """A path with `..` out of a folder beside the file."""
    (folder / "sub").mkdir()
    return f"{folder}/sub/../{good}"


def playlist(folder: Path, text: str, name: str = "list.mp4") -> Path:
    """A text file that names the good clip beside it."""
    plain(folder, "good.mp4")
    return written(folder / name, text)


def frames(shape=(4, 56, 112, 3), kind=np.uint8, value=0.0) -> np.ndarray:
    return np.full(shape, value, kind)


def served(path: str, name: str = "source"):
    """The address on the corpus' server, written by the test before the case is made."""
    return lambda folder: (folder.parent / "address").read_text() + path


def named(folder: Path, name: str) -> Path:
    return plain(folder).rename(folder / name)


NO_FILE = "cannot be opened"

FILES = [
    Case("empty file", "video", "", lambda f: written(f / "a.mp4", b""), refused="the file is empty"),
    Case("one byte", "video", "", lambda f: written(f / "a.mp4", b"\0"), refused="it begins with zero bytes"),
    Case("64 kB of zeros", "video", "", lambda f: written(f / "a.mp4", bytes(1 << 16)),
         refused="it begins with zero bytes"),
    Case("random bytes", "video", "64 kB", lambda f: written(
        f / "a.mp4", np.random.default_rng(0).bytes(1 << 16)), refused="decoding failed|no streams"),
    Case("text named .mp4", "video", "", lambda f: written(f / "a.mp4", WORDS), refused="it begins like text"),
    Case("text named .txt", "video", "FFmpeg would draw its letters", lambda f: written(f / "a.txt", WORDS),
         refused="it begins like text"),
    Case("web page named .mp4", "video", "", lambda f: written(f / "a.mp4", "<html><body>404</body></html>"),
         refused="it begins like a web page"),
    Case("HLS playlist", "video", "names another file", lambda f: playlist(
        f, "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\ngood.mp4\n#EXT-X-ENDLIST\n", "list.m3u8"),
         refused="decoding failed.*begins like text"),
    Case("concat list", "video", "names another file", lambda f: playlist(f, "ffconcat version 1.0\nfile good.mp4\n"),
         refused="decoding failed.*begins like text"),
    Case("SDP", "video", "names a network address", lambda f: written(
        f / "a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"), refused="decoding failed.*begins like text"),
    Case("picture pattern", "video", "a name that FFmpeg would count through", lambda f: [
        Image.fromarray(draw(i)).save(f / f"p{i}.png") for i in range(3)] and str(f / "p%d.png"), refused=NO_FILE),
    Case("picture named like a pattern", "video", "others beside it are not read in its place", lambda f: [
        Image.fromarray(draw(i)).save(f / name) for i, name in enumerate(["p%d.png", "p1.png", "p2.png"])
        ] and f / "p%d.png", refused="decoding failed"),
    Case("FFmpeg's protocols", "video", "concat:, pipe:, ...", lambda f: f"concat:{plain(f)}|{f}/clip.mp4",
         refused=NO_FILE),
    Case("file named like a protocol", "video", "relative, concat:clip.mp4", lambda f: os.path.relpath(
        named(f, "concat:clip.mp4")), numbers=SIX_OF_THIRTY),
    Case("missing file", "video", "", lambda f: f / "gone.mp4", refused="No such file"),
    Case("folder", "video", "", lambda f: f, refused="it is not a file"),
    Case("pipe", "video", "nobody writes to it", lambda f: os.mkfifo(f / "p.mp4") or f / "p.mp4",
         refused="it is not a file"),
    Case("device", "video", "endless zeros", lambda f: "/dev/zero", refused="it is not a file"),
    Case("symlink", "video", "followed", lambda f: linked(f / "l.mp4", str(plain(f))), numbers=SIX_OF_THIRTY),
    Case("symlink loop", "video", "", looped, refused="Too many levels of symbolic links"),
    Case("symlink to nothing", "image", "", lambda f: linked(f / "l.png", "gone.png"), refused="No such file"),
    Case("name too long", "video", "", lambda f: f / ("a" * 300), refused="name too long"),
    Case("zero byte in the path", "video", "", lambda f: f"{f}/a\0.mp4", refused="the path is no path"),
    Case("spaces and letters of the world", "video", "in the name", lambda f: named(f, "ein Bär – 熊 🐻 100%.mp4"),
         numbers=SIX_OF_THIRTY),
    Case("percent escapes", "video", "in a file:// URL", lambda f: named(f, "a b – ü.mp4").as_uri(),
         numbers=SIX_OF_THIRTY),
    Case(".. to a good file", "video", "allowed: any readable file may be named",
         lambda f: plain(f) and beside(f, "clip.mp4"), numbers=SIX_OF_THIRTY),
    Case(".. to another kind of file", "video", "refused as no video, its words unquoted",
         lambda f: written(f / "secret.txt", WORDS) and beside(f, "secret.txt"), refused="decoding failed"),
    Case("../../etc/passwd", "video", "from wherever the run was started", lambda f: "../" * 30 + "etc/passwd",
         refused="decoding failed"),
    Case("file:///etc/passwd", "image", "", lambda f: "file:///etc/passwd", refused="it begins like text"),
    Case("ftp:// URL", "video", "taken for a path", lambda f: "ftp://127.0.0.1/a.mp4", refused="No such file"),
    Case("no bytes", "video", "", lambda f: b"", refused="it is empty"),
    Case("bytes of a clip", "video", "", lambda f: plain(f).read_bytes(), numbers=SIX_OF_THIRTY),
    Case("broken data: URI", "image", "", lambda f: "data:image/png;base64,a*", refused="no valid base64 content"),
    Case("no path, no bytes", "image", "", lambda f: {"path": None, "bytes": None}, refused="neither path nor bytes"),
    Case("number", "video", "", lambda f: 5, refused="a int was given"),
]  # fmt: skip

SERVED = [
    Case("URL of a clip", "video", "", served("/clip.mp4"), numbers=SIX_OF_THIRTY),
    Case("URL answers 404", "video", "", served("/gone.mp4"), refused="the download failed .*404"),
    Case("URL answers a web page", "video", "with status 200", served("/page.mp4"), refused="begins like a web page"),
    Case("URL answers nothing", "image", "with status 200", served("/empty.png"), refused="the download is empty"),
    Case("URL breaks off", "video", "half of the declared length", served("/half.mp4"), refused="the download failed"),
    Case("URL goes in circles", "video", "", served("/circle.mp4"), refused="the download failed .*redirects"),
    Case("URL leads to a file", "video", "a redirect to file:///etc/passwd", served("/to-file.mp4"),
         refused="the download failed"),
    Case("URL of nobody", "video", "a closed port", lambda f: "http://127.0.0.1:9/a.mp4", refused="the download failed"),
    Case("URL without a host", "video", "", lambda f: "http://", refused="the download failed"),
    *(Case(f"URL {name}", "video", about, served(path), refused="longer than media_timeout 1 s", limits=SHORT)
      for name, about, path in (
          ("is silent", "the connection stands, no answer comes", "/silent.mp4"),
          ("drips its header", "a byte now and then", "/drip-header.mp4"),
          ("drips its content", "a byte now and then", "/drip.mp4"),
          ("never ends", "64 kB at a time", "/endless.mp4"))),
    Case("URL unpacks to a flood", "image", "gzip", served("/gzip.png"), refused="the answer is compressed"),
]  # fmt: skip

FRAMES = [
    Case("array of frames", "video", "", lambda f: np.stack([draw(i) for i in range(4)]), numbers=[0, 1, 2, 3]),
    Case("frames of mixed kinds", "video", "array, picture, path", lambda f: [
        draw(0), Image.fromarray(draw(1)), saved(f, Image.fromarray(draw(2)))], numbers=[0, 1, 2]),
    Case("empty list", "video", "", lambda f: [], refused="no video frame"),
    Case("array without frames", "video", "", lambda f: frames((0, 56, 112, 3)), refused="no video frame"),
    Case("frames without pixels", "video", "", lambda f: frames((4, 0, 112, 3)), refused="is wanted"),
    Case("array of three axes", "video", "", lambda f: frames((56, 112, 3)), refused=r"\(F,H,W,3\) or"),
    Case("array of five axes", "video", "", lambda f: frames((1, 4, 56, 112, 3)), refused=r"\(F,H,W,3\) or"),
    Case("array of five colours", "video", "", lambda f: frames((4, 56, 112, 5)), refused=r"\(F,H,W,3\) or"),
    Case("64-bit integers", "video", "", lambda f: frames(kind=np.int64), refused="int64, and uint8 or float is wanted"),
    Case("complex numbers", "video", "", lambda f: frames(kind=np.complex64), refused="complex64, and uint8"),
    Case("objects", "video", "", lambda f: frames(kind=object), refused="object, and uint8"),
    Case("NaN", "video", "", lambda f: frames(kind=np.float32, value=np.nan), refused=r"run from nan"),
    Case("infinity", "image", "", lambda f: frames((56, 112, 3), np.float32, np.inf), refused="run from inf"),
    Case("floats up to 255", "video", "", lambda f: frames(kind=np.float32, value=255), refused=r"\[0, 1\] is wanted"),
    Case("frames of unequal size", "video", "", lambda f: [draw(0), draw(1)[:28]], refused="frame 1 has"),
    Case("list of None", "video", "", lambda f: [None, None], refused="a NoneType was given"),
    Case("list of lists", "video", "", lambda f: [[draw(0)], [draw(1)]], refused="a list was given"),
    Case("missing frame", "video", "", lambda f: [draw(0), f / "gone.png"], refused="No such file"),
    Case("list above media_max_frames", "video", "5 frames, 4 allowed", lambda f: [draw(0)] * 5,
         refused=r"5 frames \(given\) are more than media_max_frames 4", limits=MediaLimits(max_frames=4)),
    Case("array above media_max_pixels", "video", "56x112 pixels, 6000 allowed", lambda f: frames(),
         refused="56x112 pixels are more than media_max_pixels 6000", limits=MediaLimits(max_pixels=6000)),
    Case("list above media_max_pixels", "video", "a large picture among frames", lambda f: [draw(0), red(200, 100)],
         refused="100x200 pixels are more than media_max_pixels 6272", limits=MediaLimits(max_pixels=PIXELS)),
]  # fmt: skip

SOURCES = FILES + SERVED + FRAMES
