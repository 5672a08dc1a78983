"""Images that are odd, broken, or larger than they look."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.media.case import Case
from tests.media.corpus_videos import animated, changed, claimed, cut, put
from tests.media.drawn import draw
from trl_perception.media import MediaLimits

RED = (255, 0, 0)


def saved(folder: Path, picture: Image.Image, name: str = "a.png", **options) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def red(width: int = 84, height: int = 56) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def clear_red(folder: Path, name: str, alpha: int = 102, **options) -> Path:
    return saved(folder, Image.new("RGBA", (84, 56), (*RED, alpha)), name, **options)


def palette(folder: Path, **options) -> Path:
    picture = Image.new("P", (84, 56), 1)
    picture.putpalette([0, 0, 0, *RED])
    return saved(folder, picture, **options)


def turned(folder: Path, orientation: int) -> Path:
    """Red on the left half, with an orientation tag that rotates it."""
    picture = Image.new("RGB", (112, 56))
    picture.paste(RED, (0, 0, 56, 56))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(folder, picture, "a.jpg", exif=exif, quality=95)


def png(path: Path, height: int, width: int, *chunks: tuple[bytes, bytes], bits: int = 8, colours: int = 0) -> Path:
    """A PNG with a header of this size and the given chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)
    return path


def black(path: Path, side: int) -> Path:
    """A square of one bit a pixel, a thousandth of its size on disk."""
    packed = zlib.compressobj(1)
    row = b"\0" * (1 + -(-side // 8))
    data = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    return png(path, side, side, (b"IDAT", data), bits=1)


def icon(folder: Path, side: int) -> Path:
    """An icon whose table says 16x16 and whose picture is a PNG of another size."""
    inside = black(folder / "inside.png", side).read_bytes()
    table = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    (folder / "a.ico").write_bytes(table + inside)
    return folder / "a.ico"


def texts(path: Path) -> Path:
    """A PNG whose comment unpacks to 100 MB."""
    packed = PngImagePlugin.PngInfo()
    packed.add_text("comment", "a" * 1000, zip=True)
    file = BytesIO()
    red().save(file, "PNG", pnginfo=packed)
    bomb = b"comment\0\0" + zlib.compress(bytes(100 << 20))
    return png(path, 56, 84, (b"zTXt", bomb), (b"IDAT", zlib.compress(bytes(56 * 85))))


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tiff(path: Path, height: int, width: int) -> Path:
    """A TIFF whose directory claims a size that its one strip does not have."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200), (278, 4, height),
               (279, 4, 100)]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    content = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)
    return written(path, content.ljust(300, b"\0"))


IMAGES = [
    Case("one pixel", "image", "", lambda f: saved(f, red(1, 1)), colour=RED, size=(1, 1)),
    Case("8192x16 image", "image", "read as it is where no bound asks for resizing", lambda f: saved(f, red(8192, 16)),
         colour=RED, size=(16, 8192)),
    Case("CMYK JPEG", "image", "cyan ink", lambda f: saved(f, Image.new("CMYK", (84, 56), (255, 0, 0, 0)), "a.jpg",
         quality=95), colour=(0, 255, 255), size=(56, 84)),
    Case("16-bit grey PNG", "image", "the upper 8 bits count",
         lambda f: saved(f, Image.fromarray(np.full((56, 84), 0x8000, np.uint16))), colour=(128, 128, 128)),
    Case("16-bit colour PNG", "image", "the upper 8 bits count", lambda f: png(
        f / "a.png", 56, 84, (b"IDAT", zlib.compress((b"\0" + b"\xff\xff\x40\x00\x00\x00" * 84) * 56)), bits=16, colours=2),
         colour=(255, 64, 0), size=(56, 84)),
    Case("palette PNG", "image", "", palette, colour=RED),
    Case("palette PNG, clear", "image", "the colour is clear, so white shows", lambda f: palette(f, transparency=1),
         colour=(255, 255, 255)),
    # red at 102 / 255 = 0.4 on white: (255, 0.6 * 255, 0.6 * 255)
    Case("alpha in PNG", "image", "flattened on white", lambda f: clear_red(f, "a.png"), colour=(255, 153, 153)),
    Case("alpha in WebP", "image", "flattened on white", lambda f: clear_red(f, "a.webp", lossless=True),
         colour=(255, 153, 153)),
    Case("grey with alpha", "image", "flattened on white", lambda f: saved(f, Image.new("LA", (84, 56), (0, 102))),
         colour=(153, 153, 153)),
    Case("animated WebP", "image", "its first picture", lambda f: animated(f / "a.webp"), numbers=[0], size=(56, 112)),
    Case("animated GIF", "image", "its first picture", lambda f: animated(f / "a.gif"), numbers=[0], size=(56, 112)),
    Case("EXIF quarter turn", "image", "orientation 6", lambda f: turned(f, 6), size=(112, 56)),
    Case("EXIF half turn", "image", "orientation 3", lambda f: turned(f, 3), size=(56, 112)),
    Case("JPEG named .png", "image", "the content decides, not the name",
         lambda f: saved(f, red(), "a.jpg", quality=95).rename(f / "a.png"), colour=(254, 0, 0)),
    Case("BMP", "image", "", lambda f: saved(f, red(), "a.bmp"), colour=RED),
    Case("AVIF", "image", "", lambda f: saved(f, red(), "a.avif", quality=95), colour=(254, 0, 0)),
    *(Case(f"icon of {side}x{side} pixels", "image", "behind a table that says 16x16", lambda f, side=side: icon(f, side),
           refused=reason) for side, reason in ((12000, "12000x12000 pixels are more than media_max_pixels"),
                                                (14000, "exceeds limit"))),
    Case("PNG bomb", "image", "13000x13000 pixels in 25 kB, within Pillow's own bound",
         lambda f: black(f / "a.png", 13000), refused="13000x13000 pixels are more than media_max_pixels"),
    Case("PNG bomb, larger", "image", "100000x100000 pixels claimed",
         lambda f: png(f / "a.png", 100_000, 100_000, (b"IDAT", zlib.compress(bytes(1000)))),
         refused="cannot be read as an image .*exceeds limit"),
    Case("PNG text bomb", "image", "a comment of 100 MB", lambda f: texts(f / "a.png"),
         refused="cannot be read as an image"),
    Case("JPEG of 65500x65500 pixels claimed", "image", "", lambda f: written(f / "a.jpg", claimed(
        saved(f, red(), "b.jpg").read_bytes(), 65500, 65500)), refused="cannot be read as an image .*exceeds limit"),
    Case("JPEG of 12000x12000 pixels claimed", "image", "within Pillow's own bound", lambda f: written(f / "a.jpg", claimed(
        saved(f, red(), "b.jpg").read_bytes(), 12000, 12000)), refused="12000x12000 pixels are more than media_max_pixels"),
    Case("GIF of 65535x65535 pixels", "image", "in its header", lambda f: changed(
        animated(f / "a.gif"), put(b"GIF89a", 6, b"\xff" * 4)), refused="cannot be read as an image .*exceeds limit"),
    Case("TIFF of 12000x12000 pixels claimed", "image", "in its directory", lambda f: tiff(f / "a.tif", 12000, 12000),
         refused="12000x12000 pixels are more than media_max_pixels"),
    Case("image above media_max_pixels", "image", "56x84 pixels, 4000 allowed", lambda f: saved(f, red()),
         refused="56x84 pixels are more than media_max_pixels 4000", limits=MediaLimits(max_pixels=4000)),
    *(Case(f"PNG cut at {share:.0%}", "image", "", lambda f, share=share: changed(
        saved(f, Image.effect_noise((84, 56), 50)), cut(share)), refused="cannot be read as an image")
      for share in (0.01, 0.5, 0.97)),
    Case("JPEG cut at 50%", "image", "", lambda f: changed(
        saved(f, Image.effect_noise((84, 56), 50), "a.jpg"), cut(0.5)), refused="truncated"),
    Case("GIF cut at 50%", "image", "", lambda f: changed(
        saved(f, Image.effect_noise((84, 56), 50), "a.gif"), cut(0.5)), refused="truncated"),
    Case("WebP cut at 50%", "image", "", lambda f: changed(
        saved(f, Image.effect_noise((84, 56), 50), "a.webp"), cut(0.5)), refused="cannot be read as an image"),
    Case("damaged AVIF", "image", "no picture inside", lambda f: changed(
        saved(f, red(), "a.avif"), put(b"pitm", 4, b"\0\0\0\0\0\xff")), refused="cannot be read as an image"),
    Case("PNG with a wrong checksum", "image", "one bit of its data", lambda f: changed(
        saved(f, Image.effect_noise((84, 56), 50)), lambda c: c[:100] + bytes([c[100] ^ 4]) + c[101:]),
         refused="cannot be read as an image"),
    Case("zero bytes", "image", "64 kB of them", lambda f: written(f / "a.png", bytes(1 << 16)),
         refused="no format that is known; it begins with zero bytes"),
    Case("web page named .png", "image", "", lambda f: written(f / "a.png", "<!DOCTYPE html><p>Not found</p>"),
         refused="it begins like a web page"),
    Case("PostScript", "image", "would run Ghostscript", lambda f: written(
        f / "a.eps", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 84 56\n%%EndComments\nshowpage\n%%EOF\n"),
         refused="no format that is known; it begins like text"),
    Case("SVG", "image", "", lambda f: written(
        f / "a.svg", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), refused="it begins like text"),
    Case("32-bit floats", "image", "a TIFF without a scale", lambda f: saved(
        f, Image.fromarray(np.full((56, 84), 1e3, np.float32)), "a.tif"), refused="mode F.*8 or 16 bits"),
    Case("32-bit integers", "image", "a TIFF without a scale", lambda f: saved(
        f, Image.fromarray(np.full((56, 84), 70000, np.int32)), "a.tif"), refused="mode I.*8 or 16 bits"),
    Case("drawn picture", "image", "nothing odd", lambda f: saved(f, Image.fromarray(draw(77))), numbers=[77]),
]  # fmt: skip
