"""TransNet V2: a network that marks where shots end, as a detector (Souček and Lokoč, arXiv 2008.04838).

Runs in the decoder's process, the only one of its modules that needs torch: imported where the detector is asked for, and
nowhere else. Parameters have the names of the authors' PyTorch port (github.com/soCzech/TransNetV2, inference-pytorch), so that
weights published for it load by name. Some tens of milliseconds a frame on one core, far more than decoding it.

Every 50 frames are marked from a window of 100, 25 more on either side; before the first frame and after the last these are
repeated. The single-frame head marks one frame a transition: of a hard cut the last frame of the earlier shot, else the middle.
The many-hot head marks every frame in which both shots show, and of a hard cut the same one.

Legend: T frames of a window, C channels, H W rows and columns; pictures are uint8 BGR [n, 27, 48, 3], marks chances [n, 2].
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from packing.errors import ModelError
from pipeline.reel import Transition

Pictures = NDArray[np.uint8]
Marks = NDArray[np.float32]

SIZE = (27, 48)
WINDOW, CONTEXT = 100, 25
STEP = WINDOW - 2 * CONTEXT
REACH = 50  # frames before and after, to which a frame is compared
BLOCKS = ((3, 16), (64, 32), (128, 64))  # channels that come in, and filters of each of four branches
DILATIONS = (1, 2, 4, 8)
SIMILAR, HIDDEN = 128, 1024


# ---- the network ---------------------------------------------------------------------------------------------------------


class TransNet(nn.Module):
    """The network, of one window at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList(Stack(channels, filters) for channels, filters in BLOCKS)
        self.frame_sim_layer = FrameSimilarity(sum(4 * filters for _, filters in BLOCKS))
        self.color_hist_layer = ColourSimilarity()
        self.fc1 = nn.Linear(4 * BLOCKS[-1][1] * 3 * 6 + 2 * SIMILAR, HIDDEN)  # 3 rows and 6 columns are left of a frame
        self.cls_layer1, self.cls_layer2 = nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits [T, 2] of frames uint8 RGB [T, 27, 48, 3], from the single-frame and from the many-hot head."""
        x = (frames.float() / 255).permute(3, 0, 1, 2)[None]  # [1, C, T, H, W]
        means = []
        for stack in self.SDDCNN:
            x = stack(x)
            means.append(x.mean(dim=(3, 4))[0].T)  # [T, C]
        flat = x[0].permute(1, 2, 3, 0).flatten(1)  # [T, H * W * C]
        seen = [self.color_hist_layer(frames), self.frame_sim_layer(torch.cat(means, dim=1)), flat]
        hidden = F.relu(self.fc1(torch.cat(seen, dim=1)))  # [T, HIDDEN]
        return torch.cat([self.cls_layer1(hidden), self.cls_layer2(hidden)], dim=1)


class Stack(nn.Module):
    """Two dilated blocks with a shortcut, and every four pixels made one."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([Dilated(channels, filters), Dilated(4 * filters, filters)])

    def forward(self, x: Tensor) -> Tensor:
        """Return [1, 4 * filters, T, H // 2, W // 2] of [1, C, T, H, W]."""
        first, second = self.DDCNN
        x = F.relu(first(x))
        return F.avg_pool3d(F.relu(second(x)) + x, (1, 2, 2))


class Dilated(nn.Module):
    """Four branches, which look 1, 2, 4 and 8 frames far; then normalised."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", Branch(channels, filters, dilation))
        self.bn = nn.BatchNorm3d(4 * filters, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return [1, 4 * filters, T, H, W] of [1, C, T, H, W]."""
        branches = [self.get_submodule(f"Conv3D_{dilation}") for dilation in DILATIONS]
        normalised: Tensor = self.bn(torch.cat([branch(x) for branch in branches], dim=1))
        return normalised


class Branch(nn.Module):
    """A convolution over space and one over frames so far apart."""

    def __init__(self, channels: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        reach = (dilation, 0, 0)  # at either end, so that there are as many frames as before
        over = nn.Conv3d(2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1), padding=reach, bias=False)
        self.layers = nn.Sequential(space, over)

    def forward(self, x: Tensor) -> Tensor:
        """Return [1, filters, T, H, W] of [1, C, T, H, W]."""
        convolved: Tensor = self.layers(x)
        return convolved


class FrameSimilarity(nn.Module):
    """How similar each frame is to those around it, by features that are learned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection, self.fc = nn.Linear(channels, SIMILAR), nn.Linear(2 * REACH + 1, SIMILAR)

    def forward(self, means: Tensor) -> Tensor:
        """Return [T, SIMILAR] of the means over each frame [T, C]."""
        return F.relu(self.fc(similarities(self.projection(means))))


class ColourSimilarity(nn.Module):
    """How similar each frame is to those around it, by the histogram of its colours, 8 levels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * REACH + 1, SIMILAR)

    def forward(self, frames: Tensor) -> Tensor:
        """Return [T, SIMILAR] of frames uint8 [T, H, W, 3]."""
        red, green, blue = (frames.long() >> 5).flatten(1, 2).unbind(dim=2)  # [T, H * W]
        bins = red << 6 | green << 3 | blue
        counts = torch.zeros(len(bins), 512).scatter_add_(1, bins, torch.ones(bins.shape))
        return F.relu(self.fc(similarities(counts)))


def similarities(features: Tensor) -> Tensor:
    """Return the cosine [T, 2 * REACH + 1] of each frame's features [T, C] with those of the frames around it, 0 for none."""
    units = F.normalize(features, dim=1)
    padded = F.pad(units @ units.T, (REACH, REACH))  # [T, T + 2 * REACH]
    return padded.gather(1, torch.arange(len(units))[:, None] + torch.arange(2 * REACH + 1))


# ---- its weights ---------------------------------------------------------------------------------------------------------


def weights_sha256(path: str) -> str:
    """Check that a file holds the network's weights, by names and shapes, and return the sha256 of its bytes.

    Raises:
        ModelError: there is no such file, it is no safetensors file, or its tensors are not the network's.
    """
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except OSError as error:
        raise ModelError(f"split.weights: cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ModelError(f"split.weights: {path} is not a safetensors file: {error}") from error
    if problem := _mismatch(found):
        raise ModelError(f"split.weights: {path} does not hold the weights of TransNet V2: {problem}")
    return digest


@cache
def network(path: str, sha256: str) -> TransNet:
    """Load the network, from bytes that have this hash; once in a process, and in those that are forked from it.

    Raises:
        ModelError: the file is not the one that `weights_sha256` has seen.
    """
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelError(f"split.weights: {path} has changed since it was checked")
    loaded = TransNet()
    loaded.load_state_dict(safetensors.torch.load(data))
    return loaded.eval().requires_grad_(requires_grad=False)


def _mismatch(found: Mapping[str, Sequence[int]]) -> str:
    """Say how tensors, shapes by name, differ from the network's; nothing where they do not."""
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in TransNet().state_dict().items()}
    for problem, names in (("lacks", wanted.keys() - found.keys()), ("has besides", found.keys() - wanted.keys())):
        if names:
            return f"it {problem} {min(names)!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    misshapen = [name for name in wanted if wanted[name] != found[name]]
    return f"{misshapen[0]!r} is {found[misshapen[0]]}, not {wanted[misshapen[0]]}" if misshapen else ""


# ---- the detector --------------------------------------------------------------------------------------------------------


class TransNetDetector:
    """Marks frames with the network, and makes transitions of the marks; see `Detector`."""

    size: ClassVar[tuple[int, int]] = SIZE

    def __init__(self, found: TransNet, threshold: float, min_shot_frames: int) -> None:
        """Use a network; frames with a higher chance than the threshold are marked, and two cuts are never closer."""
        self._windows = Windows(found)
        self._runs = Runs(threshold, min_shot_frames)

    def take(self, times_s: Sequence[float], pictures: Pictures) -> list[Transition]:
        """Take the next few frames, whenever they are shown; transitions come up to 75 frames and a shortest shot late."""
        return list(self._runs.take(self._windows.take(pictures)))

    def finish(self) -> list[Transition]:
        """Return the remaining transitions."""
        return [*self._runs.take(self._windows.finish()), *self._runs.finish()]


class Windows:
    """Marks frames as they come, 50 at a time; holds less than a window of them."""

    def __init__(self, found: TransNet) -> None:
        """Use a network."""
        self._network, self._pictures = found, np.zeros((0, *SIZE, 3), np.uint8)

    def take(self, pictures: Pictures) -> Marks:
        """Take the next few frames; return the marks of the next frames that have all their context, from the first on."""
        before = self._pictures if len(self._pictures) else np.repeat(pictures[:1], CONTEXT, axis=0)
        self._pictures = np.concatenate([before, pictures])
        marks = [np.zeros((0, 2), np.float32)]
        while len(self._pictures) >= WINDOW:
            marks.append(self._marks(self._pictures[:WINDOW]))
            self._pictures = self._pictures[STEP:]
        return np.concatenate(marks)

    def finish(self) -> Marks:
        """Return the marks of the remaining frames."""
        left = max(0, len(self._pictures) - CONTEXT)
        return self.take(np.repeat(self._pictures[-1:], -left % STEP + CONTEXT, axis=0))[:left]

    def _marks(self, window: Pictures) -> Marks:
        with torch.inference_mode():
            logits = self._network(torch.from_numpy(window[..., ::-1].copy()))
            chances: Marks = torch.sigmoid(logits)[CONTEXT:-CONTEXT].numpy()
        return chances


class Runs:
    """Makes transitions of marks: a run of marked frames is one if the single-frame head marks any of them.

    One frame alone is the last before a hard cut. More belong to neither shot. Transitions with less than a shortest shot
    between them are one, and a shorter shot at the very beginning or end belongs to the transition next to it.
    """

    def __init__(self, threshold: float, min_shot_frames: int) -> None:
        """Mark chances above the threshold."""
        self._threshold, self._min_shot_frames = threshold, min_shot_frames
        self._count, self._start = 0, 0  # frames so far, and the first of the run that they end in, or their number
        self._counts = False  # whether that run is a transition
        self._found: Transition | None = None  # may still grow

    def take(self, marks: Marks) -> Iterator[Transition]:
        """Take the marks of the next few frames; give the transitions that are certain now."""
        for single, many in (marks > self._threshold).tolist():
            if not (single or many):
                yield from self._end_run()
                self._start = self._count + 1
            self._counts |= single
            self._count += 1
        if self._found and self._start - self._found.end >= self._min_shot_frames:
            yield self._found
            self._found = None

    def finish(self) -> Iterator[Transition]:
        """Give the last transition."""
        yield from self._end_run()
        if not self._found:
            return
        start, end = self._found.start, self._found.end
        end = self._count if self._count - end < self._min_shot_frames else end
        if start < self._count:  # after the last frame there is no other shot
            yield Transition(start=start, end=end)

    def _end_run(self) -> Iterator[Transition]:
        """Turn the run before this frame, if it counts, into a transition that may still grow; give the one before."""
        if not self._counts:
            return
        start, end, before = self._start, self._count, self._found
        start += end - start == 1
        if before and start - before.end < self._min_shot_frames:
            start = before.start
        elif before:
            yield before
        start = 0 if start < self._min_shot_frames else start
        self._found, self._counts = Transition(start=start, end=end), False
