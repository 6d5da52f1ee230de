"""Fixtures of the pipeline's tests: a warm decoder, scans of one file, sensible records, and one finished run."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from pipeline.config import RunConfig, load_run_config
from pipeline.ingest import IngestReport, ingest
from pipeline.protocol import Limits
from pipeline.records import Clip
from pipeline.sandbox import Sandbox
from pipeline.scan import ScanOptions
from pipeline.spans import Span
from tests.media import shots, write_image, write_video

ROOT = Path(__file__).parents[2]
Scanned = tuple[dict[str, Any], dict[str, NDArray[Any]]]
Scan = Callable[..., Scanned]
ReadSpan = Callable[..., tuple[str, NDArray[np.uint8]]]
MakeClip = Callable[..., Clip]
Configure = Callable[..., RunConfig]
SCAN = ScanOptions(
    threshold=3.0,
    min_shot_frames=5,
    max_clip_s=10.0,
    frames_per_clip=4,
    frame_side_px=32,
    max_pixels=1 << 22,
    threads=1,
)
LIMITS = Limits(wall_s=60.0, memory_bytes=2 << 30)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """One decoder server for all tests that do not harm it."""
    warm = Sandbox()
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def scan(sandbox: Sandbox) -> Scan:
    """Scans a file in the sandbox: `scan(path, limits=…, max_clip_s=…)` gives its facts and arrays."""

    def run(path: Path, limits: Limits = LIMITS, **options: Any) -> Scanned:
        with open(path, "rb") as file:
            facts, arrays = sandbox.call("scan", file, ScanOptions(**{**vars(SCAN), **options}), limits)
        return facts, dict(arrays)

    return run


@pytest.fixture(scope="session")
def read_span(sandbox: Sandbox, scan: Scan) -> ReadSpan:
    """Reads frames by number at a size: `read_span(path, numbers, resized, reader=…)` gives who read, and the frames."""

    def run(
        path: Path,
        numbers: tuple[int, ...],
        resized: tuple[int, int],
        *,
        size: tuple[int, int] | None = None,
        reader: str = "pyav",
        crop: tuple[int, int, int, int] | None = None,
    ) -> tuple[str, NDArray[np.uint8]]:
        facts, arrays = scan(path)
        times = tuple(float(arrays["times_s"][number]) for number in numbers)
        span = Span(
            numbers=numbers,
            times_s=times,
            frames=facts["frames"],
            shown=(facts["height_px"], facts["width_px"]),
            crop=crop or (0, 0, facts["height_px"], facts["width_px"]),
            resized=resized,
            size=size or resized,
            reader=reader,
            threads=1,
        )
        with open(path, "rb") as file:
            answer, found = sandbox.call("read_span", file, span, LIMITS)
        return answer["reader"], found["frames"]

    return run


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """Makes a clip of two seconds at 16 frames a second; arguments are fields that differ."""

    def make(**changes: Any) -> Clip:
        fields: dict[str, Any] = {
            "clip_id": "c" * 32,
            "source_key": "k" * 32,
            "source_id": "s" * 32,
            "start_s": 0.0,
            "end_s": 2.0,
            "start_frame": 0,
            "end_frame": 32,
            "height_px": 64,
            "width_px": 96,
            "fps": 16.0,
            "frame_times_s": (0.0, 1.0),
            "measures": {"luma": 0.5, "contrast": 0.2, "motion": 0.1},
        }
        fields = {**fields, **changes}
        whole = (0, 0, fields["height_px"], fields["width_px"])
        return Clip(**{"crop": whole, "shot_start_frame": fields["start_frame"], **fields})

    return make


@pytest.fixture(scope="session")
def configure(tiny_models: Path) -> Configure:
    """Loads configs/tiny.yaml with the session's models: `configure("input.uri=videos", "run=out", …)`."""
    models = [
        f"score.model=local-dir:{tiny_models}/clip",
        f"recaption.model={tiny_models}/captioner",
        f"encode.model={tiny_models}/codec",
        f"embed.model={tiny_models}/text",
        "runner=local",
    ]

    def load(*overrides: str) -> RunConfig:
        return load_run_config(str(ROOT / "configs/tiny.yaml"), ["input.uri=none", "run=none", *models, *overrides])

    return load


# ---- one small job, done once -------------------------------------------------------------------------------------------

Settings = Callable[..., list[str]]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good videos of five codecs, a still, a copy, and broken files; `titles.csv` beside the folder."""
    folder = tmp_path_factory.mktemp("corpus") / "videos"
    write_video(folder / "a.mp4", shots([20, 24]))
    write_video(folder / "b.avi", shots([16, 20], first_scene=3), codec="mpeg4")
    write_video(folder / "c.webm", shots([14, 12, 16], first_scene=5), codec="libvpx-vp9")
    write_video(folder / "d.mkv", shots([18, 18], first_scene=2, height=96, width=64), codec="libx265")
    write_video(folder / "e.mp4", shots([40], first_scene=4))
    write_video(folder / "dark.mp4", [np.full((64, 96, 3), 2, np.uint8)] * 16)
    write_video(folder / "short.mp4", shots([3]))
    write_image(folder / "f.png")
    (folder / "z_copy_of_a.bin").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "cut_off.mp4").write_bytes((folder / "e.mp4").read_bytes()[:2000])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "page.mp4").write_text("<html>404 not found</html>")
    (folder.parent / "titles.csv").write_text("file,title\na.mp4,Two patterns\nd.mkv,Upright\n")
    return folder


@pytest.fixture(scope="session")
def settings(tiny_models: Path, videos: Path) -> Settings:
    """Makes the overrides of configs/tiny.yaml for a local run over `videos`: `settings(run, "pack.length=64", …)`."""

    def make(run: Path, *more: str) -> list[str]:
        return [
            f"run={run}",
            "runner=local",
            f"input.uri={videos}",
            f"input.text={videos.parent}/titles.csv",
            "input.partition_size=4",
            "split.chunk=1",
            f"score.model=local-dir:{tiny_models}/clip",
            f"recaption.model={tiny_models}/captioner",
            "recaption.prompts.short.max_new_tokens=6",
            "recaption.prompts.dense.max_new_tokens=8",
            f"encode.model={tiny_models}/codec",
            f"embed.model={tiny_models}/text",
            "pack.length=96",
            *more,
        ]

    return make


@pytest.fixture(scope="session")
def run_job(settings: Settings) -> Callable[..., IngestReport]:
    """Ingests in this process: `run_job(run, "pack.length=64", retry=True)`."""

    def run(folder: Path, *more: str, retry: bool = False) -> IngestReport:
        config = load_run_config(str(ROOT / "configs/tiny.yaml"), settings(folder, *more))
        return ingest(config, retry=retry, console=Console(quiet=True))

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, run_job: Callable[..., IngestReport]) -> tuple[Path, IngestReport]:
    """A finished run, to look at and not to change, and what its job reported."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run_job(folder)


@pytest.fixture
def run_copy(finished: tuple[Path, IngestReport], tmp_path: Path) -> Path:
    """A finished run of the test's own."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))
