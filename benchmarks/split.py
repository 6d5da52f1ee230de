"""How much a scan costs over bare decoding, beside PySceneDetect, on the same files in the same run.

    python benchmarks/split.py FILE...
    python benchmarks/split.py --lengths 1 10 60

For each file: bare PyAV decode on one thread; our scan (cuts, measures, pictures for the models) in its warm sandbox, hashing
and all; PySceneDetect's scene manager with its OpenCV and PyAV backends and AdaptiveDetector, which decode on as many threads
as they like; and data-juicer's scene operator where it is installed, which then encodes every clip of a file with more than one
scene. The least of a few runs of each, in turns, in seconds of wall clock. Our frames a second are those of one core. Passes
are the frames that decoders gave during one scan over those of the file.

With --lengths: what minutes of one generated video (320x180, h264, 24 frames a second, a cut every five seconds) cost, beside
bare decode; the most memory that the decoder's process held, and the memory of its own that the calling process had at the end
beyond what it had at first; beside them the pictures of all clips, which lie in a file.
"""

import contextlib
import importlib.util
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.logging
import cv2
from rich.console import Console
from rich.table import Table
from scenedetect import AdaptiveDetector, SceneManager, open_video

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `packing` would be packing.py of this folder

from pipeline import media, scan
from pipeline.config import SplitConfig
from pipeline.media import plain_video
from pipeline.protocol import Limits
from pipeline.sandbox import Sandbox
from pipeline.scan import ScanOptions
from pipeline.stages.split import Split
from tests.media import shots, write_video

REPEATS = 5
MINUTE = [5 * 24] * 12  # frames of its shots


def main(paths: list[str]) -> None:
    """Measure every file and print a table."""
    cv2.setNumThreads(1)
    av.logging.set_libav_level(av.logging.PANIC)  # it warns of what peers ask of it, and of streams that nothing decodes
    sandbox, stage = Sandbox(), Split(chunk=1, config=SplitConfig())
    limits = Limits(wall_s=600, memory_bytes=4 << 30)
    table = Table("file", "frames", "size", "decode s", "ours s", "frames / s", "passes", "ours / decode", *PEERS)
    ratios = []
    for path in paths:
        with open(path, "rb") as file:
            facts, _ = sandbox.call("scan", file, stage.options, limits)  # warms the server and the page cache
            works = [lambda path=path: decode(path), lambda file=file: sandbox.call("scan", file, stage.options, limits)]
            works += [lambda path=path, peer=peer: peer(path) for peer in PEERS.values()]
            decode_s, ours_s, *theirs_s = fastest_in_turns(works)
            passes = decoded_frames(file, stage.options) / facts["frames"]
        ratios.append(ours_s / decode_s)
        table.add_row(
            Path(path).name,
            str(facts["frames"]),
            f"{facts['width_px']}x{facts['height_px']}",
            f"{decode_s:.3f}",
            f"{ours_s:.3f}",
            f"{facts['frames'] / ours_s:.0f}",
            f"{passes:g}",
            f"{ratios[-1]:.2f}",
            *(f"{seconds / decode_s:.2f}" for seconds in theirs_s),
        )
    sandbox.close()
    console = Console(width=160)
    console.print(table)
    console.print(f"median of ours ÷ decode: {statistics.median(ratios):.2f}")


def lengths(minutes: list[int]) -> None:
    """Measure videos of so many minutes, each in a process of its own, and print a table."""
    table = Table(
        "minutes",
        "frames",
        "clips",
        "decode s",
        "ours s",
        "frames / s",
        "ours / decode",
        "decoder MB",
        "caller MB",
        "pictures MB",
    )
    with tempfile.TemporaryDirectory() as folder:
        minute = write_video(Path(folder) / "minute.mp4", shots(MINUTE, height=180, width=320), fps=24)
        for count in minutes:
            path = looped(minute, Path(folder) / f"{count}.mp4", count)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                frames, clips, decode_s, ours_s, *sizes_mb = alone.submit(cost, str(path)).result()
            speed, ratio = f"{frames / ours_s:.0f}", f"{ours_s / decode_s:.2f}"
            sizes = [f"{size_mb:.0f}" for size_mb in sizes_mb]
            table.add_row(str(count), str(frames), str(clips), f"{decode_s:.2f}", f"{ours_s:.2f}", speed, ratio, *sizes)
    Console(width=160).print(table)


def looped(minute: Path, path: Path, count: int) -> Path:
    """Write a video `count` times end to end without encoding it again."""
    with av.open(str(path), "w") as out:
        target = None
        for turn in range(count):
            with av.open(str(minute)) as container:
                source = container.streams.video[0]
                target = target or out.add_stream_from_template(source)
                for packet in itertools.takewhile(lambda packet: packet.size, container.demux(source)):
                    packet.pts += turn * source.duration
                    packet.dts += turn * source.duration
                    packet.stream = target
                    out.mux(packet)
    return path


def cost(path: str) -> tuple[int, int, float, float, float, float, float]:
    """Return frames, clips, seconds of bare decode and of the scan, megabytes of the decoder, this process and pictures."""
    sandbox, stage = Sandbox(), Split(chunk=1, config=SplitConfig())
    limits = Limits(wall_s=3600, memory_bytes=16 << 30)
    with plain_video() as file:
        sandbox.call("scan", file, stage.options, limits)  # warms the server
    started, before_mb = time.perf_counter(), held(os.getpid(), "RssAnon:")
    decode(path)
    decoded = time.perf_counter()
    with open(path, "rb") as file, ThreadPoolExecutor(1) as beside:
        scanning = beside.submit(sandbox.call, "scan", file, stage.options, limits)
        peak_mb = 0.0
        while not scanning.done():
            peak_mb = max(peak_mb, *(held(pid, "VmHWM:") for pid in grandchildren()), 0.0)
            time.sleep(0.01)
        facts, arrays = scanning.result()
    ended = time.perf_counter()
    sandbox.close()
    pictures_mb = sum(array.nbytes for array in arrays.values()) / 1e6
    own_mb = held(os.getpid(), "RssAnon:") - before_mb
    return facts["frames"], len(facts["clips"]), decoded - started, ended - decoded, peak_mb, own_mb, pictures_mb


def grandchildren() -> list[int]:
    """List the children of this process's children: those of the sandbox's server."""
    return [pid for child in children(os.getpid()) for pid in children(child)]


def children(pid: int) -> list[int]:
    """List the children of a process by all its threads."""
    found = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, listing.read_text().split())
    return found


def held(pid: int, kind: str) -> float:
    """Return megabytes of a kind of memory that a process holds, or held since its fork; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(kind):
                return int(line.split()[1]) / 1024
    return 0.0


def decode(path: str) -> None:
    """Decode all frames on one thread and do nothing with them."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass


def decoded_frames(file: BinaryIO, options: ScanOptions) -> int:
    """Scan in this process and count the frames that come out of decoders."""
    decoded, count = media.decoded, 0

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal count
        for frame in decoded(*arguments):
            count += 1
            yield frame

    media.decoded = counted
    try:
        file.seek(0)
        scan.scan(file, options, lambda *_: None)
    finally:
        media.decoded = decoded
    return count


def detect(path: str, backend: str) -> None:
    """Find cuts as PySceneDetect's own `detect` does."""
    manager = SceneManager()
    manager.add_detector(AdaptiveDetector())
    manager.detect_scenes(open_video(path, backend=backend))


def juicer(path: str) -> None:
    """Split as data-juicer's operator does: detect with PySceneDetect, then encode every clip if there is more than one."""
    from data_juicer.ops.mapper.video_split_by_scene_mapper import VideoSplitBySceneMapper

    with tempfile.TemporaryDirectory() as folder:
        operator = VideoSplitBySceneMapper(detector="AdaptiveDetector", threshold=3.0, save_dir=folder)
        clips = operator.process_single({"text": "", "videos": [path]})["videos"]
        if not all(map(os.path.isfile, clips)):  # it only logs what went wrong, and names clips all the same
            raise RuntimeError("data-juicer did not write its clips: is ffmpeg installed?")


PEERS: dict[str, Callable[[str], None]] = {
    "PySceneDetect / decode": lambda path: detect(path, "opencv"),
    "with PyAV / decode": lambda path: detect(path, "pyav"),
}
if importlib.util.find_spec("data_juicer"):
    PEERS["data-juicer / decode"] = juicer


def fastest_in_turns(works: Sequence[Callable[[], object]]) -> list[float]:
    """Return the shortest of a few runs of each, in seconds; in turns, so that whatever else the machine does hits all."""
    times = []
    for _ in range(REPEATS):
        for work in works:
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    return [min(times[number :: len(works)]) for number in range(len(works))]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--lengths"]:
        lengths([int(minutes) for minutes in sys.argv[2:]])
    else:
        main(sys.argv[1:])
