"""TransNet V2: the authors' numbers, cuts to the frame however frames come, the sandbox, and weights that are none.

The expected numbers are of the authors' PyTorch port (github.com/soCzech/TransNetV2, inference-pytorch/transnetv2_pytorch.py
at 05546d74), on one core with torch 2.15: it was loaded with `drawn_weights()` by name and given `film()`; for the marks in
windows as inference/transnetv2.py of the same repository cuts them (100 frames every 50, 25 copies of the first before, copies
of the last after). Their published weights are not here.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

import clipmill
from packing.errors import ConfigError, ModelError
from pipeline.config import SplitConfig
from pipeline.detectors import Detector, detector
from pipeline.planes import FRAMES, Planes, Strip
from pipeline.protocol import Limits
from pipeline.scenes import read_arguments
from pipeline.stages.split import Split
from pipeline.transnet import SIZE, Runs, TransNet, TransNetDetector, Windows, network, weights_sha256
from tests.media import shots, write_video
from tests.pipeline.conftest import Scan

Pictures = NDArray[np.uint8]
Weights = dict[str, Tensor]
REQUIRED = Limits(wall_s=120.0, memory_bytes=1 << 30, seccomp="require")
# Of every eleventh of the first 100 frames: the single-frame and the many-hot logit.
LOGITS = [
    *((0.48077, -2.37063), (0.88351, -2.58705), (0.76302, -1.76154), (0.85841, -2.10086), (0.96413, -2.62566)),
    *((0.66123, -2.21810), (0.92548, -2.36079), (0.72067, -1.32344), (0.66882, -0.00432), (1.48163, 2.62414)),
]
# Of frames at the ends of the film, of its shots and of its windows: the single-frame and the many-hot chance.
ENDS = (0, 24, 25, 39, 40, 49, 50, 69, 70, 74, 75, 99, 100, 115, 130)
MARKS = [
    *((0.66265, 0.12702), (0.69463, 0.11205), (0.67435, 0.12996), (0.76112, 0.13574), (0.77637, 0.13142)),
    *((0.63956, 0.10387), (0.62819, 0.13247), (0.71713, 0.07743), (0.66722, 0.07680), (0.68748, 0.10573)),
    *((0.65841, 0.10963), (0.67705, 0.15159), (0.68397, 0.14739), (0.68796, 0.10126), (0.67211, 0.09580)),
]


def drawn_weights() -> Weights:
    """Weights of every kind, the same on every machine."""
    random, drawn = np.random.Generator(np.random.Philox(7)), {}
    for name, tensor in sorted(TransNet().state_dict().items()):
        if tensor.dtype == torch.int64:
            drawn[name] = torch.tensor(1)
            continue
        values = random.standard_normal(tuple(tensor.shape))
        if tensor.ndim > 1:
            values *= np.sqrt(2 / np.prod(tensor.shape[1:])) * (0.25 if name.startswith("cls") else 1)
        elif name.endswith("running_var"):
            values = 0.5 + values**2 / 2
        else:
            values = 0.1 * values + name.endswith("bn.weight")
        drawn[name] = torch.tensor(values, dtype=torch.float32)
    return drawn


def film() -> Pictures:
    """RGB pictures of three shots, of 40, 30 and 61 frames, with noise."""
    random, parts = np.random.Generator(np.random.Philox(11)), []
    for frames in (40, 30, 61):
        base = random.integers(0, 200, (*SIZE, 3))
        parts += [np.roll(base, number, axis=1) + random.integers(0, 55, (*SIZE, 3)) for number in range(frames)]
    return np.array(parts, np.uint8)


def cutting_weights(sharpness: float = 20.0) -> Weights:
    """Weights by hand: a frame is marked if its colours are not those of the frame that follows."""
    torch.manual_seed(0)
    weights = TransNet().state_dict()
    for name in ("color_hist_layer.fc", "fc1", "cls_layer1", "cls_layer2"):
        weights[f"{name}.weight"].zero_()
        weights[f"{name}.bias"].zero_()
    # Likeness to the frame itself, which is 1, less that to the next.
    weights["color_hist_layer.fc.weight"][0, 50:52] = torch.tensor([1.0, -1.0])
    weights["fc1.weight"][0, 0] = 1.0
    for name in ("cls_layer1", "cls_layer2"):
        weights[f"{name}.weight"][0, 0] = sharpness
        weights[f"{name}.bias"].fill_(-10.0)
    return weights


@pytest.fixture(scope="module")
def cutting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Options of a scan with weights that find cuts."""
    return saved(tmp_path_factory.mktemp("weights") / "cutting.safetensors", cutting_weights())


def saved(path: Path, weights: Weights) -> dict[str, str]:
    safetensors.torch.save_file(weights, path)
    return {"weights": str(path), "weights_sha256": weights_sha256(str(path))}


# ---- the network ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> TransNet:
    loaded = TransNet()
    loaded.load_state_dict(drawn_weights())
    return loaded.eval()


def test_logits_are_those_of_the_authors_network(drawn: TransNet) -> None:
    with torch.inference_mode():
        logits = drawn(torch.from_numpy(film()[:100]))
    assert torch.allclose(logits[::11], torch.tensor(LOGITS), rtol=0, atol=1e-4)


def test_marks_are_those_of_the_authors_windows(drawn: TransNet) -> None:
    windows, pictures = Windows(drawn), film()[..., ::-1]
    marks = np.concatenate([windows.take(pictures[:33]), windows.take(pictures[33:]), windows.finish()])
    assert len(marks) == len(pictures)
    assert np.allclose(marks[list(ENDS)], MARKS, rtol=0, atol=1e-4)


# ---- windows and runs ----------------------------------------------------------------------------------------------------


class Red(TransNet):
    """Marks by a frame's mean red alone, in no time."""

    def forward(self, frames: Tensor) -> Tensor:
        return (frames[..., 0].float().mean(dim=(1, 2)) - 127)[:, None].repeat(1, 2)


def blinking(frames: int, reds: Sequence[int]) -> Pictures:
    """BGR pictures of which some are red."""
    pictures = np.zeros((frames, *SIZE, 3), np.uint8)
    pictures[list(reds), ..., 2] = 255
    return pictures


def given(found: Detector, pictures: Pictures, at_once: int) -> list[tuple[int, int]]:
    few = [pictures[first : first + at_once] for first in range(0, len(pictures), at_once)]
    transitions = [transition for part in few for transition in found.take([0.0] * len(part), part)]
    return [(transition.start, transition.end) for transition in (*transitions, *found.finish())]


@pytest.mark.parametrize("frames", [1, 24, 25, 26, 49, 50, 51, 74, 75, 76, 99, 100, 101, 151, 313])
def test_every_frame_is_marked_once_however_frames_come(frames: int) -> None:
    pictures = blinking(frames, range(0, frames, 7))
    for at_once in (1, 32, 400):
        windows = Windows(Red())
        parts = [windows.take(pictures[first : first + at_once]) for first in range(0, frames, at_once)]
        marks = np.concatenate([*parts, windows.finish()])
        assert (marks > 0.5).tolist() == [[number % 7 == 0] * 2 for number in range(frames)]


@pytest.mark.parametrize("at_once", [1, 3, 32, 50, 300])
def test_transitions_do_not_depend_on_how_frames_come(at_once: int) -> None:
    pictures = blinking(260, [49, 98, 99, 100, 130, 132, 200, 255, 258])
    found = TransNetDetector(Red(), 0.5, 5)
    assert given(found, pictures, at_once) == [(50, 50), (98, 101), (131, 133), (201, 201), (256, 260)]


def test_no_frames_have_no_transitions() -> None:
    assert given(TransNetDetector(Red(), 0.5, 5), blinking(0, []), 32) == []


def test_memory_does_not_grow_with_the_film_and_transitions_come_soon() -> None:
    found = TransNetDetector(Red(), 0.5, 5)
    for taken in range(32, 3232, 32):
        transitions = found.take([0.0] * 32, blinking(32, [0]))
        assert len(found._windows._pictures) < 100
        assert all(taken - 75 - 32 <= transition.end for transition in transitions)
    assert [transition.end for transition in found.finish()][-1] == 3200 - 32 + 1


def runs(single: str, many: str = "", *, min_shot_frames: int = 1) -> list[tuple[int, int]]:
    """The transitions of marks, x for a marked frame."""
    marks = np.array([[float(a == "x"), float(b == "x")] for a, b in zip(single, many or single, strict=True)], np.float32)
    found = Runs(0.5, min_shot_frames)
    return [(transition.start, transition.end) for transition in (*found.take(marks), *found.finish())]


@pytest.mark.parametrize(
    ("single", "many", "expected"),
    [
        # The authors' `predictions_to_scenes` makes scenes [0, 3] and [4, 7] of this, ends included.
        ("...x....", "", [(4, 4)]),
        ("...xx...", "", [(3, 5)]),
        ("...x....", "........", [(4, 4)]),
        ("....x....", "..xxxxx..", [(2, 7)]),
        (".........", "..xxxxx..", []),
        ("..x....x.", "..x.xx.x.", [(3, 3), (8, 8)]),
        ("........x", "", []),
        (".......xx", "", [(7, 9)]),
        ("x........", "", [(1, 1)]),
        ("xx.......", "", [(0, 2)]),
        ("xxxxxxxxx", "", [(0, 9)]),
        ("", "", []),
    ],
)
def test_a_mark_alone_is_the_last_frame_before_a_cut_and_a_run_is_of_neither_shot(
    single: str, many: str, expected: list[tuple[int, int]]
) -> None:
    assert runs(single, many) == expected


@pytest.mark.parametrize(
    ("single", "expected"),
    [
        ("....x...x.....", [(5, 5), (9, 9)]),
        ("....x..x......", [(5, 8)]),
        ("....x..x..x....", [(5, 11)]),
        (".x............", [(0, 2)]),
        ("..........x...", [(11, 14)]),
        (".............x", []),
    ],
)
def test_a_shot_shorter_than_the_shortest_is_part_of_the_transition_next_to_it(
    single: str, expected: list[tuple[int, int]]
) -> None:
    assert runs(single, min_shot_frames=4) == expected


def test_pictures_of_a_strip_do_not_run_into_each_other() -> None:
    strip, levels = Strip(), [255 * (number % 2) for number in range(FRAMES)]
    for level in levels:
        luma, chroma = np.full((90, 160), level, np.uint8), np.full((45, 80), 128, np.uint8)
        strip.add(Planes(luma=luma, blue=chroma, red=chroma, depth=8, full=True, space=1, transfer=1))
    pictures = strip.develop(*SIZE).pictures
    assert pictures.shape == (FRAMES, *SIZE, 3)
    assert [(int(picture.min()), int(picture.max())) for picture in pictures] == [(level, level) for level in levels]


# ---- the sandbox ---------------------------------------------------------------------------------------------------------


def spans(scan: Scan, path: Path, weights: dict[str, str]) -> list[tuple[int, int]]:
    facts, _ = scan(path, REQUIRED, detector="transnetv2", threshold=0.5, max_clip_s=60.0, **weights)
    return [(clip["start_frame"], clip["end_frame"]) for clip in facts["clips"]]


def test_cuts_of_a_video_are_found_to_the_frame_under_the_filter(scan: Scan, cutting: dict[str, str], tmp_path: Path) -> None:
    path = write_video(tmp_path / "three.mp4", shots([31, 19, 22]))
    assert spans(scan, path, cutting) == [(0, 31), (31, 50), (50, 72)]


def test_a_warm_decoder_uses_the_weights_of_the_call(scan: Scan, cutting: dict[str, str], tmp_path: Path) -> None:
    path = write_video(tmp_path / "two.mp4", shots([20, 18]))
    blind = saved(tmp_path / "blind.safetensors", cutting_weights(0.0))
    assert spans(scan, path, blind) == [(0, 38)]
    assert spans(scan, path, cutting) == [(0, 20), (20, 38)]


def test_weights_that_change_after_they_were_checked_are_not_used(tmp_path: Path) -> None:
    options = saved(tmp_path / "a.safetensors", cutting_weights())
    saved(tmp_path / "a.safetensors", cutting_weights(19.0))
    with pytest.raises(ModelError, match="changed"):
        network(**{"path": options["weights"], "sha256": options["weights_sha256"]})


def test_the_detector_by_its_name_is_the_network(cutting: dict[str, str]) -> None:
    assert isinstance(detector("transnetv2", 0.5, 5, **cutting), TransNetDetector)


# ---- config, identity and mistakes ---------------------------------------------------------------------------------------


def stage(**config: Any) -> Split:
    return Split(chunk=1, config=SplitConfig(**config))


def test_the_weights_bytes_are_part_of_the_fingerprint_and_of_clip_ids(cutting: dict[str, str], tmp_path: Path) -> None:
    saved(tmp_path / "same.safetensors", cutting_weights())
    saved(tmp_path / "other.safetensors", cutting_weights(19.0))
    first, same, other = (
        stage(detector="transnetv2", weights=str(path))
        for path in (cutting["weights"], tmp_path / "same.safetensors", tmp_path / "other.safetensors")
    )
    assert first.identity()["weights"] == cutting["weights_sha256"]
    assert json.dumps(first.identity()) == json.dumps(same.identity()) != json.dumps(other.identity())
    assert first._digest == same._digest != other._digest


def test_a_detector_without_weights_is_what_it_was() -> None:
    plain = stage()
    assert not {"weights", "weights_sha256"} & set(plain.identity())
    assert plain.identity() == stage(weights="/nowhere.safetensors").identity()


def test_weights_mean_the_same_from_every_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert SplitConfig(detector="transnetv2", weights="w.safetensors").weights == str(tmp_path / "w.safetensors")


def misshapen() -> Weights:
    return {**cutting_weights(), "cls_layer1.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (None, "No such file"),
        (b"not tensors at all, but long enough", "is not a safetensors file"),
        (lambda: {}, "it lacks 'SDDCNN.0.DDCNN.0.Conv3D_1.layers.0.weight' and 89 more"),
        (lambda: {**cutting_weights(), "more.bias": torch.zeros(1)}, "it has besides 'more.bias'"),
        (misshapen, "'cls_layer1.bias' is (2,), not (1,)"),
    ],
)
def test_weights_that_are_none_are_one_line_before_anything_starts(
    tmp_path: Path, weights: bytes | Callable[[], Weights] | None, told: str
) -> None:
    path = tmp_path / "weights.safetensors"
    if isinstance(weights, bytes):
        path.write_bytes(weights)
    elif weights:
        safetensors.torch.save_file(weights(), path)
    video = write_video(tmp_path / "a.mp4", shots([6]))
    with pytest.raises(ModelError) as caught:
        read_arguments([str(video), "split.detector=transnetv2", f"split.weights={path}"])
    message = str(caught.value)
    assert told in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "needs its weights, as split.weights=FILE.safetensors"),
        (["split.weights=a.safetensors", "split.threshold=1.5"], "split.threshold is a chance below 1, not 1.5"),
    ],
)
def test_a_network_without_weights_or_with_a_ratio_is_a_mistake_of_the_config(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_arguments(["a.mp4", "split.detector=transnetv2", *overrides])


def test_a_mistake_ends_the_command_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    video = write_video(tmp_path / "a.mp4", shots([6]))
    arguments = [str(video), "split.detector=transnetv2", f"split.weights={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["clipmill", "split", *arguments])
    with pytest.raises(SystemExit) as ended:
        clipmill.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err == f"clipmill: split.weights: cannot read {tmp_path}: Is a directory\n"
