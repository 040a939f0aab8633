"""The yardstick, tuned C that does the least that a job needs: compiled once a session, called on our own memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.race import Rival

U64 = npt.NDArray[np.uint64]
SOURCE = "FASTMMU_YARDSTICK"
SKYLAKE = (16, 4, 128, 12)
"""Sets and ways of 64/4 and 1536/12."""


class Counts(NamedTuple):
    """Of a TLB: hits in the first and the second level, misses."""

    hits1: int
    hits2: int
    misses: int


def source() -> Path:
    """Where the yardstick's source is, or should be."""
    place = Path(os.environ.get(SOURCE, Path(__file__).parents[2] / "shared" / "yardstick"))
    return place / "yardstick.c" if place.is_dir() else place


def address(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    """Where an array lies; the pointer keeps it alive."""
    if not array.flags.c_contiguous:
        raise ValueError("the yardstick takes contiguous arrays")
    return array.ctypes.data_as(ctypes.c_void_p)


class Yardstick:
    """Rivals of the yardstick. Where its source is not there all lists of them are empty (`why` says so)."""

    def __init__(self, where: Path) -> None:
        self.why = "" if source().exists() else f"no yardstick at {source()}; {SOURCE} names yardstick.c"
        if not self.why:
            library, wrapper = where / "yardstick.so", Path(__file__).with_suffix(".c")
            define = f'-DYARDSTICK="{source().resolve()}"'
            flags = ["-O3", "-march=native", "-w", "-shared", "-fPIC"]
            subprocess.run(["cc", *flags, define, "-o", library, wrapper], check=True)
            self.library = ctypes.CDLL(str(library))
            for name in ("yard_walk", "yard_tlb", "yard_tlb_walk"):
                getattr(self.library, name).restype = ctypes.c_double

    def walk(
        self, mem: U64, cr3: int, eptp: int | None, va: U64, out: U64, *, times: int = 1, group: bool = False
    ) -> list[Rival]:
        """Walks of `va` in memory `mem` into `out`, one after the other, and (`group`) 32 in step, too."""
        if self.why:
            return []
        roots = ctypes.c_uint64(cr3), ctypes.c_uint64(eptp or 0)
        arguments = (address(mem), *roots, address(va), address(out), ctypes.c_size_t(len(va)))
        nested = int(eptp is not None)

        def way(grouped: int) -> Callable[[], float]:
            return lambda: sum(self.library.yard_walk(nested, grouped, *arguments) for _ in range(times))

        names = ("yardstick", "yardstick, groups")[: 1 + group]
        return [Rival(name, way(grouped), len(va) * times) for grouped, name in enumerate(names)]

    def tlb(
        self, va: U64, counts: U64, *, warm: bool = False, geometry: tuple[int, int, int, int] = SKYLAKE
    ) -> list[Rival]:
        """Look-ups of `va` in two levels of true LRU, `warm`: after a first pass; the counts go into `counts`."""
        if self.why:
            return []
        arguments = ((ctypes.c_int * 4)(*geometry), int(warm), address(va), ctypes.c_size_t(len(va)), address(counts))
        return [Rival("yardstick", lambda: float(self.library.yard_tlb(*arguments)), len(va))]

    def tlb_walk(self, mem: U64, cr3: int, eptp: int | None, va: U64, counts: U64) -> list[Rival]:
        """As `tlb`, warm, with a walk in `mem` for each miss."""
        if self.why:
            return []
        roots = ctypes.c_uint64(cr3), ctypes.c_uint64(eptp or 0)
        given = address(va), ctypes.c_size_t(len(va)), address(counts)
        arguments = ((ctypes.c_int * 4)(*SKYLAKE), address(mem), *roots, *given)
        return [Rival("yardstick + walk", lambda: float(self.library.yard_tlb_walk(*arguments)), len(va))]
