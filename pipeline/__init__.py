"""The ingestion job: raw sources to packed shards, stage by stage, resumable after every chunk of clips.

    config = pipeline.load_run_config("configs/tiny.yaml", ["input.uri=videos", "run=out"])
    report = pipeline.ingest(config)

Names are imported on first use: the decoder's process imports this package too, and must stay small.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import RunConfig, load_run_config
    from pipeline.ingest import ingest
    from pipeline.ledger import Ledger
    from pipeline.measures import measure
    from pipeline.stage import Stage
    from pipeline.verify import verify

_MODULE_OF = {
    "Ledger": "ledger",
    "RunConfig": "config",
    "Stage": "stage",
    "ingest": "ingest",
    "load_run_config": "config",
    "measure": "measures",
    "verify": "verify",
}

__all__ = ["Ledger", "RunConfig", "Stage", "ingest", "load_run_config", "measure", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(f"pipeline.{_MODULE_OF[name]}"), name)
