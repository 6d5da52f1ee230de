"""A model means the same bytes wherever its folder lies."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packing.errors import ModelError
from packing.models import model_folder, model_identity, model_label, pinned

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model's."""
    folder = tmp_path / "here" / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "part" / "config.json").write_text("{}")
    (folder / "part" / "weights.safetensors").write_bytes(b"weights")
    return folder


def test_a_folder_is_pinned_to_its_absolute_path(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert pinned("model") == str(model)


def test_a_hub_id_with_a_commit_is_pinned_already() -> None:
    assert pinned(f"org/name@{COMMIT}") == f"org/name@{COMMIT}"


def test_a_subfolder_is_part_of_a_models_place(model: Path) -> None:
    assert model_folder(str(model), "part") == model / "part"


def test_a_copy_elsewhere_has_the_same_identity_and_label(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "there" / "model"
    shutil.copytree(model, copy)
    assert model_identity(str(copy)) == model_identity(str(model))
    assert model_label(str(copy)) == model_label(str(model))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "part" / "weights.safetensors").write_bytes(b"other"),
        lambda folder: (folder / "part" / "weights.safetensors").rename(folder / "weights.safetensors"),
        lambda folder: (folder / "extra.json").write_text("{}"),
    ],
    ids=["bytes", "name", "file"],
)
def test_a_changed_folder_has_another_identity(model: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    copy = tmp_path / "there" / "model"
    shutil.copytree(model, copy)
    change(copy)
    assert model_identity(str(copy)) != model_identity(str(model))


def test_hidden_files_are_no_part_of_a_model(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "there" / "model"
    shutil.copytree(model, copy)
    (copy / ".cache").write_text("x")
    assert model_identity(str(copy)) == model_identity(str(model))


@pytest.mark.parametrize("name", ["no-slash", "a/b/c", "/nowhere/model", "org/na me"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name: str) -> None:
    for resolve in (pinned, model_folder):
        with pytest.raises(ModelError, match="neither a model folder nor a hub id"):
            resolve(name)


def test_a_file_is_no_model(model: Path) -> None:
    with pytest.raises(ModelError, match="neither a model folder nor a hub id"):
        model_folder(str(model / "config.json"))


def test_a_missing_subfolder_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json in .*/vae$"):
        model_folder(str(model), "vae")
