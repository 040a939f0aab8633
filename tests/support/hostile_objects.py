"""Objects for hostile calls, in the state in which their methods do something, and good values of every parameter.

A class is found by walking the package; what stands here is only how one is made. `World` makes all of them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastmmu
from fastmmu import Config, GuestState, Machine, MemorySlot, PhysicalMemory
from fastmmu.counters import COUNTERS
from fastmmu.cpu.apic_py import InterprocessorInterrupt, LocalApic
from fastmmu.cpu.missing_flushes import MissingFlushes
from fastmmu.cpu.vapic_py import VirtualApic
from fastmmu.image import read_guest
from fastmmu.kvm.vpid_py import VpidAllocator
from fastmmu.machine.board import Board
from fastmmu.machine.system_loop_py import SystemReplay
from fastmmu.paging.mappings import MappingIterator
from fastmmu.study.curve.curve_kernel_py import StackDistances
from fastmmu.study.curve.run import tlb_curve
from fastmmu.trace import bundled, read_trace, tpr_profile
from tests.support.flat_guest import flat

GUEST = Path(__file__).parents[1] / "data/guests/pae_user"
SYSTEM = Path(__file__).parents[1] / "data/systems/shell.rec.xz"
VA, PAGE = 0x40_0000, 0x7000
SMALL: dict[str, Any] = {"memory": "64M", "tlb": "core2"}
MACHINES: dict[str, dict[str, Any]] = {
    "native": {},
    "shadow": {"mmu": "shadow", "vpid": True, "kvm": "6.1"},
    "ept": {"mmu": "ept", "vpid": True, "kvm": "6.1", "pml": True},
    "patch": {"mmu": "shadow", "tpr": "patch"},
    "apicv": {"mmu": "ept", "vpid": True, "tpr": "apicv", "host_memory": "16M"},
}
SLOTS = (MemorySlot(0x1_0000_0000, 1 << 21, host="untouched"), MemorySlot(0x1_4000_0000, 1 << 16, readonly=True))


class Handler(fastmmu.Policy):
    """Hostile calls from inside a VM exit go through this."""

    def __init__(self) -> None:
        self.inside: Callable[[], Any] | None = None

    def on_cpuid(self, machine: Machine, exit: fastmmu.Exit) -> fastmmu.Action:
        return machine.default()


class World:
    """One of everything."""

    def __init__(self, seed: int = 0) -> None:
        self.kind = list(MACHINES)[seed % len(MACHINES)]
        self.events = np.array([0, 1, 3, 0, 17, 0, 2, 18], np.uint8), np.full(8, 8, np.uint8)
        self.addresses = np.arange(8, dtype=np.uint64) << np.uint64(12)
        self._made: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        made = self._made
        if name not in made:
            made[name] = getattr(self, f"make_{name}")()
        return made[name]

    # ---- paging ------------------------------------------------------------------------------------------------

    def make_memory(self) -> PhysicalMemory:
        memory = PhysicalMemory(1 << 16)
        for at, value in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3010, 0x4007), (0x4000, PAGE | 7)):
            memory.write64(at, value)
        for at, value in ((0x8000, 0x9007), (0x9000, 0xA007), (0xA000, 0xB007)):
            memory.write64(at, value)
        memory.u64[0xB000 >> 3 : 0xC000 >> 3] = np.arange(512, dtype=np.uint64) << np.uint64(12) | np.uint64(0x37)
        return memory

    def make_state(self) -> GuestState:
        return GuestState(cr3=0x1000)

    def make_pml(self) -> fastmmu.Pml:
        return fastmmu.Pml(0xC000)

    def make_eptp(self) -> fastmmu.Eptp:
        return fastmmu.Eptp(0x805E, pml=self.pml)

    def make_violation(self) -> fastmmu.WalkResult:
        return fastmmu.walk_ept(self.memory, 0x801E, 0x30_0000, access="w", gla=VA)

    def make_translation(self) -> fastmmu.Translation:
        return fastmmu.translate(self.memory, self.state, self.addresses)

    def make_iterator(self) -> MappingIterator:
        return fastmmu.iter_mappings(self.memory, self.state, chunk=2)

    def make_rows(self) -> fastmmu.MappingArray:
        return fastmmu.mappings(self.memory, self.state)

    def make_tlb(self) -> fastmmu.TLB:
        tlb = fastmmu.TLB("core2", max_contexts=8)
        tlb.switch(1, 2, 0x1000)
        tlb.fill(VA, fastmmu.TLB.value(PAGE))
        return tlb

    # ---- machines ----------------------------------------------------------------------------------------------

    def make_config(self) -> Config:
        return Config(**SMALL, **MACHINES[self.kind])

    def make_machine(self) -> Machine:
        slots = () if self.kind == "native" else SLOTS
        machine = flat(self.config, *slots, policy=Handler())
        machine.load(VA)
        if machine.vmm is not None:
            machine.vmm.start_dirty_log(0)
            machine.vmm.start_dirty_log(1, manual=True)
            machine.vmm.touch(1, 0, 64)
        return machine

    def make_vmm_machine(self) -> Machine:
        return self.machine if self.kind != "native" else World(1).machine  # type: ignore[no-any-return]

    def make_kernel_machine(self) -> Machine:
        machine = Machine(self.config)
        machine.run(*self.events, self.addresses)
        return machine

    def make_apic_machine(self) -> Machine:
        return flat(Config(**SMALL, **MACHINES["apicv" if self.kind == "ept" else "patch"]))

    def make_host(self) -> fastmmu.Host:
        config = Config(**SMALL, **MACHINES["apicv"])
        host = fastmmu.Host([(config, 2), config.replace(tpr=None)], cpus=2)
        host.run(0, 0, *self.events, self.addresses)
        return host

    def make_replay(self) -> SystemReplay:
        machine = Machine(Config(**SMALL), guest_kernel=False, state=self.state)
        return SystemReplay(machine, self.state)

    def make_simulation(self) -> fastmmu.Simulation:
        return fastmmu.Simulation(self.config)

    # ---- APICs, VPIDs ------------------------------------------------------------------------------------------

    def make_local_apic(self) -> LocalApic:
        apic = LocalApic(1)
        apic.write(0xF0, 0x1FF)
        return apic

    def make_virtual_apic(self) -> VirtualApic:
        return VirtualApic(virtualize_accesses=True, register_virtualization=True, interrupt_delivery=True)

    def make_vpids(self) -> VpidAllocator:
        vpids = VpidAllocator()
        vpids.alloc()
        return vpids

    # ---- traces, results ----------------------------------------------------------------------------------------

    def make_trace(self) -> fastmmu.Trace:
        return fastmmu.Trace.from_arrays(self.addresses, *self.events)

    def make_batch(self) -> fastmmu.Batch:
        return next(iter(self.trace.batches()))

    def make_costs(self) -> fastmmu.CostModel:
        return fastmmu.CostModel.load()

    def make_result(self) -> fastmmu.Result:
        return fastmmu.simulate(self.trace, Config(**SMALL))

    def make_curves(self) -> Any:
        return tlb_curve(self.trace, "core2", limit=64, ways=4, l1_sets=(1, 2), l2_sets=(1, 2))

    def make_distances(self) -> StackDistances:
        return StackDistances([((1, 2), 4), ((1,), 4)], [(0, 0, 1, 1)] * 4, 12, False, 64, 1 << 32)


BY_CLASS: dict[str, Callable[[World], Any]] = {
    "PhysicalMemory": lambda w: w.memory,
    "GuestState": lambda w: w.state,
    "Pml": lambda w: w.pml,
    "Eptp": lambda w: w.eptp,
    "Mtrrs": lambda w: fastmmu.Mtrrs(),
    "WalkResult": lambda w: w.violation,
    "Translation": lambda w: w.translation,
    "MappingIterator": lambda w: w.iterator,
    "MappingArray": lambda w: w.rows,
    "TLB": lambda w: w.tlb,
    "Machine": lambda w: w.machine,
    "Guest": lambda w: w.machine.guest,
    "image.guest.Guest": lambda w: read_guest(GUEST),
    "Vmm": lambda w: w.vmm_machine.vmm,
    "GuestApic": lambda w: w.apic_machine.apic,
    "Board": lambda w: Board(),
    "Host": lambda w: w.host,
    "SystemReplay": lambda w: w.replay,
    "Simulation": lambda w: w.simulation,
    "LocalApic": lambda w: w.local_apic,
    "VirtualApic": lambda w: w.virtual_apic,
    "VpidAllocator": lambda w: w.vpids,
    "MissingFlushes": lambda w: MissingFlushes(),
    "StackDistances": lambda w: w.distances,
    "Config": lambda w: w.config,
    "CostModel": lambda w: w.costs,
    "Result": lambda w: w.result,
    "Batch": lambda w: w.batch,
    "Trace": lambda w: w.trace,
    "TprProfile": lambda w: tpr_profile("winxp"),
    "Geometry": lambda w: fastmmu.geometry("core2"),
    "Device": lambda w: fastmmu.Device(),
    "Bus": lambda w: fastmmu.Bus({0x1_8000_0000: fastmmu.Device()}),
    "Policy": lambda w: fastmmu.Policy(),
    "Exit": lambda w: fastmmu.Exit(fastmmu.ExitReason.CPUID, 0, 0, 0, 0, 0),
    "MemorySlot": lambda w: SLOTS[0],
    "Curves": lambda w: w.curves,
    "Curve": lambda w: w.curves.curves[0],
    "InterprocessorInterrupt": lambda w: InterprocessorInterrupt(0, 0x51, 0, 0, 1, False),
}
"""How an object of a public class is made, by the name of the class."""

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
    # traces, results, studies
    "trace": lambda w: w.trace,
    "replay_schemes.trace": lambda w: read_trace(SYSTEM),
    "read_trace.path": lambda w: bundled()["true"],
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
    "open_raw.path": lambda w: GUEST / "meta.json",
    "execute.instruction": lambda w: ("mov_cr3", 0x1000),
    "broken.machine": lambda w: World(1).machine,
    "configs": lambda w: [Config(**SMALL)],
    "entries": lambda w: 4,
    "unit": lambda w: "l1d",
    "array": lambda w: "4/4",
    "levels": lambda w: [((1, 2), 4), ((1,), 4)],
    "ports": lambda w: [(0, 0, 1, 1)] * 4,
    "shift": lambda w: 12,
    "pcid": lambda w: 0,
    "limit": lambda w: 64,
    "threshold": lambda w: 1 << 32,
    "VirtualApic.threshold": lambda w: 0,
    "exit_cost.kind": lambda w: "io",
    "price.key": lambda w: "memory.l2",
    "Batch.take.rows": lambda w: np.ones(8, np.bool_),
    "counters": lambda w: {row.key: 0 for row in COUNTERS},
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
