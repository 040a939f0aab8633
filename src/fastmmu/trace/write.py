"""Writing traces: all or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from fastmmu._checked import checked
from fastmmu.errors import TraceError
from fastmmu.trace.base import Trace
from fastmmu.trace.codecs import compressing
from fastmmu.trace.formats import FORMATS, WRITTEN
from fastmmu.trace.names import codec_of_name, format_of_name
from fastmmu.trace.whole import whole_file

__all__ = ["write_trace"]

_BUFFERS = (None, "lz4", "zstd")


@checked
def write_trace(
    trace: Trace, path: str | os.PathLike[str], format: str | None = None, compression: str | None = "lz4"
) -> None:
    """Write a trace, streaming; the file appears under its name only when it is complete.

    format: "arrow", "parquet", "npy" (records of op, size, addr), or, for accesses only, "lackey", "csv", "dinero" and
    "champsim" (both without sizes), by default by suffix: .arrow, .parquet, .npy, .lackey, .csv, .din, .champsim. A
    further suffix .gz, .xz, .zst, .bz2, .lz4, .sz or .lzma compresses the file as a whole. compression: of the buffers
    inside an .arrow or .parquet file, None, "lz4" or "zstd"; no matter otherwise.

    Raises TraceError where the format cannot be told or cannot hold an event, where the trace itself is malformed, or
    where the file cannot be written.
    """
    name = os.fspath(path)
    chosen = format or format_of_name(name)
    if chosen not in WRITTEN:
        raise TraceError(f"cannot write this as a trace; name it (or pass format=) {', '.join(WRITTEN)}", path=name)
    if codec_of_name(name) == "zip":
        raise TraceError("no .zip is written; name a file that ends in .gz, .xz, .zst or in none of them", path=name)
    if compression not in _BUFFERS:
        raise TraceError(f"compression {compression!r} of Arrow buffers is not one of None, 'lz4', 'zstd'", path=name)
    if Path(name).exists() and not Path(name).is_file():
        raise TraceError("this is no regular file; name one to write", path=name)
    try:
        with whole_file(name) as raw, compressing(raw, codec_of_name(name)) as out:
            FORMATS[chosen].write(trace, out, None if codec_of_name(name) else compression)
    except OSError as error:
        raise TraceError(f"cannot be written: {error.strerror or error}", path=name) from error
