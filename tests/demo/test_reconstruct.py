"""Reconstructions are clips of a seed as the codec gives them back: the same twice, and near what was drawn."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from demo.figures import psnr_db
from demo.learning.examples import FRAMES, SIDE_PX, Example, generated_shot, squashed, training_size
from demo.learning.reconstruct import KINDS, reconstructions
from demo.learning.train_clip import evaluate, main
from demo.scenes import render
from packing.clip import LOCAL, load_clip
from packing.codec import load_codec
from packing.geometry import legal_frames

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"


def drawn(seed: int) -> Example:
    """Draw the first clip of a seed as the codec is given it."""
    codec = load_codec(str(WEIGHTS / "codec"))
    most_pixels, frames, fps = KINDS[0]
    count = legal_frames(frames, stride=codec.stride[0], step=codec.frame_step)
    shot = generated_shot(np.random.Generator(np.random.Philox(seed)), count, fps)
    pictures = render(shot.scene, shot.times_s, *training_size(shot.scene.aspect, most_pixels))
    seen = pictures[np.linspace(0, count - 1, FRAMES).round().astype(int)]
    return Example(
        scene=shot.scene, frames=squashed(seen), overlay=False, mark=False, poses=np.zeros((FRAMES, 0, 5), np.float32)
    )


def test_reconstructions_are_the_clips_of_a_seed_with_a_codecs_loss() -> None:
    first, again = (list(islice(reconstructions(WEIGHTS / "codec", seed=5), 2)) for _ in range(2))
    assert all(np.array_equal(one.frames, other.frames) for one, other in zip(first, again, strict=True))
    assert all(example.frames.shape == (FRAMES, SIDE_PX, SIDE_PX, 3) for example in first)
    assert all(len(example.poses) == FRAMES for example in first)
    original = drawn(5)
    assert first[0].scene == original.scene != first[1].scene
    assert 25 < psnr_db(original.frames, first[0].frames) < 50


def test_a_model_is_judged_on_reconstructions_where_a_codec_is_given() -> None:
    options = ["evaluate", str(WEIGHTS / "clip"), "--seed", "3", "--clips", "3", "--codec", str(WEIGHTS / "codec")]
    told = json.loads(CliRunner().invoke(main, options, catch_exceptions=False).stdout)
    clips = list(islice(reconstructions(WEIGHTS / "codec", seed=10**6 + 3), 3))
    figures = evaluate(load_clip(LOCAL + str(WEIGHTS / "clip")), clips, 3)
    assert {name: told[name] for name in figures} == figures
