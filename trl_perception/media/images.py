"""Reads images, and resolves paths, URLs and bytes, also for videos."""

import base64
import binascii
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .download import download
from .errors import MediaError, describe
from .limits import Budget, MediaLimits
from .paths import local_path
from .pictures import opened_picture, readable
from .sampling import SizeLimits, image_size

URL_MAX_BYTES = 2 << 30  # a download above this many bytes is refused

_REPLACE = "Check the file, or drop this sample"


def read_image(
    source: Any,
    *,
    factor: int | None = 28,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resized_height: int | None = None,
    resized_width: int | None = None,
    size_limits: SizeLimits | None = None,
    limits: MediaLimits | Budget | None = None,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Image.Image:
    """Read an image as upright RGB, transparency flattened on white; resized only if a bound or a size is given.

    Args:
        source: PIL image, path, file:// or http(s) URL, data: URI, bytes, {"path", "bytes"}, or an array
            (H,W), (H,W,1|3|4) or (1|3|4,H,W), uint8 or float in [0, 1].
        factor: sides become multiples of it (patch_size * merge_size) when resizing.
        min_pixels, max_pixels: bounds on height * width; a missing one is that of size_limits, or 4, 16384 times factor**2.
        resized_height, resized_width: pixels, rounded to multiples of the factor; they replace the bounds.
        size_limits: the processor's (min_pixels, max_pixels), used where no others are given.
        limits: resource limits, None means MediaLimits(); or the budget of the clip that contains this frame.
        change: pixels (3,H,W) uint8 -> the same, before they are resized.
    Raises: MediaError if it cannot be read completely and within the limits, or resized within the bounds.
    Source: qwen_vl_utils.vision_process.fetch_image. Differs: the EXIF orientation is applied.
    """
    name = describe(source)
    budget = limits if isinstance(limits, Budget) else Budget(name, limits)
    if isinstance(source, np.ndarray | torch.Tensor):
        source = Image.fromarray(_image_array(source, name))
    image = _flat(source, name, budget) if isinstance(source, Image.Image) else _decoded(source, name, budget)
    budget.check_time()
    if change is not None:
        image = from_pixels(change(to_pixels(image)))
    if min_pixels is max_pixels is resized_height is size_limits is None:
        return image
    height, width = image_size(
        image.height,
        image.width,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        resized_height=resized_height,
        resized_width=resized_width,
        factor=factor,
        size_limits=size_limits,
        source=name,
    )
    return image.resize((width, height))


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Return the pixels of an RGB image: (3,H,W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def from_pixels(pixels: torch.Tensor) -> Image.Image:
    """Return the RGB image of pixels (3,H,W) uint8."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _decoded(source: Any, name: str, budget: Budget) -> Image.Image:
    with opened_picture(resolve(source, budget), name) as image:
        return _flat(image, name, budget)


def _flat(image: Image.Image, name: str, budget: Budget) -> Image.Image:
    """Return the image upright and in RGB; its size is checked before and after decoding, as some headers lack it."""
    _charge(image, name, budget)
    _scale_clear_value(image, name)
    with readable(name):
        image.load()
    _charge(image, name, budget)
    if image.mode in ("I", "F"):
        reason = f"its values are 32 bits a pixel (mode {image.mode}) without a scale, and 8 or 16 bits are wanted"
        raise MediaError(name, reason, "Convert it to 8 bits")
    with readable(name):
        return _flatten(ImageOps.exif_transpose(image))


def _charge(image: Image.Image, name: str, budget: Budget) -> None:
    if not image.width or not image.height:
        raise MediaError(name, f"it has {image.height}x{image.width} pixels, and at least one is wanted", _REPLACE)
    budget.check_time()
    budget.check_pixels(image.height, image.width)


def resolve(source: Any, budget: Budget | None = None) -> Path | bytes:
    """Return the local file or the bytes of a source; URLs are downloaded, data: URIs decoded.

    Any file that the process may read is accepted, by absolute or relative path, including `..` and symbolic links.

    Args: source: path, file:// or http(s) URL, data: URI, bytes, or {"path", "bytes"} (bytes first); budget: limits.
    Raises: MediaError for a missing or empty file, a failed download, or a source of another type.
    """
    name = describe(source)
    if isinstance(source, Mapping):
        content = source.get("bytes") if source.get("bytes") is not None else source.get("path")
        if content is None:
            raise MediaError(name, "neither path nor bytes is set", 'Give {"path": ...} or {"bytes": ...}')
        return resolve(content, budget)
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) == 0:
            raise MediaError(name, "it is empty, and an encoded file is wanted", _REPLACE)
        return bytes(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return download(source, budget or Budget(name), URL_MAX_BYTES)
    if isinstance(source, str) and source.startswith("data:"):
        try:
            return base64.b64decode(source.split("base64,", 1)[1], validate=True)
        except (IndexError, binascii.Error) as error:
            raise MediaError(
                name, "the data: URI has no valid base64 content", "Write data:TYPE;base64,CONTENT"
            ) from error
    if not isinstance(source, str | os.PathLike):
        reason = f"a {type(source).__name__} was given, and a path, URL, bytes, array or list of frames is wanted"
        raise MediaError(name, reason, "Change the sample's medium to one of these")
    path = Path(local_path(source))
    try:
        size = path.stat().st_size
    except OSError as error:
        raise MediaError(name, f"the file cannot be opened ({error.strerror})", "Check the path") from error
    except ValueError as error:  # a null byte in the path
        raise MediaError(name, f"the path is no path ({error})", "Check the path") from error
    if not path.is_file():
        raise MediaError(name, "it is not a file", "Give the path of one file")
    if size == 0:
        raise MediaError(name, "the file is empty", _REPLACE)
    return path


def _scale_clear_value(image: Image.Image, name: str) -> None:
    """Scale a PNG's transparent gray value as Pillow scales the pixels: 2 and 4 bits to 8."""
    raw = image.tile[0].args if image.format == "PNG" and "transparency" in image.info and image.tile else None
    if raw in ("L;2", "L;4"):
        image.info["transparency"] *= 85 if raw == "L;2" else 17
    if raw == "RGB;16B":
        reason = "one colour of 16 bits is clear, and the picture is read with 8 bits, where others are equal to it"
        raise MediaError(name, reason, "Convert it to 8 bits, or give it an alpha channel")


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:  # Pillow would clip the values to 8 bits
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _image_array(source: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    array = as_uint8(source, name)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.permute(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.numel() == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        reason = f"an image array of shape {tuple(source.shape)} was given, and (H,W), (H,W,3) or (3,H,W) is wanted"
        raise MediaError(name, reason, "Change the array's layout")
    return array.contiguous().numpy()


def array_frames(source: np.ndarray | torch.Tensor, indices: list[int], budget: Budget) -> Iterator[torch.Tensor]:
    """Yield frames (3,H,W) uint8 of an array (F,H,W,3) or (F,3,H,W), in the order of indices. Raises: MediaError."""
    name, shape = budget.name, tuple(source.shape)
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or not all(shape):
        reason = f"its shape is {shape}, and (F,H,W,3) or (F,3,H,W) is wanted"
        raise MediaError(name, reason, "Change the array's layout")
    budget.check_pixels(*(shape[1:3] if shape[3] == 3 else shape[2:]))
    frames = as_uint8(source[indices], name)
    frames = frames.permute(0, 3, 1, 2) if shape[3] == 3 else frames
    return (frame.contiguous() for frame in frames)


def listed_frames(source: Sequence[Any], indices: list[int], budget: Budget) -> Iterator[torch.Tensor]:
    """Yield frames (3,H,W) uint8 of a list of images. Raises: MediaError, also for unequal sizes."""
    first_size = None
    for index in indices:
        image = read_image(source[index], limits=budget)
        first_size = first_size or image.size
        if image.size != first_size:
            reason = f"frame {index} has {image.size} pixels (width, height) and frame {indices[0]} has {first_size}"
            raise MediaError(budget.name, reason, "Give frames of one size")
        yield to_pixels(image)


def as_uint8(source: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Convert an array to a CPU uint8 tensor; floats in [0, 1] become round(255 * x). The source is not written to.

    Raises: MediaError for another dtype, or floats out of [0, 1] (NaN included).
    """
    if str(source.dtype).removeprefix("torch.") not in ("uint8", "float16", "bfloat16", "float32", "float64"):
        raise MediaError(name, f"its values are {source.dtype}, and uint8 or float is wanted", "Convert it to uint8")
    array = torch.from_numpy(source.copy()) if isinstance(source, np.ndarray) else source.detach().cpu()
    if array.dtype == torch.uint8:
        return array
    if array.numel() and not bool((array.min() >= 0) & (array.max() <= 1)):
        reason = f"its float values run from {array.min():.3g} to {array.max():.3g}, and [0, 1] is wanted"
        raise MediaError(name, reason, "Scale the values, or pass uint8")
    return (array.float() * 255).round().to(torch.uint8)
