"""Random guests on random VMMs: every operation exits, faults or is done as the specification says."""

from __future__ import annotations

import os
import random
from collections import Counter

import numpy as np

from fastmmu import reference as ref
from fastmmu.errors import BusError
from fastmmu.reference.cpu import vmx as rules
from fastmmu.reference.cpu.vmentry import Capabilities as RuleCaps
from fastmmu.reference.cpu.vmx_guest import CONTROLLED, Done, Fault, Guest, Left
from fastmmu.reference.paging.outcome import Bus
from fastmmu.vmx import Cpu, Exit, ExitReason, Field, GuestEvent, GuestOp, Op, Primary, Secondary
from tests.support.vmx import DATA, ROOT, VMCS, long_mode, unpaged

EXAMPLES = int(os.environ.get("FASTMMU_EXAMPLES", "300"))
EPT_ROOT = 0x20_000
NONE = (Field.EXIT_QUALIFICATION, Field.GUEST_PHYSICAL_ADDRESS, Field.GUEST_LINEAR_ADDRESS)


def guest(chance: random.Random) -> Cpu:
    """Not paging over EPT, or paging, natively or over EPT; with tables that have holes and odd entries."""
    cpu = unpaged() if chance.random() < 0.3 else long_mode()
    over_ept = bool(cpu.vmread(Field.SECONDARY_CONTROLS) & Secondary.EPT) or chance.random() < 0.5
    words = cpu.memory.u64
    secondary = chance.choice(
        [0, Secondary.WBINVD_EXITING, Secondary.DESCRIPTOR_TABLE_EXITING | Secondary.RDRAND_EXITING]
    )
    if over_ept:
        for level in range(3):
            words[(EPT_ROOT + 0x1000 * level) >> 3] = EPT_ROOT + 0x1000 * (level + 1) | 7
        for page in range(512):
            bits = chance.choice([0x37] * 30 + [0, 0x31, 0x33, 0x35, 0x34, 0x36, 0x32, 0x3F, 0xB7])
            words[(EPT_ROOT + 0x3000 >> 3) + page] = page << 12 | bits
        cpu.vmwrite(Field.EPTP, EPT_ROOT | chance.choice([0x1E, 0x5E]))
        secondary |= Secondary.EPT | (cpu.vmread(Field.SECONDARY_CONTROLS) & Secondary.UNRESTRICTED_GUEST)
    for page in range(512):  # the guest's, where it pages
        if chance.random() < 0.3 and words[ROOT + 0x3000 >> 3]:
            bits = chance.choice([0, 1, 3, 5, 7, 0x67, 1 << 63 | 7, 1 << 52 | 7, 1 << 51 | 7])
            words[(ROOT + 0x3000 >> 3) + page] = page << 12 | bits
    primary = Primary.SECONDARY_CONTROLS
    for bit in Primary:
        if bit not in UNWANTED and chance.random() < 0.3:
            primary |= bit
    cpu.vmwrite_all(
        {
            Field.PRIMARY_CONTROLS: primary,
            Field.SECONDARY_CONTROLS: secondary,
            Field.EXCEPTION_BITMAP: chance.choice([0, 1 << 13, 1 << 14, 1 << 13 | 1 << 14]),
            Field.PAGE_FAULT_ERROR_CODE_MASK: chance.choice([0, 1, 2, 5]),
            Field.PAGE_FAULT_ERROR_CODE_MATCH: chance.choice([0, 1, 5]),
            Field.CR0_GUEST_HOST_MASK: chance.choice([0, 8, 0x10000]),
            Field.CR4_GUEST_HOST_MASK: chance.choice([0, 0x80]),
            Field.CR0_READ_SHADOW: chance.choice([0, 8]),
            Field.CR3_TARGET_COUNT: chance.randrange(3),
            Field.CR3_TARGET_VALUE_0: ROOT,
            Field.GUEST_RFLAGS: 2 | chance.choice([0, 1 << 18]),
            Field.GUEST_SS_ACCESS_RIGHTS: chance.choice([0, 0, 0x60]),
        }
    )
    return cpu


UNWANTED = {
    Primary.INTERRUPT_WINDOW_EXITING,
    Primary.NMI_WINDOW_EXITING,
    Primary.MONITOR_TRAP_FLAG,
    Primary.TPR_SHADOW,
    Primary.CR8_LOAD_EXITING,
    Primary.CR8_STORE_EXITING,
    Primary.TERTIARY_CONTROLS,
    Primary.IO_BITMAPS,
    Primary.MSR_BITMAPS,
    Primary.SECONDARY_CONTROLS,
}


def operation(chance: random.Random, paging: bool) -> tuple[int, int, int]:
    kind = chance.random()
    if kind < 0.7:
        la = chance.choice([chance.randrange(1 << 21), chance.randrange(512) << 12 | 0xFFC, 1 << 47, 1 << 21])
        return chance.choice([Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH]), chance.choice([1, 4, 8]), la
    if kind < 0.8:
        return Op.EXIT, 0, chance.choice([*CONTROLLED, ExitReason.CPUID, ExitReason.VMCALL, ExitReason.INVD])
    if kind < 0.85:
        return GuestOp.CPL, 0, chance.choice([0, 0, 3])
    cr0, cr4 = (0x80010031, 0x2020) if paging else (0x31, 0x2000)
    return chance.choice(
        [
            (Op.INVLPG, 0, 0x5000),
            (GuestOp.MOV_TO_CR3, 0, chance.choice([ROOT, ROOT | 8, 1 << 52])),
            (GuestOp.MOV_FROM_CR3, 0, 0),
            (GuestOp.MOV_TO_CR0, 0, chance.choice([cr0, cr0 | 8, cr0 & ~0x20, cr0 ^ 0x10000])),
            (GuestOp.MOV_TO_CR4, 0, chance.choice([cr4, cr4 | 0x80, cr4 & ~0x2000])),
            (GuestOp.MOV_FROM_CR0, 0, 0),
            (GuestOp.MOV_FROM_CR4, 0, 0),
        ]
    )


def one(cpu: Cpu, spec: Guest, op: int, size: int, addr: int) -> str:
    """The operation on both; how it ended. The kernel has cached nothing that is not in the tables: none changes."""
    want = spec.step(op, size, addr)
    if isinstance(want, Bus):
        try:
            cpu.run(op, size, addr)
        except BusError:
            return "bus"
        raise AssertionError("a table outside memory was read")
    came = cpu.run(op, size, addr)
    match want:
        case Done(value):
            assert came is None, (want, came)
            assert value is None or value == cpu.value
            return "done"
        case Fault(vector, error_code, cr2):
            assert came == GuestEvent(vector, "hardware exception", error_code, cr2, 0)
            return f"vector {vector}"
        case Left():
            assert isinstance(came, Exit), (want, came)
            seen = Left(
                came.reason,
                came.qualification,
                came.guest_physical,
                came.guest_linear,
                came.interruption_info,
                came.error_code,
            )
            assert seen == want
            assert tuple(cpu.vmread(field) for field in NONE) == (want.qualification, want.gpa, want.gla)
            assert cpu.vmread(Field.GUEST_CR3) == spec.cr3
            assert cpu.vmread(Field.GUEST_SS_ACCESS_RIGHTS) >> 5 == spec.cpl
            assert cpu.vmresume() is None
            return want.reason.name
    raise AssertionError(want)


def test_random_guests_do_the_same_in_both() -> None:
    chance, seen = random.Random(21), Counter[str]()
    for _ in range(max(4, EXAMPLES // 5)):
        cpu = guest(chance)
        memory = ref.ArrayMemory(np.array(cpu.memory.u64))  # of its own: both set accessed and dirty flags
        processor = rules.Processor(memory, RuleCaps(cr4=cpu.caps.cr4), revisions={VMCS: rules.REVISION})
        processor.vmptrld(VMCS)
        for field in Field:
            processor.vmcs.fields[field] = cpu.vmread(field)
        assert cpu.vmlaunch() is None
        assert processor.enter() is None
        spec = Guest(processor)
        for _ in range(40):
            seen[one(cpu, spec, *operation(chance, paging=bool(spec.cr0 >> 31)))] += 1
        while cpu.in_guest:
            cpu.run(Op.EXIT, 0, ExitReason.CPUID)
        tables = slice(ROOT >> 3, DATA >> 3)
        assert (cpu.memory.u64[tables] == memory.u64[tables]).all()  # and the same flags
    wanted = {
        "done",
        "vector 13",
        "vector 14",
        "EXCEPTION_NMI",
        "EPT_VIOLATION",
        "EPT_MISCONFIG",
        "CR_ACCESS",
        "INVLPG",
    }
    assert wanted | {"CPUID", "HLT", "RDTSC", "WBINVD", "INVD"} <= set(seen), seen
