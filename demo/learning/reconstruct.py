"""Clips of the drawn world as the demo's video autoencoder gives them back: what judges of generated samples will see.

Drawn at the size and rate that the demo trains a generator at, encoded, decoded, and sampled as a generated clip is.
Cost: about 0.15 s a clip on one core.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from demo.learning.examples import FRAMES, TRAINING_FRAMES, Example, generated_shot, poses, squashed, training_size
from demo.scenes import render
from packing.codec import load_codec
from packing.geometry import legal_frames


def reconstructions(codec: Path, *, seed: int, count: int) -> Iterator[Example]:
    """Draw clips of a seed, and give back what a codec makes of them.

    Args:
        codec: folder of a diffusers video autoencoder.
        seed: gives every choice.
        count: how many clips.
    """
    model = load_codec(str(codec))
    count_seen = legal_frames(TRAINING_FRAMES, stride=model.stride[0], step=model.frame_step)
    random = np.random.Generator(np.random.Philox(seed))
    for _ in range(count):
        shot = generated_shot(random, count_seen)
        pictures = render(shot.scene, shot.times_s, *training_size(shot.scene.aspect))
        seen = np.linspace(0, len(pictures) - 1, FRAMES).round().astype(int)
        again = model.decode(model.encode(pictures))[seen]
        where = poses(shot)[seen]
        yield Example(scene=shot.scene, frames=squashed(again), overlay=False, mark=False, poses=where)
