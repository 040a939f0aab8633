"""Small system traces, written as files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fastmmu.trace.system import RECORD_DTYPE

Row = tuple[int, int, int, int, int, int, int]


def row(*, op: int, size: int = 0, cpl: int = 0, flags: int = 0, aux: int = 0, lin: int = 0, val: int = 0) -> Row:
    """A record in the order of RECORD_DTYPE."""
    return op, size, cpl, flags, aux, lin, val


REGISTERS = {16: 0x8005_0033, 17: 0x1001, 18: 0x77_0EF0, 19: 0xD01, 25: 0}
INITIAL = [row(op=op, flags=16, val=value) for op, value in REGISTERS.items()]


def make(
    where: Path,
    rows: Sequence[Row],
    *,
    data: Iterable[int] | None = None,
    pages: Iterable[bytes] | None = None,
    final: Iterable[bytes] | None = None,
    registers: dict[int, int] | None = None,
) -> Path:
    """A trace named t; companions are written where they are given."""
    initial = [row(op=op, flags=16, val=value) for op, value in (REGISTERS | (registers or {})).items()]
    (where / "t.rec").write_bytes(np.array([*initial, *rows], RECORD_DTYPE).tobytes())
    if data is not None:
        (where / "t.wdata.bin").write_bytes(np.array(list(data), "<u8").tobytes())
    for name, content in (("tables", pages), ("tables_final", final)):
        if content is not None:
            (where / f"t.{name}.bin").write_bytes(b"".join(content))
    return where / "t.rec"
