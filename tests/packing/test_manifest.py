"""The manifest is the commit point: what it says reads back equal, and what is not one is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from packing import Manifest, open_manifest
from packing.errors import ShardError
from packing.store import Store


@pytest.fixture
def manifest(corpus: str) -> Manifest:
    return open_manifest(corpus)[0]


def test_a_manifest_reads_back_equal(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_equal_manifests_are_equal_bytes_and_one_identity(manifest: Manifest) -> None:
    twin = Manifest.from_json(manifest.to_json().encode())
    assert (twin.to_json(), twin.digest) == (manifest.to_json(), manifest.digest)


def test_another_seed_is_another_identity(manifest: Manifest) -> None:
    assert dataclasses.replace(manifest, seed=manifest.seed + 1).digest != manifest.digest


def test_dimensions_follow_from_the_codec_and_the_patch(manifest: Manifest) -> None:
    wide = dataclasses.replace(manifest, patch=(2, 2, 3))
    assert (wide.channels, wide.token_dim) == (4, 48)


def test_fill_is_the_share_of_the_rows_that_holds_tokens(manifest: Manifest) -> None:
    entry = dataclasses.replace(manifest.shards[0], rows=4, tokens=100)
    assert dataclasses.replace(manifest, shards=(entry,), sequence_length=50).fill == 0.5


def test_a_manifest_of_a_foreign_format_is_refused(manifest: Manifest) -> None:
    foreign = {**json.loads(manifest.to_json()), "format": "packed-v9"}
    with pytest.raises(ShardError, match=r"'packed-v9'.*reads 'packed-v1'$"):
        Manifest.from_json(json.dumps(foreign))


def test_a_manifest_with_a_field_of_another_version_is_refused(manifest: Manifest) -> None:
    strange = {**json.loads(manifest.to_json()), "colour": "red"}
    with pytest.raises(ShardError, match="colour"):
        Manifest.from_json(json.dumps(strange))


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", "3", '{"format": "packed-v1"}'])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ShardError, match="not a packed-v1 manifest"):
        Manifest.from_json(text)


@pytest.mark.parametrize("shards", ["null", "[1]", '[{"name": "x"}]'])
def test_a_manifest_with_a_broken_shard_list_is_refused(manifest: Manifest, shards: str) -> None:
    broken = {**json.loads(manifest.to_json()), "shards": json.loads(shards)}
    with pytest.raises(ShardError, match="not a packed-v1 manifest"):
        Manifest.from_json(json.dumps(broken))


def test_nothing_packed_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=f"no packed corpus at {tmp_path}"):
        open_manifest(str(tmp_path))


def test_a_run_opens_its_newest_packed_corpus(corpus: str, manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "packed" / "new")
    run = Store(str(tmp_path))
    run.put_once("packed/head-000000.json", b'{"fingerprint": "old"}')
    run.put_once("packed/head-000001.json", b'{"fingerprint": "new"}')
    assert open_manifest(str(tmp_path)) == (manifest, f"{tmp_path}/packed/new")
