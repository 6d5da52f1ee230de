"""The first mistake in a config is one clear line, before anything starts."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from packing.config import dump_config, load_config
from packing.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Packing:
    length: int = 4096
    patch: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"packing.length is at least 1, not {self.length}")


@dataclass(frozen=True, kw_only=True)
class Job:
    threshold: float = 0.5
    name: str = "run"
    inputs: tuple[str, ...] = ()
    packing: Packing = field(default_factory=Packing)


def refusal(path: str | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Job, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "job.yaml")


def test_no_file_and_no_overrides_give_the_defaults() -> None:
    assert load_config(Job) == Job()


def test_an_override_wins_over_the_file_and_the_file_over_the_defaults(path: str) -> None:
    Path(path).write_text("threshold: 0.1\nname: file\n")
    assert load_config(Job, path, ["name=line"]) == Job(threshold=0.1, name="line")


def test_an_override_reaches_a_nested_key() -> None:
    assert load_config(Job, None, ["packing.patch=[2,2,2]"]).packing == Packing(patch=(2, 2, 2))


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_file_changes_nothing(path: str, text: str) -> None:
    Path(path).write_text(text)
    assert load_config(Job, path) == Job()


def test_an_unknown_key_of_a_file_names_the_file_the_key_and_the_nearest_valid_one(path: str) -> None:
    Path(path).write_text("packing:\n  lenght: 5\n")
    message = refusal(path)
    assert path in message
    assert "packing.lenght" in message
    assert "'length'" in message


def test_an_unknown_override_names_the_nearest_valid_key() -> None:
    message = refusal(None, "treshold=0.2")
    assert "treshold" in message
    assert "'threshold'" in message


def test_a_wrong_type_names_the_key_and_the_value() -> None:
    message = refusal(None, "packing.length=long")
    assert "packing.length" in message
    assert "'long'" in message


def test_a_value_where_a_section_belongs_is_refused(path: str) -> None:
    Path(path).write_text("packing: 3\n")
    assert "Packing" in refusal(path)


def test_a_bad_range_says_what_is_allowed() -> None:
    assert refusal(None, "packing.length=0") == "packing.length is at least 1, not 0"


def test_a_missing_file_is_named(path: str) -> None:
    assert refusal(path) == f"no config file at {path}"


def test_a_folder_is_not_a_config_file(tmp_path: Path) -> None:
    assert refusal(str(tmp_path)) == f"no config file at {tmp_path}"


@pytest.mark.parametrize("text", [b"packing: [1,\n", b"\tname: x\n", b"name: a\nname: b\n", b"\xff\xfe\x00"])
def test_bad_yaml_names_the_file(path: str, text: bytes) -> None:
    Path(path).write_bytes(text)
    assert refusal(path).startswith(f"{path} is not readable YAML: ")


def test_bad_yaml_names_the_line(path: str) -> None:
    Path(path).write_text("name: x\n\tthreshold: 1\n")
    assert "line 2" in refusal(path)


@pytest.mark.parametrize("text", ["- a\n- b\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(path: str, text: str) -> None:
    Path(path).write_text(text)
    assert path in refusal(path)


def test_a_path_of_an_unknown_protocol_is_refused() -> None:
    assert "nowhere://job.yaml" in refusal("nowhere://job.yaml")


@pytest.mark.parametrize("override", ["name", "=3", "packing.length"])
def test_an_override_without_key_or_value_is_quoted(override: str) -> None:
    assert repr(override) in refusal(None, override)


def test_an_override_that_is_no_yaml_says_where_it_stood() -> None:
    assert refusal(None, "inputs=[a,").startswith("command line: ")


def test_an_interpolation_of_a_missing_key_is_refused(path: str) -> None:
    Path(path).write_text("name: ${nothing}\n")
    assert "nothing" in refusal(path)


def test_what_dump_config_writes_reads_back_equal(path: str) -> None:
    job = Job(threshold=0.25, name="yes", inputs=("a", "b: c"), packing=Packing(length=7, patch=(2, 1, 1)))
    Path(path).write_text(dump_config(job))
    assert load_config(Job, path) == job
