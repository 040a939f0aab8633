"""The VMCB of a vCPU of AMD: the state of its VMCS by AMD's offsets and exit codes (APM vol. 2, appendices B, C)."""

from __future__ import annotations

import pytest

from fastmmu import Config, GuestState, Kvm, Machine, PolicyError, StateError
from fastmmu.arch.vmcb import Intercept1, TlbControl, VmcbField
from fastmmu.exits import ExitReason, SvmExit, svm_exit, svm_name
from fastmmu.kvm.port import VirtualCpu
from fastmmu.report.words import reason_title
from fastmmu.vmx.fields import Field

AMD = Config(vendor="amd", kvm="6.1", memory="64M")
ROOT = 0x1000


def bare(config: Config) -> Machine:
    machine = Machine(config, guest_kernel=False, state=GuestState(cr3=ROOT))
    for n in range(4):
        machine.guest_memory.write64(ROOT + n * 0x1000, ROOT + (n + 1) * 0x1000 | 0x67)
    return machine


@pytest.mark.parametrize("vmm", ["kernel", "python"])
def test_it_tells_what_an_exit_was(vmm: str) -> None:
    machine = bare(AMD.replace(mmu="ept", vmm=vmm))
    machine.access(0, "w")
    gpa = ROOT + 0x4000
    vmcb = machine.vmcb
    assert vmcb["exitcode"] == SvmExit.NPF == 0x400
    assert vmcb["exitinfo1"] == 1 << 32 | 6  # the page itself, a write, a user access as all of nested paging are
    assert vmcb["exitinfo2"] == gpa
    assert (vmcb["np_enable"], vmcb["n_cr3"]) == (1, machine.vmcs["eptp"] & ~0xFFF)
    assert (vmcb["guest_asid"], vmcb["tlb_control"]) == (1, 0)
    machine.mov_cr4(machine.state.cr4 ^ 1 << 20)
    assert machine.vmcb["exitcode"] == SvmExit.CR0_WRITE + 4 == 0x14
    assert machine.vmcb["cr3"] == ROOT


def test_a_page_fault_of_a_shadowed_guest_is_exception_14() -> None:
    machine = bare(AMD.replace(mmu="shadow"))
    machine.access(0x10, "w")
    vmcb = machine.vmcb
    assert (vmcb["exitcode"], vmcb["exitinfo1"], vmcb["exitinfo2"]) == (0x4E, 2, 0x10)
    assert vmcb["np_enable"] == 0
    assert vmcb["intercept_exceptions"] >> 14 & 1
    assert vmcb["intercept_1"] & Intercept1.INVLPG
    assert vmcb["intercept_cr"] & (1 << 3 | 1 << 19) == 1 << 3 | 1 << 19
    machine.invlpg(0x10)
    assert (machine.vmcb["exitcode"], machine.vmcb["exitinfo1"]) == (SvmExit.INVLPG, 0x10)


def test_v_tpr_is_cr8() -> None:
    machine = bare(AMD.replace(mmu="ept", tpr="trap"))
    machine.apic.write_cr8(5)
    assert machine.vmcb["v_intr"] & 0xFF == 5
    assert machine.vmcb["v_intr"] >> 24 & 1


def test_every_reason_has_a_code_and_a_name() -> None:
    assert svm_exit(ExitReason.CR_ACCESS, 0x13, 0, 0, 0)[0] == 3
    assert [svm_name(code) for code in (0x400, 0x72, 3, 0x14, 0x4E, -1)] == [
        *("npf", "cpuid", "cr3_read", "cr4_write", "excp_14", "invalid")
    ]
    for reason in ExitReason:
        assert svm_name(svm_exit(reason, 0, 0, 0x80000B0E, 0)[0])
    assert svm_exit(ExitReason.PML_FULL, 0, 0, 0, 0)[0] == SvmExit.INVALID == -1


def test_intel_has_none() -> None:
    assert bare(Config(mmu="ept", memory="64M")).vmcb == {}
    assert Machine(Config(vendor="amd")).vmcb == {}  # without a VMM


# ---- in the hands of a VMM in Python --------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_reads_are_what_the_machine_shows(mmu: str) -> None:
    seen: dict[str, int] = {}

    class Mine(Kvm):
        def handle(self, vcpu: VirtualCpu) -> int:
            seen.update({field.name.lower(): vcpu.vmcb_read(field) for field in VmcbField})
            assert vcpu.vmcb_read(VmcbField.CR3) == vcpu.vmread(Field.GUEST_CR3)
            assert not vcpu.in_guest
            return super().handle(vcpu)

    machine = bare(AMD.replace(mmu=mmu, vmm=Mine))
    machine.access(0)
    shown = machine.vmcb
    assert seen.keys() == shown.keys()
    assert {name for name in seen if seen[name] != shown[name]} <= {"tlb_control", "cr3"}


def test_writes_and_what_is_refused() -> None:
    refused: list[str] = []

    def attempt(vcpu: VirtualCpu, field: int, value: int) -> None:
        try:
            vcpu.vmcb_write(field, value)
        except StateError as error:
            refused.append(str(error))

    class Mine(Kvm):
        def handle(self, vcpu: VirtualCpu) -> int:
            for field, value in ((VmcbField.TLB_CONTROL, 2), (VmcbField.TLB_CONTROL, 1 << 8), (VmcbField.GUEST_ASID, 0),
                                 (VmcbField.GUEST_ASID, 1 << 16), (VmcbField.NP_ENABLE, 0), (VmcbField.EXITCODE, 1),
                                 (VmcbField.N_CR3, 0x7000), (VmcbField.INTERCEPT_1, 0), (VmcbField.INTERCEPT_CR, 0),
                                 (0x3FF, 1)):  # fmt: skip
                attempt(vcpu, field, value)
            action = super().handle(vcpu)
            vcpu.vmcb_write(VmcbField.GUEST_ASID, 77)
            vcpu.vmcb_write(VmcbField.TLB_CONTROL, TlbControl.FLUSH_ASID)
            return action

    machine = bare(AMD.replace(mmu="ept", vmm=Mine))
    machine.access(0)
    exits = machine.counters()["vm_exits"]
    assert len(refused) == 10 * exits
    assert machine.vmcb["guest_asid"] == 77
    assert {entry[2] for entry in machine.tlb.entries() if entry[0] == "l1d"} == {77}
    assert machine.tlb.counters()["flushes"]["tlb_control_3"] == exits


def test_of_intel_it_is_refused() -> None:
    class Mine(Kvm):
        def handle(self, vcpu: VirtualCpu) -> int:
            with pytest.raises(PolicyError, match="vmread"):
                vcpu.vmcb_read(VmcbField.EXITCODE)
            return super().handle(vcpu)

    machine = bare(Config(mmu="ept", memory="64M", vmm=Mine))
    machine.access(0)
    assert machine.counters()["vm_exits"]


def test_the_log_of_exits_names_its_codes() -> None:
    """Counters keep their names; the log, and tables for people, have AMD's."""
    machine = bare(AMD.replace(mmu="ept", exit_log=100))
    machine.access(0, "w")
    machine.mov_cr4(machine.state.cr4 ^ 1 << 20)
    log = machine.exit_log()
    exits = machine.counters()["exits_by_reason"]
    assert log.by_reason() == {name: n for name, n in exits.items() if n}
    assert log.by_code() == {"cr4_write": 1, "npf": exits["npf"]}
    assert repr(log).endswith(f"1 cr4_write, {exits['npf']} npf>")
    assert [reason_title(name, "amd") for name in ("npf", "cr_access")] == ["NPF", "CR"]
