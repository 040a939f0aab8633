"""Recorded guests: a directory with registers, the pages that matter, and what the recording machine said of them.

meta.json       cr0, cr3, cr4, efer, ram_bytes; perhaps cpl, maxphyaddr
mem.npz         pfn uint64[n], pages uint8[n, 4096]; perhaps is_table bool[n]
expected.npz    arrays of expectations; may be absent
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import ConfigError, OutOfMemoryError
from fastmmu.image.pages import PAGE, from_pages
from fastmmu.image.raw import open_regular
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState, Mode
from fastmmu.trace.archive import BROKEN

__all__ = ["Guest", "read_guest"]

_REGISTERS = ("cr0", "cr3", "cr4", "efer")
_WIDTH = 40  # MAXPHYADDR of QEMU's processors, where neither meta.json nor the command line recorded in it has one
_PDPTE_ACCESSED = 1 << 5


@dataclass(frozen=True)
class Guest:
    """A recorded guest. ``memory`` holds the recorded pages, all others are zero."""

    name: str
    memory: PhysicalMemory
    state: GuestState
    meta: dict[str, Any] = field(repr=False)
    expected: dict[str, npt.NDArray[Any]] = field(repr=False)


@checked
def read_guest(directory: str | os.PathLike[str]) -> Guest:
    """Read a recorded guest.

    The PDPTE registers of PAE paging are taken from memory without bit 5: QEMU, which reads them anew at each walk,
    sets it in those that it used, where a processor would refuse it (paging.md §3.2).

    :raises ConfigError: a file that is not as described above. :raises StateError: registers that no processor has.
    :raises OSError: a file that cannot be read.
    """
    place = Path(directory)
    if not (place / "meta.json").exists():
        raise FileNotFoundError(2, "there is no meta.json: this is no recorded guest", str(place))
    meta = _meta(place / "meta.json")
    arrays = _arrays(place / "mem.npz")
    if not {"pfn", "pages"} <= arrays.keys():
        raise ConfigError(f"{place / 'mem.npz'}: needs the arrays pfn and pages, has {', '.join(arrays) or 'none'}")
    pfn = arrays["pfn"]
    last = int(pfn.max()) if pfn.size and pfn.dtype.kind in "iu" else -1
    size = max(meta["ram_bytes"], (last + 1) * PAGE)
    try:
        memory = from_pages(pfn, arrays["pages"], size)
    except ConfigError as error:
        raise ConfigError(f"{place / 'mem.npz'}: {error}") from error
    state = GuestState(**{name: meta[name] for name in _REGISTERS}, cpl=meta.get("cpl", 0), maxphyaddr=_width(meta))
    if state.mode is Mode.PAE:
        state = state.replace(pdptes=_pdptes(memory, state.cr3 & 0xFFFF_FFE0))
    expected = place / "expected.npz"
    return Guest(
        name=str(meta.get("name", place.resolve().name)),
        memory=memory,
        state=state,
        meta=meta,
        expected=_arrays(expected) if expected.exists() else {},
    )


def _meta(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            meta = json.loads(file.read().decode())
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise ConfigError(f"{path}: must hold an object, not {type(meta).__name__}")
    for name in (*_REGISTERS, "ram_bytes"):
        if isinstance(meta.get(name), bool) or not isinstance(meta.get(name), int):
            raise ConfigError(f"{path}: needs the integer {name!r}, has {meta.get(name)!r}")
    return meta


def _width(meta: dict[str, Any]) -> int:
    given = re.search(r",phys-bits=(\d+)", str(meta.get("qemu_cmd", "")))
    width: int = meta.get("maxphyaddr", int(given[1]) if given else _WIDTH)
    return width


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with open_regular(path) as data, np.load(data, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ConfigError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{path}: no memory for its arrays, if they are as large as it says") from error
    except (*BROKEN, AttributeError, TypeError, SyntaxError, TokenError, KeyError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ConfigError(f"{path}: not an .npz file of plain arrays: {error}") from error


def _pdptes(memory: PhysicalMemory, table: int) -> list[int]:
    return [memory.read64(table + 8 * i) & ~_PDPTE_ACCESSED for i in range(4)]
