"""Cut the recorded guests down to a sample: `python -m tests.conformance.guest_sample DIRECTORY`.

Of each guest some table pages stay, as they are; all others become zero, and of the expectations those stay whose
tables do. First stay the tables of one row of each kind (page size, flags, rights), then those of the rows in their
order, until there are enough. Of `permissions.npz` each n-th access stays.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastmmu
from fastmmu.dtypes import StepKind
from fastmmu.image import Guest, read_guest

from .guests import guests, sample_directory

KEPT_META = ("name", "mode", "cr0", "cr3", "cr4", "efer", "cpl", "ram_bytes", "kernel", "qemu", "eff_source")


def tables_of(guest: Guest, va: int) -> frozenset[int]:
    """Frames of the tables that a walk reads."""
    steps = fastmmu.walk(guest.memory, guest.state.replace(cpl=0, ac=1), va).steps
    return frozenset((steps.hpa[steps.kind == StepKind.GUEST] >> np.uint64(12)).tolist())


def kept_tables(guest: Guest, needed: list[frozenset[int]], count: int) -> frozenset[int]:
    e = guest.expected
    kinds = np.stack([e["page_size"], e["flags"], e["eff_user"], e["eff_write"]], axis=1).astype(np.int64)
    first = np.unique(kinds, axis=0, return_index=True)[1]
    kept: frozenset[int] = frozenset()
    for row in [*sorted(first.tolist()), *range(len(needed))]:
        if len(kept | needed[row]) <= count:
            kept |= needed[row]
    return kept


def within(guest: Guest, kept: frozenset[int], addresses: npt.NDArray[np.uint64], most: int) -> npt.NDArray[np.bool_]:
    """Which addresses to keep: those whose tables are kept, of many only some."""
    chosen = np.array([tables_of(guest, va) <= kept for va in addresses.tolist()], bool)
    chosen[np.flatnonzero(chosen)[most:]] = False
    return chosen


def reduce(guest: Guest, place: Path, count: int) -> int:
    """Write the sample of one guest; how many rows it has."""
    e: dict[str, npt.NDArray[Any]] = guest.expected
    needed = [tables_of(guest, va) for va in e["va"].tolist()]
    kept = kept_tables(guest, needed, count)
    rows = np.array([tables <= kept for tables in needed], bool)
    gva, unmapped = within(guest, kept, e["gva"], 500), within(guest, kept, e["unmapped_va"], 500)
    expected = {name: e[name][rows] for name in ("va", "pa", "page_size", "flags", "eff_user", "eff_write")}
    expected |= {"gva": e["gva"][gva], "gpa": e["gpa"][gva], "unmapped_va": e["unmapped_va"][unmapped]}
    frames = np.array(sorted(kept | {guest.state.cr3 >> 12 & 0xFF_FFFF_FFFF}), np.uint64)
    place.mkdir(parents=True, exist_ok=True)
    pages = guest.memory.u8.reshape(-1, 4096)[frames]
    np.savez_compressed(place / "mem.npz", pfn=frames, pages=pages)
    np.savez_compressed(place / "expected.npz", **expected)  # type: ignore[arg-type]
    meta = {name: guest.meta[name] for name in KEPT_META if name in guest.meta}
    (place / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return int(np.count_nonzero(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="the recorded guests")
    parser.add_argument("--tables", type=int, default=14, help="table pages of a guest")
    parser.add_argument("--stride", type=int, default=12, help="of the accesses of permissions.npz")
    options = parser.parse_args()
    target = sample_directory()
    for path in guests(options.directory):
        rows = reduce(read_guest(path), target / path.name, options.tables)
        size = sum(file.stat().st_size for file in (target / path.name).iterdir())
        print(f"{path.name}: {rows} rows, {size} bytes")
    with np.load(options.directory / "permissions.npz") as file:
        some = {name: file[name][:: options.stride] for name in file.files if not name.endswith("_npt")}
    np.savez_compressed(target / "permissions.npz", **some)  # type: ignore[arg-type]
    print(f"permissions: {len(some['access'])} accesses, {(target / 'permissions.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
