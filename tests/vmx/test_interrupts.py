"""Interrupts of a guest, and its APIC: windows, thresholds, virtual and posted interrupts, event delivery."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu.errors import StateError
from fastmmu.vmx import Cpu, ExitReason, Field, GuestEvent, GuestOp, Op, PinBased, Primary, Secondary, VmExit
from tests.support.vmx import APIC_PAGE, BITMAP, DATA, exited, launched, long_mode, map_ept, resumed, unpaged

CPUID = ExitReason.CPUID


def test_external_interrupts_exit_or_wait_for_the_guest() -> None:
    cpu = launched(unpaged())
    ops = [Op.INTERRUPT, Op.INTERRUPT, Op.INTERRUPT_FLAG, GuestOp.CPL]
    event = cpu.run(ops, [0] * 4, [0x31, 0x51, 1, 0])
    assert event == GuestEvent(0x51, "external interrupt", None, None, 3)
    assert cpu.run() is None  # behind an interrupt gate
    event = cpu.run(Op.INTERRUPT_FLAG, 0, 1)
    assert event == GuestEvent(0x31, "external interrupt", None, None, 1)
    exiting = {Field.PIN_BASED_CONTROLS: PinBased.EXTERNAL_INTERRUPT_EXITING}
    resumed(cpu, exiting)
    exit = exited(cpu.run([Op.INTERRUPT, Op.EXIT], [0, 0], [0x31, CPUID]), ExitReason.EXTERNAL_INTERRUPT)
    assert (exit.interruption_info, exit.done) == (0, 1)  # it does not come again
    with pytest.raises(StateError, match="nothing to skip"):
        cpu.skip()
    cpu.vmwrite(Field.VM_EXIT_CONTROLS, VmExit.HOST_ADDRESS_SPACE_SIZE | VmExit.ACKNOWLEDGE_INTERRUPT)
    cpu.vmresume()
    exited(cpu.run(), CPUID)
    cpu.vmresume()
    assert exited(cpu.run(Op.INTERRUPT, 0, 0x31), ExitReason.EXTERNAL_INTERRUPT).interruption_info == 0x80000031


def test_the_interrupt_window_opens() -> None:
    cpu = launched(unpaged(), {Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS | Primary.INTERRUPT_WINDOW_EXITING})
    exit = exited(
        cpu.run([GuestOp.CPL, Op.INTERRUPT_FLAG, Op.EXIT], [0] * 3, [0, 1, CPUID]), ExitReason.INTERRUPT_WINDOW
    )
    assert exit.done == 2
    cpu.vmwrite_all({Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS, Field.VM_ENTRY_INTERRUPTION_INFO: 0x80000041})
    assert cpu.vmresume() is None
    assert cpu.run() == GuestEvent(0x41, "external interrupt", None, None, 2)
    assert exited(cpu.run(), CPUID).done == 2


def test_the_monitor_trap_flag() -> None:
    cpu = launched(unpaged(), {Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS | Primary.MONITOR_TRAP_FLAG})
    came = cpu.run([GuestOp.CPL, GuestOp.WRPKRU, Op.EXIT], [0] * 3, [0, 0, CPUID])
    for done in (1, 2):
        assert exited(came, ExitReason.MONITOR_TRAP).done == done
        cpu.vmresume()
        came = cpu.run()
    assert exited(came, CPUID).done == 2


def with_apic(secondary: int = 0) -> Cpu:
    """A 64-bit guest with a TPR shadow and virtualized APIC accesses; the APIC page is at BITMAP."""
    cpu = long_mode()
    cpu.vmwrite_all(
        {
            Field.PIN_BASED_CONTROLS: PinBased.EXTERNAL_INTERRUPT_EXITING,
            Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS | Primary.TPR_SHADOW,
            Field.SECONDARY_CONTROLS: Secondary.VIRTUALIZE_APIC_ACCESSES | secondary,
            Field.VIRTUAL_APIC_ADDRESS: APIC_PAGE,
            Field.APIC_ACCESS_ADDRESS: BITMAP,
        }
    )
    cpu.apic_linear_address = BITMAP
    return cpu


def test_the_tpr_threshold() -> None:
    cpu = with_apic()
    cpu.memory.u8[APIC_PAGE + 0x80] = 0x60
    launched(cpu, {Field.TPR_THRESHOLD: 5})
    assert cpu.run(Op.APIC_WRITE, 4, 0x80 << 32 | 0x50) is None
    came = cpu.run([Op.APIC_WRITE, Op.APIC_READ], [4, 4], [0x80 << 32 | 0x40, 0x80 << 32])
    exit = exited(came, ExitReason.TPR_BELOW_THRESHOLD)
    assert (exit.done, exit.instruction_length, cpu.memory.u8[APIC_PAGE + 0x80]) == (1, 0, 0x40)
    cpu.vmwrite(Field.TPR_THRESHOLD, 0)
    cpu.vmresume()
    assert cpu.run() is None  # not the write again
    assert cpu.value == 0x40
    assert cpu.run(Op.CR8_WRITE, 0, 7) is None
    assert cpu.run(Op.CR8_READ, 0, 0) is None
    assert cpu.value == 7
    exit = exited(cpu.run(Op.APIC_READ, 4, 0x30 << 32), ExitReason.APIC_ACCESS)
    assert (exit.qualification, exit.instruction_length) == (0x30, 1)
    cpu.vmresume()
    exit = exited(cpu.run(Op.WRITE, 4, BITMAP + 0xB0), ExitReason.APIC_ACCESS)  # any access of the page
    assert exit.qualification == 0x10B0
    cpu.vmresume()
    exit = exited(cpu.run(GuestOp.EVENT_WRITE, 8, BITMAP + 0x10), ExitReason.APIC_ACCESS)
    assert exit.qualification == 0x3010


def test_virtual_interrupts_are_delivered_and_end() -> None:
    cpu = with_apic(Secondary.VIRTUAL_INTERRUPT_DELIVERY | Secondary.APIC_REGISTER_VIRTUALIZATION)
    cpu.memory.u8[APIC_PAGE + 0x200 + 0x10 * 2] = 2  # IRR of 41H
    launched(cpu, {Field.GUEST_INTERRUPT_STATUS: 0x41, Field.EOI_EXIT_BITMAP_0 + 2: 0, Field.GUEST_RFLAGS: 0x202})
    assert cpu.pending
    assert cpu.run(Op.APIC_READ, 4, 0x20 << 32) == GuestEvent(0x41, "external interrupt", None, None, 0)
    assert (cpu.vppr, cpu.pending) == (0x40, False)
    assert cpu.run(Op.APIC_WRITE, 4, 0xB0 << 32) is None  # its end, which no VMM wants to see
    ipi = 0x300 << 32 | 0x40051  # a self-IPI
    event = cpu.run([Op.APIC_WRITE, Op.INTERRUPT_FLAG], [4, 0], [ipi, 1])
    assert event == GuestEvent(0x51, "external interrupt", None, None, 2)
    exited(cpu.run(Op.EXIT, 0, CPUID), CPUID)
    assert cpu.vmread(Field.GUEST_INTERRUPT_STATUS) == 0x5100
    cpu.vmwrite(Field.EOI_EXIT_BITMAP_1, 1 << 0x11)
    cpu.vmresume()
    exit = exited(cpu.run(Op.APIC_WRITE, 4, 0xB0 << 32), ExitReason.VIRTUALIZED_EOI)
    assert (exit.qualification, exit.done) == (0x51, 1)
    cpu.vmresume()
    exit = exited(cpu.run(Op.APIC_WRITE, 4, 0xD0 << 32), ExitReason.APIC_WRITE)
    assert (exit.qualification, exit.done) == (0xD0, 1)


def test_posted_interrupts() -> None:
    cpu = with_apic(Secondary.VIRTUAL_INTERRUPT_DELIVERY)
    posted = PinBased.EXTERNAL_INTERRUPT_EXITING | PinBased.POSTED_INTERRUPTS
    launched(
        cpu,
        {
            Field.PIN_BASED_CONTROLS: posted,
            Field.VM_EXIT_CONTROLS: VmExit.HOST_ADDRESS_SPACE_SIZE | VmExit.ACKNOWLEDGE_INTERRUPT,
            Field.POSTED_INTERRUPT_NOTIFICATION_VECTOR: 0xF2,
            Field.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS: DATA,
            Field.GUEST_RFLAGS: 0x202,
        },
    )
    descriptor = cpu.memory.u64[DATA >> 3 : (DATA >> 3) + 8]
    descriptor[1] = 1 << 1  # 41H, and the notification
    descriptor[4] = 1
    assert cpu.run(Op.INTERRUPT, 0, 0xF2) == GuestEvent(0x41, "external interrupt", None, None, 1)
    assert (descriptor.tolist(), cpu.counters()["vm_exits"]) == ([0] * 8, 0)
    event = cpu.run([Op.DEVICE_INTERRUPT, Op.INTERRUPT_FLAG], [0, 0], [0x61, 1])
    assert event == GuestEvent(0x61, "external interrupt", None, None, 2)
    descriptor[4] = 2  # notifications are suppressed
    assert cpu.run(Op.DEVICE_INTERRUPT, 0, 0x71) is None
    assert (descriptor[1], descriptor[4]) == (1 << 0x31, 2)
    assert exited(cpu.run(Op.INTERRUPT, 0, 0x30), ExitReason.EXTERNAL_INTERRUPT).interruption_info == 0x80000030
    assert cpu.vmresume() is None
    exited(cpu.run(Op.DEVICE_INTERRUPT, 0, 0x171), ExitReason.EXTERNAL_INTERRUPT)  # level-triggered: never posted


def test_an_exit_during_event_delivery_says_which() -> None:
    cpu = unpaged()
    cpu.vmwrite_all({Field.VM_ENTRY_INTERRUPTION_INFO: 0x80000B0E, Field.VM_ENTRY_EXCEPTION_ERROR_CODE: 4})
    launched(cpu)
    assert isinstance(cpu.run(GuestOp.EVENT_READ, 8, 0x5000), GuestEvent)
    exit = exited(cpu.run(), ExitReason.EPT_VIOLATION)
    assert (exit.vectoring_info, exit.vectoring_error_code) == (0x80000B0E, 4)
    assert cpu.vmread(Field.IDT_VECTORING_INFO) == 0x80000B0E
    map_ept(cpu.memory, 0x5000, DATA)
    cpu.vmresume()
    data = np.array([7], np.uint64)
    assert cpu.run(GuestOp.EVENT_WRITE, 8, 0x5008, data=data) is None
    assert cpu.memory.u64[(DATA >> 3) + 1] == 7
    assert exited(cpu.run(Op.READ, 8, 0x6000), ExitReason.EPT_VIOLATION).vectoring_info == 0
