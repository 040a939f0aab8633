"""The guest's operations: where they exit, what is done and what comes again, events for the guest's IDT."""

from __future__ import annotations

import signal
import threading
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu.errors import BusError, PolicyError, StateError
from fastmmu.vmx import (
    ExitReason,
    Field,
    GuestEvent,
    GuestOp,
    Op,
    Primary,
    Secondary,
)
from tests.support.vmx import BITMAP, DATA, ROOT, exited, launched, long_mode, map_ept, resumed, unpaged

CPUID = ExitReason.CPUID


# ---- exits, and what comes again -------------------------------------------------------------------------------------


def test_an_ept_violation_is_just_an_exit_and_the_access_comes_again() -> None:
    cpu = launched(unpaged())
    data = np.array([1, 2, 3], np.uint64)
    exit = exited(cpu.run([Op.WRITE] * 3, [8] * 3, [0x5000, 0x6008, 0x5010], data=data), ExitReason.EPT_VIOLATION)
    assert (exit.guest_physical, exit.guest_linear, exit.done, exit.qualification & 0x1BF) == (0x5000, 0x5000, 0, 0x182)
    assert cpu.vmread(Field.GUEST_PHYSICAL_ADDRESS) == 0x5000
    assert (cpu.vmread(Field.GUEST_RIP), exit.instruction_length) == (0, 0)
    map_ept(cpu.memory, 0x5000, DATA)
    cpu.vmresume()
    exit = exited(cpu.run(), ExitReason.EPT_VIOLATION)
    assert (exit.guest_physical, exit.done, cpu.done) == (0x6008, 1, 1)
    cpu.skip()  # emulated
    cpu.vmresume()
    assert cpu.run() is None
    assert cpu.memory.u64[DATA >> 3 : (DATA >> 3) + 3].tolist() == [1, 0, 3]
    assert (cpu.done, cpu.counters()["vm_exits"]) == (3, 2)
    with pytest.raises(StateError, match="nothing to skip"):
        cpu.skip()


def test_a_vmm_that_moves_rip_by_the_length_of_the_instruction() -> None:
    cpu = launched(unpaged())
    came = cpu.run([Op.EXIT] * 3, [0] * 3, [CPUID] * 3)
    for done in range(3):
        exit = exited(came, CPUID)
        assert (exit.done, exit.instruction_length, cpu.vmread(Field.VM_EXIT_INSTRUCTION_LENGTH)) == (done, 1, 1)
        cpu.vmwrite(Field.GUEST_RIP, cpu.vmread(Field.GUEST_RIP) + exit.instruction_length)
        cpu.vmresume()
        came = cpu.run()
    assert came is None
    cpu.run(Op.EXIT, 0, CPUID)  # new operations are counted from 0
    cpu.vmresume()
    exited(cpu.run(), CPUID)  # and it comes again


def test_a_batch_and_a_trace_run() -> None:
    cpu = long_mode()
    launched(cpu, {Field.GUEST_SS_ACCESS_RIGHTS: 0x60})
    addresses = np.arange(0, 1 << 20, 4096, dtype=np.uint64)
    batch = next(iter(fastmmu.Trace.from_arrays(addresses).batches()))
    assert cpu.run(batch) is None
    assert cpu.counters()["accesses"] == cpu.done == 256
    assert (cpu.cpl, cpu.counters()["walks"]) == (3, 256)


def test_a_page_fault_goes_to_the_guest_or_exits() -> None:
    cpu = launched(long_mode())
    event = cpu.run([Op.WRITE, Op.READ], [8, 8], [0x20_0008, 0x1000])
    assert event == GuestEvent(14, "hardware exception", 2, 0x20_0008, 0)
    assert cpu.cr2 == 0x20_0008
    words = cpu.memory.u64
    words[(ROOT + 0x2000 >> 3) + 1] = ROOT + 0x3000 | 7  # its handler maps the page
    assert cpu.run() is None
    words[(ROOT + 0x2000 >> 3) + 1] = 0
    resumed(cpu, {Field.EXCEPTION_BITMAP: 1 << 14})
    exit = exited(cpu.run(Op.READ, 8, 0x40_0000), ExitReason.EXCEPTION_NMI)
    assert (exit.interruption_info, exit.error_code, exit.qualification) == (0x80000B0E, 0, 0x40_0000)
    assert cpu.cr2 == 0x20_0008
    cpu.vmwrite_all({Field.PAGE_FAULT_ERROR_CODE_MASK: 1, Field.PAGE_FAULT_ERROR_CODE_MATCH: 1})
    cpu.vmresume()
    assert isinstance(cpu.run(), GuestEvent)  # not present: no match
    cpu.skip()
    assert cpu.run() is None


def test_general_protection_and_levels_of_privilege() -> None:
    cpu = launched(long_mode())
    protection = ("hardware exception", 0, None)
    for op, size, addr in (
        (Op.READ, 8, 1 << 47),
        (Op.READ, 8, (1 << 47) - 4),  # its second half
        (GuestOp.MOV_TO_CR4, 0, 0),  # VMXE must be 1
        (GuestOp.MOV_TO_CR0, 0, 0x80010011),  # NE too
        (GuestOp.MOV_TO_CR3, 0, 1 << 52),
        (Op.CR8_WRITE, 0, 16),
    ):
        data = np.zeros(1, np.uint64) if op is Op.READ else None
        if op == Op.CR8_WRITE:
            continue
        event = cpu.run(op, size, addr, data=data)
        assert isinstance(event, GuestEvent), (op, event)
        assert (event.vector, *event[1:4]) == (13, *protection)
    assert cpu.run([GuestOp.CPL, Op.READ], [0, 8], [3, 0x1000]) is None
    for op, addr in (
        (Op.INVLPG, 0),
        (Op.EXIT, ExitReason.INVD),
        (Op.INTERRUPT_FLAG, 0),
        (GuestOp.MOV_FROM_CR0, 0),
        (GuestOp.CLTS, 0),
        (Op.MSR_READ, 0xC0000080 << 32),
        (Op.CR8_READ, 0),
    ):
        assert cpu.run(op, 0, addr) == GuestEvent(13, *protection, 0)
    exited(cpu.run(Op.EXIT, 0, CPUID), CPUID)  # at any level
    cpu.vmwrite(Field.EXCEPTION_BITMAP, 1 << 13)
    cpu.vmresume()
    exit = exited(cpu.run(Op.INVLPG, 0, 0), ExitReason.EXCEPTION_NMI)
    assert (exit.interruption_info, exit.error_code) == (0x80000B0D, 0)


CONTROLS = [  # reason, control; every other instruction exits always
    (ExitReason.HLT, Field.PRIMARY_CONTROLS, Primary.HLT_EXITING),
    (ExitReason.MWAIT, Field.PRIMARY_CONTROLS, Primary.MWAIT_EXITING),
    (ExitReason.RDTSC, Field.PRIMARY_CONTROLS, Primary.RDTSC_EXITING),
    (ExitReason.RDTSCP, Field.PRIMARY_CONTROLS, Primary.RDTSC_EXITING),
    (ExitReason.DR_ACCESS, Field.PRIMARY_CONTROLS, Primary.MOV_DR_EXITING),
    (ExitReason.IO_INSTRUCTION, Field.PRIMARY_CONTROLS, Primary.UNCONDITIONAL_IO_EXITING),
    (ExitReason.MONITOR, Field.PRIMARY_CONTROLS, Primary.MONITOR_EXITING),
    (ExitReason.PAUSE, Field.PRIMARY_CONTROLS, Primary.PAUSE_EXITING),
    (ExitReason.GDTR_IDTR, Field.SECONDARY_CONTROLS, Secondary.DESCRIPTOR_TABLE_EXITING),
    (ExitReason.LDTR_TR, Field.SECONDARY_CONTROLS, Secondary.DESCRIPTOR_TABLE_EXITING),
    (ExitReason.WBINVD, Field.SECONDARY_CONTROLS, Secondary.WBINVD_EXITING),
    (ExitReason.RDRAND, Field.SECONDARY_CONTROLS, Secondary.RDRAND_EXITING),
    (ExitReason.RDSEED, Field.SECONDARY_CONTROLS, Secondary.RDSEED_EXITING),
]


@pytest.mark.parametrize(("reason", "field", "control"), CONTROLS, ids=lambda value: getattr(value, "name", None))
def test_an_instruction_exits_where_its_control_says_so(reason: ExitReason, field: Field, control: int) -> None:
    cpu = launched(unpaged())
    assert cpu.run(Op.EXIT, 0, reason) is None
    exited(cpu.run(Op.EXIT, 0, CPUID), CPUID)
    cpu.vmwrite(field, cpu.vmread(field) | control)
    assert cpu.vmresume() is None
    exit = exited(cpu.run(Op.EXIT, 0, reason), reason)
    assert (exit.instruction_length, exit.qualification) == (1, 0)


def test_instructions_that_always_exit() -> None:
    cpu = launched(unpaged())
    for reason in (
        CPUID,
        ExitReason.VMCALL,
        ExitReason.XSETBV,
        ExitReason.INVD,
        ExitReason.VMLAUNCH,
        ExitReason.INVEPT,
    ):
        exited(cpu.run(Op.EXIT, 0, reason), reason)
        assert cpu.vmresume() is None


def test_control_registers_exit_by_mask_and_target() -> None:
    cpu = launched(long_mode())
    resumed(cpu, {Field.CR0_GUEST_HOST_MASK: 8, Field.CR4_GUEST_HOST_MASK: 0x80, Field.CR0_READ_SHADOW: 0})
    assert cpu.run(GuestOp.MOV_TO_CR0, 0, 0x80010031) is None
    exit = exited(cpu.run(GuestOp.MOV_TO_CR0, 0, 0x80010039), ExitReason.CR_ACCESS)
    assert (exit.qualification, exit.operand) == (0, 0x80010039)
    cpu.vmwrite(Field.CR0_READ_SHADOW, 8)
    cpu.vmresume()
    data = np.zeros(1, np.uint64)
    assert cpu.run(GuestOp.MOV_FROM_CR0, 0, 0, data=data) is None
    assert data[0] == cpu.value == 0x80010039
    assert exited(cpu.run(GuestOp.CLTS, 0, 0), ExitReason.CR_ACCESS).qualification == 0x20
    cpu.vmresume()
    assert exited(cpu.run(GuestOp.LMSW, 0, 1), ExitReason.CR_ACCESS).qualification == 0x10030
    cpu.vmresume()
    assert exited(cpu.run(GuestOp.MOV_TO_CR4, 0, 0x20A0), ExitReason.CR_ACCESS).qualification == 4
    primary = Primary.CR3_LOAD_EXITING | Primary.CR3_STORE_EXITING | Primary.INVLPG_EXITING
    cpu.vmwrite_all({Field.PRIMARY_CONTROLS: primary, Field.CR3_TARGET_COUNT: 2, Field.CR3_TARGET_VALUE_1: ROOT | 8})
    cpu.vmwrite(Field.CR3_TARGET_VALUE_2, ROOT | 16)
    cpu.vmresume()
    assert cpu.run(GuestOp.MOV_TO_CR3, 0, ROOT | 8) is None
    exit = exited(cpu.run(GuestOp.MOV_TO_CR3, 0, ROOT | 16), ExitReason.CR_ACCESS)  # beyond the count
    assert (exit.qualification, exit.operand, cpu.vmread(Field.GUEST_CR3)) == (3, ROOT | 16, ROOT | 8)
    cpu.vmresume()
    assert exited(cpu.run(GuestOp.MOV_FROM_CR3, 0, 0), ExitReason.CR_ACCESS).qualification == 0x13
    cpu.vmresume()
    assert exited(cpu.run(Op.INVLPG, 0, 0x1234), ExitReason.INVLPG).qualification == 0x1234


def test_invpcid() -> None:
    cpu = launched(long_mode())
    assert cpu.run(GuestOp.INVPCID, 2, 0) == GuestEvent(6, "hardware exception", None, None, 0)  # not enabled
    secondary = {Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS, Field.SECONDARY_CONTROLS: Secondary.INVPCID}
    resumed(cpu, secondary)
    assert cpu.run(GuestOp.INVPCID, 2, 0) is None
    event = cpu.run(GuestOp.INVPCID, 4, 0)
    assert isinstance(event, GuestEvent)
    assert event.vector == 13
    resumed(cpu, {Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS | Primary.INVLPG_EXITING})
    exit = exited(cpu.run(GuestOp.INVPCID, 1, 0x5003), ExitReason.INVPCID)
    assert (exit.operand, exit.value) == (1, 0x5003)


def test_msrs_exit_by_the_bitmap() -> None:
    cpu = launched(long_mode())
    exit = exited(cpu.run(Op.MSR_READ, 0, 0x277 << 32), ExitReason.RDMSR)
    assert exit.operand == 0x277
    cpu.vmwrite_all({Field.PRIMARY_CONTROLS: Primary.MSR_BITMAPS, Field.MSR_BITMAP: BITMAP})
    cpu.memory.u8[BITMAP + 0xC00 + 0x80 // 8] = 1  # WRMSR of EFER
    assert cpu.vmresume() is None
    data = np.array([0, 0, 1 << 33], np.uint64)
    came = cpu.run(
        [Op.MSR_READ] * 2 + [Op.MSR_WRITE], [0] * 3, [0x277 << 32, 0xC0000080 << 32, 0xC0000080 << 32], data=data
    )
    exit = exited(came, ExitReason.WRMSR)
    assert (exit.operand, exit.value, exit.done) == (0xC0000080, 1 << 33, 2)
    assert data.tolist() == [0x0007040600070406, 0xD00, 1 << 33]
    cpu.vmwrite(Field.MSR_BITMAP, 1 << 40)
    assert cpu.vmresume() is None
    with pytest.raises(BusError, match="operation 0"):
        cpu.run(Op.MSR_READ, 0, 0x277 << 32)
    exited(cpu.run(Op.MSR_READ, 0, 0x2000 << 32), ExitReason.RDMSR)  # outside the bitmap's ranges


def test_pml_fills() -> None:
    cpu = unpaged()
    for page in range(3):
        map_ept(cpu.memory, 0x5000 + 0x1000 * page, DATA + 0x1000 * page)
    secondary = Secondary.EPT | Secondary.UNRESTRICTED_GUEST | Secondary.PML
    launched(cpu, {Field.SECONDARY_CONTROLS: secondary, Field.PML_ADDRESS: BITMAP, Field.PML_INDEX: 1})
    exit = exited(cpu.run([Op.WRITE] * 3, [8] * 3, [0x5000, 0x6000, 0x7000]), ExitReason.PML_FULL)
    assert (exit.done, cpu.vmread(Field.PML_INDEX)) == (2, 0xFFFF)
    assert cpu.memory.u64[BITMAP >> 3 : (BITMAP >> 3) + 2].tolist() == [0x6000, 0x5000]


def test_vpid_keeps_translations_over_exits_until_an_invalidation() -> None:
    misses = []
    for vpid in (0, 1):
        cpu = unpaged()
        map_ept(cpu.memory, 0x5000, DATA)
        secondary = Secondary.EPT | Secondary.UNRESTRICTED_GUEST | (Secondary.VPID if vpid else 0)
        launched(cpu, {Field.SECONDARY_CONTROLS: secondary, Field.VPID: vpid})
        for _ in range(5):
            exited(cpu.run([Op.READ, Op.EXIT], [8, 0], [0x5000, CPUID]), CPUID)
            cpu.vmresume()
        misses.append(cpu.counters()["tlb_misses"])
        exited(cpu.run(Op.EXIT, 0, CPUID), CPUID)
        cpu.invvpid(2)
        cpu.vmresume()
        cpu.run(Op.READ, 8, 0x5000)
        misses.append(cpu.counters()["tlb_misses"])
        exited(cpu.run(Op.EXIT, 0, CPUID), CPUID)
        cpu.invept(1, ROOT | 0x5E)
        cpu.vmresume()
        cpu.run(Op.READ, 8, 0x5000)
        misses.append(cpu.counters()["tlb_misses"])
    assert misses == [5, 6, 7, 1, 2, 3]


def test_two_processors_share_a_tlb() -> None:
    tlb = fastmmu.TLB("skylake")
    guests = [long_mode(tlb=tlb) for _ in range(2)]
    for vpid, cpu in enumerate(guests, 1):
        cpu.vmwrite_all({Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS, Field.SECONDARY_CONTROLS: Secondary.VPID})
        launched(cpu, {Field.VPID: vpid})
        cpu.memory.u64[ROOT + 0x3000 + 40 >> 3] = DATA + 0x1000 * vpid | 7
    data = np.zeros(1, np.uint64)
    for _ in range(2):
        for vpid, cpu in enumerate(guests, 1):
            cpu.memory.u64[DATA + 0x1000 * vpid >> 3] = vpid
            assert cpu.run(Op.READ, 8, 0x5000, data=data) is None
            assert data[0] == vpid
    assert [cpu.counters()["tlb_misses"] for cpu in guests] == [1, 1]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_operations_that_are_none() -> None:
    cpu = launched(long_mode())
    ok: dict[str, Any] = {"op": [0, 0], "size": [8, 8], "addr": [0, 0x1000]}
    for wrong, words in (
        ({"op": [0, 99]}, "operation 1: 99 is none"),
        ({"op": [Op.READ, Op.SWITCH]}, "operation 1: SWITCH needs a guest kernel"),
        ({"op": [Op.EXIT, 0], "addr": [48, 0]}, "operation 0: EXIT with reason 48"),
        ({"op": [0, Op.EXIT], "addr": [0, 14]}, "operation 1: EXIT with reason INVLPG"),
        ({"op": [0, 256]}, "op=256 is outside"),
        ({"addr": [0, -1]}, "addr=-1 does not fit 64 bits"),
        ({"addr": [0, 1 << 64]}, "addr=0x10000000000000000 does not fit"),
        ({"addr": np.zeros((2, 1), np.uint64)}, "addr: give one row"),
        ({"addr": np.array([0, -1])}, "addr: give one row"),
        ({"size": [8]}, "different lengths: 2, 1, 2"),
        ({"data": np.zeros(3, np.uint64)}, "different lengths: 2, 2, 2, 3"),
        ({"size": [8, 16], "data": np.zeros(2, np.uint64)}, "operation 1: an access of 16 bytes"),
    ):
        with pytest.raises(StateError, match=words):
            cpu.run(**ok | wrong)
    for addr in ([0.0, 1.0], np.zeros(2), "ab"):
        with pytest.raises(TypeError):
            cpu.run([0, 0], [8, 8], addr)
    with pytest.raises(StateError, match="or none to go on"):
        cpu.run(size=[1])
    assert cpu.run(**ok) is None
    assert cpu.run([], [], []) is None


def test_the_guest_and_the_vmm_run_in_turn() -> None:
    cpu = unpaged()
    with pytest.raises(StateError, match="no guest is entered"):
        cpu.run(Op.READ, 8, 0)
    launched(cpu)
    for call in (
        lambda: cpu.vmread(Field.VPID),
        lambda: cpu.vmwrite(Field.VPID, 1),
        cpu.vmlaunch,
        cpu.vmresume,
        cpu.vmptrst,
        lambda: cpu.vmclear(0x1000),
        lambda: cpu.invept(2),
    ):
        with pytest.raises(StateError, match="VMX non-root operation"):
            call()
    exited(cpu.run(Op.EXIT, 0, CPUID), CPUID)
    assert cpu.vmread(Field.VPID) == 0
    with pytest.raises(StateError, match="no guest is entered"):
        cpu.run()


def test_a_table_outside_memory_stops_the_operation_and_can_be_mended() -> None:
    cpu = launched(long_mode())
    words = cpu.memory.u64
    words[(ROOT + 0x2000 >> 3) + 1] = 1 << 40 | 7
    with pytest.raises(BusError, match=r"operation 1: .* 0x200000"):
        cpu.run([Op.READ, Op.READ], [8, 8], [0, 0x20_0000])
    assert (cpu.in_guest, cpu.done) == (True, 1)
    words[(ROOT + 0x2000 >> 3) + 1] = ROOT + 0x3000 | 7
    assert cpu.run() is None
    assert cpu.done == 2


def test_one_thread_at_a_time() -> None:
    cpu = launched(long_mode())
    n = 500_000
    ops = np.zeros(n, np.uint8), np.full(n, 8, np.uint8), np.arange(n, dtype=np.uint64) % np.uint64(1 << 20)
    done: list[object] = []
    refused = 0

    def run() -> None:
        while not refused and len(done) < 1000:
            done.append(cpu.run(*ops))

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        try:
            cpu.vmptrst()
        except PolicyError:
            refused += 1
        except StateError:  # before it runs, and after
            pass
    thread.join()
    assert set(done) == {None}
    assert cpu.counters()["accesses"] == n * len(done)
    assert refused


def test_a_signal_ends_a_run_that_can_go_on() -> None:
    cpu = launched(long_mode())
    n = 8_000_000
    operations = np.full(n, GuestOp.MOV_TO_CR3, np.uint8), np.zeros(n, np.uint8), np.full(n, ROOT, np.uint64)
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(KeyboardInterrupt):
            cpu.run(*operations)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert 0 < cpu.done <= n  # all, where it takes less than a look for signals
    assert cpu.run() is None
    assert cpu.done == n


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
