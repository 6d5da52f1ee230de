"""A run in one process: every source and clip has a fate, nothing is done twice, and a change redoes what it must."""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import pytest
import webdataset
from safetensors.torch import load

from packing.manifest import open_manifest
from packing.rows import read_index
from packing.store import Store
from pipeline.ingest import IngestReport
from pipeline.job import open_job
from pipeline.ledger import Ledger, funnel
from pipeline.verify import verify
from pipeline.work import Work
from tests.media import Picture, shots, write_image, write_video

pytestmark = pytest.mark.integration
RunJob = Callable[..., IngestReport]
Finished = tuple[Path, IngestReport]
CLIPS = 13  # 2 + 2 + 3 + 2 + 1 + dark + short + still
SCORED = {
    "score": 13,
    "recaption": 13,
    "encode": 13,
    "embed": 13,
}  # without dark and short; the copy's lie in another partition


def ledger_of(run: Path) -> Ledger:
    return Ledger(open_job(str(run)))


def done(report: IngestReport) -> dict[str, int]:
    return {stage: work.ok + work.failed for stage, work in report.work.items() if work.ok + work.failed}


def parts(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.glob("results/*/*/*")}


def shards(run: Path) -> list[Path]:
    manifest, base = open_manifest(str(run))
    return [Path(base) / entry.name for entry in manifest.shards]


def segments(run: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for shard in shards(run):
        with tarfile.open(shard) as tar:
            names = [name for name in tar.getnames() if name.endswith(".json")]
            found += [segment for name in names for segment in json.load(tar.extractfile(name))["segments"]]  # type: ignore[arg-type]
    return found


# ---- fates -------------------------------------------------------------------------------------------------------------


def test_a_run_verifies(finished: Finished) -> None:
    assert verify(open_job(str(finished[0]))) == {
        "ok": True,
        "sources": 12,
        "clips": CLIPS,
        "packed": 10,
        "rejected": 3,
        "failed": 0,
        "failed_sources": 3,
        "violations": [],
    }


def test_every_source_and_every_clip_is_counted_once(finished: Finished) -> None:
    facts = funnel(ledger_of(finished[0]))
    sources, clips = facts["sources"], facts["clips"]
    assert sources == {
        "planned": 12,
        "split": 9,
        "failed": {"truncated": 1, "unrecognised": 2},
        "duplicates": 1,
        "waiting": 0,
    }
    assert clips["rejected"] == {"too_dark": 1, "too_short": 1, "pack.length": 1}
    assert clips["cut"] == clips["packed"] + sum(clips["rejected"].values()) + sum(clips["failed"].values())
    assert clips["waiting"] == {}


def test_what_was_done_is_reported(finished: Finished) -> None:
    work = finished[1].work
    assert work["split"] == Work(ok=9, failed=3)
    assert {stage: counts.ok for stage, counts in work.items() if stage != "split"} == SCORED
    assert finished[1].shards_written == 1


def test_byte_equal_copies_are_packed_once(finished: Finished) -> None:
    ids = [segment["clip_id"] for segment in segments(finished[0])]
    assert len(ids) == len(set(ids)) == 10
    (copy,) = ledger_of(finished[0]).duplicates()
    assert copy.uri.endswith("/z_copy_of_a.bin")


def test_a_packed_clip_tells_where_it_comes_from_and_what_was_found(finished: Finished) -> None:
    (segment,) = [s for s in segments(finished[0]) if s["uri"].endswith("/d.mkv") and s["start_s"] == 0]
    assert (segment["source_size"], segment["duration_s"]) == ([96, 64], pytest.approx(18 / 16, abs=2e-3))
    assert segment["measures"].keys() >= {"luma", "contrast", "motion"}
    assert segment["scores"].keys() == {"consistency", "title_card", "title_similarity"}
    assert [caption["prompt"] for caption in segment["captions"]] == ["short", "dense", "title"]
    assert segment["captions"][-1]["text"] == "Upright"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's files
def test_a_shard_is_iterated_by_stock_webdataset(finished: Finished) -> None:
    urls = [str(path) for path in shards(finished[0])]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    manifest, _ = open_manifest(str(finished[0]))
    assert len(samples) == manifest.rows
    for sample in samples:
        tensors, facts = load(sample["tokens.safetensors"]), json.loads(sample["json"])
        assert len(tensors["cu_seqlens"]) == len(facts["segments"]) + 1
        assert tensors["latents"].shape == (tensors["cu_seqlens"][-1], manifest.token_dim)


def test_a_finished_run_tells_its_whole_progress(finished: Finished) -> None:
    stages = json.loads((finished[0] / "status.json").read_text())["stages"]
    assert stages["split"] == stages["split"] | {"done": 12, "kept": 9, "failed": 3, "waiting": 0}
    assert stages["embed"]["waiting"] == 0


# ---- doing it again ----------------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing(run_copy: Path, run_job: RunJob, finished: Finished) -> None:
    before = parts(run_copy)
    report = run_job(run_copy)
    assert done(report) == {}
    assert {stage: work.reused for stage, work in report.work.items()} == {"split": 12, **SCORED}
    assert report.shards_written == 0
    assert report.manifest == finished[1].manifest
    assert parts(run_copy) == before


def test_a_looser_rule_processes_only_the_newly_admitted_clips(run_copy: Path, run_job: RunJob) -> None:
    before = parts(run_copy)
    report = run_job(run_copy, "select.rules=[{value: luma, min: 0.0, name: too_dark}]")
    assert done(report) == {"score": 1, "recaption": 1, "encode": 1, "embed": 1}
    assert report.manifest is not None
    assert report.manifest.clips == 11
    after = parts(run_copy)
    assert {name: after[name] for name in before} == before
    assert verify(open_job(str(run_copy)))["ok"]


def test_a_shorter_minimum_decodes_nothing_again(run_copy: Path, run_job: RunJob) -> None:
    report = run_job(run_copy, "split.min_clip_s=0.1")
    assert done(report) == {"score": 1, "recaption": 1, "encode": 1, "embed": 1}
    assert verify(open_job(str(run_copy)))["rejected"] == 2


def test_a_stricter_rule_over_a_score_packs_fewer_clips_and_computes_nothing(run_copy: Path, run_job: RunJob) -> None:
    scores = sorted({outcome.result.scores["title_card"] for outcome in ledger_of(run_copy).outcomes["score"].values()})
    bound = scores[len(scores) // 2]
    report = run_job(run_copy, f"select.rules=[{{value: luma, min: 0.02}}, {{value: title_card, max: {bound!r}, name: card}}]")
    assert done(report) == {}
    facts = funnel(ledger_of(run_copy))["clips"]
    assert facts["rejected"]["card"] > 0
    assert report.manifest is not None
    assert report.manifest.clips == facts["packed"] < 10
    assert verify(open_job(str(run_copy)))["ok"]


def test_a_new_prompt_redoes_captions_and_their_features_only(run_copy: Path, run_job: RunJob) -> None:
    report = run_job(run_copy, "recaption.prompts.colours={text: Which colours?, max_new_tokens: 4}")
    assert done(report) == {"recaption": 13, "embed": 13}
    assert [caption["prompt"] for caption in segments(run_copy)[0]["captions"]][:3] == ["short", "dense", "colours"]


def test_a_setting_that_is_changed_back_finds_its_results(run_copy: Path, run_job: RunJob, finished: Finished) -> None:
    assert done(run_job(run_copy, "encode.max_frames=5")) == {"encode": 13}
    back = run_job(run_copy)
    assert (done(back), back.shards_written, back.manifest) == ({}, 0, finished[1].manifest)
    assert open_manifest(str(run_copy))[0] == finished[1].manifest


def test_another_length_packs_again_and_encodes_nothing(run_copy: Path, run_job: RunJob) -> None:
    old = {path: path.read_bytes() for path in shards(run_copy)}
    report = run_job(run_copy, "pack.length=256")
    assert done(report) == {}
    assert report.shards_written == 1
    assert report.manifest is not None
    assert (report.manifest.clips, report.manifest.sequence_length) == (11, 256)
    assert {path: path.read_bytes() for path in old} == old
    assert verify(open_job(str(run_copy)))["ok"]


def test_retry_gives_failed_sources_another_attempt_and_touches_nothing_else(run_copy: Path, run_job: RunJob) -> None:
    report = run_job(run_copy, retry=True)
    assert done(report) == {"split": 3}
    assert {outcome.attempt for outcome in ledger_of(run_copy).outcomes["split"].values() if outcome.failure} == {2}
    assert done(run_job(run_copy)) == {}
    assert verify(open_job(str(run_copy)))["ok"]


def test_the_same_input_gives_the_same_shards_in_another_folder(tmp_path: Path, run_job: RunJob, finished: Finished) -> None:
    assert run_job(tmp_path / "other").manifest == finished[1].manifest


def test_new_files_are_planned_and_processed_alone(tmp_path: Path, run_job: RunJob) -> None:
    folder, run = tmp_path / "in", tmp_path / "run"
    write_video(folder / "b.mp4", shots([12]))
    run_job(run, f"input.uri={folder}", "input.text=''")
    write_video(folder / "a.mp4", shots([12], first_scene=2))
    report = run_job(run, f"input.uri={folder}", "input.text=''")
    assert done(report) == {"split": 1, "score": 1, "recaption": 1, "encode": 1, "embed": 1}
    assert sorted(path.name for path in (run / "plan").iterdir()) == ["000.json", "001.json"]
    assert verify(open_job(str(run)))["packed"] == 2


def test_a_file_that_changes_after_planning_fails_alone(tmp_path: Path, run_job: RunJob) -> None:
    table = tmp_path / "list.csv"
    write_video(tmp_path / "a.mp4", shots([12]))
    table.write_text("uri\na.mp4\ngone.mp4\n")
    report = run_job(tmp_path / "run", f"input.uri={table}", "input.text=''")
    assert report.work["split"] == Work(ok=1, failed=1)
    assert funnel(ledger_of(tmp_path / "run"))["sources"]["failed"] == {"io": 1}


# ---- copies ------------------------------------------------------------------------------------------------------------


def larger() -> Iterator[Picture]:
    """The frames of `b` in another size."""
    return (cv2.resize(frame, (192, 128)) for frame in shots([32], first_scene=2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources `b` and, encoded again in another size and codec, `c`; in the order of the plan."""
    write_video(tmp_path / "in/b.mp4", shots([32], first_scene=2))
    write_video(tmp_path / "in/c.avi", larger(), codec="mpeg4")
    write_image(tmp_path / "in/d.png", 5)
    write_image(tmp_path / "in/e.png", 5, height=128, width=192)
    return tmp_path / "in"


def copies(run: Path) -> dict[str, str]:
    """The files of which a clip is rejected as a copy, and the file of the clip that each copies."""
    ledger = ledger_of(run)
    names = {source.key: Path(source.uri).name for source in ledger.sources}
    of = {clip_id: names[clip.source_key] for clip_id, clip in ledger.clips.items()}
    return {of[clip.clip_id]: of[fate.duplicate_of] for clip, fate in ledger.fates() if fate.duplicate_of}


def test_a_clip_encoded_again_is_a_copy_of_the_first_in_the_plan(tmp_path: Path, run_job: RunJob, folder: Path) -> None:
    run = tmp_path / "run"
    report = run_job(run, f"input.uri={folder}", "input.text=''")
    assert copies(run) == {"c.avi": "b.mp4", "e.png": "d.png"}
    rejections = [fate.rejected for _, fate in ledger_of(run).fates() if fate.rejected]
    assert {(broken.rule, broken.threshold) for broken in rejections} == {("duplicate", 0.38)}
    assert all(broken.value is not None and 0 <= broken.value <= 0.38 for broken in rejections)
    clips = funnel(ledger_of(run))["clips"]
    assert (clips["cut"], clips["packed"], clips["rejected"], clips["waiting"]) == (4, 2, {"duplicate": 2}, {})
    assert report.manifest is not None
    assert report.manifest.clips == 2
    assert verify(open_job(str(run)))["ok"]


def test_sources_planned_later_never_push_a_packed_clip_out(tmp_path: Path, run_job: RunJob, folder: Path) -> None:
    run = tmp_path / "run"
    run_job(run, f"input.uri={folder}", "input.text=''")
    write_video(folder / "a.mp4", larger())
    report = run_job(run, f"input.uri={folder}", "input.text=''")
    assert copies(run) == {"a.mp4": "b.mp4", "c.avi": "b.mp4", "e.png": "d.png"}
    assert report.shards_written == 0
    assert verify(open_job(str(run)))["ok"]


def test_a_clip_that_is_rejected_owns_no_content(tmp_path: Path, run_job: RunJob, folder: Path) -> None:
    small = "select.rules=[{value: short_side_px, min: 100, name: too_small}]"
    run_job(tmp_path / "run", f"input.uri={folder}", "input.text=''", small)
    assert copies(tmp_path / "run") == {}
    assert funnel(ledger_of(tmp_path / "run"))["clips"]["rejected"] == {"too_small": 2}


def test_keeping_copies_packs_them_and_computes_nothing(tmp_path: Path, run_job: RunJob, folder: Path) -> None:
    run, settings = tmp_path / "run", (f"input.uri={folder}", "input.text=''")
    first = run_job(run, *settings)
    report = run_job(run, *settings, "select.duplicates.max_distance=0")
    assert (done(report), copies(run)) == ({}, {})
    assert report.manifest is not None
    assert report.manifest.clips == 4
    assert report.manifest != first.manifest
    assert run_job(run, *settings).manifest == first.manifest


def test_a_copy_whose_original_is_in_no_shard_is_seen(tmp_path: Path, run_job: RunJob, folder: Path) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    run_job(run, f"input.uri={folder}", "input.text=''")
    run_job(alone, f"input.uri={folder}/c.avi", "input.text=''")
    shutil.rmtree(run / "packed")
    shutil.copytree(alone / "packed", run / "packed")
    assert any("rejected as a copy of" in line for line in violations(run))


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_lost_signatures_are_named(run_copy: Path, harm: str) -> None:
    tensors = next(run_copy.glob("results/score/*/*.safetensors"))
    data = tensors.read_bytes()
    tensors.unlink()
    if harm == "damaged":
        tensors.write_bytes(data[:40])
    assert any(tensors.name in line for line in violations(run_copy))


def test_a_run_without_a_usable_source_packs_nothing_and_verifies(tmp_path: Path, run_job: RunJob) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_text("<html>")
    report = run_job(tmp_path / "run", f"input.uri={tmp_path}/in", "input.text=''")
    assert report.manifest is None
    assert verify(open_job(str(tmp_path / "run")))["ok"]


# ---- damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def violations(run: Path) -> list[str]:
    report = verify(open_job(str(run)))
    assert not report["ok"]
    return [str(violation) for violation in report["violations"]]


def test_a_damaged_shard_is_named(run_copy: Path) -> None:
    (shard,) = shards(run_copy)
    flip(shard)
    assert any(shard.name in line and "damaged" in line for line in violations(run_copy))


def test_a_missing_shard_is_named(run_copy: Path) -> None:
    (shard,) = shards(run_copy)
    shard.unlink()
    assert any(shard.name in line and "missing" in line for line in violations(run_copy))


@pytest.mark.parametrize("harm", [Path.unlink, flip], ids=["missing", "damaged"])
def test_a_missing_and_a_damaged_index_are_named(run_copy: Path, harm: Callable[[Path], None]) -> None:
    index = next(run_copy.glob("packed/*/*.index.json"))
    harm(index)
    assert any(index.name in line for line in violations(run_copy))


@pytest.mark.parametrize("stage", ["split", "score", "encode", "embed"])
def test_results_that_are_lost_after_packing_are_seen(run_copy: Path, stage: str) -> None:
    next(run_copy.glob(f"results/{stage}/*/*.parquet")).unlink()
    assert any("has no fate" in line for line in violations(run_copy))


def test_a_corpus_that_lacks_a_ready_clip_is_seen(run_copy: Path, run_job: RunJob) -> None:
    next(run_copy.glob("packed/head-*.json")).unlink()
    assert any("no manifest" in line for line in violations(run_copy))
    assert run_job(run_copy).shards_written == 0
    assert verify(open_job(str(run_copy)))["ok"]


@pytest.mark.parametrize(
    "name",
    [
        "packed/*/manifest.json",
        "packed/head-*.json",
        "results/split/*/*.parquet",
        "plan/000.json",
    ],
)
def test_any_other_broken_file_is_named(run_copy: Path, name: str) -> None:
    file = next(run_copy.glob(name))
    file.write_bytes(file.read_bytes()[:-9])
    if file.name == "manifest.json":
        file.unlink()
    assert any(file.name in line for line in violations(run_copy))


def test_lost_tensors_are_seen(run_copy: Path) -> None:
    next(run_copy.glob("results/encode/*/*.safetensors")).unlink()
    assert any("safetensors" in line for line in violations(run_copy))


def test_indexes_name_the_clips_of_their_shards(finished: Finished) -> None:
    manifest, base = open_manifest(str(finished[0]))
    indexed = [clip_id for entry in manifest.shards for row in read_index(Store(base), entry) for clip_id in row.clip_ids]
    assert sorted(indexed) == sorted(segment["clip_id"] for segment in segments(finished[0]))
