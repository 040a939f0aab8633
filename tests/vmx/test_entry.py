"""VM entry through VMLAUNCH: every check, one by one and at random beside the specification; what it loads."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fastmmu import reference as ref
from fastmmu.errors import BusError, StateError, VmFailValid
from fastmmu.reference.cpu import vmentry
from fastmmu.reference.cpu import vmx as rules
from fastmmu.vmx import (
    LONG_MODE_GUEST,
    UNPAGED_GUEST,
    Capabilities,
    Cpu,
    Entry,
    Exit,
    ExitReason,
    Field,
    GuestEvent,
    GuestOp,
    Op,
    PinBased,
    Primary,
    Secondary,
    VmExit,
)
from tests.support.vm_entries import random_entry
from tests.support.vmx import APIC_PAGE, BITMAP, DATA, ROOT, VMCS, long_mode, processor, unpaged

SECONDARY = {Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS}
SHADOW = {
    Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS | Primary.TPR_SHADOW,
    Field.VIRTUAL_APIC_ADDRESS: APIC_PAGE,
}
EPT = Secondary.EPT | Secondary.UNRESTRICTED_GUEST
DELIVERY = Secondary.VIRTUAL_INTERRUPT_DELIVERY
POSTED = PinBased.POSTED_INTERRUPTS | PinBased.EXTERNAL_INTERRUPT_EXITING
HOST_64 = VmExit.HOST_ADDRESS_SPACE_SIZE
INVALID = [  # check, fields that fail it
    ("C1", {Field.PIN_BASED_CONTROLS: 1 << 31}),
    ("C1", {Field.VM_EXIT_CONTROLS: HOST_64 | 1 << 31}),
    ("C1", {Field.VM_ENTRY_CONTROLS: 1 << 31}),
    ("C1", SECONDARY | {Field.SECONDARY_CONTROLS: EPT | 1 << 30}),
    (
        "C1",
        {
            Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS | Primary.TERTIARY_CONTROLS,
            Field.TERTIARY_CONTROLS: 1 << 40,
        },
    ),
    ("C2", {Field.CR3_TARGET_COUNT: 5}),
    ("C3", SHADOW | {Field.VIRTUAL_APIC_ADDRESS: APIC_PAGE + 8}),
    ("C4", SHADOW | {Field.TPR_THRESHOLD: 16}),
    ("C5", SHADOW | {Field.TPR_THRESHOLD: 1}),
    ("C6", {Field.SECONDARY_CONTROLS: EPT | Secondary.APIC_REGISTER_VIRTUALIZATION}),
    ("C7", SHADOW | {Field.SECONDARY_CONTROLS: EPT | Secondary.VIRTUALIZE_APIC_ACCESSES, Field.APIC_ACCESS_ADDRESS: 4}),
    (
        "C8",
        SHADOW
        | {Field.SECONDARY_CONTROLS: EPT | Secondary.VIRTUALIZE_APIC_ACCESSES | Secondary.VIRTUALIZE_X2APIC_MODE},
    ),
    ("C9", SHADOW | {Field.SECONDARY_CONTROLS: EPT | DELIVERY}),
    ("C10", SHADOW | {Field.SECONDARY_CONTROLS: EPT | DELIVERY, Field.PIN_BASED_CONTROLS: POSTED}),
    ("C11", {Field.SECONDARY_CONTROLS: EPT | Secondary.VPID}),
    ("C12", {Field.EPTP: ROOT}),
    ("C13", {Field.SECONDARY_CONTROLS: Secondary.UNRESTRICTED_GUEST}),
    ("C14", {Field.SECONDARY_CONTROLS: EPT | Secondary.PML, Field.PML_ADDRESS: 8}),
    ("C15", {Field.SECONDARY_CONTROLS: EPT | Secondary.SUB_PAGE_WRITE, Field.SPPT_POINTER: 8}),
    ("C16", {Field.SECONDARY_CONTROLS: EPT | Secondary.VM_FUNCTIONS, Field.VM_FUNCTION_CONTROLS: 2}),
    ("C17", {Field.SECONDARY_CONTROLS: EPT | Secondary.EPT_VIOLATION_VE, Field.VE_INFORMATION_ADDRESS: 8}),
    ("C18", {Field.PIN_BASED_CONTROLS: PinBased.VIRTUAL_NMIS}),
    ("event injection", {Field.VM_ENTRY_INTERRUPTION_INFO: 1 << 31 | 1 << 8}),
    ("event injection", {Field.VM_ENTRY_INTERRUPTION_INFO: 1 << 31 | 2 << 8 | 3}),
    ("event injection", {Field.VM_ENTRY_INTERRUPTION_INFO: 1 << 31 | 3 << 8 | 14}),
    ("event injection", {Field.VM_ENTRY_INTERRUPTION_INFO: 1 << 31 | 4 << 8 | 0x80}),
    ("event injection", {Field.VM_ENTRY_INTERRUPTION_INFO: 1 << 31 | 1 << 12 | 0x80}),
]
HOSTS = [
    ("host CR0", {Field.HOST_CR0: 0x80000030}),
    ("host CR4", {Field.HOST_CR4: 0x2000}),
    ("host CR4", {Field.HOST_CR4: 0x2020 | 1 << 23}),
    ("host CR3", {Field.HOST_CR3: 1 << 52}),
    ("host PAT", {Field.VM_EXIT_CONTROLS: HOST_64 | VmExit.LOAD_PAT, Field.HOST_IA32_PAT: 2}),
    ("host EFER", {Field.VM_EXIT_CONTROLS: HOST_64 | VmExit.LOAD_EFER, Field.HOST_IA32_EFER: 0x400}),
    ("host address-space size", {Field.VM_EXIT_CONTROLS: 0}),
    ("host address-space size", {Field.HOST_RIP: 1 << 47}),
]
STATES = [  # check, qualification, fields
    ("G1", 0, {Field.GUEST_CR0: 0x11}),
    ("G1", 0, {Field.GUEST_CR4: 0}),
    ("G2", 0, {Field.VM_ENTRY_CONTROLS: Entry.IA32E_MODE_GUEST}),
    ("G3", 0, {Field.GUEST_CR3: 1 << 52}),
    ("G4", 0, {Field.VM_ENTRY_CONTROLS: Entry.LOAD_EFER, Field.GUEST_IA32_EFER: 0x400}),
    ("G4", 0, {Field.VM_ENTRY_CONTROLS: Entry.LOAD_PAT, Field.GUEST_IA32_PAT: 3}),
    ("G5", 0, {Field.GUEST_CR0: 0x20, Field.GUEST_RFLAGS: 0x20002}),
    ("G6", 2, {Field.GUEST_CR0: 0x80000031, Field.GUEST_CR4: 0x2020, Field.GUEST_PDPTE2: 3}),
    ("RFLAGS", 0, {Field.GUEST_RFLAGS: 0}),
    ("RFLAGS", 0, {Field.GUEST_RFLAGS: 2 | 1 << 3}),
    ("RFLAGS", 0, {Field.VM_ENTRY_INTERRUPTION_INFO: 1 << 31 | 0x40}),
    ("activity", 0, {Field.GUEST_ACTIVITY_STATE: 4}),
    ("interruptibility", 0, {Field.GUEST_INTERRUPTIBILITY_STATE: 3, Field.GUEST_RFLAGS: 0x202}),
    (
        "interruptibility",
        3,
        {
            Field.GUEST_INTERRUPTIBILITY_STATE: 1,
            Field.GUEST_RFLAGS: 0x202,
            Field.VM_ENTRY_INTERRUPTION_INFO: 1 << 31 | 2 << 8 | 2,
        },
    ),
    ("VMCS link pointer", 4, {Field.VMCS_LINK_POINTER: 0}),
]


@pytest.mark.parametrize(("number", "check", "fields"), [(7, *row) for row in INVALID] + [(8, *row) for row in HOSTS])
def test_an_invalid_control_or_host_field_fails_and_changes_nothing(
    number: int, check: str, fields: dict[Field, int]
) -> None:
    cpu = unpaged()
    cpu.vmwrite_all(fields)
    before = {field: cpu.vmread(field) for field in Field}
    with pytest.raises(VmFailValid) as failed:
        cpu.vmlaunch()
    assert (failed.value.error, failed.value.failed) == (number, (check,))
    assert f"{check} (" in str(failed.value)
    assert {field: cpu.vmread(field) for field in Field} == before | {Field.VM_INSTRUCTION_ERROR: number}
    assert not cpu.in_guest
    cpu.vmwrite_all(dict.fromkeys(fields, 0) | UNPAGED_GUEST | {Field.EPTP: ROOT | 0x5E})
    assert cpu.vmlaunch() is None  # and it can be mended


@pytest.mark.parametrize(("check", "qualification", "fields"), STATES)
def test_invalid_guest_state_is_an_exit(check: str, qualification: int, fields: dict[Field, int]) -> None:
    cpu = unpaged()
    cpu.vmwrite_all(fields)
    before = {field: cpu.vmread(field) for field in Field}
    exit = cpu.vmlaunch()
    assert isinstance(exit, Exit)
    assert (exit.reason, exit.entry_failure, exit.exit_reason) == (33, True, 0x8000_0021)
    assert (exit.qualification, exit.failed) == (qualification, (check,))
    changed = {Field.EXIT_REASON: 0x8000_0021, Field.EXIT_QUALIFICATION: qualification}
    assert {field: cpu.vmread(field) for field in Field} == before | changed
    assert "entry failed" in repr(exit)
    with pytest.raises(VmFailValid) as failed:
        cpu.vmresume()  # it is not launched
    assert failed.value.error == 5
    cpu.vmwrite_all(dict.fromkeys(fields, 0) | UNPAGED_GUEST)
    assert cpu.vmlaunch() is None


def test_pae_tables_of_a_guest_without_ept_are_checked_in_memory() -> None:
    cpu = processor()
    cpu.vmwrite_all(LONG_MODE_GUEST)
    pae = {Field.VM_ENTRY_CONTROLS: 0, Field.GUEST_CR3: ROOT, Field.GUEST_PDPTE0: 3}
    cpu.vmwrite_all(pae)
    cpu.memory.u64[ROOT >> 3] = 0x5001
    assert cpu.vmlaunch() is None
    cpu.run(Op.EXIT, 0, ExitReason.CPUID)
    cpu.memory.u64[ROOT + 24 >> 3] = 0x5003
    exit = cpu.vmresume()
    assert exit is not None
    assert (exit.qualification, exit.failed) == (2, ("G6",))


def test_the_msr_load_area() -> None:
    cpu = long_mode()
    area = cpu.memory.u64[DATA >> 3 :]
    cpu.vmwrite_all({Field.VM_ENTRY_MSR_LOAD_ADDRESS: DATA, Field.VM_ENTRY_MSR_LOAD_COUNT: 2})
    area[:4] = [0x277, 0x0007040600070401, 0xC0000081, 5]
    assert cpu.vmlaunch() is None
    cpu.run(Op.EXIT, 0, ExitReason.CPUID)
    for index, word in ((1, 0xC0000100), (1, 0xC0000101), (0, 0x808), (1, 0xC0000081 | 1 << 32)):
        area[:4] = [0x277, 0x0007040600070406, 0x277, 0x0007040600070406]
        area[2 * index] = word
        exit = cpu.vmresume()
        assert exit is not None
        assert (exit.exit_reason, exit.qualification, exit.failed) == (0x8000_0022, index + 1, ("MSR load",))
    area[:2] = [0xC0000080, 1 << 20]
    assert cpu.vmresume().qualification == 1  # type: ignore[union-attr]
    cpu.vmwrite(Field.VM_ENTRY_MSR_LOAD_ADDRESS, 1 << 40)
    with pytest.raises(BusError):
        cpu.vmresume()
    cpu.vmwrite(Field.VM_ENTRY_MSR_LOAD_COUNT, 0)
    assert cpu.vmresume() is None


def test_what_is_valid_and_not_carried_out_is_refused_by_name() -> None:
    for fields, words in (
        ({Field.PIN_BASED_CONTROLS: PinBased.PREEMPTION_TIMER}, "0x40 of the pin-based controls"),
        ({Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS | Primary.IO_BITMAPS}, "0x2000000 of the primary"),
        ({Field.SECONDARY_CONTROLS: EPT | Secondary.VM_FUNCTIONS}, "0x2000 of the secondary"),
        ({Field.VM_EXIT_MSR_LOAD_COUNT: 1}, "VM_EXIT_MSR_LOAD_COUNT"),
    ):
        cpu = unpaged()
        cpu.vmwrite_all(fields)
        with pytest.raises(StateError, match=words):
            cpu.vmlaunch()
        cpu.vmwrite_all(dict.fromkeys(fields, 0) | UNPAGED_GUEST)
        assert cpu.vmlaunch() is None


def test_controls_of_the_default1_class_must_be_1_on_some_processors() -> None:
    cpu = unpaged(caps=Capabilities.default1())
    with pytest.raises(VmFailValid) as failed:
        cpu.vmlaunch()
    assert failed.value.failed == ("C1",)
    for field, name in (
        (Field.PIN_BASED_CONTROLS, "pin_based"),
        (Field.PRIMARY_CONTROLS, "primary"),
        (Field.VM_EXIT_CONTROLS, "vm_exit"),
        (Field.VM_ENTRY_CONTROLS, "vm_entry"),
    ):
        cpu.vmwrite(field, cpu.vmread(field) | getattr(cpu.caps, name)[0])
    assert cpu.vmlaunch() is None


def test_entry_and_exit_load_and_save_registers() -> None:
    cpu = long_mode()
    cpu.vmwrite(Field.VM_EXIT_CONTROLS, HOST_64 | VmExit.SAVE_EFER | VmExit.SAVE_PAT)
    cpu.vmwrite_all({Field.GUEST_RFLAGS: 0x40202, Field.GUEST_SS_ACCESS_RIGHTS: 0, Field.GUEST_IA32_EFER: 0x500})
    assert cpu.vmlaunch() is None
    ops = [GuestOp.MOV_TO_CR3, GuestOp.MOV_TO_CR4, Op.INTERRUPT_FLAG, GuestOp.CPL, Op.EXIT]
    exit = cpu.run(ops, [0] * 5, [ROOT | 8, 0x20A0, 0, 3, ExitReason.CPUID])
    assert isinstance(exit, Exit)
    assert exit.reason == ExitReason.CPUID
    read = {field: cpu.vmread(field) for field in Field}
    assert (read[Field.GUEST_CR3], read[Field.GUEST_CR4], read[Field.GUEST_RFLAGS]) == (ROOT | 8, 0x20A0, 0x40002)
    assert (read[Field.GUEST_SS_ACCESS_RIGHTS], read[Field.GUEST_IA32_EFER]) == (0x60, 0x500)
    assert (read[Field.GUEST_IA32_PAT], read[Field.GUEST_RIP]) == (0x0007040600070406, 4)
    assert read[Field.VM_ENTRY_CONTROLS] & Entry.IA32E_MODE_GUEST


def test_an_injected_event_is_delivered_first() -> None:
    cpu = unpaged()
    cpu.vmwrite_all({Field.GUEST_RFLAGS: 0x202, Field.VM_ENTRY_INTERRUPTION_INFO: 1 << 31 | 0x41})
    assert cpu.vmlaunch() is None
    assert cpu.run(Op.EXIT, 0, ExitReason.CPUID) == GuestEvent(0x41, "external interrupt", None, None, 0)
    exit = cpu.run()
    assert isinstance(exit, Exit)
    assert cpu.vmread(Field.GUEST_RFLAGS) == 2  # behind an interrupt gate
    assert cpu.vmread(Field.VM_ENTRY_INTERRUPTION_INFO) == 0x41  # no longer valid
    cpu.cr2 = 0x1234
    cpu.vmwrite_all({Field.VM_ENTRY_INTERRUPTION_INFO: 0x80000B0E, Field.VM_ENTRY_EXCEPTION_ERROR_CODE: 6})
    cpu.vmresume()
    assert cpu.run() == GuestEvent(14, "hardware exception", 6, 0x1234, 0)
    cpu.run()
    cpu.vmwrite(Field.VM_ENTRY_INTERRUPTION_INFO, 1 << 31 | 2 << 8 | 2)
    cpu.vmresume()
    assert cpu.run() == GuestEvent(2, "NMI", None, None, 0)
    cpu.run()
    assert cpu.vmread(Field.GUEST_INTERRUPTIBILITY_STATE) == 8  # NMIs are blocked until IRET
    cpu.vmwrite(Field.VM_ENTRY_INTERRUPTION_INFO, 1 << 31 | 7 << 8)
    exit = cpu.vmresume()
    assert exit is not None
    assert exit.reason == ExitReason.MONITOR_TRAP


def test_exits_before_the_first_instruction() -> None:
    accesses = Secondary.VIRTUALIZE_APIC_ACCESSES
    cpu = unpaged()
    cpu.vmwrite_all(SHADOW | {Field.SECONDARY_CONTROLS: EPT | accesses, Field.APIC_ACCESS_ADDRESS: BITMAP})
    cpu.vmwrite_all({Field.TPR_THRESHOLD: 3, Field.GUEST_RFLAGS: 0x202})
    cpu.vmwrite(Field.PRIMARY_CONTROLS, SHADOW[Field.PRIMARY_CONTROLS] | Primary.INTERRUPT_WINDOW_EXITING)
    exit = cpu.vmlaunch()
    assert exit is not None
    assert (exit.exit_reason, exit.qualification) == (ExitReason.TPR_BELOW_THRESHOLD, 0)
    cpu.memory.u8[APIC_PAGE + 0x80] = 0x30
    exit = cpu.vmresume()  # launched it is; now the window
    assert exit is not None
    assert exit.exit_reason == ExitReason.INTERRUPT_WINDOW
    cpu.vmwrite(Field.GUEST_INTERRUPTIBILITY_STATE, 2)  # blocked for one instruction
    assert cpu.vmresume() is None
    exit = cpu.run([GuestOp.CLTS, Op.EXIT], [0, 0], [0, ExitReason.CPUID])
    assert isinstance(exit, Exit)
    assert (exit.reason, exit.done) == (ExitReason.INTERRUPT_WINDOW, 1)
    cpu.vmwrite_all({Field.PRIMARY_CONTROLS: SHADOW[Field.PRIMARY_CONTROLS] | Primary.NMI_WINDOW_EXITING})
    cpu.vmwrite_all({Field.PIN_BASED_CONTROLS: PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS})
    exit = cpu.vmresume()
    assert exit is not None
    assert exit.reason == ExitReason.NMI_WINDOW


def test_a_virtual_apic_page_outside_memory() -> None:
    cpu = unpaged()
    cpu.vmwrite_all(SHADOW | {Field.VIRTUAL_APIC_ADDRESS: 1 << 40})
    with pytest.raises(BusError, match="VMLAUNCH: 0x10000000000 lies outside memory"):
        cpu.vmlaunch()
    cpu.vmwrite(Field.VIRTUAL_APIC_ADDRESS, APIC_PAGE)
    assert cpu.vmlaunch() is None


ENCODINGS = {name: Field(encoding) for name, encoding in rules.FIELDS_OF_ENTRY.items()}


def random_fields(chance: random.Random) -> dict[Field, int]:
    """Of a VMCS whose checks fail at random, as those of tests/cpu/test_vmentry.py, and of the rest."""
    control = random_entry(chance)
    guest = {"guest_cr0": chance.choice([0x80000021] * 6 + [0x80000020, 0x21, 0x20])}
    guest |= {"guest_cr4": 0x2020 ^ chance.choice([0, 0, 0x20, 0x2000, 1 << 17])}
    guest |= {"guest_cr3": chance.choice([0x1000, 1 << 51]), "guest_efer": chance.choice([0, 0x500, 0x400])}
    guest |= {"guest_rflags": chance.choice([2, 2, 0x202, 0x202, 0, 0x20002, 0xA])}
    guest |= {"guest_pat": chance.choice([0x0007040600070406, 0x0207040600070406])}
    fields = {ENCODINGS[name]: value for name, value in (control | guest).items()}
    if fields.get(Field.VIRTUAL_APIC_ADDRESS, 0) & 0xFFF == 0:
        fields[Field.VIRTUAL_APIC_ADDRESS] = chance.choice([APIC_PAGE, APIC_PAGE, 1 << 52])
    info = chance.choice([0] * 4 + [1 << 31 | chance.randrange(8) << 8 | chance.choice([0, 2, 13, 14, 0x40])])
    fields[Field.VM_ENTRY_INTERRUPTION_INFO] = info | chance.choice([0, 1 << 11, 1 << 11, 1 << 20])
    fields[Field.VM_ENTRY_EXCEPTION_ERROR_CODE] = chance.choice([0, 2, 1 << 16])
    fields[Field.VM_ENTRY_INSTRUCTION_LENGTH] = chance.choice([0, 2, 16])
    host_64 = chance.choice([1 << 9] * 9 + [0])
    controls = fields.get(Field.VM_EXIT_CONTROLS, 0) | host_64 | chance.choice([0, 0, 1 << 19, 1 << 21])
    fields[Field.VM_EXIT_CONTROLS] = controls
    fields[Field.HOST_CR0] = chance.choice([0x80000031] * 9 + [0x31])
    fields[Field.HOST_CR4] = chance.choice([0x2020] * 9 + [0x2000, 0x20])
    fields[Field.HOST_CR3] = chance.choice([0] * 9 + [1 << 52])
    fields[Field.HOST_RIP] = chance.choice([0] * 9 + [1 << 47, 2**64 - 1])
    fields[Field.HOST_IA32_EFER] = chance.choice([0x500, 0xD01, 0x100, 1 << 16])
    fields[Field.HOST_IA32_PAT] = chance.choice([0x0007040600070406, 0x0207040600070406])
    fields[Field.GUEST_INTERRUPTIBILITY_STATE] = chance.choice([0] * 4 + [1, 2, 3, 8, 32])
    fields[Field.GUEST_ACTIVITY_STATE] = chance.choice([0] * 6 + [1, 4])
    fields[Field.GUEST_SS_ACCESS_RIGHTS] = chance.choice([0, 0x60])
    fields[Field.VMCS_LINK_POINTER] = chance.choice([2**64 - 1] * 5 + [0])
    pdpte = {Field.GUEST_PDPTE0 + 2 * i: chance.choice([0, 0x1001, 0x1003, 1 << 50 | 1]) for i in range(4)}
    fields |= {Field(key): value for key, value in pdpte.items()}
    if chance.random() < 0.2:
        return fields
    plain = {Field.EPTP: 0x1E, Field.SECONDARY_CONTROLS: chance.choice([2, 0x82, 3, 0x303])}
    plain |= {Field.PRIMARY_CONTROLS: 1 << 31 | chance.choice([0, 1 << 21]), Field.PIN_BASED_CONTROLS: 1}
    plain |= {Field.VIRTUAL_APIC_ADDRESS: APIC_PAGE, Field.GUEST_CR0: 0x80000021, Field.GUEST_CR4: 0x2020}
    plain |= {Field.GUEST_IA32_EFER: 0x500, Field.VM_EXIT_CONTROLS: 1 << 9, Field.HOST_CR0: 0x80000031}
    plain |= {Field.HOST_CR4: 0x2020, Field.GUEST_RFLAGS: chance.choice([2, 0x202])}
    plain |= {Field.VM_ENTRY_CONTROLS: chance.choice([0, 1 << 9]), Field.VMCS_LINK_POINTER: 2**64 - 1}
    if chance.random() < 0.1:  # an NMI where interrupts are blocked
        plain |= {
            Field.VM_ENTRY_INTERRUPTION_INFO: 0x80000202,
            Field.GUEST_INTERRUPTIBILITY_STATE: chance.choice([1, 2]),
        }
        plain[Field.GUEST_RFLAGS] = 0x202
    return plain | {field: fields[field] for field in chance.sample(list(fields), chance.randrange(8))}


def test_random_entries_do_the_same_in_both() -> None:
    chance = random.Random(11)
    cpus = {width: processor(caps=Capabilities(maxphyaddr=width)) for width in (36, 46, 52)}
    seen: set[Any] = set()
    for _ in range(6000):
        width = chance.choice([36, 46, 52])
        cpu, fields, vtpr = cpus[width], random_fields(chance), chance.getrandbits(8)
        caps = vmentry.Capabilities(
            maxphyaddr=width,
            **{
                name: getattr(cpu.caps, name)
                for name in ("pin_based", "primary", "secondary", "tertiary", "vm_exit", "vm_entry", "cr4")
            },
        )
        memory = ref.SparseMemory({APIC_PAGE + 0x80: vtpr})
        spec = rules.Processor(memory, caps, revisions={VMCS: rules.REVISION})
        spec.vmptrld(VMCS)
        _reset(cpu)
        cpu.memory.u8[APIC_PAGE + 0x80] = vtpr
        for field, value in fields.items():
            spec.vmwrite(field, value)
            cpu.vmwrite(field, value)
        want = spec.enter()
        seen.add(_same(cpu, want))
    assert {7, 8, (33, 0), (33, 2), (33, 3), (33, 4), None} <= seen


def _reset(cpu: Cpu) -> None:
    while cpu.in_guest:  # an event that was injected comes first
        cpu.run(Op.EXIT, 0, ExitReason.CPUID)
    cpu.vmclear(VMCS)
    cpu.memory.u8[VMCS + 8 : VMCS + 4096] = 0
    cpu.vmptrld(VMCS)


def _same(cpu: Cpu, want: object) -> Any:
    if isinstance(want, rules.Failed):
        with pytest.raises(VmFailValid) as failed:
            cpu.vmlaunch()
        assert want == rules.Failed(failed.value.error)
        return want.error
    try:
        got = cpu.vmlaunch()
    except StateError:  # controls that pass their checks and are not carried out
        return "not carried out"
    if got is not None and got.entry_failure:
        assert want == vmentry.EntryExit(got.exit_reason, got.qualification)
        return 33, got.qualification
    assert want is None
    return None
