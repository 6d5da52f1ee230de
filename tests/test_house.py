"""The house rules that no linter knows: documented commands, configs that load, one module with Ray, quick imports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipmill import COMMANDS
from packing.config import load_config
from pipeline.config import load_run_config
from training.config import TrainJob

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "recaption", "packing", "training", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"clipmill {command}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(config: Path) -> None:
    if config.name.startswith("train_"):
        load_config(TrainJob, str(config))
    else:
        load_run_config(str(config), ["input.uri=videos", "run=out"])


def test_only_one_module_imports_ray() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    importing = [path.name for path in modules if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.MULTILINE)]
    assert importing == ["ray_runner.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_no_model_library(package: str) -> None:
    heavy = "{'torch', 'ray', 'transformers', 'diffusers', 'open_clip'}"
    code = f"import sys, {package}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_file_that_the_readme_names_exists() -> None:
    names = re.findall(r"\]\(([\w./-]+)\)", (ROOT / "README.md").read_text())
    assert [name for name in names if not (ROOT / name).exists()] == []
