"""Small pictures straight from the planes of a decoded frame, by taking every k-th sample: what cuts and measures are taken at.

Runs in the decoder's process. Scaling every frame costs several times its decoding; striding over planes that lie there costs
next to nothing, and neither cuts nor measures need better. The picture is not upright: neither asks for that.
"""

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.crop import Lines, lines_of

Luma = NDArray[np.uint8]  # [h, w], 0 (black) to 255 (white)
Bgr = NDArray[np.uint8]  # [h, w, 3]


def sampled(frame: Any, side: int) -> tuple[Luma, Bgr] | None:
    """Sample a YUV frame so that its short side has `side` pixels or a few more, up to twice as many.

    Returns:
        Luma over the full range, and the same picture in BGR; None for formats that are not planar YUV.
    """
    depth = _depth(frame.format.name)
    if depth is None:
        return None
    step = max(1, min(frame.height, frame.width) // side)
    luma, *chroma = (_samples(plane, depth, max(1, step * plane.width // frame.width)) for plane in frame.planes[:3])
    size = luma.shape[1], luma.shape[0]
    u, v = (cv2.resize(samples, size, interpolation=cv2.INTER_NEAREST) for samples in chroma)
    if not _full_range(frame):
        luma, u, v = cv2.LUT(luma, _expanded(16, 219)), cv2.LUT(u, _expanded(16, 224)), cv2.LUT(v, _expanded(16, 224))
    return luma, cv2.cvtColor(cv2.merge([luma, u, v]), cv2.COLOR_YUV2BGR)


@cache
def _depth(name: str) -> int | None:
    """Return the bits of one sample of a planar YUV format, or None for another format."""
    if not name.startswith(("yuv4", "yuvj4")) or name.endswith("be"):
        return None
    return next((bits for bits in (9, 10, 12, 14, 16) if name.endswith(f"p{bits}le")), 8)


def lines(frame: Any) -> Lines:
    """Take rows and columns of a frame in full height and width, as it is stored; luma over the full range."""
    depth = _depth(frame.format.name)
    if depth is None:
        return lines_of(frame.to_ndarray(format="gray"))
    plane = frame.planes[0]
    stored = lines_of(np.frombuffer(plane, dtype=np.uint8 if depth == 8 else "<u2").reshape(plane.height, -1)[:, : plane.width])
    rows, columns = stored.rows, stored.columns
    if depth > 8:
        rows, columns = (rows >> (depth - 8)).astype(np.uint8), (columns >> (depth - 8)).astype(np.uint8)
    if not _full_range(frame):
        rows, columns = cv2.LUT(rows, _expanded(16, 219)), cv2.LUT(columns, _expanded(16, 219))
    return Lines(rows=rows, columns=columns)


def _full_range(frame: Any) -> bool:
    return bool(frame.format.name.startswith("yuvj") or int(frame.color_range) == 2)


def _samples(plane: Any, depth: int, step: int) -> NDArray[np.uint8]:
    """Take every `step`-th sample of a plane as 8 bits."""
    lines = np.frombuffer(plane, dtype=np.uint8 if depth == 8 else "<u2").reshape(plane.height, -1)
    taken = lines[::step, : plane.width : step]
    return np.ascontiguousarray(taken if depth == 8 else (taken >> (depth - 8)).astype(np.uint8))


@cache
def _expanded(low: int, span: int) -> NDArray[np.uint8]:
    """Return the table that spreads limited-range samples over 0 to 255."""
    return np.clip((np.arange(256) - low) * 255 / span, 0, 255).round().astype(np.uint8)
