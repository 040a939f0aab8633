"""A VMM of one's own finds what its guest writes: by D flags, or by write protection; an EPT built by arrays.

python examples/migrate.py
"""

from __future__ import annotations

import numpy as np

from fastmmu import PhysicalMemory
from fastmmu.mmu import Mmu
from fastmmu.vmx import UNPAGED_GUEST, Cpu, Exit, ExitReason, Field, Op, Vmcs

SIZE, GUEST, PAGES = 1 << 24, 1 << 23, 1 << 11  # the guest has the upper half of memory, 8 MB
ROUNDS, STORES = 3, 400


def enter(ad: bool) -> tuple[Cpu, Mmu]:
    cpu = Cpu(PhysicalMemory(SIZE))
    ept = Mmu(cpu.memory, slots=[(0, PAGES << 12, GUEST)], pool=range(0x10000, 0x40000), ad=ad)
    vmcs = Vmcs(cpu.memory, 0x1000)
    cpu.vmclear(vmcs)
    cpu.vmptrld(vmcs)
    cpu.vmwrite_all({**UNPAGED_GUEST, Field.EPTP: ept.eptp})
    ept.map(range(0, PAGES, 512), level=2)  # four entries
    cpu.vmlaunch()
    cpu.run(Op.EXIT, 0, ExitReason.CPUID)  # and back
    return cpu, ept


def written(cpu: Cpu, ept: Mmu, addresses: np.ndarray, pages: np.ndarray) -> int:
    """Run stores; those to a page without W exit, and their page is marked and gets it back. Violations."""
    exits = 0
    ops = np.append(np.full(len(addresses), Op.WRITE, np.uint8), np.uint8(Op.EXIT))
    cpu.vmresume()
    stop = cpu.run(ops, np.full(len(ops), 8, np.uint8), np.append(addresses, np.uint64(ExitReason.CPUID)))
    while isinstance(stop, Exit) and stop.reason == ExitReason.EPT_VIOLATION:
        exits += 1
        pages[stop.guest_physical >> 12] = True
        ept.map(stop.guest_physical >> 12)
        cpu.vmresume()
        stop = cpu.run()
    return exits


def flush(cpu: Cpu, ept: Mmu) -> None:
    if ept.flush:
        cpu.invept(1, ept.eptp)
        ept.flush = False


for way in ("D flags", "write protection"):
    chance = np.random.default_rng(1)
    cpu, ept = enter(ad=way == "D flags")
    everything = range(PAGES)
    ept.map(everything)  # logged by 4 KB: large entries are split
    for each in range(ROUNDS):
        if way == "D flags":
            ept.clear_dirty(everything)
        else:
            ept.write_protect(everything)
        flush(cpu, ept)
        found = np.zeros(PAGES, np.bool_)
        gfns = chance.zipf(1.3, STORES).astype(np.uint64) % np.uint64(PAGES)
        exits = written(cpu, ept, gfns << np.uint64(12), found)
        if way == "D flags":
            found |= ept.lookup(everything)["dirty"]
        assert found.nonzero()[0].tolist() == sorted(set(gfns.tolist()))
        print(f"    {way:18}round {each}   {found.sum():4} pages written   {exits:4} EPT violations")
