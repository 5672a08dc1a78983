"""Video files that decode although they are odd, and files that must not."""

from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.media.case import PIXELS, SIX_OF_THIRTY, Case
from tests.media.drawn import draw, encode, mux_silence, turned_clockwise
from trl_perception.media import MediaLimits, VideoSettings

THIRTY = range(30)
FOUR = VideoSettings(nframes=4, max_pixels=PIXELS)
TWO = VideoSettings(nframes=2, max_pixels=PIXELS)


def plain(folder: Path, name: str = "clip.mp4", **options) -> Path:
    return encode(folder / name, THIRTY, **options)


def greys(
    path: Path, levels, *, codec: str, size=(16, 16), pixels: str = "yuv420p", source: str = "gray", rate=30, **options
) -> Path:
    """A clip whose frames are each of one grey, 0 to 255 (of 16-bit sources 0 to 65535)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        kind = np.uint16 if source.endswith("le") else np.uint8
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full(size, level, kind), format=source)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def jpegs(path: Path, pictures: list[bytes], milliseconds: list[int]) -> Path:
    """JPEG images as packets of a clip, each at its own time, in the given order."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 56, 112, "yuvj420p"
        for number, (picture, shown) in enumerate(zip(pictures, milliseconds, strict=True)):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts, packet.dts, packet.is_keyframe = shown, min(shown, number), True
            container.mux(packet)
    return path


def jpeg(number: int, side: int | None = None) -> bytes:
    file, picture = BytesIO(), Image.fromarray(draw(number))
    (picture.resize((side, side)) if side else picture).save(file, "JPEG", quality=95)
    return file.getvalue()


def claimed(picture: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its frame header."""
    start = picture.index(b"\xff\xc0") + 5
    return picture[:start] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + picture[start + 4 :]


def changed(path: Path, change) -> Path:
    path.write_bytes(change(bytearray(path.read_bytes())))
    return path


def cut(share: float):
    return lambda content: content[: int(len(content) * share)]


def flipped(seed: int, low: float, high: float, count: int):
    """Flip bits at random places between two shares of the file."""

    def change(content: bytearray) -> bytearray:
        random = np.random.default_rng(seed)
        for place in random.integers(int(len(content) * low), int(len(content) * high), count):
            content[place] ^= 1 << int(random.integers(8))
        return content

    return change


def in_picture(number: int):
    """Flip a bit of one image in an APNG, whose images after the first are in fdAT chunks; it still unpacks."""

    def change(content: bytearray) -> bytearray:
        place = -1
        for _ in range(number):
            place = content.index(b"fdAT", place + 1)
        content[place + 64] ^= 1
        return content

    return change


def put(mark: bytes, offset: int, value: bytes):
    """Write a value at an offset after each mark."""

    def change(content: bytearray) -> bytearray:
        place = content.index(mark)
        while place >= 0:
            content[place + offset : place + offset + len(value)] = value
            place = content.find(mark, place + 1)
        return content

    return change


def with_cover(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        sound, art = container.add_stream("aac", rate=16000), container.add_stream("mjpeg", rate=1)
        art.height, art.width, art.pix_fmt = 56, 112, "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        mux_silence(container, sound, seconds=1.0)
        packet = av.Packet(jpeg(3))
        packet.stream, packet.pts, packet.dts, packet.time_base = art, 0, 0, art.time_base
        container.mux(packet)
    return path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        mux_silence(container, container.add_stream("aac", rate=16000), seconds=1.0)
    return path


def without_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 56, 112, "yuv420p"
        container.start_encoding()
    return path


def with_alpha(path: Path) -> Path:
    """VP9 whose alpha plane makes every pixel transparent."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.height, stream.width, stream.pix_fmt = 56, 112, "yuva420p"
        for number in range(8):
            picture = np.dstack([draw(number), np.zeros((56, 112), np.uint8)])
            frame = av.VideoFrame.from_ndarray(picture, format="rgba")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def of_two_sizes(folder: Path) -> Path:
    """A raw stream of 56x112 that continues in 112x224."""
    first = encode(folder / "a.h264", range(15)).read_bytes()
    second = greys(folder / "b.h264", [96] * 15, codec="libx264", size=(112, 224)).read_bytes()
    (folder / "both.h264").write_bytes(first + second)
    return folder / "both.h264"


def joined(folder: Path) -> Path:
    """MPEG-TS without sound, then with."""
    halves = [
        plain(folder, "a.ts", codec="mpeg2video", rate=25),
        plain(folder, "b.ts", codec="mpeg2video", rate=25, audio=True),
    ]
    (folder / "c.ts").write_bytes(b"".join(half.read_bytes() for half in halves))
    return folder / "c.ts"


def animated(path: Path) -> Path:
    pictures = [Image.fromarray(draw(number)) for number in range(8)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    return path


DECODED = [
    Case("plain MP4", "video", "H.264, nothing odd", plain, numbers=SIX_OF_THIRTY, total=30),
    Case("one frame", "video", "a clip of one frame", lambda f: encode(f / "1.mp4", [7]), numbers=[7], total=1),
    Case(
        "two frames",
        "video",
        "fewer than are asked for at 2 fps",
        lambda f: encode(f / "2.mp4", [3, 9]),
        numbers=[3, 9],
        settings=VideoSettings(max_pixels=PIXELS),
    ),
    Case(
        "10,000 frames",
        "video",
        "16x16 pixels each",
        # grey i // 40: frames 0, 9999 / 3 = 3333, 6666, 9999 are of 0, 83, 166, 249
        lambda f: greys(f / "many.mkv", [number // 40 for number in range(10_000)], codec="ffv1", pixels="gray"),
        greys=[0, 83, 166, 249],
        total=10_000,
        settings=VideoSettings(nframes=4, max_pixels=784),
    ),
    Case(
        "1x1 pixels",
        "video",
        "the smallest frame",
        lambda f: greys(f / "dot.mkv", [200] * 4, codec="ffv1", size=(1, 1), pixels="gray"),
        greys=[200, 200],
        size=(28, 28),
        settings=VideoSettings(nframes=2, max_pixels=784),
    ),
    Case(
        "8192x64 pixels",
        "video",
        "a side ratio of 128",
        # 64 / 28 = 2.3 -> 56; 8192 / 28 = 292.6 -> 293 * 28 = 8204
        lambda f: greys(f / "wide.mkv", [90] * 2, codec="ffv1", size=(64, 8192), pixels="gray"),
        greys=[90, 90],
        size=(56, 8204),
        settings=VideoSettings(nframes=2),
    ),
    Case(
        "odd sides",
        "video",
        "57x113 pixels",
        lambda f: greys(f / "odd.mkv", [40, 80], codec="ffv1", size=(57, 113), pixels="gray"),
        greys=[40, 80],
        size=(56, 112),
        settings=TWO,
    ),
    Case(
        "rotation",
        "video",
        "a quarter turn in the track header",
        lambda f: turned_clockwise(plain(f)),
        size=(112, 56),
        settings=TWO,
    ),
    Case(
        "variable frame rate",
        "video",
        "10 frames in the first second, then one a second",
        lambda f: encode(f / "v.mp4", range(20), milliseconds=[*range(0, 1000, 100), *range(1000, 11000, 1000)]),
        # asked for 0, 3.03, 6.57 and 9.60 s: the frames of 0, 3, 6 and 9 s are shown
        numbers=[0, 12, 15, 18],
        settings=FOUR,
    ),
    Case(
        "late start",
        "video",
        "first shown at 2 s",
        lambda f: encode(f / "late.mp4", THIRTY, milliseconds=[2000 + 100 * i for i in THIRTY]),
        numbers=SIX_OF_THIRTY,
    ),
    Case(
        "edit list",
        "video",
        "20 frames before time 0 are not shown",
        lambda f: encode(f / "e.mp4", range(40), milliseconds=[100 * (i - 20) for i in range(40)]),
        numbers=[20, 26, 33, 39],
        total=20,
        settings=FOUR,
    ),
    Case("no timestamps", "video", "raw H.264", lambda f: plain(f, "clip.h264"), numbers=SIX_OF_THIRTY),
    Case(
        "timestamps out of order",
        "video",
        "frames are counted instead",
        lambda f: jpegs(f / "o.mkv", [jpeg(i) for i in range(8)], [0, 300, 100, 200, 500, 400, 700, 600]),
        numbers=[0, 2, 5, 7],
        settings=FOUR,
    ),  # 7 / 3 = 2.33 apart
    Case(
        "equal timestamps",
        "video",
        "all frames at 0 s, counted instead",
        lambda f: jpegs(f / "same.mkv", [jpeg(i) for i in range(8)], [0] * 8),
        numbers=[0, 2, 5, 7],
        settings=FOUR,
    ),
    Case(
        "HDR, 10 bits",
        "video",
        "HEVC, BT.2020, PQ; shown without tone mapping",
        # 0x7d80 of 0xffff is 0.4902 of the range: 125
        lambda f: greys(
            f / "hdr.mp4",
            [0x7D80] * 4,
            codec="libx265",
            size=(64, 64),
            pixels="yuv420p10le",
            source="gray16le",
            **{"x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited"},
        ),
        greys=[125, 125],
        settings=TWO,
    ),
    Case(
        "alpha in VP9",
        "video",
        "left out: colours are shown as coded",
        lambda f: with_alpha(f / "a.webm"),
        numbers=[0, 7],
        settings=TWO,
    ),
    Case("GIF as a video", "video", "8 pictures", lambda f: animated(f / "a.gif"), numbers=[0, 2, 5, 7], settings=FOUR),
    Case(
        "APNG as a video", "video", "8 pictures", lambda f: animated(f / "a.png"), numbers=[0, 2, 5, 7], settings=FOUR
    ),
    Case(
        "PNG as a video",
        "video",
        "a clip of one frame",
        lambda f: Image.fromarray(draw(5)).save(f / "a.png") or f / "a.png",
        numbers=[5],
    ),
    Case("WebM, VP9", "video", "", lambda f: plain(f, "c.webm", codec="libvpx-vp9"), numbers=SIX_OF_THIRTY),
    Case("WebM, VP8", "video", "", lambda f: plain(f, "c.webm", codec="libvpx"), numbers=SIX_OF_THIRTY),
    Case("AVI, MPEG-4", "video", "", lambda f: plain(f, "c.avi", codec="mpeg4"), numbers=SIX_OF_THIRTY),
    Case("MKV, H.264", "video", "", lambda f: plain(f, "c.mkv"), numbers=SIX_OF_THIRTY),
    Case(
        "MPEG-TS, MPEG-2", "video", "", lambda f: plain(f, "c.ts", codec="mpeg2video", rate=25), numbers=SIX_OF_THIRTY
    ),
    Case("FLV", "video", "", lambda f: plain(f, "c.flv", codec="flv"), numbers=SIX_OF_THIRTY),
    Case("WMV", "video", "", lambda f: plain(f, "c.wmv", codec="wmv2"), numbers=SIX_OF_THIRTY),
    Case(
        "MP4, AV1",
        "video",
        "",
        lambda f: encode(f / "c.mp4", range(8), codec="libsvtav1"),
        numbers=[0, 2, 5, 7],
        settings=FOUR,
    ),
    Case(
        "fragmented MP4",
        "video",
        "no frame count in the header",
        lambda f: plain(f, movflags="frag_keyframe+empty_moov"),
        numbers=SIX_OF_THIRTY,
    ),
    Case(
        "MP4 named .avi",
        "video",
        "the content decides, not the name",
        lambda f: plain(f).rename(f / "c.avi"),
        numbers=SIX_OF_THIRTY,
    ),
    Case(
        "longer sound",
        "video",
        "sound of three times the length",
        lambda f: plain(f, audio=True),
        numbers=SIX_OF_THIRTY,
    ),
    Case("size changes midway", "video", "56x112, then 112x224 pixels", of_two_sizes, size=(56, 112), total=30),
    Case(
        "stream appears midway",
        "video",
        "sound in the second half of an MPEG-TS, time starts again",
        joined,
        # 60 frames, counted: 59 / 5 = 11.8 apart: 0, 12, 24, 35, 47, 59, which is 30 + 5, 17, 29
        numbers=[0, 12, 24, 5, 17, 29],
        total=60,
    ),
    Case(
        "huge declared duration, all frames there",
        "video",
        "a year in an MP4's media header",
        lambda f: changed(plain(f), put(b"mdhd", 20, (31_536_000 * 1000).to_bytes(8, "big")[-4:])),
        numbers=SIX_OF_THIRTY,
    ),
]

REFUSED = [
    *(Case(f"MP4 cut at {share:.0%}", "video", "index at the end, lost",
           lambda f, share=share: changed(plain(f), cut(share)), refused="decoding failed|truncated") for share in (0.1, 0.5, 0.9)),
    *(Case(f"MP4 cut at {share:.0%}, index first", "video", "the header promises more than there is",
           lambda f, share=share: changed(plain(f, movflags="faststart"), cut(share)), refused="truncated")
      for share in (0.3, 0.6)),
    Case("MKV cut at 60%", "video", "", lambda f: changed(plain(f, "c.mkv"), cut(0.6)),
         refused=r"truncated: it holds \S+ of 3.00 declared seconds"),
    Case("WebM cut at 50%", "video", "", lambda f: changed(plain(f, "c.webm", codec="libvpx-vp9"), cut(0.5)),
         refused="truncated"),
    Case("AVI cut at 50%", "video", "", lambda f: changed(plain(f, "c.avi", codec="mpeg4"), cut(0.5)),
         refused="truncated"),
    Case("32 bytes of an MP4", "video", "", lambda f: changed(plain(f), lambda content: content[:32]),
         refused="decoding failed"),
    Case("zeros in the middle", "video", "600 bytes of an MP4's frames", lambda f: changed(
        plain(f, movflags="faststart"), put(b"mdat", 200, bytes(600))), refused="decod"),
    *(Case(f"bit flips {seed}", "video", "8 bits of H.264 frames", lambda f, seed=seed: changed(
        plain(f, "c.mkv", gop=30), flipped(seed, 0.3, 0.9, 8)), refused="decod|damaged") for seed in range(3)),
    Case("bit flip in an APNG", "video", "the sixth picture fails its checksum", lambda f: changed(
        animated(f / "a.png"), in_picture(5)), settings=FOUR, refused="decoding failed"),
    Case("bit flips in the index", "video", "64 bits of an MP4's moov", lambda f: changed(
        plain(f), flipped(0, 0.6, 1.0, 64)), refused="decod|no streams"),
    Case("sound only", "video", "", lambda f: sound_only(f / "s.mp4"), refused="has audio streams, and a video stream is"),
    Case("sound with a cover", "video", "a picture of the album is no video", lambda f: with_cover(f / "s.mp4"),
         refused="a video stream is wanted"),
    Case("no frames", "video", "an MP4 with a track and nothing in it", lambda f: without_frames(f / "n.mp4"),
         refused="decoding failed|no video frame|no streams"),
    Case("8192x16 pixels", "video", "a side ratio of 512",
         lambda f: greys(f / "wide.mkv", [90] * 2, codec="ffv1", size=(16, 8192), pixels="gray"),
         refused="not within an aspect ratio of 200", settings=TWO),
    Case("animated WebP as a video", "video", "FFmpeg does not decode it", lambda f: animated(f / "a.webp"),
         refused="decoding failed|no video frame"),
    Case("huge declared duration, little data", "video", "99 hours in an MKV's tag", lambda f: changed(
        plain(f, "c.mkv"), put(b"DURATION", 11, b"99:59:59.000000000")),
         refused=r"truncated: it holds \S+ of 359999.00 declared seconds"),
    Case("nonsense for a duration", "video", "letters in an MKV's tag: no declaration", lambda f: changed(
        plain(f, "c.mkv"), put(b"DURATION", 11, b"xx:yy:zz.wwwwwwwww")), numbers=SIX_OF_THIRTY),
    Case("65500x65500 pixels claimed", "video", "in the header of a JPEG frame", lambda f: jpegs(
        f / "huge.mkv", [claimed(jpeg(i), 65500, 65500) for i in range(4)], [0, 100, 200, 300]),
         settings=FOUR, refused="decoding failed|media_max_pixels"),
    Case("14000x14000 pixels claimed", "video", "in the header of a JPEG frame", lambda f: jpegs(
        f / "huge.mkv", [claimed(jpeg(i), 14000, 14000) for i in range(4)], [0, 100, 200, 300]),
         settings=FOUR, refused="decoding failed|media_max_pixels"),
    Case("14000x14000 pixels claimed midway", "video", "by the third frame", lambda f: jpegs(
        f / "huge.mkv", [jpeg(0), jpeg(1), claimed(jpeg(2), 14000, 14000), jpeg(3)], [0, 100, 200, 300]),
         settings=FOUR, refused="decoding failed|media_max_pixels"),
    *(Case(f"{side}x{side} frame midway", "video", "1,000,000 pixels allowed", lambda f, side=side: jpegs(
        f / "large.mkv", [jpeg(0), jpeg(1), jpeg(2, side), jpeg(3)], [0, 100, 200, 300]), settings=FOUR, refused=reason,
        limits=MediaLimits(max_pixels=10**6)) for side, reason in (
            (1200, "1200x1200 pixels are more than media_max_pixels 1000000"),
            (2000, "decoding failed.*far above media_max_pixels 1000000"))),
    Case("GIF of 65535x65535 pixels as a video", "video", "in its header", lambda f: changed(
        animated(f / "a.gif"), put(b"GIF89a", 6, b"\xff" * 4)), refused="decoding failed|media_max_pixels"),
    Case("above media_max_pixels", "video", "56x112 pixels, 6000 allowed", plain,
         refused="56x112 pixels are more than media_max_pixels 6000", limits=MediaLimits(max_pixels=6000)),
    Case("above media_max_frames, declared", "video", "30 frames, 29 allowed", plain,
         refused=r"30 frames \(declared in its header\) are more than media_max_frames 29",
         limits=MediaLimits(max_frames=29)),
    Case("above media_max_frames, found", "video", "30 frames in an MKV, 29 allowed", lambda f: plain(f, "c.mkv"),
         refused=r"30 frames \(found so far\) are more than media_max_frames 29", limits=MediaLimits(max_frames=29)),
    Case("above media_timeout", "video", "10,000 frames in 0.001 s",
         lambda f: greys(f / "many.mkv", [0] * 10_000, codec="ffv1", pixels="gray"),
         refused="reading it takes longer than media_timeout 0.001 s", limits=MediaLimits(timeout=0.001)),
]  # fmt: skip

VIDEOS = DECODED + REFUSED
