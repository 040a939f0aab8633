"""Small memories full of random tables, in which a random address has a fair chance of every outcome.

Each level has a few tables of its own, all entries filled, most pointing at tables of the level below. The guest's
frame number of a table ends in its host frame number, so 4K, 2M and 1G EPT leaves can all map it where it lies.
Entries spoiled at random (not present, reserved bits, out of memory ...) are rare in upper levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu import Eptp, GuestState, Npt, PhysicalMemory

U64 = npt.NDArray[np.uint64]
MODES = {
    "none": {"cr0": 0x31, "cr4": 0, "efer": 0},
    "32": {"cr0": 0x8000_0031, "cr4": 0, "efer": 0},
    "pae": {"cr0": 0x8000_0031, "cr4": 0x20, "efer": 0},
    "4": {"cr0": 0x8000_0031, "cr4": 0x20, "efer": 0x500},
    "5": {"cr0": 0x8000_0031, "cr4": 0x1020, "efer": 0x500},
}
LEVELS = {"none": 0, "32": 2, "pae": 2, "4": 4, "5": 5}
TABLES = 3  # of each level
GUEST, EPT = 1, 1 + 5 * TABLES  # first frames; level L has TABLES frames from first + (L - 1) * TABLES; frame 0: PDPT
FRAMES = EPT + 5 * TABLES
NBYTES = (FRAMES << 12) + 0x800  # the last frame lies in memory by half


class RandomTables:
    """`mem`, `state`, `eptp` (None without EPT) for a mode, all else by chance; `addresses(n)` to try. ept: "npt" is
    AMD's nested paging."""

    def __init__(self, seed: int, mode: str, ept: bool | str, clean: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.mode, self.odds = mode, 0.0 if clean else 0.02
        buffer = np.full(FRAMES + 2 << 9, 1 << 12 | 7, np.uint64)  # behind the end of memory: what looks like entries
        self.mem = PhysicalMemory.from_array(buffer[: NBYTES // 8])
        self.state = self._state()
        self.eptp = self._npt() if ept == "npt" else self._eptp() if ept else None
        for level in range(1, 6):
            for table in range(TABLES):
                self._guest_table(level, GUEST + (level - 1) * TABLES + table)
                self._ept_table(level, EPT + (level - 1) * TABLES + table)
        for i in range(4):
            self.mem.u64[i] = self._target(2, 1)[0] | np.uint64(self.rng.random() < 0.9)

    def chance(self, odds: float, shape: int | None = None) -> Any:
        return self.rng.random(shape) < odds

    def addresses(self, n: int) -> U64:
        rng, bits = self.rng, 10 if self.mode == "32" else 9
        la = rng.integers(0, 1 << 12, n).astype(np.uint64) | rng.integers(0, 1 << bits, n).astype(np.uint64) << 12
        for level in range(2, 6):
            la |= rng.choice(np.array([0, 1, 2, (1 << bits) - 1], np.uint64), n) << np.uint64(12 + bits * (level - 1))
        if self.mode in ("4", "5"):
            bits = 16 if self.mode == "4" else 7
            canonical = (la << np.uint64(bits)).view(np.int64) >> np.int64(bits)
            la = np.where(self.chance(0.97, n), canonical.view(np.uint64), la)
        return la

    def _state(self) -> GuestState:
        chance, registers = self.chance, dict(MODES[self.mode])
        registers["cr0"] |= chance(0.6) << 16
        registers["efer"] |= chance(0.7) << 11
        for bit in (7, 20, 21, 22, 24):
            registers["cr4"] |= chance(0.4) << bit
        if self.mode == "32":
            registers["cr4"] |= chance(0.8) << 4
        root = GUEST + (LEVELS[self.mode] - 1) * TABLES
        self.maxphyaddr = int(self.rng.choice([36, 40, 46, 52]))
        return GuestState(
            **registers,
            cr3=0 if self.mode in ("none", "pae") else root << 12,
            cpl=int(self.rng.choice([0, 3])),
            ac=int(chance(0.5)),
            pkru=int(self.rng.integers(0, 1 << 32)) if chance(0.6) else 0,
            pkrs=int(self.rng.integers(0, 1 << 32)) if chance(0.6) else 0,
            implicit=bool(chance(0.2)),
            maxphyaddr=self.maxphyaddr,
            page1gb=bool(chance(0.8)),
            pse36=int(self.rng.choice([32, 36, min(self.maxphyaddr, 40)])),
            upper_a=str(self.rng.choice(["eager", "lazy"])),
        )

    def _eptp(self) -> Eptp:
        chance = self.chance
        levels = 4 + int(chance(0.4))
        root = EPT + (levels - 1) * TABLES
        return Eptp(
            root << 12 | int(chance(0.5)) << 6 | (levels - 1) << 3 | 6,
            maxphyaddr=self.maxphyaddr,
            execute_only=bool(chance(0.5)),
            mbec=bool(chance(0.4)),
            page1gb=bool(chance(0.8)),
            ad_before_final=bool(chance(0.5)),
        )

    def _npt(self) -> Npt:
        chance = self.chance
        levels = 4 + int(chance(0.4))
        root = EPT + (levels - 1) * TABLES
        return Npt(
            root << 12,
            levels=levels,
            maxphyaddr=self.maxphyaddr,
            nxe=bool(chance(0.8)),
            page1gb=bool(chance(0.8)),
            pat=0x0007_0406_0105_0406,
            ad_before_final=bool(chance(0.5)),
        )

    def _target(self, level: int, n: int) -> U64:
        """Addresses of guest tables of a level (0: of data), as entries hold them."""
        rng = self.rng
        frame = rng.integers(0, 512, n) if level == 0 else GUEST + (level - 1) * TABLES + rng.integers(0, TABLES, n)
        if level:
            frame = np.where(self.chance(self.odds, n), rng.choice([0, FRAMES, FRAMES + 1, 1 << 22], n), frame)
        if self.eptp is not None or level == 0:
            frame = frame | rng.choice([0, 1, 2], n) << 9 | rng.choice([0, 0, 1], n) << 18
        return frame.astype(np.uint64) << np.uint64(12)

    def _some(self, bit: int, odds: float, n: int) -> U64:
        return self.chance(odds, n).astype(np.uint64) << np.uint64(bit)

    def _guest_table(self, level: int, frame: int) -> None:
        n = 1024 if self.mode == "32" else 512
        some, upper = self._some, level > 1
        entry = some(0, 0.98 if upper else 0.9, n) | some(1, 0.9, n) | some(2, 0.7, n)
        entry |= some(5, 0.95 if upper else 0.7, n) | some(6, 0.6, n) | some(8, 0.3, n)
        large = self.chance(0.25 if level in (2, 3) else self.odds if upper else 0.3, n)
        address = np.where(large & (level in (2, 3)), self._target(0, n), self._target(level - 1, n))
        low = np.uint64({2: 0x3FF000 if self.mode == "32" else 0x1FF000, 3: 0x3FFFF000}.get(level, 0))
        clear = large & ~self.chance(self.odds, n)
        address = np.where(clear & upper, address & ~low | some(12, 0.5, n), address)
        entry |= address | large.astype(np.uint64) << np.uint64(7)
        if self.mode == "32":
            entry |= np.where(large & upper, self.rng.integers(0, 16, n) << 13, 0).astype(np.uint64)
            table = self.mem.u8[frame << 12 : (frame + 1) << 12].view("<u4")
            table[:] = entry.astype(np.uint32)
            return
        if self.mode in ("4", "5"):
            entry |= self.rng.integers(0, 16, n).astype(np.uint64) << np.uint64(59)
        nxe = bool(self.state.efer >> 11 & 1)
        entry |= some(63, 0.1 if nxe else self.odds / 2, n) | some(51, self.odds / 2, n) | some(40, self.odds / 2, n)
        self.mem.u64[frame << 9 : (frame + 1) << 9] = entry

    def _ept_table(self, level: int, frame: int) -> None:
        some, n, upper = self._some, 512, level > 1
        odds = self.odds / 4 if upper else 0.07
        entry = some(0, 1 - odds, n) | some(1, 1 - 2 * odds, n) | some(2, 1 - 2 * odds, n) | some(10, 1 - 2 * odds, n)
        entry |= some(8, 0.7, n) | some(9, 0.7, n) | some(63, 0.1, n)
        large = self.chance(0.2 if level in (2, 3) else self.odds / 4 if upper else 0.3, n)
        leaf = large | (level == 1)
        below = EPT + (level - 2) * TABLES + self.rng.integers(0, TABLES, n)
        below = np.where(self.chance(self.odds / 2, n), self.rng.choice([FRAMES, 1 << 22], n), below)
        own = np.arange(n) if level == 1 else np.zeros(n, np.int64)
        own = np.where(self.chance(self.odds, n), FRAMES if level == 1 else 1 << 18, own)
        entry |= np.where(leaf, own, below).astype(np.uint64) << np.uint64(12)
        kind = np.where(leaf, self.rng.choice([0, 1, 4, 5, 6, 6, 6, 6], n), 0)
        kind = np.where(self.chance(self.odds / 4, n), self.rng.integers(0, 8, n), kind)
        entry |= kind.astype(np.uint64) << np.uint64(3) | large.astype(np.uint64) << np.uint64(7)
        entry |= np.where(leaf, some(6, 0.3, n), 0).astype(np.uint64)
        entry |= some(51, self.odds / 4, n) | some(12, self.odds / 4, n)
        if isinstance(self.eptp, Npt):
            entry = self._as_npt(entry)
        self.mem.u64[frame << 9 : (frame + 1) << 9] = entry

    def _as_npt(self, entry: U64) -> U64:
        """Entries of an EPT in the format of guest paging: R is P, XU is U/S, no X is NX; PWT and PCD by chance."""
        n, one = len(entry), np.uint64(1)
        nxe = self.eptp is not None and self.eptp.options["nxe"]
        found = entry & np.uint64(0x000F_FFFF_FFFF_F083) | (entry >> np.uint64(10) & one) << np.uint64(2)
        found |= (entry & np.uint64(0x300)) >> np.uint64(3) | self._some(3, 0.1, n) | self._some(4, 0.1, n)
        if nxe:
            found |= (~entry >> np.uint64(2) & one) << np.uint64(63)
        return found | self._some(8, self.odds / 4, n) | self._some(63, self.odds / 4, n)
