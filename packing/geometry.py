"""How large a clip is on its way from pixels to tokens: pure functions of sizes, no pixels.

Legend: pixels are F frames by Y by X; the latent grid is T by H by W; the token grid divides the latent by the patch.
Sizes are (height, width) throughout, as arrays have them.
"""

import math
from dataclasses import dataclass
from itertools import product

Stride = tuple[int, int, int]  # of a codec: frames, rows, columns of pixels to one latent cell
Patch = tuple[int, int, int]  # latent frames, rows, columns to one token


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A resize followed by a centre crop that brings a frame to its training size.

    `resized` (height, width) covers `size`; what hangs over is cropped equally on both sides.
    """

    size: tuple[int, int]
    resized: tuple[int, int]

    @property
    def offset(self) -> tuple[int, int]:
        """Rows and columns cut off at the top and at the left of the resized frame."""
        return (self.resized[0] - self.size[0]) // 2, (self.resized[1] - self.size[1]) // 2

    @property
    def cropped_share(self) -> float:
        """The share of the picture's area that the crop loses, 0 to 1."""
        return 1 - (self.size[0] * self.size[1]) / (self.resized[0] * self.resized[1])


def fit_frame(height: int, width: int, *, max_pixels: int, multiple: tuple[int, int]) -> Fit:
    """Choose the training size of a frame: native aspect ratio, under a pixel budget, on a grid, never upscaled.

    Among the sizes just below and above the ideal one that keep within the budget, the one with the least aspect error wins.

    Args:
        height: rows of the upright frame with square pixels.
        width: its columns.
        max_pixels: the most pixels a frame may have.
        multiple: rows and columns come in multiples of these (codec stride × patch).

    Raises:
        ValueError: the frame is smaller than one cell of the grid, or its aspect ratio does not fit the budget.
    """
    scale = min(1.0, math.sqrt(max_pixels / (height * width)))
    options = [
        (rows, columns)
        for rows, columns in product(_around(height * scale, multiple[0], height), _around(width * scale, multiple[1], width))
        if rows * columns <= max_pixels
    ]
    if not options:
        raise ValueError(f"{width}x{height} does not fit a grid of {multiple[1]}x{multiple[0]} within {max_pixels} pixels")
    size = min(options, key=lambda s: (abs(math.log(s[0] / s[1] * width / height)), -s[0] * s[1]))
    cover = max(size[0] / height, size[1] / width)
    return Fit(size=size, resized=(max(size[0], round(height * cover)), max(size[1], round(width * cover))))


def _around(ideal: float, multiple: int, most: int) -> list[int]:
    low = int(ideal // multiple) * multiple
    return [side for side in (low, low + multiple) if 0 < side <= most]


def legal_frames(available: int, *, stride: int, patch: int = 1, most: int | None = None, step: int | None = None) -> int:
    """Return the largest legal frame count that is at most `available` and `most`.

    A causal codec takes 1 + k·stride frames, which give 1 + k latent frames; these must divide into patches of `patch` frames.
    Some work in chunks and take only 1 + k·step frames, `step` being a multiple of the stride.

    Raises:
        ValueError: there are too few frames for one patch.
    """
    bound = available if most is None else min(available, most)
    step = step or stride
    for frames in range(1 + (bound - 1) // step * step, 0, -step):
        if (1 + (frames - 1) // stride) % patch == 0:
            return frames
    raise ValueError(f"{bound} frames are too few for a patch of {patch} latent frames of {stride}")


def latent_shape(frames: int, height: int, width: int, stride: Stride) -> tuple[int, int, int]:
    """Return the latent grid (T, H, W) of a legal clip of `frames` frames."""
    return 1 + (frames - 1) // stride[0], height // stride[1], width // stride[2]


def token_grid(latent: tuple[int, int, int], patch: Patch) -> tuple[int, int, int]:
    """Return the token grid (t, h, w) of a latent (T, H, W).

    Raises:
        ValueError: the patch does not divide the latent.
    """
    if any(cells % side for cells, side in zip(latent, patch, strict=True)):
        raise ValueError(f"a patch of {patch} does not divide a latent of {latent}")
    return latent[0] // patch[0], latent[1] // patch[1], latent[2] // patch[2]
