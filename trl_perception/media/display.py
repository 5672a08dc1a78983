"""Converts a decoded frame to what a player shows: deinterlaced, rotated and mirrored, in RGB."""

import av
import numpy as np
import torch
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter
from torch import Tensor

from .errors import MediaError

DEINTERLACER = "estdif"  # needs no other frame: it keeps the first field's lines and draws the others from them


def upright(frame: av.VideoFrame, name: str, to_rgb: VideoReformatter) -> Tensor:
    """Return (3,h,w) uint8 RGB, rotated and mirrored by the frame's display matrix, without the later of two fields.

    (x, y) -> (a x + c y, b x + d y); a, b, c, d each -1, 0 or 1 up to the scale of a row, which is not applied

    Args: to_rgb: one for all frames of a clip, as its tables and threads cost more than a small frame.
    Raises: MediaError for a matrix that is not a quarter turn or mirroring.
    """
    # Not frame.side_data: it forms a reference cycle with the frame, which keeps threads and pixels until the gc runs.
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
    shown = _one_field(frame) if frame.interlaced_frame else frame
    pixels = to_rgb.reformat(shown, format="rgb24", threads=1).to_ndarray()
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5] / (1 << 16)
        straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
        if min(straight, crossed) > 0.01 * max(straight, crossed):
            turn = np.degrees(np.arctan2(b, a))
            raise MediaError(name, f"it is to be shown turned by {turn:.0f} degrees", "Re-encode it upright")
        pixels = pixels.transpose(1, 0, 2) if crossed > straight else pixels
        pixels = pixels[:, ::-1] if a + c < 0 else pixels
        pixels = pixels[::-1] if b + d < 0 else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).contiguous()


def _one_field(frame: av.VideoFrame) -> av.VideoFrame:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base, name="in"
    )
    graph.link_nodes(
        source, graph.add(DEINTERLACER, "mode=frame:deint=interlaced"), graph.add("buffersink")
    ).configure()
    graph.push(frame)
    graph.push(None)
    return graph.pull()
