"""Makes a small system trace of the end of a large one: `cut_system_trace.py IN.rec.zst OUT --start RECORD`.

OUT.rec.xz and its companions begin behind the first write to CR3 from RECORD on. The page tables have there what a
replay of the trace has made of them until then; at the end they have what the trace says. Of accesses that neither
store to a page table nor differ, in page, kind and privilege, from one since the last register write, invalidation or
page fault, the first is kept: the others would be found in the TLB.
"""

from __future__ import annotations

import argparse
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.machine.replay import Replay
from fastmmu.ops import LAST_ACCESS, RecordOp
from fastmmu.trace.system import RECORD_DTYPE, Records, SystemTrace

REGISTERS = (RecordOp.CR0, RecordOp.CR3, RecordOp.CR4, RecordOp.EFER, RecordOp.PKRU)
FORGETS = (*REGISTERS, RecordOp.INVLPG, RecordOp.INVPCID, RecordOp.EXCEPTION)
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 3, "pb": 3}]
Rows = npt.NDArray[Any]


def split(chunk: Records, at: int) -> tuple[Records, Records]:
    """A chunk in two, before record `at` of it."""
    values = int((chunk.rows["flags"][:at] & 1).sum())
    tables = int((chunk.rows["op"][:at] == RecordOp.TABLE).sum())
    return (
        Records(chunk.first, chunk.rows[:at], chunk.data[:values], chunk.pages[:tables]),
        Records(chunk.first + at, chunk.rows[at:], chunk.data[values:], chunk.pages[tables:]),
    )


def thinned(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which records are kept."""
    access, stored = rows["op"] <= LAST_ACCESS, rows["flags"] & 1 != 0
    kept = ~access & (rows["op"] != RecordOp.FAR) | stored
    plain = np.flatnonzero(access & ~stored)
    keys = np.empty(len(plain), [("epoch", "u8"), ("lin", "u8"), ("val", "u8"), ("kind", "u4")])
    keys["epoch"] = np.cumsum(np.isin(rows["op"], FORGETS))[plain]
    keys["lin"], keys["val"] = rows["lin"][plain] >> 12, rows["val"][plain] >> 12
    keys["kind"] = rows["op"][plain].astype("u4") << 16 | rows["cpl"][plain].astype("u4") << 8 | rows["flags"][plain]
    _, first = np.unique(keys, return_index=True)
    kept[plain[first]] = True
    return kept


def write(path: str, data: bytes) -> None:
    Path(path).write_bytes(lzma.compress(data, filters=FILTERS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--start", type=int, required=True)
    args = parser.parse_args()
    trace = SystemTrace(args.source)
    replay = Replay(trace)
    registers = {op: trace.registers()[op.name.lower()] for op in REGISTERS}
    kept: list[Rows] = []
    values: list[bytes] = []
    pages: list[bytes] = []
    tables: list[int] = []
    for chunk in trace.records():
        if not kept:
            here = np.flatnonzero(
                (chunk.rows["op"] == RecordOp.CR3) & (np.arange(len(chunk)) + chunk.first >= args.start)
            )
            before, chunk = split(chunk, int(here[0]) + 1 if len(here) else len(chunk))
            replay.feed(before)
            for row in before.rows[np.isin(before.rows["op"], REGISTERS)]:
                registers[RecordOp(int(row["op"]))] = int(row["val"])
            tables += before.rows["val"][before.rows["op"] == RecordOp.TABLE].tolist()
            if not len(here):
                continue
            memory = replay.machine.guest_memory.u8
            pages += [memory[page : page + 4096].tobytes() for page in tables]
            start = np.zeros(len(registers) + len(tables), RECORD_DTYPE)
            for row, (op, value) in zip(start, registers.items(), strict=False):
                row["op"], row["flags"], row["val"] = op, 16, value & ~(1 << 63)
            start["op"][len(registers) :] = RecordOp.TABLE
            start["aux"][len(registers) :] = np.arange(len(tables))
            start["val"][len(registers) :] = tables
            kept.append(start)
        kept.append(chunk.rows)
        values.append(chunk.data.tobytes())
        pages.append(chunk.pages.tobytes())
    rows = np.concatenate(kept)
    n = int((rows["op"] == RecordOp.TABLE).sum())
    final = trace.final_pages(n)
    write(f"{args.out}.rec.xz", rows[thinned(rows)].tobytes())
    write(f"{args.out}.wdata.bin.xz", b"".join(values))
    write(f"{args.out}.tables.bin.xz", b"".join(pages))
    write(f"{args.out}.tables_final.bin.xz", b"".join(page.tobytes() for page in final or ()))


if __name__ == "__main__":
    main()
