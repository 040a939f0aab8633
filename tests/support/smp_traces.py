"""Random system traces of several CPUs, by the executable specification: what an emulator that runs one CPU at a time
would have recorded.

Each CPU has a TLB that is not tagged and loses entries at random, as the recorder's has. Tables change at any time, and
a CPU flushes when it likes: what a use goes by is what the recorder's CPU held.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastmmu.reference.paging.memory import SparseMemory
from fastmmu.reference.paging.outcome import Mapped, PageFault
from fastmmu.reference.paging.state import State
from fastmmu.reference.paging.walk import walk
from tests.support.system_traces import Row, row

__all__ = ["SmpTrace", "random_trace"]

P, RW, US, A, D, PS, G, XD = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
ALL = P | RW | US | A | D
NBYTES = 16 << 20
KERNEL = 0xFFFF_8880_0000_0000  # maps all memory
APIC_LA, APIC = 0xFFFF_FFFF_FF5F_D000, 0xFEE0_0000
ROOTS = (0x1000, 0x2000)
TABLES = 0x3000
FRAMES = range(0x20_0000, 0x21_0000, 0x1000)
REGISTERS = {"cr0": 0x8005_0033, "cr4": 0x77_0EF0, "efer": 0xD01, "pkru": 0}
SMALL = tuple(range(0, 0x4000, 0x1000))
LARGE = (0x20_0000, 0x20_3000)


@dataclass
class Cpu:
    """Registers, and the recorder's TLB: page -> (frame, rights of the walk)."""

    state: State
    tlb: dict[int, Mapped] = field(default_factory=dict)

    def flush(self, *, every: bool = False) -> None:
        self.tlb = {} if every else {page: held for page, held in self.tlb.items() if held.global_page}


@dataclass
class SmpTrace:
    """Records with what belongs to them; `stale`: uses that a walk would have answered otherwise."""

    rows: list[Row] = field(default_factory=list)
    data: list[int] = field(default_factory=list)
    pages: list[bytes] = field(default_factory=list)
    final: list[bytes] = field(default_factory=list)
    stale: int = 0
    faults: int = 0

    def write(self, where: Path) -> Path:
        """As files."""
        import numpy as np

        from fastmmu.trace.system import RECORD_DTYPE

        (where / "t.rec").write_bytes(np.array(self.rows, RECORD_DTYPE).tobytes())
        (where / "t.wdata.bin").write_bytes(np.array(self.data, "<u8").tobytes())
        (where / "t.tables.bin").write_bytes(b"".join(self.pages))
        (where / "t.tables_final.bin").write_bytes(b"".join(self.final))
        return where / "t.rec"


class _Machine:
    def __init__(self, rng: random.Random, cpus: int) -> None:
        self.rng, self.trace, self.memory = rng, SmpTrace(), SparseMemory(nbytes=NBYTES)
        self.tables: list[int] = []
        self.build()
        self.cpus = [
            Cpu(State(**REGISTERS, cr3=ROOTS[i % 2] | 1 + i % 2, maxphyaddr=40, upper_a="lazy")) for i in range(cpus)
        ]
        self.at = 0
        self.start()

    def table(self) -> int:
        at = TABLES + 0x1000 * (len(self.tables) - len(ROOTS)) if len(self.tables) >= len(ROOTS) else 0
        at = at or ROOTS[len(self.tables)]
        self.tables.append(at)
        return at

    def build(self) -> None:
        """User pages of each root, the kernel's map, the local APIC."""
        write = self.memory.write64
        roots = [self.table(), self.table()]
        kernel, kernel_pd, apic, apic_pd, apic_pt = (self.table() for _ in range(5))
        write(kernel + 8 * (KERNEL >> 30 & 511), kernel_pd | ALL)
        for i in range(NBYTES >> 21):
            write(kernel_pd + 8 * i, i << 21 | P | RW | A | D | PS | G)
        write(apic + 8 * (APIC_LA >> 30 & 511), apic_pd | ALL)
        write(apic_pd + 8 * (APIC_LA >> 21 & 511), apic_pt | ALL)
        write(apic_pt + 8 * (APIC_LA >> 12 & 511), APIC | P | RW | A | D | G)
        self.leaves: list[int] = []
        self.directories: list[tuple[int, int]] = []
        for number, root in enumerate(roots):
            pdpt, pd, pt = self.table(), self.table(), self.table()
            write(root, pdpt | ALL)
            write(pdpt, pd | ALL)
            write(pd, pt | ALL)
            write(pd + 8, 0x40_0000 + (number << 21) | ALL | PS)
            write(root + 8 * (KERNEL >> 39 & 511), kernel | ALL)
            write(root + 8 * (APIC_LA >> 39 & 511), apic | ALL)
            for i in range(len(SMALL)):
                write(pt + 8 * i, FRAMES[4 * number + i] | ALL)
            self.leaves += [pt + 8 * i for i in range(len(SMALL))]
            self.directories.append((pd, pt))

    def page(self, at: int) -> bytes:
        return b"".join(self.memory.read64(at + 8 * i).to_bytes(8, "little") for i in range(512))

    def add(self, **fields: int) -> None:
        self.trace.rows.append(row(**fields))

    def start(self) -> None:
        for number, cpu in enumerate(self.cpus):
            if number:
                self.add(op=33, aux=number)
            for op, name in ((16, "cr0"), (17, "cr3"), (18, "cr4"), (19, "efer"), (25, "pkru")):
                self.add(op=op, flags=16, val=getattr(cpu.state, name))
        self.add(op=33, aux=0)
        for i, at in enumerate(self.tables):
            self.add(op=32, aux=i, val=at)
            self.trace.pages.append(self.page(at))

    @property
    def cpu(self) -> Cpu:
        return self.cpus[self.at]

    def serves(self, held: Mapped, state: State, access: str) -> bool:
        """Is the access one that the held entry permits?"""
        writes = access in ("w", "rw")
        user = state.cpl == 3
        if (user and not held.us) or (writes and not (held.rw and held.dirty)) or (access == "x" and held.xd):
            return False
        if not user and held.us:  # SMAP, SMEP
            return False
        key = state.pkru >> 2 * held.pkey & 3 if held.us else 0
        return access == "x" or not (key & 1 or (key & 2 and writes))

    def use(self, la: int, access: str, *, user: bool, size: int = 8, walk_only: bool = False) -> int | None:
        """Physical address of an access that is recorded; None: a #PF is."""
        state = replace(self.cpu.state, cpl=3 if user else 0)
        held = self.cpu.tlb.get(la >> 12)
        code = {"r": 0, "w": 1, "rw": 2, "x": 3}[access]
        flags = 0
        if held is not None and self.serves(held, state, access) and not walk_only:
            pa = held.pa & ~0xFFF | la & 0xFFF
            now = walk(self.memory, state, la, access, write=False)
            self.trace.stale += not isinstance(now, Mapped) or now.pa != pa
        else:
            found = walk(self.memory, state, la, access, write=True)
            if isinstance(found, PageFault):
                self.cpu.tlb.pop(la >> 12, None)
                self.trace.faults += 1
                self.add(op=22, size=14, aux=found.error_code, lin=la, cpl=3 if user else 0)
                return None
            assert isinstance(found, Mapped)
            self.cpu.tlb[la >> 12] = found
            pa, flags = found.pa, 8
        if walk_only:
            self.add(op=35, size=code, lin=la, val=pa, cpl=3 if user else 0)
        else:
            self.add(op=code, size=size, lin=la, val=pa, cpl=3 if user else 0, flags=flags)
        return pa

    def store(self, at: int, value: int) -> None:
        """By the kernel, into a table."""
        pa = self.use(KERNEL + at, "w", user=False)
        assert pa == at
        last = list(self.trace.rows[-1])
        last[3] |= 1
        self.trace.rows[-1] = tuple(last)  # type: ignore[assignment]
        self.trace.data.append(value)
        self.memory.write64(at, value)


def _entry(rng: random.Random) -> int:
    if rng.random() < 0.2:
        return 0
    value = rng.choice(FRAMES) | P | A
    for flag, likely in ((RW, 0.8), (US, 0.95), (D, 0.7), (XD, 0.1), (1 << 59, 0.1)):
        value |= flag * (rng.random() < likely)
    return value


def _step(m: _Machine, rng: random.Random) -> None:
    what = rng.random()
    la = rng.choice((*SMALL, *SMALL, *LARGE)) + 8 * rng.randrange(64)
    state = m.cpu.state
    if what < 0.6:
        m.use(la, rng.choice("rrrwwx"), user=True)
    elif what < 0.68:
        m.store(rng.choice(m.leaves), _entry(rng))
    elif what < 0.69:  # a large page in place of a table, and back
        pd, pt = rng.choice(m.directories)
        m.store(pd, rng.choice((pt | ALL, pt | ALL, 0x60_0000 | ALL | PS)))
    elif what < 0.78:
        m.add(op=20, lin=la)
        large = la >> 21 == 1 or any(m.memory.read64(pd) & PS for pd, _ in m.directories)
        m.cpu.tlb = {p: h for p, h in m.cpu.tlb.items() if p != la >> 12 and not (large and p >> 9 == la >> 21)}
        m.cpu.tlb = {p: h for p, h in m.cpu.tlb.items() if h.guest_size == 4096 or p >> 9 != la >> 21}
    elif what < 0.83:
        root = rng.choice(ROOTS)
        pcid = 1 + ROOTS.index(root)
        m.add(op=17, val=root | pcid | rng.randrange(2) << 63)
        m.cpu.state = replace(state, cr3=root | pcid)
        m.cpu.flush()
    elif what < 0.85:
        kind = rng.randrange(4)
        m.add(op=21, size=kind, aux=0 if kind > 1 else rng.randrange(1, 3), lin=la)
        m.cpu.flush(every=kind == 2)
    elif what < 0.865:
        m.cpu.state = replace(state, pkru=rng.choice((0, 0, 1 << 2, 2 << 2)))
        m.add(op=25, val=m.cpu.state.pkru)
    elif what < 0.875:
        m.cpu.state = replace(state, cr4=state.cr4 ^ 1 << 7)
        m.add(op=18, val=m.cpu.state.cr4)
        m.cpu.flush(every=True)
    elif what < 0.88:
        m.use(APIC_LA + 0x300, "w", user=False, size=4)
        to = rng.randrange(len(m.cpus))
        m.add(op=34, val=1 << to << 56 | 0x8FB, aux=1 << to)
    elif what < 0.9:
        m.add(op=23, size=0xFB)
    elif what < 0.92 and (la >> 12) not in m.cpu.tlb:
        if isinstance(walk(m.memory, replace(state, cpl=3), la, "r", write=False), Mapped):
            m.use(la, "r", user=True, walk_only=True)
    else:
        m.at = rng.randrange(len(m.cpus))
        m.add(op=33, aux=m.at)
    if rng.random() < 0.05 and m.cpu.tlb:
        m.cpu.tlb.pop(rng.choice(list(m.cpu.tlb)))


def random_trace(seed: int, *, cpus: int | None = None, steps: int = 800) -> SmpTrace:
    """A random trace; the same for the same seed."""
    rng = random.Random(seed)
    machine = _Machine(rng, cpus or rng.randrange(2, 7))
    for _ in range(steps):
        _step(machine, rng)
    machine.trace.final = [machine.page(at) for at in machine.tables]
    return machine.trace
