"""A VMM of one's own: enter a guest over an empty EPT, map what it touches; then what a VPID saves of its TLB.

python examples/vmx.py
"""

from __future__ import annotations

import numpy as np

from fastmmu import PhysicalMemory
from fastmmu.mmu import Mmu
from fastmmu.vmx import UNPAGED_GUEST, Cpu, Exit, ExitReason, Field, Op, Secondary, Vmcs

POOL, GUEST = range(0x10000, 0x20000), 0x100000  # host-physical: tables of the EPT; where guest-physical 0 lies

for vpid in (0, 1):
    cpu = Cpu(PhysicalMemory(1 << 21))
    ept = Mmu(cpu.memory, slots=[(0, 1 << 20, GUEST)], pool=POOL)
    vmcs = Vmcs(cpu.memory, 0x1000)
    cpu.vmclear(vmcs)
    cpu.vmptrld(vmcs)
    cpu.vmwrite_all({**UNPAGED_GUEST, Field.EPTP: ept.eptp, Field.VPID: vpid})
    cpu.vmwrite(Field.SECONDARY_CONTROLS, Secondary.EPT | Secondary.UNRESTRICTED_GUEST | Secondary.VPID * vpid)
    cpu.vmlaunch()
    ops, addresses = [Op.WRITE, Op.EXIT] * 500, [0x3008, 10, 0x5008, 10] * 250  # EXIT with reason 10: CPUID
    stop = cpu.run(ops, [8] * 1000, addresses, data=np.arange(1000, dtype=np.uint64))
    while isinstance(stop, Exit):
        if stop.reason == ExitReason.EPT_VIOLATION:
            print(stop)
            ept.map(stop.guest_physical >> 12)
        else:
            cpu.skip()  # CPUID is emulated: go on behind it
        cpu.vmresume()
        stop = cpu.run()
    print(f"0x3008 holds {cpu.memory.u64[GUEST + 0x3008 >> 3]}; VPID {vpid}: {cpu.counters()['tlb_misses']} TLB misses")
