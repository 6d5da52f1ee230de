"""Where a model's files are and what they are: one rule for local folders and hub ids.

A model is written as a folder, or as `org/name` or `org/name@revision` of the hub. `pinned` turns a hub id into one with its
commit before a job starts, so every worker of a job loads the same bytes. Weights are safetensors; code that comes with a model
is never run.
"""

import hashlib
import re
from functools import cache
from pathlib import Path

from packing.errors import ModelError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@cache
def pinned(model: str) -> str:
    """Write a model so that it means the same bytes everywhere: a folder with its absolute path, a hub id with its commit.

    Raises:
        ModelError: there is no such folder, and the hub knows no such model or cannot be reached.
    """
    if _is_folder(model):
        return str(Path(model).expanduser().resolve())
    name, revision = _hub_id(model)
    if COMMIT.fullmatch(revision or ""):
        return model
    from huggingface_hub import HfApi

    try:
        return f"{name}@{HfApi().model_info(name, revision=revision).sha}"
    except Exception as error:  # the hub client raises many kinds, all of which mean the same to the user
        raise ModelError(f"no model folder at {model}, and the hub does not answer for that id: {first_line(error)}") from error


@cache
def model_folder(model: str, subfolder: str = "") -> Path:
    """Return the folder that holds the files of `model`, downloading them when it is a hub id.

    Raises:
        ModelError: there is no such folder and no such model on the hub, or it holds no model.
    """
    if _is_folder(model):
        return _with_config(Path(model).expanduser().resolve() / subfolder, model)
    name, revision = _hub_id(model)
    from huggingface_hub import snapshot_download

    patterns = [f"{subfolder}/{kind}" if subfolder else kind for kind in FILES]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # as above
        raise ModelError(f"no model folder at {model}, and the hub does not give that id: {first_line(error)}") from error
    return _with_config(folder / subfolder, model)


def model_identity(model: str, subfolder: str = "") -> str:
    """Name the bytes of a pinned model: a hash of a local folder's files, wherever it lies, else id and commit."""
    if _is_folder(model):
        return weights_hash(model_folder(model, subfolder))
    return f"{model}/{subfolder}"


def model_label(model: str) -> str:
    """Name a pinned model in records: the same on every machine, whatever folder it lies in."""
    return f"{Path(model).name}@{weights_hash(model_folder(model))}" if _is_folder(model) else model


@cache
def weights_hash(folder: Path) -> str:
    """Hash all files of a model folder (names and bytes), 16 hex characters."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        with open(file, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def _is_folder(model: str) -> bool:
    return bool(model) and Path(model).expanduser().is_dir()


def _hub_id(model: str) -> tuple[str, str | None]:
    if Path(model).expanduser().exists() or not HUB_ID.fullmatch(model):
        raise ModelError(f"{model} is neither a model folder nor a hub id of the form org/name or org/name@revision")
    name, _, revision = model.partition("@")
    return name, revision or None


def _with_config(folder: Path, model: str) -> Path:
    if not any(folder.glob("*config.json")):
        raise ModelError(f"{model} is not a model folder: no config.json in {folder}")
    return folder


def first_line(error: Exception) -> str:
    """Return the first line of a foreign error's message, for one line of our own."""
    return str(error).strip().split("\n", maxsplit=1)[0]
