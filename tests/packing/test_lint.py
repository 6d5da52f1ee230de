"""Every defect that would spoil training is named with its shard, row and clip; a good corpus has none."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packing.shards
from packing import Manifest, PackedClip, lint_corpus
from packing.errors import ShardError
from packing.manifest import MANIFEST

Write = Callable[..., Manifest]
MakeClip = Callable[..., PackedClip]


@pytest.fixture
def four(make_clip: MakeClip) -> list[PackedClip]:
    return [make_clip(number) for number in range(4)]


def rules(url: object) -> list[tuple[str, str]]:
    """Rule and clip of each finding."""
    return [(finding["rule"], finding["clip_id"]) for finding in lint_corpus(str(url))["findings"]]


def test_a_good_corpus_has_no_findings(corpus: str) -> None:
    found = lint_corpus(corpus)
    assert (found["ok"], found["findings"], found["clips"]) == (True, [], 60)
    assert all(abs(channel["mean"]) < 0.1 and 0.9 < channel["spread"] < 1.1 for channel in found["channels"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_latent_that_is_not_finite_is_named_by_its_clip(
    four: list[PackedClip], write: Write, tmp_path: Path, value: float
) -> None:
    spoilt = four[2].latent.clone()
    spoilt[1, 0, 0, 0] = value  # 1e6 is more than fp16 holds
    write(str(tmp_path), [*four[:2], replace(four[2], latent=spoilt), four[3]])
    assert rules(tmp_path) == [("not_finite", four[2].clip_id)]


def test_text_features_that_are_not_finite_are_named_by_their_clip(
    four: list[PackedClip], write: Write, tmp_path: Path
) -> None:
    caption = replace(four[1].captions[-1], features=torch.full((2, 6), float("nan")))
    write(str(tmp_path), [four[0], replace(four[1], captions=[*four[1].captions[:-1], caption]), *four[2:]])
    assert rules(tmp_path) == [("not_finite", four[1].clip_id)]


def test_a_caption_longer_than_the_encoder_gives_is_named(four: list[PackedClip], write: Write, tmp_path: Path) -> None:
    caption = replace(four[0].captions[0], features=torch.zeros(5, 6))
    write(str(tmp_path), [replace(four[0], captions=[caption]), *four[1:]])
    assert rules(tmp_path) == [("text", four[0].clip_id)]


def test_a_clip_that_is_packed_twice_is_named(four: list[PackedClip], write: Write, tmp_path: Path) -> None:
    write(str(tmp_path), [*four, four[0]])
    assert rules(tmp_path) == [("twice", four[0].clip_id)]


def test_a_flipped_bit_is_named_by_its_row(corpus: str, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "damaged")
    shard = min((tmp_path / "damaged").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    (finding,) = lint_corpus(str(tmp_path / "damaged"))["findings"]
    assert (finding["rule"], finding["shard"]) == ("bytes", shard.name)
    assert finding["row"] in finding["text"]


@pytest.mark.parametrize("kind", ["*.tar", "*.index.json"])
def test_a_missing_file_is_named(corpus: str, tmp_path: Path, kind: str) -> None:
    shutil.copytree(corpus, tmp_path / "damaged")
    gone = min((tmp_path / "damaged").glob(kind))
    gone.unlink()
    findings = lint_corpus(str(tmp_path / "damaged"))["findings"]
    assert {finding["rule"] for finding in findings} == {"bytes" if kind == "*.tar" else "index"}
    assert all(gone.name in finding["text"] for finding in findings)


@pytest.mark.parametrize(("wrong", "rule"), [({"sequence_length": 20}, "length"), ({"patch": (1, 1, 1)}, "shapes")])
def test_rows_that_are_not_what_the_manifest_promises_are_named(
    corpus: str, tmp_path: Path, wrong: dict[str, Any], rule: str
) -> None:
    shutil.copytree(corpus, tmp_path / "other")
    manifest, _ = packing.open_manifest(corpus)
    (tmp_path / "other" / MANIFEST).write_text(replace(manifest, **wrong).to_json())
    assert {found for found, _ in rules(tmp_path / "other")} == {rule}


def mislabelled(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Rows whose tables do not fit their tensors, by the rule that they break."""
    yield "shapes", {**tensors, "cu_seqlens": tensors["cu_seqlens"] - tensors["cu_seqlens"].clamp(max=1)}
    yield "shapes", {**tensors, "grid": tensors["grid"] + 1}
    yield "text", {**tensors, "text": tensors["text"][:-1]}
    yield "text", {**tensors, "cu_captions": tensors["cu_captions"] + 1}
    yield "tensors", {name: tensor for name, tensor in tensors.items() if name != "grid"}


@pytest.mark.parametrize("number", range(5))
def test_tables_that_do_not_fit_their_tensors_are_named(
    four: list[PackedClip], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pack_row = packing.shards.pack_row
    rule, _ = list(mislabelled(pack_row(four, (1, 2, 2))))[number]

    def wrong_row(clips: Sequence[PackedClip], patch: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        return list(mislabelled(pack_row(clips, patch)))[number][1]

    monkeypatch.setattr(packing.shards, "pack_row", wrong_row)
    write(str(tmp_path), four[:2])
    assert {found for found, _ in rules(tmp_path)} == {rule}


def many(make_clip: MakeClip, count: int, factor: float = 1.0, offset: float = 0.0) -> list[PackedClip]:
    clips = [make_clip(number, size=(1, 4, 4)) for number in range(count)]
    return [replace(clip, latent=clip.latent * factor + offset) for clip in clips]


def one_a_row(clips: Sequence[PackedClip]) -> list[np.ndarray]:
    return [np.array([number]) for number in range(len(clips))]


@pytest.mark.parametrize("drift", [{"offset": 4.0}, {"factor": 20.0}, {"factor": 0.01}])
def test_latents_that_were_not_normalised_are_named_by_channel(
    make_clip: MakeClip, write: Write, tmp_path: Path, drift: dict[str, float]
) -> None:
    clips = many(make_clip, 40, **drift)
    write(str(tmp_path), clips, rows=one_a_row(clips))
    found = lint_corpus(str(tmp_path))["findings"]
    assert [finding["rule"] for finding in found] == ["drift"] * 4
    assert "channel 0" in found[0]["text"]


def test_a_shard_unlike_the_others_is_named(make_clip: MakeClip, write: Write, tmp_path: Path) -> None:
    clips = many(make_clip, 120)
    clips = [replace(clip, clip_id=str(n), latent=clip.latent + 2.0 * (n >= 80)) for n, clip in enumerate(clips)]
    manifest = write(str(tmp_path), clips, rows=one_a_row(clips), shard_bytes=40 * (2 * 64 + 60))
    found = lint_corpus(str(tmp_path))["findings"]
    assert len(manifest.shards) >= 3
    assert found
    assert {finding["rule"] for finding in found} == {"drift"}
    assert all("unlike the other shards" in finding["text"] for finding in found)


def test_few_clips_say_nothing_of_their_codec(make_clip: MakeClip, write: Write, tmp_path: Path) -> None:
    clips = many(make_clip, 5, offset=9.0)
    write(str(tmp_path), clips, rows=one_a_row(clips))
    assert lint_corpus(str(tmp_path))["ok"]


def test_nothing_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no packed corpus"):
        lint_corpus(str(tmp_path))
