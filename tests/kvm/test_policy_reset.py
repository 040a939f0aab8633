"""The local APIC of a new vCPU, by a VMM in Python: registers, controls, rules of one's own."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from fastmmu import Config, FastmmuError, Host, Kvm, Machine, StateError
from fastmmu.vmx.controls import Primary
from fastmmu.vmx.fields import Field
from tests.support.apic_guest import bare
from tests.support.host_events import SMALL, few
from tests.support.tpr_ways import WAYS

OF_A_VMM = {name: fields for name, fields in WAYS.items() if name != "native"}
TPR, EOI, SVR, LVT_TIMER, IRR = 0x80, 0xB0, 0xF0, 0x320, 0x200


@pytest.mark.parametrize("way", OF_A_VMM)
def test_every_vcpu_begins_as_under_the_kernels(way: str) -> None:
    """Each word of the page, IA32_APIC_BASE and the VMCS: of the first vCPU, of further ones, of one that comes in the
    place of the last."""
    fields = {**OF_A_VMM[way], "memory": "64M"}
    hosts = [Host([(Config(**fields, vmm=vmm), 3)], cpus=1) for vmm in ("kernel", "python")]

    def seen(host: Host, vcpu: int) -> tuple[Any, ...]:
        machine = host.place(vcpu, 0)
        return machine.apic.page, machine.apic.rdmsr(0x1B), machine.vmcs

    for _ in range(2):
        for vcpu in hosts[0].vcpus_of(hosts[0].machines[0]):
            kernel, python = (seen(host, vcpu) for host in hosts)
            assert python == kernel, vcpu
            assert any(kernel[0])
        for host in hosts:
            (machine,) = host.machines
            for vcpu in host.vcpus_of(machine):
                host.run(vcpu, 0, *few())
                host.remove(vcpu)
            host.add_vcpu(machine)
            host.add_vcpu(machine)


class Nothing(Kvm):
    """Leaves out what it is named after."""

    def lapic_reset(self, vcpu: Any) -> None:
        pass


class Enabled(Kvm):
    """As a boot loader leaves it: enabled by software, the timer's vector set."""

    def lapic_reset(self, vcpu: Any) -> None:
        super().lapic_reset(vcpu)
        vcpu.apic.write(SVR, 0x1FF)
        vcpu.apic.write(LVT_TIMER, 0x40)


class Trapping(Kvm):
    """CR8 exits though there is a TPR shadow, which is left off."""

    def apic_controls(self, vcpu: Any) -> None:
        super().apic_controls(vcpu)
        controls = vcpu.vmread(Field.PRIMARY_CONTROLS) & ~int(Primary.TPR_SHADOW)
        exiting = Primary.CR8_LOAD_EXITING | Primary.CR8_STORE_EXITING
        vcpu.vmwrite(Field.PRIMARY_CONTROLS, controls | int(exiting))


def test_the_state_after_reset_is_that_of_the_rule() -> None:
    """Without the rule nothing is there: the kernels give a VMM in Python an APIC that is 0 and disabled."""
    m = bare(mmu="ept", tpr="trap", vmm=Nothing)
    assert not any(m.apic.page)
    assert m.apic.rdmsr(0x1B) == 0xFEE0_0000


def test_an_apic_that_is_enabled_from_the_beginning() -> None:
    m = bare(mmu="ept", tpr="flexpriority", vmm=Enabled)
    assert (m.apic.read(SVR), m.apic.read(LVT_TIMER)) == (0x1FF, 0x40)
    m.apic.interrupt(0x51)
    assert [each.vector for each in m.apic.deliveries] == [0x51]
    m = bare(mmu="ept", tpr="flexpriority", vmm="python")
    m.apic.interrupt(0x51)  # disabled by software: it takes none
    assert m.apic.deliveries == []


def test_controls_of_ones_own() -> None:
    counted = []
    for vmm in ("python", Trapping):
        m = bare(mmu="ept", tpr="flexpriority", tpr_threshold="kvm", vmm=vmm)
        m.apic.wrmsr(0x1B, 0xFEE0_0900)
        m.apic.write_cr8(5)
        assert m.apic.read_cr8() == 5
        counted.append(m.counters()["exits_by_reason"].get("cr_access", 0))
    assert counted == [0, 2]


@pytest.mark.parametrize("offset", [-1, 1, 0x82, 0xFFD, 0x1000, 1 << 64, "0x80", None, 8.0])
def test_registers_that_cannot_be_set(offset: Any) -> None:
    """And a value too wide; none of it changes anything, and the machine is not made."""
    made: list[Any] = []

    class Wrong(Kvm):
        def lapic_reset(self, vcpu: Any) -> None:
            super().lapic_reset(vcpu)
            before = [vcpu.apic.word(at) for at in range(0, 4096, 4)]
            with pytest.raises(FastmmuError):
                vcpu.apic.put(offset, 0)
            with pytest.raises(StateError, match="value="):
                vcpu.apic.put(TPR, 1 << 32)
            with pytest.raises(StateError, match="vector="):
                vcpu.apic.enable_posting(256)
            assert [vcpu.apic.word(at) for at in range(0, 4096, 4)] == before
            made.append(vcpu)

    m = bare(mmu="shadow", tpr="apicv", vmm=Wrong)
    assert len(made) == 1
    m.apic.wrmsr(0x1B, 0xFEE0_0900)
    assert m.apic.read(SVR) == 0xFF


def test_any_registers_at_reset_leave_a_machine_that_can_be_used() -> None:
    """Whatever a VMM puts into the page, timer and interrupts go on or are refused; none takes for ever."""

    class Ones(Kvm):
        def lapic_reset(self, vcpu: Any) -> None:
            super().lapic_reset(vcpu)
            for offset in range(0, 0x1000, 4):
                vcpu.apic.put(offset, self.value)
            vcpu.apic.reset_timer()

        value = 0

    for way in ("trap", "flexpriority", "apicv"):
        for value in (0, 0xFFFF_FFFF, 0x0002_00FF, 0x0006_0040, 0x5555_5555):
            Ones.value = value
            with suppress(FastmmuError):
                machine = Machine(SMALL.replace(vmm=Ones, tpr=way))
                machine.run(*few(2000))
                machine.apic.write(EOI, 0)
                machine.apic.write_cr8(3)
                machine.run(*few(2000))
                assert len(machine.apic.page) == 4096
