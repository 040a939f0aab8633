"""Objects for hostile calls, in the state in which their methods do something, and good values of every parameter.

A class is found by walking the package; what stands here is only how one is made. `World` makes all of them anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastmmu
from fastmmu import Config, GuestState, Machine, MemorySlot, PhysicalMemory
from fastmmu.cache import CacheHierarchy, caches
from fastmmu.cache.description import Cache, Memory
from fastmmu.cpu.apic_py import InterprocessorInterrupt, LocalApic
from fastmmu.cpu.may_hold_py import MayHold, SharedTables
from fastmmu.cpu.missing_flushes import MissingFlushes
from fastmmu.cpu.vapic_py import VirtualApic
from fastmmu.image import read_guest
from fastmmu.kvm.lapic_port import RegisterAccess
from fastmmu.machine.board import Board
from fastmmu.machine.cache_result import CacheResult
from fastmmu.machine.exit_ring import ExitRing
from fastmmu.machine.system_cpus import SystemCpus
from fastmmu.machine.system_loop_py import SystemReplay
from fastmmu.machine.touches import Touches
from fastmmu.mmu import Mmu
from fastmmu.paging.mapping_parts import Parts
from fastmmu.paging.mappings import MappingIterator
from fastmmu.report import ExitFile, ExitHistory, ExitStat, save
from fastmmu.study.curve.curve_kernel_py import StackDistances
from fastmmu.study.curve.run import tlb_curve
from fastmmu.study.kvm_log import replay_faults
from fastmmu.threads.turns import Turn, Turns
from fastmmu.tlb.policy import ReplacementPolicy
from fastmmu.trace import read_kvm_log, tpr_profile
from fastmmu.trace.drmemtrace_parse_py import Records
from fastmmu.trace.gem5_parse_py import PacketStream
from fastmmu.vmx import Capabilities, Cpu, Op, Vmcs
from tests.support.flat_guest import flat
from tests.support.vmx import OTHER, launched, long_mode, unpaged

GUEST = Path(__file__).parents[1] / "data/guests/pae_user"
KVM_LOG = Path(__file__).parents[1] / "data/kvm_logs/perf.txt"
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


def image() -> Path:
    path = Path("memory.bin")
    path.write_bytes(bytes(8192))
    return path


class Handler(fastmmu.Policy):
    """Hostile calls from inside a VM exit go through this."""

    def __init__(self) -> None:
        self.inside: Callable[[], Any] | None = None

    def on_cpuid(self, machine: Machine, exit: fastmmu.Exit) -> fastmmu.Action:
        return machine.default()


class Held(fastmmu.Kvm):
    """A VMM in Python that can be got at from outside, where its calls are refused."""

    made: Held
    vcpu: Any
    registers: Any
    walk: Any = None
    slot: Any
    svm_cpu: Any

    def handle(self, vcpu: Any) -> int:
        self.vcpu = vcpu
        self.registers = vcpu.arch
        self.walk = self.mmu.walk(0) or self.walk
        self.slot = self.mmu.slot(0)
        with contextlib.suppress(fastmmu.FastmmuError):  # of AMD alone
            self.svm_cpu = vcpu.svm_cpu
        Held.made = self
        return super().handle(vcpu)


class Logged(fastmmu.Kvm):
    """And one whose dirty log is held."""

    log: Any

    def start_dirty_log(self, log: Any) -> None:
        Logged.log = log
        super().start_dirty_log(log)


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

    def make_space(self) -> fastmmu.AddressSpace:
        return fastmmu.AddressSpace(self.memory, self.state)

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
        machine = flat(Config(**SMALL, **MACHINES["apicv" if self.kind == "ept" else "patch"]))
        words = machine.guest_memory.u64  # the page of the APIC, where it is, too
        machine.guest_memory.u8[VA + 0x40 : VA + 0x45] = list(b"\xa1\x80\x00\xe0\xfe")
        words[0x2000 + 3 * 8 >> 3], words[0x5000 + (0xFEE0_0000 >> 21 & 511) * 8 >> 3] = 0x5063, 0xFEE0_00E3
        return machine

    def make_python_vmm(self) -> Held:
        config = self.config if self.kind != "native" else Config(**SMALL, mmu="ept")
        Machine(config.replace(vmm=Held)).run(*self.events, self.addresses)
        return Held.made

    def make_amd_vmm(self) -> Held:
        Machine(Config(**SMALL, mmu="ept", vendor="amd", vmm=Held)).run(*self.events, self.addresses)
        return Held.made

    def make_python_log(self) -> Any:
        machine = Machine(Config(**SMALL, mmu="ept", vmm=Logged))
        machine.vmm.start_dirty_log(0)
        return Logged.log

    def make_python_apic(self) -> Any:
        Machine(Config(**SMALL, mmu="ept", tpr="flexpriority", vmm=Held)).run(*self.events, self.addresses)
        return Held.made.vcpu.apic

    def make_host(self) -> fastmmu.Host:
        config = Config(**SMALL, **MACHINES["apicv"])
        host = fastmmu.Host([(config, 2), config.replace(tpr=None)], cpus=2)
        host.run(0, 0, *self.events, self.addresses)
        return host

    def make_shared_tables(self) -> SharedTables:
        return SharedTables(self.memory)

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
        return VirtualApic(virtualize_accesses=True, register_virtualization=True, interrupt_delivery=True, rvi=0x51)

    def make_vpids(self) -> fastmmu.VpidAllocator:
        vpids = fastmmu.VpidAllocator()
        vpids.alloc()
        return vpids

    def make_ept(self) -> Mmu:
        ept = Mmu(PhysicalMemory(1 << 23), slots=[(0, 1 << 22, 1 << 22)], pool=range(0x10000, 0x20000))
        ept.map(range(8))
        ept.mark_mmio(1 << 20)
        return ept

    def make_cpu(self) -> Cpu:
        return unpaged() if self.kind in ("native", "shadow") else launched(long_mode())

    # ---- traces, results ----------------------------------------------------------------------------------------

    def make_trace(self) -> fastmmu.Trace:
        return fastmmu.Trace.from_arrays(self.addresses, *self.events)

    def make_batch(self) -> fastmmu.Batch:
        return next(iter(self.trace.batches()))

    def make_costs(self) -> fastmmu.CostModel:
        return fastmmu.CostModel.load()

    def make_result(self) -> fastmmu.Result:
        return fastmmu.simulate(self.trace, Config(**SMALL))

    def make_study(self) -> fastmmu.Study:
        study = fastmmu.Study({"a": self.trace}, [Config(**SMALL)], results="study.results")
        study.run("threads:1")
        return study

    def make_checkpoint(self) -> Path:
        Machine(Config(**SMALL)).save(path := Path("machine.ckpt"))
        return path

    def make_run_checkpoint(self) -> Path:
        fastmmu.Simulation(Config(**SMALL)).save(path := Path("run.ckpt"))
        return path

    def make_study_file(self) -> Path:
        path = Path("study.toml")
        path.write_text('[traces]\na = "sqlite"\n')
        return path

    def make_results_file(self) -> Path:
        save([self.result], path := Path("results.json"))
        return path

    def make_curves(self) -> Any:
        return tlb_curve(self.trace, "core2", limit=64, ways=4, l1_sets=(1, 2), l2_sets=(1, 2))

    def make_distances(self) -> StackDistances:
        return StackDistances([((1, 2), 4), ((1,), 4)], [(0, 0, 1, 1)] * 4, 12, False, 64, 1 << 32)


BY_CLASS: dict[str, Callable[[World], Any]] = {
    "PhysicalMemory": lambda w: w.memory,
    "GuestState": lambda w: w.state,
    "Pml": lambda w: w.pml,
    "Eptp": lambda w: w.eptp,
    "Npt": lambda w: fastmmu.Npt(0x8000),
    "SecondLevel": lambda w: w.eptp,
    "Mtrrs": lambda w: fastmmu.Mtrrs(),
    "WalkResult": lambda w: w.violation,
    "Translation": lambda w: w.translation,
    "MappingIterator": lambda w: w.iterator,
    "MappingArray": lambda w: w.rows,
    "Contiguity": lambda w: fastmmu.contiguity(w.rows),
    "AddressSpace": lambda w: w.space,
    "Root": lambda w: fastmmu.find_roots(w.memory, kinds=["4-level"])[0],
    "SpaceDiff": lambda w: w.space.diff(fastmmu.AddressSpace(w.memory, w.state)),
    "TLB": lambda w: w.tlb,
    "ReplacementPolicy": lambda w: ReplacementPolicy(),
    "CacheResult": lambda w: CacheResult.of_counts({"read_l1": 3, "latency_l1": 4}),
    "CacheHierarchy": lambda w: CacheHierarchy("skylake l3=none"),
    "Cache": lambda w: Cache(32768, 8, 4),
    "Memory": lambda w: Memory(),
    "CacheDescription": lambda w: caches("skylake"),
    "Machine": lambda w: w.kernel_machine if w.kind in ("patch", "apicv") else w.machine,
    "Guest": lambda w: w.machine.guest,
    "image.guest.Guest": lambda w: read_guest(GUEST),
    "Vmm": lambda w: w.vmm_machine.vmm,
    "GuestApic": lambda w: w.apic_machine.apic,
    "Board": lambda w: Board(),
    "ExitRing": lambda w: ExitRing(),
    "ExitFile": lambda w: ExitFile("exits.csv"),
    "ExitHistory": lambda w: ExitHistory(),
    "ExitStat": lambda w: ExitStat(),
    "ExitLog": lambda w: w.vmm_machine.exit_log(),
    "vmx.cpu.Cpu": lambda w: w.cpu,
    "vmx.exit.Exit": lambda w: launched(unpaged()).run(Op.EXIT, 0, fastmmu.ExitReason.CPUID),
    "Vmcs": lambda w: Vmcs(w.cpu.memory, OTHER),
    "Capabilities": lambda w: Capabilities(),
    "Turns": lambda w: Turns(),
    "Touches": lambda w: Touches(),
    "Turn": lambda w: Turn(),
    "Host": lambda w: w.host,
    "SystemReplay": lambda w: w.replay,
    "Simulation": lambda w: w.simulation,
    "LocalApic": lambda w: w.local_apic,
    "VirtualApic": lambda w: w.virtual_apic,
    "VpidAllocator": lambda w: w.vpids,
    "AsidAllocator": lambda w: fastmmu.AsidAllocator(2),
    "MissingFlushes": lambda w: MissingFlushes(),
    "SharedTables": lambda w: w.shared_tables,
    "MayHold": lambda w: MayHold(w.shared_tables, w.state),
    "SystemCpus": lambda w: SystemCpus(Config(**SMALL), [w.state]),
    "Parts": lambda w: Parts(),
    "SvmCpuData": lambda w: w.amd_vmm.svm_cpu,
    "Study": lambda w: w.study,
    "StackDistances": lambda w: w.distances,
    "Records": lambda w: Records(12, False),
    "PacketStream": lambda w: PacketStream(),
    "Config": lambda w: w.config,
    "CostModel": lambda w: w.costs,
    "Checkpoint": lambda w: fastmmu.Checkpoint("none.ckpt"),
    "Result": lambda w: w.result,
    "KvmLog": lambda w: read_kvm_log(KVM_LOG),
    "ReplayedFaults": lambda w: next(replay_faults(read_kvm_log(KVM_LOG), ["2m"])),
    "Batch": lambda w: w.batch,
    "Trace": lambda w: w.trace,
    "TprProfile": lambda w: tpr_profile("winxp"),
    "Geometry": lambda w: fastmmu.geometry("core2"),
    "Device": lambda w: fastmmu.Device(),
    "Bus": lambda w: fastmmu.Bus({0x1_8000_0000: fastmmu.Device()}),
    "Policy": lambda w: fastmmu.Policy(),
    "Registers": lambda w: w.python_vmm.registers,
    "Roots": lambda w: w.python_vmm.vcpu.roots,
    "Faults": lambda w: w.python_vmm.vcpu.faults,
    "Mmu": lambda w: w.python_vmm.mmu if w.kind == "shadow" else w.ept,
    "Entries": lambda w: w.ept,
    "Tables": lambda w: w.python_vmm.mmu,
    "Slot": lambda w: w.python_vmm.slot,
    "TableWalk": lambda w: w.python_vmm.walk,
    "VmPort": lambda w: w.python_vmm.vm,
    "VcpuPort": lambda w: w.python_vmm.vcpu,
    "VpidBitmap": lambda w: w.python_vmm.vm.vpids,
    "ApicEntry": lambda w: w.python_apic,
    "DirtyLog": lambda w: w.python_log,
    "Lapic": lambda w: w.python_apic,
    "RegisterAccess": lambda w: RegisterAccess(reads=True, writes=False, size=4, value=0),
    "VirtualMachine": lambda w: w.python_vmm.vm,
    "VirtualCpu": lambda w: w.python_vmm.vcpu,
    "Exit": lambda w: fastmmu.Exit(fastmmu.ExitReason.CPUID, 0, 0, 0, 0, 0),
    "Mmio": lambda w: fastmmu.Mmio(0x1_8000_0000, "r", 4, None),
    "MemorySlot": lambda w: SLOTS[0],
    "Curves": lambda w: w.curves,
    "Curve": lambda w: w.curves.curves[0],
    "InterprocessorInterrupt": lambda w: InterprocessorInterrupt(0, 0x51, 0, 0, 1, False),
}
"""How an object of a public class is made, by the name of the class."""
