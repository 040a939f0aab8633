"""Every public callable with what no call expects: an error of ours or a TypeError, no crash, no hang.

A sample of the calls; `make hostile` makes half a million, `make sanitize` under AddressSanitizer and UBSan.
FASTMMU_HOSTILE_CALLS, FASTMMU_HOSTILE_SEED choose others.
"""

from __future__ import annotations

import enum
import inspect
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import hostile_calls
from tests.support.hostile_calls import Planned, Report, run, run_batch
from tests.support.hostile_objects import World
from tests.support.hostile_values import OwnError
from tests.support.public_calls import Call, calls, maker, members, public

CALLS = int(os.environ.get("FASTMMU_HOSTILE_CALLS", "20000"))
SEED = int(os.environ.get("FASTMMU_HOSTILE_SEED", "1"))

REFUSE = {
    "machine.machine.Machine.save": "of which a checkpoint knows nothing",
    "kvm.vmm.Vmm.make_huge": "changes with Config(host_thp=)",
    "report.exits.ExitFile.write": "not open",
    "tlb.policy.register_policy": "lacks one of on_hit",
    "_walk.WalkResult()": "not made by hand",
    "kvm.port.VirtualCpu()": "not made by hand",
    "kvm.port.VirtualMachine()": "not made by hand",
    "kvm.registers_port.Registers()": "not made by hand",
    "kvm.faults_port.Faults()": "not made by hand",
    "kvm.roots_port.Roots()": "not made by hand",
    "mmu.tables_port.Slot()": "not made by hand",
    "mmu.tables_port.TableWalk()": "not made by hand",
    "kvm.apic_entry_port.ApicEntry()": "not made by hand",
    "kvm.lapic_port.Lapic()": "not made by hand",
    "kvm.log_port.DirtyLog()": "not made by hand",
    "kvm.vpid_port.VpidBitmap()": "not made by hand",
    "kvm.asid_port.SvmCpuData()": "not made by hand",
    "kvm.vcpu_port.VcpuPort()": "not made by hand",
    "kvm.vm_port.VmPort()": "not made by hand",
    "kvm.vmm.Vmm()": "not made by hand",
    "paging.mappings.MappingIterator()": "not made by hand",
    "machine.apic_port.GuestApic()": "no local APIC",
    "vmx.exit.Exit()": "not made by hand",
    "vmx.cpu.Cpu.invvpid": "VM-instruction error 28",  # type 1 of VPID 0
    "machine.board.Board.counters": "not made",
    "machine.system_loop_py.SystemReplay()": "state must be a GuestState",  # which SystemCpus have
    "machine.machine.Machine.run": "no kernel",  # of a bare one, as every other world has it
    "kvm.vmm.Vmm.invalidate_range_end": "no change",
    "kvm.vmm.Vmm.use_dirty_ring": "chosen once",
    "machine.costs.CostModel()": "Missing required argument",
    "machine.apic_port.GuestApic.enable_vapic": "nothing is replaced here",  # with the TPR shadow
    "tlb.geometry.Geometry()": "Missing required argument",
    "tlb.tlb.TLB.query_pages": "has no extension",
    "cache.description.CacheDescription()": "Missing required argument",
    "trace.base.Trace()": "abstract class",
    "trace.events.Batch.accesses=": "super",
}
"""What is refused although every argument is good, and what the error says."""
STATES = (
    "no VM exit is under way",
    "does not stand still for its VMM",
    "VMX non-root operation",
    "no guest is entered",
    "nothing to skip",
    "VM-instruction error 5",
)
"""What a handler says outside an exit, and a processor on the other side of VM entry."""


@pytest.fixture(scope="module")
def report() -> Report:
    return run(CALLS, SEED)


def test_only_our_errors_no_crash_no_hang(report: Report) -> None:
    print(f"{report.calls:,} calls in {report.seconds:.0f} s, {report.returned:,} returned")
    assert report.calls > CALLS * 0.8
    assert sorted(set(report.wrong)) == []
    assert report.calls * 0.2 < report.returned < report.calls * 0.8


def test_good_values_are_taken(report: Report) -> None:
    """Else hostile ones would not get past the first of them."""
    refused = {name: error for name, error in report.base.items() if not any(state in error for state in STATES)}
    records = {name: error for name, error in refused.items() if "required positional argument" in error}
    assert all(name.endswith("()") for name in records)
    others = {name: error for name, error in refused.items() if name not in records}
    assert {name: error for name, error in others.items() if REFUSE.get(name, "\0") not in error} == {}


def test_every_class_has_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of records (tuples, enumerations, exceptions, plain data) there is nothing to call but the constructor."""
    monkeypatch.chdir(tmp_path)  # some write files
    without = []
    for name, value in public().items():
        record = inspect.isclass(value) and (
            issubclass(value, (tuple, enum.Enum, BaseException)) or hasattr(value, "__dataclass_fields__")
        )
        if inspect.isclass(value) and not record and maker(name) is None:
            without.append(name)
    assert without == []
    for name, value in public().items():
        make = maker(name)
        if inspect.isclass(value) and make is not None:
            assert isinstance(make(World(1)), value), name


def test_the_calls_are_those_of_the_package() -> None:
    names = {call.name for call in calls()}
    for wanted in (
        "_walk.walk",
        "tlb.tlb.TLB.psc_fill",
        "kvm.vmm.Vmm __new__",
        "machine.machine.Machine.run",
        "machine.instructions.Guest.mov_cr3",
        "machine.apic_port.GuestApic.wrmsr",
        "paging.memory.PhysicalMemory.from_array",
        "tlb.tlb.TLB.omit=",
        "image.raw.open_raw",
        "trace.lackey_parse_py.parse",
        "study.curve.curve_kernel_py.StackDistances.feed",
        "report.compare.comparison",
    ):
        assert wanted in names
    assert len(names) > 1000
    assert {member for member, _ in members(public()["tlb.tlb.TLB"])} >= {"value", "invvpid", "simulate", "contexts"}


def crash(world: World, arguments: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(world: World, arguments: dict[str, Any]) -> None:
    while True:
        pass


def wrong(world: World, arguments: dict[str, Any]) -> None:
    raise OverflowError("Python int too large")


def own(world: World, arguments: dict[str, Any]) -> None:
    raise OwnError


def test_what_goes_wrong_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_calls, "LIMIT", 0.2)
    found = Report()
    batch = [Planned(Call(f"m.{each.__name__}", (), (), each), ()) for each in (own, crash, wrong, hang, own)]
    run_batch(batch, 1, found)
    assert found.calls == 5
    crashed, raised, hung = sorted(found.wrong)
    assert crashed.startswith("m.crash() ends the process: signal 11")
    assert hung == "m.hang() hangs" or raised == "m.hang() hangs"
    assert any("m.wrong() raised OverflowError" in line for line in found.wrong)
