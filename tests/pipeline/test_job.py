"""A setting changes the fingerprints of the stages whose results it changes, and of no other."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from packing.errors import InputError, ModelError
from pipeline.config import RunConfig
from pipeline.job import absolute, digest, fingerprints, make_job, open_job, save_job
from pipeline.stages import STAGES

Configure = Callable[..., RunConfig]
ALL = ["split", "score", "recaption", "encode", "embed"]
NONE: list[str] = []


def changed(configure: Configure, *overrides: str) -> list[str]:
    before, after = fingerprints(configure()), fingerprints(configure(*overrides))
    return [stage for stage in STAGES if before[stage] != after[stage]]


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("split.threshold=3.5", ALL),
        ("split.min_shot_frames=7", ALL),
        ("split.max_clip_s=5", ALL),
        ("split.frames_per_clip=4", ALL),
        ("split.frame_side_px=32", ALL),
        ("split.max_pixels=1000000", ALL),
        ("score.probes.text={positive: [a], negative: [b]}", ["score", "embed"]),
        ("recaption.prompts.short.text=Say something else.", ["recaption", "embed"]),
        ("recaption.prompts.short.max_new_tokens=13", ["recaption", "embed"]),
        ("recaption.prompts.new={text: Which colours?}", ["recaption", "embed"]),
        ("recaption.batch=4", ["recaption", "embed"]),
        ("recaption.dtype=bfloat16", ["recaption", "embed"]),
        ("encode.fps=4", ["encode"]),
        ("encode.max_pixels=9999", ["encode"]),
        ("encode.max_frames=17", ["encode"]),
        ("encode.dtype=bfloat16", ["encode"]),
        ("pack.patch=[1,1,1]", ["encode"]),
        ("embed.max_tokens=32", ["embed"]),
    ],
)
def test_a_setting_changes_the_stages_that_it_must(configure: Configure, override: str, stages: list[str]) -> None:
    assert changed(configure, override) == stages


@pytest.mark.parametrize(
    "override",
    [
        "select.rules=[{value: luma, min: 0.9}]",
        "split.min_clip_s=1.0",
        "pack.length=77",
        "pack.seed=3",
        "pack.shard_mb=1",
        "pack.max_segments=2",
        "run=elsewhere",
        "runner=ray",
        "input.uri=other",
        "input.partition_size=3",
        "ray.shared_workers=0",
        "resources.encode.cpus=4",
        "split.timeout_s=1",
        "split.memory_mb=99",
        "split.decode_threads=2",
        *(f"{stage}.chunk=5" for stage in ALL),
        *(f"{stage}.device=auto" for stage in ALL[1:]),
    ],
)
def test_rules_packing_and_where_things_run_change_no_stage(configure: Configure, override: str) -> None:
    assert changed(configure, override) == NONE


@pytest.mark.parametrize(
    ("model", "key", "value", "stages"),
    [
        ("clip", "score.model", "local-dir:{}", ["score", "embed"]),
        ("captioner", "recaption.model", "{}", ["recaption", "embed"]),
        ("codec", "encode.model", "{}", ["encode"]),
        ("text", "embed.model", "{}", ["embed"]),
    ],
)
def test_other_weights_are_another_model_and_another_folder_is_not(
    configure: Configure, tiny_models: Path, tmp_path: Path, model: str, key: str, value: str, stages: list[str]
) -> None:
    for name in ("moved", "changed"):
        shutil.copytree(tiny_models / model, tmp_path / name)
    weights = next((tmp_path / "changed").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert changed(configure, f"{key}={value.format(tmp_path / 'moved')}") == NONE
    assert changed(configure, f"{key}={value.format(tmp_path / 'changed')}") == stages


def test_probes_in_another_order_are_the_same_probes(configure: Configure) -> None:
    config = configure("score.probes.text={positive: [a], negative: [b]}")
    turned = dict(reversed(config.score.probes.items()))
    assert list(turned) != list(config.score.probes)
    assert fingerprints(replace(config, score=replace(config.score, probes=turned))) == fingerprints(config)


def test_equal_data_give_equal_digests_whatever_the_order_of_their_keys() -> None:
    assert digest({"a": 1, "b": [2.5, None]}) == digest(json.loads('{"b": [2.5, null], "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 1.5})


def test_a_job_means_the_same_from_every_folder(configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_job(configure("run=out", "input.uri=[in, 'memory://x']", "input.text=t.csv")).config
    assert config.run == str(tmp_path / "out")
    assert config.input.uris == [str(tmp_path / "in"), "memory://x"]
    assert config.input.text == str(tmp_path / "t.csv")
    assert absolute("") == ""


def test_a_saved_job_is_opened_as_it_was(configure: Configure, tmp_path: Path) -> None:
    job = make_job(configure(f"run={tmp_path}/out"))
    save_job(job)
    assert open_job(f"{tmp_path}/out") == job


def test_opening_a_run_can_change_its_packing(configure: Configure, tmp_path: Path) -> None:
    save_job(make_job(configure(f"run={tmp_path}/out")))
    assert open_job(f"{tmp_path}/out", ["pack.length=77"]).config.pack.length == 77


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run at"):
        open_job(str(tmp_path))


@pytest.mark.parametrize("key", ["recaption.model", "encode.model", "embed.model"])
def test_a_model_that_is_neither_a_folder_nor_an_id_is_told(configure: Configure, tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelError, match="neither a model folder nor a hub id"):
        make_job(configure(f"{key}={tmp_path}/gone"))
