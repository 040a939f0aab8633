"""The formats of traces, a row each. Reading, writing, names of files and the command line go by this table.

A format is the module of its name: `looks_like(head)`, whether the first bytes of a file can be such a trace; `READER`,
a class over `filetrace.FileTrace`; and `write(trace, out, compression)` where it is written. Modules are loaded when
they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastmmu.trace.base import Trace

__all__ = ["FORMATS", "WRITTEN", "Format"]


class Format(NamedTuple):
    """``said``: in a sentence. ``doubt``: content that looks like it is asked for after that of less doubt."""

    name: str
    said: str
    suffixes: tuple[str, ...]
    doubt: int = 0
    written: bool = False

    def _module(self) -> Any:
        return import_module(f"fastmmu.trace.{self.name}")

    def looks_like(self, head: bytes) -> bool:
        """Whether a file that begins so can be one."""
        found: bool = self._module().looks_like(head)
        return found

    def open(self, path: str) -> Trace:
        """The trace in a file; raises TraceError where it is none."""
        trace: Trace = self._module().READER(path)
        return trace

    def write(self, trace: Trace, out: IO[bytes], compression: str | None) -> None:
        """Write a trace to an open file; `compression` of buffers inside it, where the format has any."""
        self._module().write(trace, out, compression)


_TEXT, _GUESS = 1, 2

FORMATS = {
    row.name: row
    for row in (
        Format("lackey", "Valgrind lackey text", (".lackey",), doubt=_TEXT, written=True),
        Format("champsim", "ChampSim", (".champsim", ".champsimtrace"), doubt=_GUESS, written=True),
        Format("cloudsuite", "CloudSuite's form of ChampSim", (".cloudsuite",), doubt=_GUESS),
        Format("drmemtrace", "DynamoRIO's drmemtrace", (".memtrace", ".drmemtrace")),
        Format("gem5", "gem5's packets", (".gem5",)),
        Format("dinero", "Dinero text", (".din",), doubt=_TEXT, written=True),
        Format("pinatrace", "pinatrace text", (".pinatrace",), doubt=_TEXT),
        Format("csv", "CSV", (".csv",), doubt=_TEXT, written=True),
        Format("hexlines", "lines of hexadecimal addresses", (".hexlines",), doubt=_TEXT),
        Format("perf", "perf script", (".perf",), doubt=_TEXT),
        Format("npy", ".npy", (".npy",), written=True),
        Format("npz", ".npz", (".npz",)),
        Format("parquet", "Parquet", (".parquet", ".pq"), written=True),
        Format("arrow", ".arrow", (".arrow", ".arrows", ".feather"), written=True),
        Format("system", "the .rec of a system trace", (".rec",)),
    )
}
"""Name of a format → the format."""

WRITTEN = tuple(name for name in reversed(FORMATS) if FORMATS[name].written)
"""Names of those that can be written, fastmmu's own first."""
