"""The commands of the pipeline: split, ingest, plan, status, stats, lint, verify, pack, retry.

Data to stdout, progress to stderr. Each command imports what it needs when it runs, so that help is instant.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from packing.errors import InputError
from packing.store import Store

if TYPE_CHECKING:
    from packing.manifest import Manifest
    from packing.report import PlanReport
    from pipeline.ingest import IngestReport
    from pipeline.job import Job
    from pipeline.scenes import FileScenes

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON for scripts.")
as_picture = click.option("--picture", metavar="SVG", help="Draw the rows into this file; implies --report.")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE... [split.KEY=VALUE]...")
@as_json
@click.option("--csv", "csv_", metavar="FOLDER|-", help="Write STEM-Scenes.csv per file, or (-) the csv of one file to stdout.")
@click.option("--thumbnails", metavar="FOLDER", help="Write STEM-Scene-NNN.jpg per scene.")
def split(files: tuple[str, ...], json_: bool, csv_: str | None, thumbnails: str | None) -> None:
    """Print the scenes of files, without a run; exit with 1, after all, if a file failed.

    FILE is a file, folder, glob, table or URL, as input.uri of an ingest; files are taken in the order of their names. --json
    prints a line per file, --csv has PySceneDetect's columns. Long shots stay whole unless split.max_clip_s says otherwise;
    other keys of the split section, such as split.detector=adaptive, are as in an ingest.
    """
    from pipeline.scenes import find_scenes, read_arguments

    sources, config = read_arguments(files)
    if csv_ == "-" and (json_ or len(sources) > 1):
        raise InputError("--csv - prints the scenes of one file and nothing else; give --csv a folder")
    good = True
    for found in find_scenes(sources, config):
        good &= found.outcome.failure is None
        _show_scenes(found, json_=json_, csv_=csv_ == "-")
        _write_scenes(found, csv_, thumbnails)
    sys.exit(0 if good else 1)


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
def ingest(config: str, overrides: tuple[str, ...]) -> None:
    """Take sources to packed shards; run again to resume.

    CONFIG is a YAML file; OVERRIDES are key=value, such as input.uri=videos run=out runner=ray.
    """
    from pipeline.config import load_run_config
    from pipeline.ingest import ingest as run_ingest

    _show_work(run_ingest(load_run_config(config, overrides), console=_stderr()))


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@as_json
def plan(config: str, overrides: tuple[str, ...], json_: bool) -> None:
    """Show what an ingest would run: sources, partitions, stages with their models and resources. Starts nothing."""
    from pipeline.config import load_run_config
    from pipeline.job import make_job
    from pipeline.sources import find_sources
    from pipeline.stages import STAGES

    job = make_job(load_run_config(config, overrides))
    sources = find_sources(job.config.input)
    size = job.config.input.partition_size
    facts: dict[str, Any] = {
        "run": job.config.run,
        "runner": job.config.runner,
        "sources": len(sources),
        "sources_with_text": sum(1 for source in sources if source.text),
        "bytes": sum(source.size_bytes for source in sources),
        "partitions": -(-len(sources) // size),
        "stages": {stage: _stage_facts(job, stage) for stage in STAGES},
    }
    if json_:
        click.echo(json.dumps(facts, indent=1))
        return
    _stdout().print(
        f"{facts['sources']} sources ({facts['bytes'] / 1e6:.1f} MB, {facts['sources_with_text']} with text) "
        f"in {facts['partitions']} partitions -> {facts['run']} (runner={facts['runner']})"
    )
    table = Table("stage", "results in", "model", "cpus", "gpus", "workers", "a part")
    for stage, of in facts["stages"].items():
        place, model = of["fingerprint"][:8] + "…", of["model"].removeprefix("local-dir:")
        model = model if "@" in model or ":" in model else "/".join(model.split("/")[-3:])
        table.add_row(stage, place, model, *(str(of[name]) for name in ("cpus", "gpus", "workers", "chunk")))
    _stdout().print(table)


@click.command()
@click.argument("run")
@as_json
def status(run: str, json_: bool) -> None:
    """Show the funnel of a run: what became of its sources and clips, and why."""
    from pipeline.job import open_job
    from pipeline.ledger import Ledger, funnel

    facts = funnel(Ledger(open_job(run)))
    if json_:
        click.echo(json.dumps(facts, indent=1))
    else:
        _show_funnel(facts)


@click.command()
@click.argument("shards")
@as_json
@click.option("--report", is_flag=True, help="Report on the rows instead: padding saved, balance of ranks, read rate.")
@as_picture
def stats(shards: str, json_: bool, report: bool, picture: str | None) -> None:
    """Show statistics of packed shards (a run, or a folder with a manifest): tokens, fill, balance, shapes, captions."""
    from packing.report import corpus_report
    from packing.statistics import corpus_statistics

    if report or picture:
        _show_report(*corpus_report(shards), json_, picture)
        return
    facts = corpus_statistics(shards)
    if json_:
        click.echo(json.dumps(facts, indent=1))
        return
    table = Table("figure", "value", show_header=False)
    for name, value in facts.items():
        table.add_row(name, ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,}")
    _stdout().print(table)


@click.command()
@click.argument("shards")
@as_json
def lint(shards: str, json_: bool) -> None:
    """Look into every row of packed shards for what would spoil training; exit with 1 and named culprits when there is any."""
    from packing.lint import lint_corpus

    found = lint_corpus(shards)
    if json_:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo(
            f"{'ok' if found['ok'] else 'BROKEN'}: {found['clips']} clips in {found['rows']} rows of {found['shards']} shards"
        )
        for finding in found["findings"]:
            click.echo(f"  {finding['text']}")
    sys.exit(0 if found["ok"] else 1)


@click.command()
@click.argument("run")
@as_json
def verify(run: str, json_: bool) -> None:
    """Check every invariant and checksum of a run; exit with 1 and a named culprit when one breaks."""
    from pipeline.job import open_job
    from pipeline.verify import verify as run_verify

    report = run_verify(open_job(run))
    if json_:
        click.echo(json.dumps(report, indent=1))
    else:
        counts = ", ".join(f"{report[name]} {name}" for name in ("sources", "clips", "packed", "rejected", "failed"))
        click.echo(f"{'ok' if report['ok'] else 'BROKEN'}: {counts} ({report['failed_sources']} sources failed)")
        for violation in report["violations"]:
            click.echo(f"  {violation}")
    sys.exit(0 if report["ok"] else 1)


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1)
@click.option("--report", is_flag=True, help="Plan the rows and report on the plan; write nothing.")
@as_json
@as_picture
def pack(run: str, overrides: tuple[str, ...], report: bool, json_: bool, picture: str | None) -> None:
    """Pack again what a run has encoded, for another length or seed (pack.length=… pack.seed=…); encodes nothing."""
    from pipeline.ingest import make_runner
    from pipeline.job import save_job
    from pipeline.ledger import Ledger
    from pipeline.pack import pack as run_pack
    from pipeline.pack import report_pack

    job = _repacked(run, overrides)
    if report or picture:
        _show_report(*report_pack(Ledger(job)), json_, picture)
        return
    save_job(job)
    manifest, written = run_pack(Ledger(job), make_runner(job.config))
    _show_manifest(manifest, written)


@click.command()
@click.argument("run")
def retry(run: str) -> None:
    """Give the failed sources and clips of a run another attempt."""
    from pipeline.ingest import ingest as run_ingest
    from pipeline.job import open_job

    _show_work(run_ingest(open_job(run).config, retry=True, console=_stderr()))


def _repacked(run: str, overrides: tuple[str, ...]) -> "Job":
    """Open a run with another pack config; nothing else can change without another ingest."""
    from pipeline.job import open_job

    foreign = [item for item in overrides if not item.startswith(("pack.", "runner=", "ray."))]
    if foreign or any(item.startswith("pack.patch") for item in overrides):
        raise click.UsageError(f"pack changes pack.length, pack.seed … only; for {foreign or 'pack.patch'} use ingest")
    return open_job(run, overrides)


def _show_report(report: "PlanReport", rows: Sequence[Sequence[int]], json_: bool, picture: str | None) -> None:
    """Print a report on rows, given also as the tokens of their clips, and draw them if a file is named."""
    from packing.picture import plan_picture

    click.echo(json.dumps(report.to_dict(), indent=1) if json_ else report.to_text())
    if picture:
        folder, _, name = os.path.abspath(picture).rpartition("/")
        Store(folder).replace(name, plan_picture(rows, report.capacity).encode())


def _stage_facts(job: "Job", stage: str) -> dict[str, Any]:
    config = job.config
    shared = config.ray.shared_workers if config.runner == "ray" else 0
    resources = config.resources_of("shared" if shared else stage)
    workers = f"{shared} for all" if shared else f"{resources.min_workers}-{resources.max_workers}"
    return {
        "fingerprint": job.fingerprints[stage],
        "model": getattr(getattr(config, stage), "model", ""),
        "cpus": resources.cpus,
        "gpus": resources.gpus,
        "workers": workers if config.runner == "ray" else "this process",
        "chunk": getattr(config, stage).chunk,
    }


def _show_scenes(found: "FileScenes", *, json_: bool, csv_: bool) -> None:
    """Print what became of a file; where stdout is csv, a failure goes to stderr."""
    from pipeline.scenes import to_csv, to_json, to_table

    if json_:
        click.echo(json.dumps(to_json(found)))
    elif csv_ and not found.trouble:
        click.echo(to_csv(found), nl=False)
    else:
        (_stderr() if csv_ else _stdout()).print(to_table(found), soft_wrap=bool(found.trouble))


def _write_scenes(found: "FileScenes", csv_: str | None, pictures: str | None) -> None:
    """Write the files about a file that were asked for; a file that failed has none."""
    from pipeline.scenes import thumbnails, to_csv

    if csv_ and csv_ != "-" and not found.trouble:
        Store(csv_).replace(f"{found.name}-Scenes.csv", to_csv(found).encode())
    for name, jpeg in thumbnails(found) if pictures else ():
        Store(str(pictures)).replace(name, jpeg)


def _show_work(report: "IngestReport") -> None:
    table = Table("stage", "done now", "failed now", "reused", title="work of this call")
    for stage, work in report.work.items():
        table.add_row(stage, str(work.ok), str(work.failed), str(work.reused))
    _stderr().print(table)
    _show_manifest(report.manifest, report.shards_written)


def _show_manifest(manifest: "Manifest | None", written: int) -> None:
    if manifest is None:
        click.echo("nothing to pack: no clip has passed every stage")
        return
    click.echo(
        f"packed {manifest.clips} clips, {manifest.tokens:,} tokens in {manifest.rows} rows of {manifest.sequence_length:,} "
        f"(fill {manifest.fill:.1%}), {len(manifest.shards)} shards, {written} written now; manifest {manifest.digest[:12]} "
        f"in packed/{manifest.fingerprints['pack']}"
    )


def _show_funnel(facts: Mapping[str, Any]) -> None:
    table = Table("", "count", "of these", title="funnel")
    sources, clips = facts["sources"], facts["clips"]
    table.add_row("sources planned", str(sources["planned"]), f"{sources['duplicates']} byte-equal copies")
    table.add_row("  failed", str(sum(sources["failed"].values())), _reasons(sources["failed"]))
    table.add_row("  waiting", str(sources["waiting"]), "")
    table.add_row("clips cut", str(clips["cut"]), f"{facts['seconds']:.1f} s")
    table.add_row("  rejected", str(sum(clips["rejected"].values())), _reasons(clips["rejected"]))
    table.add_row("  failed", str(sum(clips["failed"].values())), _reasons(clips["failed"]))
    table.add_row("  waiting", str(sum(clips["waiting"].values())), _reasons(clips["waiting"]))
    table.add_row("  packed", str(clips["packed"]), f"{facts['seconds_packed']:.1f} s")
    _stdout().print(table)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))


def _stdout() -> Console:
    return Console()


def _stderr() -> Console:
    return Console(stderr=True)
