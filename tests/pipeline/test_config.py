"""A mistake in a config is one line that names the key and, where there is one, the nearest valid name."""

from collections.abc import Callable

import pytest

from packing.config import dump_config
from packing.errors import ConfigError
from pipeline.config import ResourceConfig, RunConfig, load_run_config

Configure = Callable[..., RunConfig]


def mistake(configure: Configure, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configure(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("rule", "nearest"),
    [("lumma", "luma"), ("consistancy", "consistency"), ("title_crad", "title_card"), ("shortside_px", "short_side_px")],
)
def test_a_rule_over_an_unknown_value_names_the_nearest(configure: Configure, rule: str, nearest: str) -> None:
    message = mistake(configure, f"select.rules=[{{value: {rule}, min: 0.1}}]")
    assert f"'{rule}'" in message
    assert f"did you mean '{nearest}'?" in message


def test_a_value_like_no_other_lists_what_there_is(configure: Configure) -> None:
    message = mistake(configure, "select.rules=[{value: qqq, min: 0.1}]")
    assert all(name in message for name in ("luma", "motion", "duration_s", "title_similarity", "title_card"))


def test_a_probe_of_the_config_can_be_a_rules_value(configure: Configure) -> None:
    config = configure("score.probes.text={positive: [a], negative: [b]}", "select.rules=[{value: text, max: 0.5}]")
    assert config.select.rules[0].value == "text"


def test_resources_for_an_unknown_stage_name_the_nearest(configure: Configure) -> None:
    assert "unknown stage 'recaptoin'; did you mean 'recaption'?" in mistake(configure, "resources.recaptoin.cpus=1")


def test_a_stage_without_resources_gets_one_cpu_and_one_worker(configure: Configure) -> None:
    config = configure("resources.encode={cpus: 0.25, gpus: 0.5, max_workers: 3}")
    assert config.resources_of("encode") == ResourceConfig(cpus=0.25, gpus=0.5, min_workers=1, max_workers=3)
    assert config.resources_of("score") == ResourceConfig()


@pytest.mark.parametrize("key", ["run", "uri", "model"])
def test_a_missing_required_key_is_named(key: str) -> None:
    given = {"run": "run=r", "uri": "input.uri=x", "model": ""}
    with pytest.raises(ConfigError, match=rf"\b{key}\b"):
        load_run_config(None, [override for name, override in given.items() if override and name != key])


@pytest.mark.parametrize(
    "override",
    [
        "threads=0",
        "input.partition_size=0",
        "split.threshold=0",
        "split.threshold=.nan",
        "split.max_clip_s=0.1",
        "split.frames_per_clip=0",
        "split.frame_side_px=8",
        "split.chunk=0",
        "recaption.batch=0",
        "recaption.prompts.short.max_new_tokens=0",
        "encode.fps=0",
        "encode.max_frames=-1",
        "encode.max_pixels=0",
        "embed.max_tokens=0",
        "split.min_shot_frames=0",
        "pack.length=0",
        "pack.patch=[0,2,2]",
        "pack.shard_mb=0",
        "resources.split.cpus=-1",
        "resources.split.max_workers=0",
        "select.rules=[{value: luma}]",
    ],
)
def test_a_bad_range_names_what_is_wrong(configure: Configure, override: str) -> None:
    section, *_, key = override.split("=")[0].split(".") * 2
    message = mistake(configure, override)
    assert key.split("_")[0] in message or section in message


@pytest.mark.parametrize(
    "override",
    [
        "score.chunk=0",
        "recaption.chunk=-1",
        "encode.chunk=0",
        "embed.chunk=0",
        "encode.fps=.inf",
        "pack.max_segments=0",
        "split.timeout_s=0",
        "split.memory_mb=0",
        "split.max_pixels=0",
        "split.decode_threads=-1",
        "ray.shared_workers=-1",
    ],
)
def test_a_range_that_would_break_the_job_later_is_refused(configure: Configure, override: str) -> None:
    mistake(configure, override)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pack.lenght=3", "Did you mean: 'length'"),
        ("splitt.threshold=3", "split"),
        ("split.threshold=abc", "split.threshold"),
        ("runner=rey", "'local', 'ray'"),
        ("encode.device=gpu", "'cpu'"),
        ("encode.fps", "key=value"),
    ],
)
def test_an_unknown_key_a_wrong_type_and_a_half_override_are_told(configure: Configure, override: str, told: str) -> None:
    assert told in mistake(configure, override)


def test_an_override_of_one_item_of_a_list_is_a_config_mistake(configure: Configure) -> None:
    mistake(configure, "select.rules.0.min=0.5")


def test_a_config_is_read_back_as_it_was_written(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = configure("input.uri=[a,b]", "pack.patch=[2,2,2]", "select.rules=[{value: luma, min: 0.1, missing: reject}]")
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_config(config))
    assert load_run_config(str(path)) == config
