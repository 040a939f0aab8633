"""A good value of every parameter of a public callable, so that a hostile one of another gets past it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastmmu
from fastmmu import Config, GuestState, Machine
from fastmmu.counters import COUNTERS
from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.machine.board import Board
from fastmmu.trace import bundled, read_trace
from tests.support.hostile_objects import BY_CLASS, GUEST, PAGE, SMALL, SYSTEM, VA, World, image

BY_PARAMETER: dict[str, Callable[[World], Any]] = {
    # paging
    "mem": lambda w: w.memory,
    "memory": lambda w: w.memory,
    "state": lambda w: w.state,
    "va": lambda w: VA,
    "walk_ept.eptp": lambda w: w.eptp,
    "eptp": lambda w: 0x801E,
    "gpa": lambda w: 0x3000,
    "violation": lambda w: w.violation,
    "area": lambda w: 0xD000,
    "eax": lambda w: 0,
    "ecx": lambda w: 0,
    "eptp_list": lambda w: 0xE000,
    "load_pdpte_registers.state": lambda w: GuestState(cr0=0x80000011, cr3=0x1000, cr4=0x20, efer=0),
    "nbytes": lambda w: 4096,
    "from_array.a": lambda w: np.zeros(8, np.uint64),
    "address": lambda w: 0x1000,
    "value": lambda w: 1,
    "eptp_fault.value": lambda w: 0x101E,
    "Eptp.value": lambda w: 0x101E,
    "Pml.base": lambda w: 0x1000,
    "access": lambda w: "r",
    "pa": lambda w: PAGE,
    # TLB
    "la": lambda w: VA,
    "TLB.fill.value": lambda w: fastmmu.TLB.value(PAGE),
    "TLB.refill.value": lambda w: fastmmu.TLB.value(PAGE),
    "TLB.gpm_fill.value": lambda w: fastmmu.TLB.value(PAGE),
    "level": lambda w: 2,
    "StackDistances.level": lambda w: 0,
    "type": lambda w: 1,
    "eptrta": lambda w: 0x1000,
    "simulate.va": lambda w: w.addresses,
    # machine
    "fault_class": lambda w: 1,
    "records": lambda w: np.zeros(2, EXIT_DTYPE),
    "reason": lambda w: 10,
    "source": lambda w: 1,
    "op": lambda w: w.events[0],
    "run.size": lambda w: w.events[1],
    "feed.size": lambda w: w.events[1],
    "addr": lambda w: w.addresses,
    "error_code": lambda w: 0,
    "mov_cr0.value": lambda w: 0x80050033,
    "mov_cr3.value": lambda w: 0x1000,
    "mov_cr4.value": lambda w: 0xA0,
    "wrmsr_efer.value": lambda w: 0xD01,
    "omit": lambda w: (),
    "number": lambda w: 1,
    "StackDistances.of_list.number": lambda w: 0,
    "page": lambda w: 0,
    "first": lambda w: 0,
    "count": lambda w: 64,
    "pages": lambda w: [0, 1],
    "use_dirty_ring.size": lambda w: 1024,
    "vms": lambda w: [Config(**SMALL, mmu="ept")],
    "vcpu": lambda w: 0,
    "Host.add.config": lambda w: Config(**SMALL, mmu="ept"),
    "Host.add_vcpu.machine": lambda w: w.host.machines[0],
    "Host.vcpus_of.machine": lambda w: w.host.machines[0],
    "ends": lambda w: w.host.machines[1],
    "cpu": lambda w: 0,
    "board": lambda w: Board(),
    "machine": lambda w: w.machine,
    "rows": lambda w: np.empty(0, np.uint8),
    "data": lambda w: np.empty(0, np.uint64),
    "SystemReplay.run.pages": lambda w: np.empty(0, np.uint8),
    "SystemReplay.machine": lambda w: Machine(Config(**SMALL), guest_kernel=False, state=w.state),
    "raw": lambda w: np.zeros(24, np.uint8),
    "batch": lambda w: w.batch,
    "config": lambda w: w.config,
    "devices": lambda w: {0x1_8000_0000: fastmmu.Device()},
    "exit": lambda w: BY_CLASS["Exit"](w),
    # APIC and VMX
    "offset": lambda w: 0x80,
    "size": lambda w: 4,
    "vector": lambda w: 0x51,
    "msr": lambda w: 0x808,
    "on": lambda w: True,
    "accesses": lambda w: 10,
    "ticks": lambda w: 10,
    "tsc": lambda w: 10,
    "descriptor": lambda w: np.zeros(8, np.uint64),
    "check_invalidation.descriptor": lambda w: (0, 0),
    "instruction": lambda w: "invept",
    "apics": lambda w: [w.local_apic],
    "ipi": lambda w: BY_CLASS["InterprocessorInterrupt"](w),
    "write_cr8.value": lambda w: 1,
    "code": lambda w: b"\xa1\x80\x00\xfe\xff",
    "ip": lambda w: 0x1000,
    "rom": lambda w: 0x2000,
    "tpr": lambda w: 0x40,
    "served": lambda w: None,
    "requested": lambda w: 0x61,
    "record": lambda w: 0x40,
    "vpid": lambda w: 1,
    "region": lambda w: 0x1000,
    "GuestOp.value": lambda w: 32,
    "Field.value": lambda w: 0,
    "apic_linear_address=.value": lambda w: 0xFEE0_0000,
    "field": lambda w: 0x6820,
    "fields": lambda w: {0x6820: 2},
    "Cpu.invept.type": lambda w: 2,
    "Cpu.invvpid.type": lambda w: 2,
    "Cpu.memory": lambda w: w.cpu.memory,
    "Vmcs.memory": lambda w: w.cpu.memory,
    # traces, results, studies
    "trace": lambda w: w.trace,
    "replay_schemes.trace": lambda w: read_trace(SYSTEM),
    "read_trace.path": lambda w: next(iter(bundled().values())),
    "ways": lambda w: ["trap"],
    "handler": lambda w: "eoi",
    "other": lambda w: 1,
    "omit=.value": lambda w: ("invlpg",),
    "address=.value": lambda w: 0xFEE0_0000,
    "traces": lambda w: [w.trace, w.trace],
    "path": lambda w: Path("trace.npy"),
    "switch_every": lambda w: 4,
    "n": lambda w: 2,
    "tpr_profile.name": lambda w: "winxp",
    "TprProfile.name": lambda w: "mine",
    "TprProfile.changes": lambda w: 10.0,
    "TprProfile.reads": lambda w: 1.0,
    "TprProfile.held": lambda w: 10.0,
    "TprProfile.levels": lambda w: {0x40: 1},
    "TprProfile.interrupts": lambda w: 1.0,
    "TprProfile.vectors": lambda w: {0x51: 1},
    "profile": lambda w: "winxp",
    "text": lambda w: np.frombuffer(b" L 1000,8\n", np.uint8),
    "start": lambda w: 0,
    "stop": lambda w: 10,
    "last": lambda w: True,
    "lackey_parse_py.parse.op": lambda w: np.zeros(4, np.uint8),
    "lackey_parse_py.parse.size": lambda w: np.zeros(4, np.uint8),
    "lackey_parse_py.parse.addr": lambda w: np.zeros(4, np.uint64),
    "lackey_parse_py.format.op": lambda w: np.zeros(8, np.uint8),
    "lackey_parse_py.format.size": lambda w: np.ones(8, np.uint8),
    "results": lambda w: [w.result],
    "result": lambda w: w.result,
    "save.path": lambda w: Path("results.csv"),
    "pfn": lambda w: np.array([0, 2], np.uint64),
    "from_pages.pages": lambda w: np.zeros((2, 4096), np.uint8),
    "directory": lambda w: GUEST,
    "open_raw.path": lambda w: image(),
    "refusal.msr": lambda w: 0x1B,
    "refusal.base": lambda w: 0x900,
    "rdmsr.msr": lambda w: 0x1B,
    "wrmsr.msr": lambda w: 0x1B,
    "wrmsr.value": lambda w: 0xFEE00900,
    "execute.instruction": lambda w: ("mov_cr3", 0x1000),
    "broken.machine": lambda w: World(1).machine,
    "consolidate.config": lambda w: Config(**SMALL, mmu="ept"),
    "configs": lambda w: [Config(**SMALL)],
    "entries": lambda w: 4,
    "unit": lambda w: "l1d",
    "array": lambda w: "4/4",
    "levels": lambda w: [((1, 2), 4), ((1,), 4)],
    "flushes": lambda w: 1,
    "requests": lambda w: 1,
    "ipis": lambda w: 1,
    "log_writes.index": lambda w: 511,
    "VirtualCpu.count.name": lambda w: "ept_build",
    "count_stat.name": lambda w: "pf_taken",
    "ports": lambda w: [(0, 0, 1, 1)] * 4,
    "shift": lambda w: 12,
    "pcid": lambda w: 0,
    "limit": lambda w: 64,
    "threshold": lambda w: 1 << 32,
    "VirtualApic.threshold": lambda w: 0,
    "exit_cost.kind": lambda w: "io",
    "price.key": lambda w: "memory.l2",
    "Batch.take.rows": lambda w: np.ones(8, np.bool_),
    "counters": lambda w: {row.name: 0 for row in COUNTERS},
}
"""A good value of a parameter that has no default: by class, function and name, or by less of it."""


def good(world: World, owner: str, parameter: str) -> Any:
    """The value. `owner`: "module.function", "module.Class.method" or, of a constructor, "module.Class()".

    Where none is known it is 1 for constructors, most of which are those of records, which take anything.
    """
    names = owner.removesuffix("()").split(".")
    for start in range(len(names)):
        for end in range(len(names), start, -1):
            key = ".".join([*names[start:end], parameter])
            if key in BY_PARAMETER:
                return BY_PARAMETER[key](world)
    if parameter in BY_PARAMETER:
        return BY_PARAMETER[parameter](world)
    if owner.endswith("()"):
        return 1
    raise LookupError(f"{owner}: no good value of {parameter}; give BY_PARAMETER one")
