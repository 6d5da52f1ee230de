"""Packing a finished run otherwise: long clips divided, some clips only; every clip has a fate all the same."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import clipmill
from packing.manifest import open_manifest
from packing.pieces import clip_id_of
from packing.rows import read_index, read_row
from packing.store import Store
from packing.tokens import kept_count
from pipeline.config import PackConfig, RunConfig
from pipeline.ingest import IngestReport
from pipeline.job import open_job, save_job
from pipeline.ledger import Ledger, funnel
from pipeline.pack import pack
from pipeline.packable import segments_of, unpackable
from pipeline.records import EncodeResult
from pipeline.runner import LocalRunner
from pipeline.verify import verify

Encoded = Callable[..., EncodeResult]


@pytest.fixture
def encoded() -> Encoded:
    """Makes the record of an encoded clip from its latent's frames and its height and width in pixels."""

    def make(frames: int, height_px: int = 64, width_px: int = 96) -> EncodeResult:
        return EncodeResult(
            fps=8.0,
            frames=1 + 4 * (frames - 1),
            resized=(height_px, width_px),
            size=(height_px, width_px),
            latent_shape=(16, frames, height_px // 8, width_px // 8),
            stride=(4, 8, 8),
            reader="pyav",
        )

    return make


@pytest.mark.parametrize(
    ("config", "frames", "rule"),
    [
        ({"length": 24}, 1, None),
        ({"length": 24}, 2, "pack.length"),
        ({"length": 24, "too_long": "divide"}, 2, None),
        ({"length": 23, "too_long": "divide"}, 1, "pack.length"),
        ({"kind": "images"}, 1, None),
        ({"kind": "images"}, 2, "pack.kind"),
        ({"kind": "videos"}, 1, "pack.kind"),
        ({"kind": "videos"}, 2, None),
        ({"min_tokens": 49}, 2, "pack.min_tokens"),
        ({"min_tokens": 48}, 2, None),
        ({"min_pixels": 64 * 96 + 1}, 2, "pack.min_pixels"),
        ({"max_pixels": 64 * 96 - 1}, 2, "pack.max_pixels"),
        ({"min_pixels": 64 * 96, "max_pixels": 64 * 96}, 2, None),
    ],
)
def test_a_clip_outside_a_bound_of_packing_is_named_by_it(
    encoded: Encoded, config: Mapping[str, Any], frames: int, rule: str | None
) -> None:
    broken = unpackable(encoded(frames), PackConfig(**config))
    assert (broken.rule if broken else None) == rule


def test_segments_are_pieces_of_at_most_a_row(encoded: Encoded) -> None:
    segments = segments_of("c", encoded(7), PackConfig(length=50))
    assert [segment.tokens for segment in segments] == [24, 48, 48, 48]


def test_later_options_leave_the_identity_of_old_corpora_alone() -> None:
    assert set(PackConfig().identity()) == {"length", "patch", "seed", "max_segments", "shard_mb"}
    assert PackConfig(kind="images").identity()["kind"] == "images"


def test_what_is_kept_of_a_clip_decides_whether_it_fits_a_row(encoded: Encoded) -> None:
    assert unpackable(encoded(4), PackConfig(length=48)) is not None
    assert unpackable(encoded(4), PackConfig(length=48, drop=0.5)) is None
    (segment,) = segments_of("c", encoded(4), PackConfig(length=48, drop=0.5))
    assert (segment.first, segment.last, segment.tokens) == (0, 4, 48)


def test_pieces_of_which_tokens_are_dropped_fill_rows_with_what_is_kept(encoded: Encoded) -> None:
    segments = segments_of("c", encoded(7), PackConfig(length=50, drop=0.5))
    assert [(segment.first, segment.last, segment.tokens) for segment in segments] == [(0, 3, 36), (3, 7, 48)]


@pytest.mark.parametrize("drop", [1.0, -0.1])
def test_a_share_to_drop_that_leaves_nothing_is_refused(drop: float) -> None:
    with pytest.raises(ValueError, match=r"pack\.drop is 0 to below 1"):
        PackConfig(drop=drop)


def test_bounds_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pack\.max_pixels"):
        PackConfig(min_pixels=10, max_pixels=9)


def repack(run: Path, *overrides: str) -> dict[str, Any]:
    """Pack a run with other settings, check that it verifies, and return its funnel."""
    job = open_job(str(run), overrides)
    save_job(job)
    pack(Ledger(job), LocalRunner())
    report = verify(open_job(str(run)))
    assert report["violations"] == []
    return funnel(Ledger(open_job(str(run))))


@pytest.mark.integration
def test_long_clips_are_rejected_with_a_reason_or_divided_never_cut_short(
    finished: tuple[Path, IngestReport], run_copy: Path
) -> None:
    before = funnel(Ledger(open_job(str(run_copy))))
    rejected = repack(run_copy, "pack.length=48")["clips"]["rejected"]["pack.length"]
    assert rejected > before["clips"]["rejected"].get("pack.length", 0)
    divided = repack(run_copy, "pack.length=48", "pack.too_long=divide")
    assert "pack.length" not in divided["clips"]["rejected"]
    assert divided["clips"]["packed"] == before["clips"]["packed"] + before["clips"]["rejected"].get("pack.length", 0)
    manifest, base = open_manifest(str(run_copy))
    rows = [row for entry in manifest.shards for row in read_index(Store(base), entry)]
    assert manifest.clips > len({clip_id_of(segment) for row in rows for segment in row.clip_ids})
    assert all(row.lengths.sum() <= 48 for row in rows)
    facts = [
        s
        for entry in manifest.shards
        for row in read_index(Store(base), entry)
        for s in read_row(Store(base), entry, row).segments
    ]
    pieces = [segment["piece"] for segment in facts if "piece" in segment]
    assert {piece["number"] for piece in pieces} >= {0, 1}


@pytest.mark.integration
def test_images_and_videos_can_be_packed_apart(run_copy: Path) -> None:
    all_packed = repack(run_copy)["clips"]["packed"]
    images = repack(run_copy, "pack.kind=images")["clips"]["packed"]
    videos = repack(run_copy, "pack.kind=videos")["clips"]["packed"]
    assert images > 0
    assert images + videos == all_packed


@pytest.mark.integration
def test_dropping_tokens_fits_more_clips_and_says_so_in_each(run_copy: Path) -> None:
    whole, before = open_manifest(str(run_copy))[0], repack(run_copy)["clips"]
    packed = repack(run_copy, "pack.drop=0.5")["clips"]["packed"]
    assert packed == before["packed"] + before["rejected"]["pack.length"]
    manifest, base = open_manifest(str(run_copy))
    assert manifest.clips == packed
    for entry in manifest.shards:
        for index in read_index(Store(base), entry):
            row = read_row(Store(base), entry, index)
            assert {segment["drop"] for segment in row.segments} == {0.5}
            for clip_id, size, length in zip(index.clip_ids, index.whole_lengths, index.lengths, strict=True):
                assert length == kept_count(int(size), 0.5), clip_id
    told = json.loads(run_command("pack", run_copy, "pack.drop=0.5", "--report", "--json").stdout)
    assert (told["tokens"], sum(told["tokens_by_grid"].values())) == (manifest.tokens, manifest.tokens)
    assert run_command("lint", run_copy).exit_code == 0
    repack(run_copy, "pack.drop=0.0")
    assert open_manifest(str(run_copy))[0] == whole


@pytest.mark.integration
def test_a_corpus_is_found_again_when_settings_are_changed_back(run_copy: Path, configure: Callable[..., RunConfig]) -> None:
    first = open_manifest(str(run_copy))
    repack(run_copy, "pack.kind=videos")
    repack(run_copy, "pack.kind=all")
    assert open_manifest(str(run_copy)) == first


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(clipmill.cli, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.integration
def test_a_plan_is_reported_before_anything_is_written(run_copy: Path, tmp_path: Path) -> None:
    before = sorted(run_copy.rglob("*"))
    told = json.loads(
        run_command("pack", run_copy, "pack.length=200", "--report", "--json", "--picture", tmp_path / "p.svg").stdout
    )
    assert sorted(run_copy.rglob("*")) == before
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    run_command("pack", run_copy, "pack.length=200")
    found = json.loads(run_command("stats", run_copy, "--report", "--json").stdout)
    assert {name: found[name] for name in ("rows", "clips", "tokens", "fill", "tokens_by_grid")} == {
        name: told[name] for name in ("rows", "clips", "tokens", "fill", "tokens_by_grid")
    }
    assert found["row_bytes"] == pytest.approx(told["row_bytes"], rel=0.5)  # small rows are mostly facts
    assert "straggler efficiency" in run_command("stats", run_copy, "--report").stdout


@pytest.mark.integration
def test_lint_ends_with_one_and_names_the_culprit(run_copy: Path) -> None:
    assert run_command("lint", run_copy).exit_code == 0
    shard = next(run_copy.glob("packed/*/*.tar"))
    shard.unlink()
    done = run_command("lint", run_copy)
    assert done.exit_code == 1
    assert shard.name in done.stdout
    assert json.loads(run_command("lint", run_copy, "--json").stdout)["findings"][0]["shard"] == shard.name
