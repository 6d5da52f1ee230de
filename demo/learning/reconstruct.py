"""Clips of the drawn world as the demo's video autoencoder gives them back: what judges of generated samples will see.

Drawn at the sizes and rates that the demo trains a generator at or scores its codec at, encoded, decoded, and sampled as a
generated clip is. Cost: about 0.4 s a clip on one core.
"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from demo.learning.examples import FRAMES, Example, generated_shot, poses, squashed, training_size
from demo.scenes import render
from packing.codec import load_codec
from packing.geometry import legal_frames

# Most pixels of a frame, frames, and frames a second, of one clip after the other.
KINDS = ((64 * 64, 17, 8), (64 * 64, 9, 4), (64 * 64, 17, 8), (64 * 64, 29, 8), (128 * 128, 17, 8))


def reconstructions(codec: Path, *, seed: int) -> Iterator[Example]:
    """Draw clips of a seed without end, and give back what a codec makes of them.

    Args:
        codec: folder of a diffusers video autoencoder.
        seed: gives every choice.
    """
    model = load_codec(str(codec))
    random = np.random.Generator(np.random.Philox(seed))
    for number in count():
        most_pixels, frames, fps = KINDS[number % len(KINDS)]
        shot = generated_shot(random, legal_frames(frames, stride=model.stride[0], step=model.frame_step), fps)
        pictures = render(shot.scene, shot.times_s, *training_size(shot.scene.aspect, most_pixels))
        seen = np.linspace(0, len(pictures) - 1, FRAMES).round().astype(int)
        again = model.decode(model.encode(pictures))[seen]
        where = poses(shot)[seen]
        yield Example(scene=shot.scene, frames=squashed(again), overlay=False, mark=False, poses=where)
