"""The tables of apic.md §4, literally, and what they make of every access to the APIC-access page."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["EOI", "ICR", "SIZES", "TPR", "codes", "registers_read", "registers_written"]

TPR, EOI, ICR, ICR_HIGH = 0x80, 0xB0, 0x300, 0x310
SIZES = (1, 2, 4, 8, 16)
ACCESS, WRITE = 44, 56  # exit reasons

READ_TABLE = """020 030 080 0B0 0D0 0E0 0F0 280 300 310 320 330 340 350 360 370 380 3E0
100 110 120 130 140 150 160 170 180 190 1A0 1B0 1C0 1D0 1E0 1F0 200 210 220 230 240 250 260 270"""
WRITE_TABLE = "020 080 0B0 0D0 0E0 0F0 280 300 310 320 330 340 350 360 370 380 3E0"
KINDS = {"r": 0, "w": 1, "rw": 1, "x": 2, "event": 3, "physical event": 10, "physical": 15}


def _offsets(text: str) -> set[int]:
    return {int(offset, 16) for offset in text.split()}


def registers_read(*, registers: bool) -> set[int]:
    return _offsets(READ_TABLE) if registers else {TPR}


def registers_written(*, registers: bool, delivery: bool) -> set[int]:
    if registers:
        return _offsets(WRITE_TABLE)
    return {TPR, EOI, ICR} if delivery else {TPR}


def codes(
    access: str, size: int, *, shadow: bool, registers: bool, delivery: bool, event: bool = False
) -> npt.NDArray[np.int64]:
    """[offset] 0 where the processor does it, else exit reason << 16 | qualification.

    access: "r", "w", "rw", "x", "physical" or "physical event"; event: during event delivery. For a threshold of 0, an
    EOI that the VMM does not want to see, and an ICR that is no self-IPI.
    """
    offset = np.arange(4096)
    first, last = offset & 15, (offset & 15) + size - 1  # bits 3:2 of both must be 0; one of 64 bits never is inside
    inside = (first < 4) & (last < 4) & (size <= 4)
    may = inside & shadow if registers else (first == 0) & (size <= 4) & shadow
    read = may & np.isin(offset & ~15, [*registers_read(registers=registers)])
    write = may & np.isin(offset & ~15, [*registers_written(registers=registers, delivery=delivery)])
    done = {"r": read, "w": write, "rw": read & write}.get(access, np.zeros(4096, bool))
    trap = WRITE << 16 | offset
    if access == "r":
        trap[:] = 0
    trap[(offset == TPR) | (offset & ~3 == ICR_HIGH) | ((offset == EOI) & delivery)] = 0
    return np.where(done, trap, ACCESS << 16 | KINDS["event" if event else access] << 12 | offset)
