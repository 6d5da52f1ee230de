"""Generated clips: flat colours with a moving square, so that each seed looks different to a model."""

from collections.abc import Callable

import numpy as np
import pytest

from recaption import ClipFrames

MakeClip = Callable[..., ClipFrames]


@pytest.fixture
def make_clip() -> MakeClip:
    """A factory of valid clips: `make_clip(seed, frames=4)`, sampled at 4 frames a second."""

    def make(seed: int, frames: int = 4, height_px: int = 48, width_px: int = 64) -> ClipFrames:
        rng = np.random.default_rng(seed)
        pixels = np.empty((frames, height_px, width_px, 3), np.uint8)
        pixels[:] = rng.integers(0, 256, 3)
        colour = rng.integers(0, 256, 3)
        for index in range(frames):
            pixels[index, 10:30, 4 * index : 4 * index + 20] = colour
        times_s = tuple(0.25 * index for index in range(frames))
        return ClipFrames(clip_id=f"clip{seed}", frames=pixels, times_s=times_s, duration_s=0.25 * frames)

    return make
