"""Writing traces: all or nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from fastmmu.errors import TraceError
from fastmmu.trace import lackey_parse as _lackey
from fastmmu.trace.arrow import write_arrow
from fastmmu.trace.base import Trace
from fastmmu.trace.codecs import compressing
from fastmmu.trace.events import CHUNK, EVENT_DTYPE
from fastmmu.trace.names import codec_of_name, format_of_name
from fastmmu.trace.npy import npy_header

__all__ = ["write_trace"]

_BUFFERS = (None, "lz4", "zstd")


def write_trace(
    trace: Trace, path: str | os.PathLike[str], format: str | None = None, compression: str | None = "lz4"
) -> None:
    """Write a trace, streaming; the file appears under its name only when it is complete.

    format: "arrow", "npy" (records of op, size, addr) or "lackey" (accesses only), by default by suffix: .arrow, .npy,
    .lackey. A further suffix .gz, .xz or .zst compresses the file as a whole. compression: of the buffers inside an
    .arrow file, None, "lz4" or "zstd"; no matter otherwise.

    Raises TraceError where the format cannot be told or cannot hold an event, where the trace itself is malformed, or
    where the file cannot be written.
    """
    name = os.fspath(path)
    chosen = format or format_of_name(name)
    if chosen not in _WRITERS:
        raise TraceError(f"cannot write this as a trace; name it (or pass format=) {', '.join(_WRITERS)}", path=name)
    if compression not in _BUFFERS:
        raise TraceError(f"compression {compression!r} of Arrow buffers is not one of None, 'lz4', 'zstd'", path=name)
    try:
        with _replacing(Path(name)) as raw, compressing(raw, codec_of_name(name)) as out:
            _WRITERS[chosen](trace, out, None if codec_of_name(name) else compression)
    except OSError as error:
        raise TraceError(f"cannot be written: {error.strerror or error}", path=name) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` at the end of the block, or vanishes if that fails."""
    if path.exists() and not path.is_file():
        raise TraceError("this is no regular file; name one to write", path=str(path))
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as out:
            yield out
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write_npy(trace: Trace, out: IO[bytes], _: str | None) -> None:
    total = trace.total
    if total is None:  # the header comes first: count in a pass of its own
        total = sum(len(batch) for batch in trace.batches(CHUNK))
    out.write(npy_header(total))
    done = 0
    for batch in trace.batches(CHUNK):
        rows = np.empty(len(batch), EVENT_DTYPE)
        rows["op"], rows["size"], rows["addr"] = batch.op, batch.size, batch.addr
        out.write(rows.tobytes())
        done += len(batch)
    if done != total:
        raise TraceError(f"the trace has {done} events where {total} were promised", path=trace.path)


def _write_lackey(trace: Trace, out: IO[bytes], _: str | None) -> None:
    done = 0
    for batch in trace.batches(CHUNK):
        try:
            out.write(_lackey.format(batch.op, batch.size, batch.addr))
        except IndexError as error:
            at = error.args[0]
            raise TraceError(
                f"lackey text cannot hold operation {batch.op[at]} with size {batch.size[at]}; write .arrow or .npy",
                path=trace.path,
                where=f"event {done + at}",
            ) from error
        done += len(batch)


_WRITERS: dict[str, Callable[[Trace, IO[bytes], str | None], None]] = {
    "arrow": write_arrow,
    "npy": _write_npy,
    "lackey": _write_lackey,
}
