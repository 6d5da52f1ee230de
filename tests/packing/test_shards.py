"""Shards are deterministic bytes that stock webdataset reads, and damage is found and named."""

import dataclasses
import gc
import hashlib
import json
import pickle
import shutil
import tarfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import webdataset

import packing
from packing import Caption, Manifest, PackedClip, open_manifest, read_index, read_row, unpatchify, write_shard
from packing.errors import ShardError
from packing.manifest import ShardEntry
from packing.rows import RowIndex
from packing.shards import shard_rows
from packing.store import Store

MakeClip = Callable[..., PackedClip]
Write = Callable[..., Manifest]
Rows = Sequence[Sequence[PackedClip]]
PATCH = (1, 2, 2)

WRITE_IN_ANOTHER_PROCESS = """
import pathlib, pickle, sys
from packing import Store, write_shard

rows = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
entry = write_shard(Store(sys.argv[2]), 3, rows, (1, 2, 2))
print(entry.sha256, entry.index_sha256)
"""


@pytest.fixture
def rows(make_clip: MakeClip) -> Rows:
    """Three rows of one to three clips."""
    return [[make_clip(0), make_clip(1)], [make_clip(2)], [make_clip(3), make_clip(4), make_clip(5)]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "packed"))


@pytest.fixture
def shard(store: Store, rows: Rows) -> ShardEntry:
    return write_shard(store, 3, rows, PATCH)


def tar_path(store: Store, shard: ShardEntry) -> Path:
    return Path(store.path(shard.name))


def read_all(store: Store, shard: ShardEntry) -> None:
    for row in read_index(store, shard):
        read_row(store, shard, row)


def test_a_shard_written_twice_has_the_same_bytes(store: Store, shard: ShardEntry, rows: Rows, tmp_path: Path) -> None:
    twin = Store(str(tmp_path / "twin"))
    assert write_shard(twin, 3, rows, PATCH) == shard
    assert twin.read(shard.name) == store.read(shard.name)


def test_a_shard_written_again_in_place_changes_nothing(store: Store, shard: ShardEntry, rows: Rows) -> None:
    assert write_shard(store, 3, rows, PATCH) == shard
    assert store.list("") == sorted([shard.name, shard.index])


def test_another_process_writes_the_same_bytes(shard: ShardEntry, rows: Rows, tmp_path: Path, run_python: Any) -> None:
    (tmp_path / "rows.pickle").write_bytes(pickle.dumps(rows))
    done = run_python(WRITE_IN_ANOTHER_PROCESS, str(tmp_path / "rows.pickle"), str(tmp_path / "other"))
    assert done.stdout.split() == [shard.sha256, shard.index_sha256], done.stderr


def test_a_shard_is_named_by_its_number_and_hash(store: Store, shard: ShardEntry) -> None:
    digest = hashlib.sha256(store.read(shard.name)).hexdigest()
    assert shard.sha256 == digest
    assert shard.name == f"shard-000003-{digest[:12]}.tar"


def test_an_entry_counts_what_is_in_its_shard(store: Store, shard: ShardEntry, rows: Rows) -> None:
    tokens = sum(clip.latent[0].numel() // 4 for row in rows for clip in row)
    counts = shard.rows, shard.clips, shard.tokens, shard.size_bytes
    assert counts == (3, 6, tokens, tar_path(store, shard).stat().st_size)


def test_tar_headers_hold_nothing_of_the_writer(store: Store, shard: ShardEntry) -> None:
    with tarfile.open(tar_path(store, shard)) as tar:
        facts = {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode, i.type) for i in tar}
    assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}


def test_a_shard_is_ustar_of_whole_records(store: Store, shard: ShardEntry) -> None:
    data = store.read(shard.name)
    assert data[257:265] == b"ustar\x0000"
    assert len(data) % tarfile.RECORDSIZE == 0
    assert data.endswith(bytes(1024))


@pytest.mark.parametrize("extra_bytes", range(0, 2048, 512))
def test_two_empty_blocks_end_a_shard_wherever_its_last_row_ends(store: Store, make_clip: MakeClip, extra_bytes: int) -> None:
    clip = make_clip(0)
    # Grow the row block by block past the end of a record, so that some row leaves less than two blocks of it.
    for blocks in range(0, 20, 4):
        padded = dataclasses.replace(clip, facts={"note": "x" * (blocks * 512 + extra_bytes)})
        data = store.read(write_shard(store, 0, [[padded]], PATCH).name)
        assert len(data) % tarfile.RECORDSIZE == 0
        assert data.endswith(bytes(1024))


def test_index_offsets_are_those_of_the_members_data(store: Store, shard: ShardEntry) -> None:
    with tarfile.open(tar_path(store, shard)) as tar:
        found = [(info.name, info.offset_data, info.size) for info in tar]
    told: list[tuple[str, int, int]] = []
    for row in read_index(store, shard):
        told.append((f"{row.key}.json", row.json_offset, row.json_size))
        told.append((f"{row.key}.tokens.safetensors", row.offset, row.size))
    assert told == found


def stock_samples(path: Path) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
        gc.collect()
    return samples


def test_stock_webdataset_gives_the_same_rows(store: Store, shard: ShardEntry) -> None:
    samples, rows = stock_samples(tar_path(store, shard)), read_index(store, shard)
    assert [sample["__key__"] for sample in samples] == [row.key for row in rows]
    for sample, index in zip(samples, rows, strict=True):
        row = read_row(store, shard, index)
        tensors = safetensors.torch.load(sample["tokens.safetensors"])
        assert json.loads(sample["json"])["segments"] == row.segments
        assert tensors.keys() == row.tensors.keys()
        assert all(torch.equal(tensors[name], row.tensors[name]) for name in tensors)


def test_keys_are_hex_without_dots_and_differ(store: Store, shard: ShardEntry) -> None:
    keys = [row.key for row in read_index(store, shard)]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_an_index_tells_what_is_in_each_row(store: Store, shard: ShardEntry, rows: Rows) -> None:
    for index, clips in zip(read_index(store, shard), rows, strict=True):
        assert index.clip_ids == [clip.clip_id for clip in clips]
        assert index.lengths.tolist() == [clip.latent[0].numel() // 4 for clip in clips]
        assert index.captions == [caption.prompt for clip in clips for caption in clip.captions]
        assert index.duration_s == 1.5 * len(clips)


def test_the_facts_of_a_clip_stand_in_its_row(store: Store, shard: ShardEntry, rows: Rows) -> None:
    segments = read_row(store, shard, read_index(store, shard)[1]).segments
    clip = rows[1][0]
    captions = [{"prompt": c.prompt, "text": c.text, "model": "", "agreement": None} for c in clip.captions]
    assert segments == [{**clip.facts, "clip_id": clip.clip_id, "captions": captions}]


def test_tensors_of_a_row_have_their_types_and_no_padding(store: Store, shard: ShardEntry, rows: Rows) -> None:
    tensors = read_row(store, shard, read_index(store, shard)[2]).tensors
    tokens = sum(clip.latent[0].numel() // 4 for clip in rows[2])
    words = sum(len(caption.features) for clip in rows[2] for caption in clip.captions)
    captions = sum(len(clip.captions) for clip in rows[2])
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "latents": (torch.float16, (tokens, 16)),
        "cu_seqlens": (torch.int32, (4,)),
        "grid": (torch.int32, (3, 3)),
        "text": (torch.bfloat16, (words, 6)),
        "cu_text": (torch.int32, (captions + 1,)),
        "cu_captions": (torch.int32, (4,)),
    }


def test_latents_come_back_in_half_precision(store: Store, shard: ShardEntry, rows: Rows) -> None:
    for index, clips in zip(read_index(store, shard), rows, strict=True):
        tensors = read_row(store, shard, index).tensors
        parts = torch.tensor_split(tensors["latents"], tensors["cu_seqlens"][1:-1].long())
        for part, grid, clip in zip(parts, tensors["grid"].tolist(), clips, strict=True):
            assert torch.equal(unpatchify(part, grid, PATCH, 4), clip.latent.half())


def test_a_row_without_captions_is_written_and_read(store: Store, make_clip: MakeClip) -> None:
    shard = write_shard(store, 0, [[make_clip(0, captions=0)]], PATCH)
    tensors = read_row(store, shard, read_index(store, shard)[0]).tensors
    assert (len(tensors["text"]), tensors["cu_text"].tolist(), tensors["cu_captions"].tolist()) == (0, [0], [0, 0])


def test_a_fact_that_is_not_a_number_is_refused(store: Store, make_clip: MakeClip) -> None:
    clip = dataclasses.replace(make_clip(0), facts={"blur": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_shard(store, 0, [[clip]], PATCH)
    assert store.list("") == []


@pytest.mark.parametrize("member", ["json", "tokens.safetensors"])
def test_a_flipped_bit_is_found_and_its_shard_named(store: Store, shard: ShardEntry, member: str) -> None:
    row = read_index(store, shard)[1]
    at = row.json_offset + 5 if member == "json" else row.offset + row.size - 1
    data = bytearray(store.read(shard.name))
    data[at] ^= 1
    tar_path(store, shard).write_bytes(data)
    with pytest.raises(ShardError, match=rf"{shard.name} is damaged at row {row.key}"):
        read_row(store, shard, row)


def test_damage_in_one_row_leaves_the_others_readable(store: Store, shard: ShardEntry) -> None:
    first, second, third = read_index(store, shard)
    data = bytearray(store.read(shard.name))
    data[second.offset] ^= 1
    tar_path(store, shard).write_bytes(data)
    assert read_row(store, shard, first).segments
    assert read_row(store, shard, third).segments


@pytest.mark.parametrize("kept", [0, 600, 9000])
def test_a_truncated_shard_is_named(store: Store, shard: ShardEntry, kept: int) -> None:
    tar_path(store, shard).write_bytes(store.read(shard.name)[:kept])
    with pytest.raises(ShardError, match=shard.name):
        read_all(store, shard)


def test_a_swapped_shard_is_named(store: Store, shard: ShardEntry, rows: Rows) -> None:
    other = write_shard(store, 4, rows[::-1], PATCH)
    shutil.copy(tar_path(store, other), tar_path(store, shard))
    with pytest.raises(ShardError, match=shard.name):
        read_all(store, shard)


def test_a_missing_shard_is_named(store: Store, shard: ShardEntry) -> None:
    tar_path(store, shard).unlink()
    with pytest.raises(ShardError, match=f"{shard.name} is missing"):
        read_all(store, shard)


def test_a_missing_index_is_named(store: Store, shard: ShardEntry) -> None:
    Path(store.path(shard.index)).unlink()
    with pytest.raises(ShardError, match=f"{shard.index} is missing"):
        read_index(store, shard)


def test_an_index_that_the_manifest_does_not_name_is_refused(store: Store, shard: ShardEntry) -> None:
    store.replace(shard.index, store.read(shard.index) + b" ")
    with pytest.raises(ShardError, match=f"{shard.index} is not the index that the manifest names"):
        read_index(store, shard)


@pytest.mark.parametrize(
    "listing",
    [b'{"rows": [{"key": "a"}]}', b'{"rows": [{"grids": [], "colour": 1}]}', b'{"lines": []}', b"[]", b"no json"],
)
def test_an_index_of_another_version_is_refused(store: Store, shard: ShardEntry, listing: bytes) -> None:
    store.replace(shard.index, listing)
    named = dataclasses.replace(shard, index_sha256=hashlib.sha256(listing).hexdigest())
    with pytest.raises(ShardError, match=f"{shard.index} is not an index that this version reads"):
        read_index(store, named)


def test_a_longer_segment_costs_more_than_its_tokens(store: Store, make_clip: MakeClip) -> None:
    def cost(sizes: list[tuple[int, int, int]]) -> float:
        row = [make_clip(i, size=size) for i, size in enumerate(sizes)]
        index: RowIndex = read_index(store, write_shard(store, 0, [row], PATCH))[0]
        return index.cost

    assert cost([(8, 32, 32)]) > cost([(4, 32, 32), (4, 32, 32)])  # attention is within a segment: Σ len² is larger


def test_rows_are_grouped_into_shards_in_order() -> None:
    rows = [np.array([0, 1]), np.array([2]), np.array([3]), np.array([4, 5])]
    sizes = np.array([30, 30, 40, 10, 300, 1])
    groups = shard_rows(rows, sizes, 100)
    assert [[row.tolist() for row in group] for group in groups] == [[[0, 1], [2]], [[3]], [[4, 5]]]


def test_write_shards_packs_every_clip_once(corpus: str, clips: list[PackedClip]) -> None:
    manifest, base = open_manifest(corpus)
    rows = [row for entry in manifest.shards for row in read_index(Store(base), entry)]
    assert sorted(clip_id for row in rows for clip_id in row.clip_ids) == [clip.clip_id for clip in clips]
    assert all(row.lengths.sum() <= manifest.sequence_length for row in rows)


def test_write_shards_counts_its_corpus_in_the_manifest(corpus: str, clips: list[PackedClip]) -> None:
    manifest, _ = open_manifest(corpus)
    assert manifest.clips == len(clips)
    assert manifest.tokens == sum(clip.latent[0].numel() // 4 for clip in clips)


def test_write_shards_writes_the_same_corpus_twice(corpus: str, clips: list[PackedClip], write: Write, tmp_path: Path) -> None:
    assert write(str(tmp_path), clips, shard_bytes=6000).digest == open_manifest(corpus)[0].digest


def test_write_shards_again_in_place_is_harmless(clips: list[PackedClip], write: Write, tmp_path: Path) -> None:
    first = write(str(tmp_path), clips[:5])
    assert write(str(tmp_path), clips[:5]) == first == open_manifest(str(tmp_path))[0]


def test_write_shards_refuses_a_folder_that_holds_another_corpus(clips: list[PackedClip], write: Write, tmp_path: Path) -> None:
    write(str(tmp_path), clips[:5])
    with pytest.raises(ShardError, match=str(tmp_path)):
        write(str(tmp_path), clips[5:9])


def test_a_corpus_lives_on_any_file_system(clips: list[PackedClip], write: Write) -> None:
    url = "memory://anywhere/packed"
    manifest = write(url, clips[:5])
    assert open_manifest(url) == (manifest, url)
    read_all(Store(url), manifest.shards[0])


def test_plain_tuples_are_packed_as_clips(clips: list[PackedClip], write: Write, tmp_path: Path) -> None:
    bare = [dataclasses.replace(clip, facts={}) for clip in clips[:5]]
    tuples = [
        (clip.clip_id, clip.latent, {c.prompt: c.text for c in clip.captions}, [c.features for c in clip.captions])
        for clip in bare
    ]
    settings = {"rows": [np.arange(5)], "sequence_length": 1000}
    assert write(str(tmp_path / "clips"), bare, **settings) == packing.write_shards(
        clips=tuples, url=str(tmp_path / "tuples"), **{**facts_of(tmp_path / "clips"), **settings}
    )


def facts_of(folder: Path) -> dict[str, Any]:
    manifest = open_manifest(str(folder))[0]
    return {name: getattr(manifest, name) for name in ("codec", "text_encoder", "patch", "fps")}


def test_the_bytes_of_shards_do_not_change_between_versions(store: Store) -> None:
    """A corpus that a later version packs again must come out the same; other bytes need another format."""
    clips = [
        PackedClip(
            clip_id=f"{number:032x}",
            latent=torch.arange(4 * 4 * frames * 6).reshape(4, frames, 4, 6) / 100,
            captions=[Caption(prompt="short", text="a clip", features=torch.arange(12).reshape(2, 6) / 10)],
            facts={"duration_s": 1.5, "uri": "file:///a.mp4"},
        )
        for number, frames in enumerate([1, 3, 2])
    ]
    entry = write_shard(store, 0, [clips[:2], clips[2:]], PATCH)
    assert (entry.sha256[:16], entry.index_sha256[:16]) == ("cc1e8d7a1a7802fa", "42d439b7e8dc03cd")
