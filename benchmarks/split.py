"""How much a scan costs over bare decoding, beside PySceneDetect, on the same files in the same run.

    python benchmarks/split.py FILE...

For each file: bare PyAV decode on one thread; our scan (cuts, measures, pictures for the models) in its warm sandbox, hashing
and all; PySceneDetect's scene manager with its OpenCV and PyAV backends and the same detector, which decode on as many threads
as they like. Minimum of three, seconds of wall clock.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
from rich.console import Console
from rich.table import Table
from scenedetect import AdaptiveDetector, SceneManager, open_video

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `packing` would be packing.py of this folder

from pipeline.config import SplitConfig
from pipeline.sandbox import Limits, Sandbox
from pipeline.stages.split import Split

REPEATS = 3


def main(paths: list[str]) -> None:
    """Measure every file and print a table."""
    cv2.setNumThreads(1)
    sandbox, stage = Sandbox(), Split(chunk=1, config=SplitConfig())
    limits = Limits(wall_s=600, memory_bytes=4 << 30)
    table = Table(
        "file", "frames", "size", "decode s", "ours s", "ours / decode", "PySceneDetect / decode", "with PyAV / decode"
    )
    ratios = []
    for path in paths:
        with open(path, "rb") as file:
            facts, _ = sandbox.call("scan", file, stage.options, limits)  # warms the server and the page cache
            decode_s = fastest(lambda path=path: decode(path))
            ours_s = fastest(lambda file=file: sandbox.call("scan", file, stage.options, limits))
        theirs = [fastest(lambda path=path, backend=backend: detect(path, backend)) for backend in ("opencv", "pyav")]
        ratios.append(ours_s / decode_s)
        table.add_row(
            Path(path).name,
            str(facts["frames"]),
            f"{facts['width_px']}x{facts['height_px']}",
            f"{decode_s:.3f}",
            f"{ours_s:.3f}",
            f"{ratios[-1]:.2f}",
            *(f"{seconds / decode_s:.2f}" for seconds in theirs),
        )
    sandbox.close()
    console = Console(width=160)
    console.print(table)
    console.print(f"median of ours ÷ decode: {statistics.median(ratios):.2f}")


def decode(path: str) -> None:
    """Decode all frames on one thread and do nothing with them."""
    with av.open(path) as media:
        media.streams.video[0].codec_context.thread_count = 1
        for _ in media.decode(video=0):
            pass


def detect(path: str, backend: str) -> None:
    """Find cuts as PySceneDetect's own `detect` does."""
    manager = SceneManager()
    manager.add_detector(AdaptiveDetector())
    manager.detect_scenes(open_video(path, backend=backend))


def fastest(work: Callable[[], object]) -> float:
    """Return the shortest of a few runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main(sys.argv[1:])
