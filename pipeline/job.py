"""A job: one config, resolved so that it means the same in every worker, with the fingerprint of every stage.

A stage's fingerprint hashes its name, version, columns, identity (config and weights) and the fingerprints of what it reads.
Results are filed under it, so a changed setting finds its old results when it is changed back, and never reads stale ones.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from packing.clip import pinned_clip
from packing.config import dump_config
from packing.errors import InputError
from packing.models import pinned
from packing.store import Store
from pipeline.config import RunConfig, load_run_config
from pipeline.results import StageResults
from pipeline.stages import STAGES
from pipeline.tables import arrow_schema


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know of a run; plain enough to send to one."""

    config: RunConfig
    fingerprints: Mapping[str, str]
    retry: bool = False

    @property
    def store(self) -> Store:
        """The files of the run."""
        return Store(self.config.run)

    def results(self, stage: str) -> StageResults:
        """Return the results of a stage at its present fingerprint."""
        return StageResults(self.store, stage, self.fingerprints[stage], STAGES[stage].value)


def make_job(config: RunConfig, *, retry: bool = False) -> Job:
    """Resolve a config (folders absolute, hub ids at a commit) and fingerprint its stages.

    Raises:
        ModelError: a model is neither a folder nor an id that the hub knows.
    """
    resolved = replace(
        config,
        run=absolute(config.run),
        input=replace(config.input, uri=[absolute(uri) for uri in config.input.uris], text=absolute(config.input.text or "")),
        score=replace(config.score, model=pinned_clip(config.score.model)),
        recaption=replace(config.recaption, model=pinned(config.recaption.model)),
        encode=replace(config.encode, model=pinned(config.encode.model)),
        embed=replace(config.embed, model=_pinned_encoder(config)),
    )
    return Job(config=resolved, fingerprints=fingerprints(resolved), retry=retry)


def fingerprints(config: RunConfig) -> dict[str, str]:
    """Return the fingerprint of every stage, 16 hex characters."""
    found: dict[str, str] = {}
    for name, kind in STAGES.items():
        stage = kind.from_config(config)
        columns = str(arrow_schema(kind.value))
        found[name] = digest([name, kind.version, columns, stage.identity(), [found[read] for read in kind.reads]])
    return found


def digest(value: object) -> str:
    """Hash plain data, 16 hex characters; equal data give equal hashes on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def absolute(url: str) -> str:
    """Write a local path so that it means the same from every folder; leave URLs."""
    return url if not url or "://" in url else os.path.abspath(os.path.expanduser(url))


def save_job(job: Job) -> None:
    """Leave the resolved config and the fingerprints in the run, for the commands that look at it."""
    job.store.replace("config.yaml", dump_config(job.config).encode())
    job.store.replace("fingerprints.json", json.dumps(dict(job.fingerprints), indent=1).encode())


def open_job(run: str, overrides: Sequence[str] = ()) -> Job:
    """Open a run as it was last run; looking at it needs no model.

    Args:
        run: folder or URL of the run.
        overrides: `key=value` changes of its config, for settings that no fingerprint depends on.

    Raises:
        InputError: there is no run at `run`.
    """
    store = Store(absolute(run))
    if not store.exists("config.yaml"):
        raise InputError(f"no run at {run}: it has no config.yaml")
    config = load_run_config(store.path("config.yaml"), overrides)
    return Job(config=replace(config, run=store.url), fingerprints=json.loads(store.read("fingerprints.json")))


def _pinned_encoder(config: RunConfig) -> str:
    return pinned_clip(config.embed.model) if config.embed.backend == "open_clip" else pinned(config.embed.model)
