"""The commands say what they made on stdout, how it goes on stderr, and name mistakes."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from packing.errors import ConfigError, ModelError
from training.cli import sample, train

TINY = ["model.width=32", "model.heads=2", "model.depth=1", "train.steps=2", "train.log_every=1", "train.threads=1"]


def test_train_prints_the_checkpoint_on_stdout_and_its_steps_on_stderr(corpus, tmp_path: Path) -> None:
    result = CliRunner().invoke(train, [corpus(8), *TINY, f"train.out={tmp_path}"], catch_exceptions=False)
    assert result.stdout == f"{tmp_path}/step-000002\n"
    assert all(part in result.stderr for part in ("step 1: loss", "step 2: loss", "tokens/s", "data wait"))


def test_a_setting_without_equals_sign_is_a_config_file_that_overrides_override(corpus, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"train: {{steps: 3, out: {tmp_path}, log_every: 1}}\nmodel: {{depth: 1}}\n")
    result = CliRunner().invoke(train, [corpus(8), str(tmp_path / "job.yaml"), "train.steps=1"], catch_exceptions=False)
    assert result.stdout == f"{tmp_path}/step-000001\n"


def test_a_mistyped_setting_raises_before_anything_is_written(corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stpes"):
        CliRunner().invoke(train, [corpus(8), "train.stpes=1", f"train.out={tmp_path}/o"], catch_exceptions=False)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("size", ["64", "0x64", "64x", "axb", "64x64x64"])
def test_a_size_that_is_none_is_named(size: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--prompt", "", "--size", size, "-o", str(tmp_path / "a.mp4")]
    with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
        CliRunner().invoke(sample, arguments, catch_exceptions=False)


def test_sampling_without_a_checkpoint_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint"):
        CliRunner().invoke(sample, [str(tmp_path), "--prompt", "", "-o", str(tmp_path / "a.mp4")], catch_exceptions=False)
