"""The VMCS of a machine's vCPU in the hands of a VMM in Python: VMREAD, VMWRITE, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmu import BusError, Config, GuestState, Kvm, Machine, PolicyError, StateError, VmFailValid
from fastmmu.exits import ExitReason
from fastmmu.kvm.port import VirtualCpu
from fastmmu.vmx import Field, Primary, Secondary

NAMES = {
    Field.PRIMARY_CONTROLS: "primary",
    Field.SECONDARY_CONTROLS: "secondary",
    Field.EPTP: "eptp",
    Field.VPID: "vpid",
    Field.EXCEPTION_BITMAP: "exception_bitmap",
    Field.CR0_GUEST_HOST_MASK: "cr0_mask",
    Field.CR4_READ_SHADOW: "cr4_shadow",
    Field.GUEST_CR0: "guest_cr0",
    Field.GUEST_CR3: "guest_cr3",
    Field.GUEST_IA32_EFER: "guest_efer",
    Field.EXIT_REASON: "exit_reason",
    Field.EXIT_QUALIFICATION: "exit_qualification",
    Field.GUEST_PHYSICAL_ADDRESS: "guest_physical_address",
}


def during_an_exit(do: Callable[[VirtualCpu], None], **fields: Any) -> Machine:
    """Call `do` while a VMM handles CPUID."""

    class Mine(Kvm):
        def handle(self, vcpu: VirtualCpu) -> int:
            if vcpu.exit.reason == ExitReason.CPUID:
                do(vcpu)
            return super().handle(vcpu)

    machine = Machine(Config(vmm=Mine, memory="64M", **fields), guest_kernel=False, state=GuestState(cr3=0x1000))
    machine.guest_memory.u64[0x1000 >> 3] = 0x2003
    machine.guest_memory.u64[0x2000 >> 3] = 0x83  # 1 GB
    machine.load(0x5000)
    machine.exit_instruction(ExitReason.CPUID)
    return machine


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_every_field_that_a_machine_has_reads_as_it_is(mmu: str) -> None:
    found: dict[str, int] = {}

    def read(vcpu: VirtualCpu) -> None:
        found.update({name: vcpu.vmread(field) for field, name in NAMES.items()})
        found["high"] = vcpu.vmread(Field.EPTP + 1)

    machine = during_an_exit(read, mmu=mmu, vpid=True)
    vmcs = machine.vmcs
    assert found["exit_reason"] == ExitReason.CPUID
    assert found["high"] == vmcs["eptp"] >> 32
    assert {name: found[name] for name in NAMES.values()} == {name: vmcs[name] for name in NAMES.values()}
    assert found["secondary"] & Secondary.VPID
    assert (found["eptp"] != 0) == (mmu == "ept")


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_every_field_takes_the_value_that_it_has(mmu: str) -> None:
    fields = []

    def write(vcpu: VirtualCpu) -> None:
        for field in Field:
            try:
                value = vcpu.vmread(field)
            except StateError:
                continue
            if field.type != "read-only":
                vcpu.vmwrite(field, value)
                fields.append(field)

    machine = during_an_exit(write, mmu=mmu)
    assert len(fields) > 40
    assert machine.load(0x7000).value == 0


@pytest.mark.parametrize(
    ("mmu", "field", "value", "error", "said"),
    [
        ("ept", 0x0004 + 0x100, 0, VmFailValid, "VM-instruction error 12"),
        ("ept", 1 << 40, 0, VmFailValid, "VM-instruction error 12"),
        ("ept", Field.EXIT_REASON, 0, VmFailValid, "VM-instruction error 13"),
        ("ept", Field.GUEST_RIP, 0, StateError, "GUEST_RIP.*no use for this field"),
        ("ept", Field.VPID, 1 << 16, StateError, "wider than the 16 bits of"),
        ("ept", Field.EPTP + 1, 1 << 32, StateError, "wider than the 32 bits of .*EPTP"),
        ("ept", Field.EPTP, 0x1000, StateError, "EPTP=0x1000: .*bits 11:0"),
        ("ept", Field.EPTP + 1, 1, StateError, "EPTP=.*a table in the host's memory"),
        ("ept", Field.PML_ADDRESS, 1 << 40, BusError, "PML_ADDRESS=.*a page in the host's memory"),
        ("ept", Field.APIC_ACCESS_ADDRESS, 0x1008, BusError, "APIC_ACCESS_ADDRESS=0x1008"),
        ("ept", Field.VIRTUAL_APIC_ADDRESS, 0x1000, StateError, "where this page lies"),
        ("ept", Field.CR3_TARGET_COUNT, 5, StateError, "there are 4"),
        ("ept", Field.EXCEPTION_BITMAP, 1 << 14, StateError, "its own"),
        ("ept", Field.PAGE_FAULT_ERROR_CODE_MATCH, 2, StateError, "its own"),
        ("ept", Field.PRIMARY_CONTROLS, 1 << 31 | Primary.INVLPG_EXITING, StateError, "bits 0x200 .*over EPT"),
        ("ept", Field.SECONDARY_CONTROLS, 0, StateError, "bits 0x2 .*over EPT"),
        ("shadow", Field.SECONDARY_CONTROLS, Secondary.EPT, StateError, "bits 0x2 .*over shadow paging"),
        ("shadow", Field.SECONDARY_CONTROLS, Secondary.PML, StateError, "over shadow paging"),
        ("shadow", Field.PIN_BASED_CONTROLS, 0xFFFF, StateError, "PIN_BASED_CONTROLS"),
    ],
)  # fmt: skip
def test_what_a_vmm_may_not_write(mmu: str, field: int, value: int, error: type[Exception], said: str) -> None:
    def write(vcpu: VirtualCpu) -> None:
        with pytest.raises(error, match=said):
            vcpu.vmwrite(field, value)

    machine = during_an_exit(write, mmu=mmu)
    assert machine.vmcs == during_an_exit(lambda vcpu: None, mmu=mmu).vmcs


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_random_writes_are_refused_or_harmless(mmu: str) -> None:
    """Any field, any value: an error of ours, or the machine goes on or stops with one."""
    rng = np.random.default_rng(7)
    writable = [field for field in Field if field.type != "read-only"]
    done = 0
    for _ in range(200):
        chosen = [writable[i] for i in rng.integers(0, len(writable), 3)]
        values = [int(rng.choice([0, 1, 5, 0x1000, 0xFFFF, 1 << 31, 1 << 52, (1 << 64) - 1])) for _ in chosen]

        def write(vcpu: VirtualCpu, chosen: Any = chosen, values: Any = values) -> None:
            nonlocal done
            for field, value in zip(chosen, values, strict=True):
                with contextlib.suppress(StateError, BusError):
                    vcpu.vmwrite(field, value)
                    done += 1

        with contextlib.suppress(StateError, BusError, PolicyError):
            during_an_exit(write, mmu=mmu).load(0x6000)
    assert done > 100


def test_instructions_of_vmx() -> None:
    def instructions(vcpu: VirtualCpu) -> None:
        for bad in [(0,), (3,), (1 << 33,), (1, 0x1001)]:
            with pytest.raises(VmFailValid, match="INVEPT: VM-instruction error 28"):
                vcpu.invept(*bad)
        for bad in [(4, 1), (1, 0), (0, 1 << 16), (3, 0)]:
            with pytest.raises(VmFailValid, match="INVVPID: VM-instruction error 28"):
                vcpu.invvpid(*bad)
        with pytest.raises(StateError, match="no linear address"):
            vcpu.invvpid(0, 1, 1 << 60)
        vcpu.invept(1, vcpu.vmread(Field.EPTP))
        vcpu.invept(2)
        vcpu.invvpid(2)

    machine = during_an_exit(instructions, mmu="ept", vpid=True)
    assert machine.counters()["invept"] == 2
    assert machine.counters()["invvpid"] == 1


def test_outside_of_an_exit_nothing_can_be_done() -> None:
    kept: list[VirtualCpu] = []
    during_an_exit(kept.append, mmu="ept")
    for call in (
        lambda: kept[0].vmread(Field.VPID),
        lambda: kept[0].vmwrite(Field.VPID, 1),
        lambda: kept[0].invept(2),
        lambda: kept[0].vm.flush,
        lambda: kept[0].requests,
    ):
        with pytest.raises(PolicyError, match="does not stand still for its VMM"):
            call()
