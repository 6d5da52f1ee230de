"""A job says what is wrong with it before anything starts."""

import pytest

from packing.config import dump_config, load_config
from packing.errors import ConfigError
from training import TrainConfig, TrainJob


def test_overrides_reach_the_model_and_the_trainer() -> None:
    job = load_config(TrainJob, None, ["model.width=64", "train.lr=3e-4", "train.precision=bf16"])
    assert (job.model.width, job.train.lr, job.train.precision) == (64, 3e-4, "bf16")


def test_a_job_survives_being_written_and_read(tmp_path: pytest.TempPathFactory) -> None:
    path = f"{tmp_path}/job.yaml"
    job = TrainJob(train=TrainConfig(steps=7, out="elsewhere"))
    with open(path, "w") as file:
        file.write(dump_config(job))
    assert load_config(TrainJob, path, []) == job


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=3", "stpes"),
        ("train.steps=0", "train.steps must be at least 1"),
        ("train.lr=-1", "train.lr must be positive"),
        ("train.caption_drop=2", "train.caption_drop must be within 0 and 1"),
        ("train.device=tpu", "device"),
        ("model.heads=5", "model.heads 5"),
    ],
)
def test_a_mistake_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainJob, None, [override])
