"""The commands: data on stdout, a user's mistake as one line on stderr with exit code 2."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers

import clipmill
from packing.manifest import open_manifest
from pipeline.ingest import IngestReport

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs/tiny.yaml")
Settings = Callable[..., list[str]]
Finished = tuple[Path, IngestReport]
Clipmill = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Clipmill]:
    """Runs the front door in this process: `command("verify", run)` gives exit code, stdout and stderr."""
    verbosity = transformers.utils.logging.get_verbosity()

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipmill", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            clipmill.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    yield run
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


def mistake(answer: tuple[int, str, str]) -> str:
    code, out, err = answer
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert line.startswith("clipmill: ")
    return line


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pack.lenght=3", "'length'"),
        ("split.threshold=none", "split.threshold"),
        ("input.uri=/nowhere/at/all", "no such input: /nowhere/at/all"),
        ("input.uri=[]", "no source"),
        ("input.text=/nowhere.csv", "/nowhere.csv"),
        ("encode.model=/nowhere/model", "/nowhere/model is neither a model folder nor a hub id"),
        ("select.rules=[{value: lumma, min: 1}]", "did you mean 'luma'?"),
        ("half", "key=value"),
    ],
)
@pytest.mark.parametrize("verb", ["ingest", "plan"])
def test_a_mistake_in_a_config_is_one_line(
    command: Clipmill, settings: Settings, tmp_path: Path, verb: str, override: str, told: str
) -> None:
    assert told in mistake(command(verb, TINY, *settings(tmp_path / "run", override)))
    assert not list(tmp_path.glob("run/results/*"))


@pytest.mark.parametrize("key", ["score.model=local-dir:", "recaption.model=", "encode.model=", "embed.model="])
def test_a_model_folder_that_is_none_is_one_line(command: Clipmill, settings: Settings, tmp_path: Path, key: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/notes.txt").write_text("no model")
    assert str(tmp_path / "model") in mistake(command("plan", TINY, *settings(tmp_path / "run", f"{key}{tmp_path}/model")))


def test_an_empty_folder_and_a_missing_config_are_one_line(command: Clipmill, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert "no source" in mistake(command("ingest", TINY, *settings(tmp_path / "run", f"input.uri={tmp_path}/in")))
    assert "gone.yaml" in mistake(command("ingest", tmp_path / "gone.yaml"))


@pytest.mark.parametrize("verb", ["status", "verify", "retry", "pack", "stats"])
def test_a_folder_that_is_no_run_is_one_line(command: Clipmill, tmp_path: Path, verb: str) -> None:
    assert str(tmp_path) in mistake(command(verb, tmp_path))


def test_a_mistake_ends_the_process_with_two_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "clipmill", "status", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"clipmill: no run at {tmp_path}: it has no config.yaml\n"


def test_a_plan_shows_what_would_run_and_starts_nothing(command: Clipmill, settings: Settings, tmp_path: Path) -> None:
    code, out, _ = command("plan", TINY, *settings(tmp_path / "run"), "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["sources"], facts["partitions"], facts["sources_with_text"]) == (12, 3, 2)
    assert list(facts["stages"]) == ["split", "score", "recaption", "encode", "embed"]
    assert not (tmp_path / "run").exists()


def test_a_plan_has_the_fingerprints_of_the_run(command: Clipmill, settings: Settings, finished: Finished) -> None:
    _, out, _ = command("plan", TINY, *settings(finished[0]), "--json")
    told = {stage: facts["fingerprint"] for stage, facts in json.loads(out)["stages"].items()}
    assert told == json.loads((finished[0] / "fingerprints.json").read_text())


def test_status_verify_and_stats_agree(command: Clipmill, finished: Finished) -> None:
    funnel, report, stats = (json.loads(command(verb, finished[0], "--json")[1]) for verb in ("status", "verify", "stats"))
    assert funnel["clips"]["packed"] == report["packed"] == stats["clips"] == 10
    assert funnel["clips"]["cut"] == report["clips"]
    assert sum(stats["captions"].values()) == 10 * 2 + 4  # two prompts, and the titles of two sources with two clips each


@pytest.mark.parametrize("verb", ["status", "verify", "stats"])
def test_tables_for_people_are_printed(command: Clipmill, finished: Finished, verb: str) -> None:
    code, out, err = command(verb, finished[0])
    assert (code, err) == (0, "")
    assert "10" in out


def test_verify_ends_with_one_and_names_the_culprit(command: Clipmill, run_copy: Path) -> None:
    shard = next(run_copy.glob("packed/*/*.tar"))
    shard.unlink()
    code, out, _ = command("verify", run_copy)
    assert code == 1
    assert f"shard {shard.name} is missing" in out


def test_an_ingest_that_has_nothing_to_do_says_so(command: Clipmill, settings: Settings, run_copy: Path) -> None:
    code, out, err = command("ingest", TINY, *settings(run_copy))
    assert code == 0
    assert "10 clips" in out
    assert "0 written now" in out
    assert "reused" in err


def test_pack_packs_for_another_length_and_the_run_still_verifies(command: Clipmill, run_copy: Path) -> None:
    code, out, _ = command("pack", run_copy, "pack.length=48")
    assert code == 0
    assert open_manifest(str(run_copy))[0].sequence_length == 48
    assert f"rows of {48}" in out
    assert command("verify", run_copy)[0] == 0


def test_pack_changes_nothing_but_packing(command: Clipmill, run_copy: Path) -> None:
    for override in ("encode.fps=3", "pack.patch=[1,1,1]"):
        code, out, err = command("pack", run_copy, override)
        assert (code, out) == (2, "")
        assert "use ingest" in err


def test_retry_tries_what_has_failed(command: Clipmill, run_copy: Path) -> None:
    code, out, _ = command("retry", run_copy)
    assert code == 0
    assert "0 written now" in out
    assert json.loads(command("status", run_copy, "--json")[1])["sources"]["failed"] == {"truncated": 1, "unrecognised": 2}
