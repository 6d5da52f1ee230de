"""Open a source and decode it in the sandbox: what the stages that read sources have in common."""

from typing import Any

from pipeline.answers import Arrays
from pipeline.protocol import Limits
from pipeline.records import Source
from pipeline.sandbox import DecodeError, Sandbox
from pipeline.sources import SourceError, SourceFiles


class Decoder:
    """A warm sandbox and the source that was read last, which stays open for the next call."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sandbox, self._files = Sandbox(), SourceFiles()

    def run(self, task: str, source: Source, options: Any) -> tuple[dict[str, Any], Arrays]:
        """Run a task of the sandbox over a source.

        Raises:
            SourceError: the source cannot be opened or decoded; `error` is the short name of the reason.
        """
        try:
            return self._sandbox.call(task, self._files.open(source), options, self._limits)
        except DecodeError as error:
            raise SourceError(error.error, str(error)) from error

    def close(self) -> None:
        """End the sandbox and close the source."""
        self._sandbox.close()
        self._files.close()
