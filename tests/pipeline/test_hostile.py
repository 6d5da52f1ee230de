"""Hostile files: each has its named fate, costs no other file, and makes nobody read what is not its own."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import SplitConfig
from pipeline.media import sniff
from pipeline.records import Outcome, Source, SplitResult
from pipeline.sandbox import DecodeError
from pipeline.stages.split import Split
from tests.media import shots, write_image, write_video
from tests.pipeline.hostile import CONFIG, Canary, Hostile, canaries, hostile_files, patched

Scan = Callable[..., Any]
FATES = (
    *("ok", "unrecognised", "truncated", "no_video", "attached_picture", "too_short", "too_large", "too_long", "time_base"),
    *("frame_count", "shape_change", "corrupt", "timeout", "memory", "not_regular", "io"),
)


# ---- the whole collection ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    with canaries(tmp_path_factory.mktemp("canaries")) as found:
        yield found


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, canary: Canary) -> list[Hostile]:
    return hostile_files(tmp_path_factory.mktemp("hostile"), canary)


def split(stages: dict[str, Split], file: Hostile) -> Outcome[SplitResult]:
    """Send a file through the split stage, as a job does."""
    stage = stages.setdefault(repr(file.config), Split(chunk=1, config=SplitConfig(**{**CONFIG, **file.config})))
    size = file.size_bytes if file.size_bytes is not None else file.path.lstat().st_size
    source = Source(key=str(file.path), uri=str(file.path), size_bytes=size, etag="", text={})
    (outcome,) = stage.process([source])
    return outcome


def unlike(file: Hostile, outcome: Outcome[SplitResult], seconds: float) -> str:
    """Tell how an outcome differs from what it must be."""
    fate = outcome.failure.error if outcome.failure else "ok"
    frames = outcome.value.frames if outcome.value else None
    differs = fate != file.fate or (file.frames and frames != file.frames) or seconds > CONFIG["timeout_s"] + 2
    told = outcome.failure.message if outcome.failure else ""
    return f"{file.kind}/{file.path.name}: {fate} {frames} in {seconds:.1f} s, not {file.fate}: {told}" if differs else ""


@pytest.mark.integration
def test_every_hostile_file_has_its_fate_and_nobody_touches_a_canary(collection: list[Hostile], canary: Canary) -> None:
    stages: dict[str, Split] = {}
    found = []
    for file in collection:
        started = time.monotonic()
        outcome = split(stages, file)
        found.append(unlike(file, outcome, time.monotonic() - started))
        assert outcome.failure is None or "\n" not in outcome.failure.message
    for stage in stages.values():
        stage.close()
    assert [text for text in found if text] == []
    assert canary.touched() == []


@pytest.mark.integration
def test_without_a_filter_of_system_calls_nobody_touches_a_canary_either(collection: list[Hostile], canary: Canary) -> None:
    stage = Split(chunk=1, config=SplitConfig(**{**CONFIG, "seccomp": "off"}))
    pointing = [
        file for file in collection if file.kind.startswith(("playlist", "data_ref", "reference", "linked", "subtitles"))
    ]
    assert [text for file in pointing if (text := unlike(file, split({repr({}): stage}, file), 0.0))] == []
    stage.close()
    assert canary.touched() == []


@pytest.mark.integration
def test_the_collection_is_large_and_has_every_fate(collection: list[Hostile]) -> None:
    assert len(collection) >= 120
    assert len({file.kind for file in collection}) >= 30
    assert {file.fate for file in collection} == set(FATES)


def test_a_canary_that_is_touched_is_seen(tmp_path: Path) -> None:
    with canaries(tmp_path) as found:
        assert found.touched() == []
        found.file.read_bytes()
        assert found.touched() == ["file"]


# ---- by name -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mp4 with its index at the end."""
    return write_video(tmp_path_factory.mktemp("good") / "a.mp4", shots([12, 9])).read_bytes()


@pytest.fixture(scope="module")
def streamable(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mp4 with its index at the start."""
    path = tmp_path_factory.mktemp("good") / "a.mp4"
    return write_video(path, shots([12, 9]), options={"movflags": "faststart"}).read_bytes()


def fate(scan: Scan, path: Path, **options: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        scan(path, **options)
    assert "\n" not in str(caught.value)
    return caught.value.error


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[: len(data) * 6 // 10], "truncated"),
        (lambda data: patched(data, b"stsz", 12, 0x0FFFFFFF), "corrupt"),
        (lambda data: patched(data, b"stts", 8, 0x0FFFFFFF), "memory"),  # it asks for 2 GiB at once
        (lambda data: patched(data, b"moov", -4, 4), "corrupt"),
        (lambda data: patched(data, b"stsz", 16, 0x7FFFFFFF), "frame_count"),
        (lambda data: data.replace(b"avc1", b"zzzz"), "unrecognised"),
    ],
    ids=["no index", "samples", "times", "box size", "sample size", "unknown codec"],
)
def test_a_broken_mp4_has_a_named_fate(
    scan: Scan, tmp_path: Path, good: bytes, change: Callable[[bytes], bytes], error: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(change(good))
    assert fate(scan, tmp_path / "a.mp4") == error


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_video_that_ends_inside_a_frame_is_truncated(scan: Scan, tmp_path: Path, streamable: bytes, share: float) -> None:
    (tmp_path / "a.mp4").write_bytes(streamable[: int(len(streamable) * share)])
    assert fate(scan, tmp_path / "a.mp4") == "truncated"


def test_a_lie_about_the_duration_is_not_believed(scan: Scan, tmp_path: Path, good: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(patched(good, b"mvhd", 20, 0x7FFFFFFF))
    facts, _ = scan(tmp_path / "a.mp4")
    assert (facts["frames"], facts["duration_s"]) == (21, pytest.approx(21 / 16))


def test_a_broken_image_is_corrupt(scan: Scan, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:300])
    assert fate(scan, path) == "corrupt"


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_picture_over_the_limit_of_pixels_is_too_large(scan: Scan, tmp_path: Path, good: bytes, kind: str) -> None:
    path = write_image(tmp_path / "a")
    if kind == "video":
        path.write_bytes(good)
    assert fate(scan, path, max_pixels=64 * 96 - 1) == "too_large"
    scan(path, max_pixels=64 * 96)


def test_an_image_whose_header_claims_a_bomb_is_too_large(scan: Scan, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    path.write_bytes(patched(patched(path.read_bytes(), b"IHDR", 4, 50_000), b"IHDR", 8, 50_000))
    assert fate(scan, path) in ("too_large", "corrupt")


@pytest.mark.parametrize("text", ["#EXTM3U\n", "ffconcat version 1.0\n", "[playlist]\n", "v=0\n", "<MPD>", "%!PS"])
def test_no_script_of_a_demuxer_is_on_the_list(text: str) -> None:
    assert sniff(text.encode().ljust(4096)) is None


def test_a_prefix_is_kept_only_where_it_is_asked_for(scan: Scan, tmp_path: Path, streamable: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(streamable[: len(streamable) // 2])
    assert fate(scan, tmp_path / "a.mp4") == "truncated"
    facts, arrays = scan(tmp_path / "a.mp4", partial="keep_prefix")
    assert "prefix" in facts["quirks"]
    assert 0 < facts["frames"] == len(arrays["times_s"]) < 21
    assert facts["clips"][-1]["end_frame"] == facts["frames"]


def test_a_whole_file_is_no_prefix(scan: Scan, tmp_path: Path, good: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(good)
    facts, _ = scan(tmp_path / "a.mp4", partial="keep_prefix")
    assert (facts["frames"], facts["quirks"]) == (21, [])
