import base64
import io
import pickle
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import vision_process

from trl_perception.media import images, pictures
from trl_perception.media.errors import MediaError, describe
from trl_perception.media.images import read_image
from trl_perception.media.loader import fingerprint
from trl_perception.media.sampling import VideoSettings
from trl_perception.media.video import read_video

CELL = 28 * 28


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def served():
    """Address of a local server and the answers it gives: path -> bytes, status 404 for the rest."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = answers.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


def test_forms_of_an_image(tmp_path, noise):
    image = Image.fromarray(noise)
    content = encoded(image)
    path = tmp_path / "a picture.png"
    path.write_bytes(content)
    sources = [
        image,
        path,
        str(path),
        path.as_uri(),
        f"file://{path}",
        content,
        {"path": "gone.png", "bytes": content},
        {"path": str(path), "bytes": None},
        "data:image/png;base64," + base64.b64encode(content).decode(),
        noise,
        torch.from_numpy(noise),
        torch.from_numpy(noise).permute(2, 0, 1),
        noise / 255,
    ]
    for source in sources:
        read = read_image(source)
        assert read.mode == "RGB"
        assert np.array_equal(np.asarray(read), noise), describe(source)


def test_urls_of_images_and_videos(served, noise, clips):
    address, answers = served
    answers["/a.png"], answers["/a.mp4"], answers["/nothing.png"] = (
        encoded(Image.fromarray(noise)),
        clips["plain"].read_bytes(),
        b"",
    )
    assert np.array_equal(np.asarray(read_image(f"{address}/a.png")), noise)
    assert read_video(f"{address}/a.mp4", VideoSettings(nframes=2)).indices == [0, 29]
    with pytest.raises(MediaError, match="download is empty"):
        read_image(f"{address}/nothing.png")
    with pytest.raises(MediaError, match="404") as caught:
        read_video(f"{address}/gone.mp4")
    assert caught.value.source == f"{address}/gone.mp4"


def test_a_download_has_a_bound(served, monkeypatch):
    address, answers = served
    answers["/big.mp4"] = bytes(1001)
    monkeypatch.setattr(images, "URL_MAX_BYTES", 1000)
    with pytest.raises(MediaError, match="passes 1000 bytes"):
        read_video(f"{address}/big.mp4")


def test_transparency_is_flattened_on_white(noise):
    half = Image.fromarray(np.dstack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 102, np.uint8)]), "RGBA")
    # black at 102 / 255 = 0.4 on white: 0.6 * 255 = 153
    assert read_image(half).getpixel((0, 0)) == (153, 153, 153)
    assert np.array_equal(np.asarray(read_image(half)), np.asarray(vision_process.to_rgb(half)))
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.info["transparency"] = 0  # colour 0, red, is clear
    assert read_image(palette).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_scale():
    # 0x8000 of 0xffff is half: 0x80
    grey = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    assert read_image(encoded(grey)).getpixel((0, 0)) == (128, 128, 128)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (20, 10))
    image.paste((255, 0, 0), (0, 0, 10, 10))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise: red on top
    turned = read_image(encoded(image, exif=exif))
    assert turned.size == (10, 20)
    assert (turned.getpixel((5, 2)), turned.getpixel((5, 17))) == ((255, 0, 0), (0, 0, 0))


def test_size_changes_only_under_a_bound(noise):
    assert read_image(noise).size == (60, 40)
    # 40x60 rounds to 28x56, 2 cells, below 4: sqrt(3136 / 2400) = 1.143, 45.7 -> 2 * 28, 68.6 -> 3 * 28
    assert read_image(noise, min_pixels=4 * CELL).size == (84, 56)
    # with factor 8 and at most 1024 pixels: sqrt(2400 / 1024) = 1.531, 26.1 -> 24, 39.2 -> 32
    assert read_image(noise, factor=8, max_pixels=1024).size == (32, 24)


@pytest.mark.parametrize("bounds", [{"max_pixels": 30 * CELL}, {"min_pixels": 300 * CELL, "max_pixels": 400 * CELL}])
def test_resizing_is_that_of_qwen_vl_utils(bounds):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 200, 3), dtype=np.uint8))
    expected = vision_process.fetch_image({"image": image, **bounds})
    assert np.array_equal(np.asarray(read_image(image, **bounds)), np.asarray(expected))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/a.png", "No such file"),
        (b"no picture", r"bytes \(10 B\): it cannot be read as an image"),
        (b"", "it is empty"),
        ("data:image/png,abc", "no valid base64"),
        ("data:image/png;base64,a*", "no valid base64"),
        ({"path": None, "bytes": None}, "neither path nor bytes"),
        (3.5, "a float was given"),
        (np.zeros((5, 4, 2), np.uint8), r"array \(5, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"array \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int32), "int32, and uint8 or float is wanted"),
        (torch.full((3, 4, 4), 1.5), r"run from 1.5 to 1.5"),
    ],
)
def test_what_cannot_be_read_is_refused(source, reason):
    with pytest.raises(MediaError, match=reason):
        read_image(source)


def test_a_truncated_image_is_refused(noise):
    content = encoded(Image.fromarray(noise))
    with pytest.raises(MediaError, match="cannot be read as an image"):
        read_image(content[: len(content) // 2])


def test_an_image_too_large_to_be_true_is_refused(noise, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses above twice this
    with pytest.raises(MediaError, match="cannot be read as an image"):
        read_image(encoded(Image.fromarray(noise)))


def test_bounds_that_cannot_be_met_are_refused(noise):
    with pytest.raises(MediaError, match="min_pixels 5000 is above max_pixels 4000"):
        read_image(noise, min_pixels=5000, max_pixels=4000)
    with pytest.raises(MediaError, match="not within an aspect ratio of 200"):
        read_image(np.zeros((2, 402, 3), np.uint8), min_pixels=1)
    with pytest.raises(MediaError, match="would become 0x"):
        read_image(np.zeros((10, 1000, 3), np.uint8), min_pixels=1, max_pixels=9 * CELL)


def test_a_path_may_begin_with_a_tilde(noise, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(noise)))
    for source in ("~/a.png", "file://~/a.png", {"path": "~/a.png", "bytes": None}):
        assert read_image(source).size == (60, 40)
    assert fingerprint("~/a.png") == fingerprint(str(tmp_path / "a.png"))


def test_reading_leaves_the_source_alone(noise):
    fixed = noise.copy()
    fixed.setflags(write=False)
    read_image(fixed, max_pixels=4 * CELL)
    assert np.array_equal(fixed, noise)


def test_errors_survive_pickling():
    error = MediaError("a.mp4", "it has no frames", "Drop it")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a.mp4: it has no frames. Drop it."
    assert (type(again), again.source, again.reason) == (MediaError, "a.mp4", "it has no frames")
    assert isinstance(again, ValueError)


def test_sources_are_described_in_short():
    assert describe(b"abcd") == "bytes (4 B)"
    assert describe(np.zeros((8, 64, 64, 3))) == "array (8, 64, 64, 3)"
    assert describe([1, 2]) == "2 frames"
    assert describe({"path": "a.mp4", "bytes": b"abcd"}) == "a.mp4"
    assert describe({"path": None, "bytes": b"abcd"}) == "bytes (4 B)"
    assert len(describe("data:" + "x" * 1000)) == 200
    assert len(MediaError("data:" + "x" * 1000, "bad", "Fix").source) == 200


def grey_png(bits: int, values: list[int], clear: int) -> bytes:
    """One row of a grey PNG of 2, 4 or 16 bits a pixel, one value of which is clear."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = sum(value << bits * place for place, value in enumerate(reversed(values)))
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row.to_bytes(len(values) * bits // 8, "big"))
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(">H", clear)), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("bits", "values", "clear", "shown"),
    [
        (16, [0x8000, 0x4000, 0x4001], 0x4000, [0x80, 255, 0x40]),  # the upper 8 bits; the clear value is white
        (16, [0xFFFF, 0x0012], 0x0012, [255, 255]),
        (4, [3, 7], 3, [255, 7 * 17]),  # 15 * 17 = 255
        (2, [0, 1, 2, 3], 1, [0, 255, 170, 255]),  # 3 * 85 = 255
    ],
)
def test_a_clear_value_of_grey_is_white(bits, values, clear, shown):
    pixels = np.array(read_image(grey_png(bits, values, clear)))
    assert pixels[0].tolist() == [[value] * 3 for value in shown]


def test_a_clear_colour_of_16_bits_is_refused():
    grey = grey_png(16, [1, 2, 3], 0)  # as colour, a picture of one pixel
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    colour = grey[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    clear = struct.pack(">3H", 1, 2, 3)
    colour += struct.pack(">I", 6) + b"tRNS" + clear + struct.pack(">I", zlib.crc32(b"tRNS" + clear))
    colour += grey[grey.index(b"IDAT") - 4 :]
    with pytest.raises(MediaError, match="one colour of 16 bits is clear"):
        read_image(colour)


def test_a_phone_picture_is_read_with_the_extra_and_named_without(monkeypatch, noise):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    smooth = Image.new("RGB", (64, 48), (200, 40, 40))
    pillow_heif.from_pillow(smooth).save(file, quality=90)
    red = np.array(read_image(file.getvalue()))
    assert red.shape == (48, 64, 3)
    assert np.abs(red.astype(int) - [200, 40, 40]).max() <= 6
    monkeypatch.setattr(pictures, "_formats", lambda: ("PNG", "JPEG"))
    monkeypatch.setattr(pictures, "has_heif", lambda: False)
    with pytest.raises(MediaError, match=r"begins like HEIC\). Install trl_perception\[heif\], or convert it"):
        read_image(file.getvalue())
