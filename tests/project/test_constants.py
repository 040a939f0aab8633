"""Constants are declared once: one header each, and what Python has by name too is tied to it."""

from __future__ import annotations

import enum
import re
from pathlib import Path

import pytest

from fastmmu.dtypes import Fault, StepKind
from fastmmu.exits import N_REASONS, Action, Completion, ExitReason, FaultClass, Qualification
from fastmmu.ops import LAST_ACCESS, GuestOp, Op, RecordOp
from fastmmu.vmx.controls import UNMODELLED, Entry, PinBased, Primary, Secondary, VmExit

SRC = Path(__file__).parents[2] / "src" / "fastmmu"

ENUMERATOR = re.compile(r"    ([A-Z][A-Z0-9_]*) = ([^#\n]+)")
MACRO = re.compile(r" +#define FM_([A-Z][A-Z0-9_]*) +([^\n]+)")
VARIABLE = re.compile(r"cdef u?int\d+_t ([A-Z][A-Z0-9_]*) = ([^#\n]+)")


def declared(path: Path) -> dict[str, str]:
    """Name and value of each constant of a kernel or header."""
    found, inside = {}, False
    for line in path.read_text().splitlines():
        inside = bool(re.match(r"cdef enum\b", line)) or (inside and line[:1] in ("", " "))
        match = MACRO.match(line) or VARIABLE.match(line) or (ENUMERATOR.match(line) if inside else None)
        if match:
            found[match[1]] = match[2].strip()
    return found


def enumerators(header: str, name: str) -> dict[str, int]:
    block = re.search(rf"^cdef enum {name}:.*\n((?:    .*\n)+)", (SRC / header).read_text(), re.MULTILINE)
    assert block, f"{header} has no enum {name}"
    return {key: eval(value) for key, value in ENUMERATOR.findall(block[1])}


# header, its enum, prefix of its names; what Python calls the same, and which names differ there (None: it has none)
SAME: list[tuple[str, str, str, type[enum.IntEnum], dict[str, str | None]]] = [
    ("arch/vmx.pxd", "ExitReasonCode", "EXIT_", ExitReason, {}),
    ("kvm/kvm.pxd", "FaultClass", "CLASS_", FaultClass, {}),
    ("arch/ops.pxd", "EventOp", "OP_", Op, {}),
    ("arch/ops.pxd", "GuestOp", "GUEST_", GuestOp, {}),
    ("arch/types.pxd", "StepKind", "STEP_", StepKind, {}),
    (
        "arch/types.pxd",
        "FaultCode",
        "FAULT_",
        Fault,
        {
            "PF": "PAGE_FAULT",
            "GP": "GENERAL_PROTECTION",
            "SPP": "SPP_EVENT",
            "APIC": "APIC_ACCESS",
            "NPF": "NESTED_PAGE_FAULT",
        },
    ),
    (
        "cpu/vcpu.pxd",
        "Action",
        "ACT_",
        Action,
        {"INJECT_PF": "INJECT_PAGE_FAULT", "INJECT_GP": "INJECT_GENERAL_PROTECTION", "ABORT": None},
    ),
    (
        "cpu/inv_operands.pxd",
        "InvCompletion",
        "INV_",
        Completion,
        {
            "UD": "INVALID_OPCODE",
            "EXIT": "VM_EXIT",
            "GP": "GENERAL_PROTECTION",
            "FAIL_INVALID": "VMFAIL_INVALID",
            "FAIL_VALID": "VMFAIL_VALID",
        },
    ),
    (
        "machine/records.pxd",
        "RecordOp",
        "REC_",
        RecordOp,
        {"R": "READ", "W": "WRITE", "RMW": "MODIFY", "X": "FETCH"},
    ),
]


@pytest.mark.parametrize(("header", "name", "prefix", "python", "names"), SAME, ids=[name for _, name, *_ in SAME])
def test_python_and_kernels_have_the_same_codes(
    header: str, name: str, prefix: str, python: type[enum.IntEnum], names: dict[str, str | None]
) -> None:
    kernel = {key.removeprefix(prefix): value for key, value in enumerators(header, name).items()}
    named = {names.get(key, key): value for key, value in kernel.items()}
    assert {key: value for key, value in named.items() if key} == {m.name: int(m) for m in python}


def test_python_and_kernels_have_the_same_numbers() -> None:
    assert int(declared(SRC / "arch/vmx.pxd")["N_REASONS"]) == N_REASONS
    assert declared(SRC / "arch/ops.pxd")["LAST_ACCESS"] == f"OP_{LAST_ACCESS.name}"
    accesses = enumerators("arch/types.pxd", "Access")
    assert accesses == {"ACC_R": Op.READ, "ACC_W": Op.WRITE, "ACC_RW": Op.MODIFY, "ACC_X": Op.FETCH}
    bits = declared(SRC / "paging/ept.pxd")
    assert eval(bits["QUAL_GLA"]) == Qualification.GLA_VALID
    assert eval(bits["QUAL_TRANSLATED"]) == Qualification.TRANSLATED


# prefix of the header's names: the flags of Python, and what they call the header's shorter names
CONTROLS = {"PIN_": PinBased, "PRIMARY_": Primary, "SECONDARY_": Secondary, "EXIT_": VmExit, "ENTRY_": Entry}
SHORT = {
    "PIN_EXTERNAL_INTERRUPT": "EXTERNAL_INTERRUPT_EXITING",
    "PIN_VIRTUAL_NMI": "VIRTUAL_NMIS",
    "PIN_POSTED": "POSTED_INTERRUPTS",
    "PRIMARY_INTERRUPT_WINDOW": "INTERRUPT_WINDOW_EXITING",
    "PRIMARY_INVLPG": "INVLPG_EXITING",
    "PRIMARY_CR3_LOAD": "CR3_LOAD_EXITING",
    "PRIMARY_CR3_STORE": "CR3_STORE_EXITING",
    "PRIMARY_CR8_LOAD": "CR8_LOAD_EXITING",
    "PRIMARY_CR8_STORE": "CR8_STORE_EXITING",
    "PRIMARY_NMI_WINDOW": "NMI_WINDOW_EXITING",
    "PRIMARY_MONITOR_TRAP": "MONITOR_TRAP_FLAG",
    "PRIMARY_SECONDARY": "SECONDARY_CONTROLS",
    "SECONDARY_APIC_ACCESSES": "VIRTUALIZE_APIC_ACCESSES",
    "SECONDARY_X2APIC": "VIRTUALIZE_X2APIC_MODE",
    "SECONDARY_UNRESTRICTED": "UNRESTRICTED_GUEST",
    "SECONDARY_APIC_REGISTERS": "APIC_REGISTER_VIRTUALIZATION",
    "SECONDARY_VIRTUAL_INTERRUPTS": "VIRTUAL_INTERRUPT_DELIVERY",
    "SECONDARY_MBEC": "MODE_BASED_EXECUTE",
    "EXIT_HOST_64": "HOST_ADDRESS_SPACE_SIZE",
    "EXIT_ACK_INTERRUPT": "ACKNOWLEDGE_INTERRUPT",
    "ENTRY_LONG_MODE": "IA32E_MODE_GUEST",
}


@pytest.mark.parametrize("prefix", CONTROLS)
def test_controls_are_the_same_bits_in_kernels(prefix: str) -> None:
    kernel = {
        SHORT.get(name, name.removeprefix(prefix)): eval(value.replace("u", ""))
        for name, value in declared(SRC / "arch/vmx.pxd").items()
        if name.startswith(prefix) and re.fullmatch(r"\(1u << \d+\)", value)
    }
    assert kernel
    assert kernel == {name: int(CONTROLS[prefix][name]) for name in kernel}


def test_controls_that_are_not_modelled_are_the_same_in_kernels() -> None:
    kernel = declared(SRC / "vmx/entry.pyx")
    names = {"pin-based": "UNMODELLED_PIN", "primary": "UNMODELLED_PRIMARY", "secondary": "UNMODELLED_SECONDARY"}
    assert {name: eval(kernel[constant]) for name, constant in names.items()} == UNMODELLED


# prefix of names: the one header that declares them
HEADERS = {
    "CR0_": "arch/registers.pxd",
    "CR3_": "arch/registers.pxd",
    "CR4_": "arch/registers.pxd",
    "EFER_": "arch/registers.pxd",
    "EXIT_": "arch/vmx.pxd",
    "MSR_": "arch/msr.pxd",
    "OP_": "arch/ops.pxd",
    "PF_": "arch/pferr.pxd",
    "RFLAGS_": "arch/registers.pxd",
    "X2_": "arch/msr.pxd",
}
# sets, no members: what a VMM lets the guest own, what loads PDPTEs, what is not reserved, what can be read
SETS = re.compile(r"\w+_(GUEST(_AMD|_SHADOW)?|LOADS|DEFINED|READABLE|WRITABLE|BOTH)")


def test_a_constant_stands_in_the_header_of_its_kind() -> None:
    astray = [
        f"{path.relative_to(SRC)}: {name}"
        for path in [*SRC.rglob("*.pxd"), *SRC.rglob("*.pyx")]
        for name in declared(path)
        for prefix, header in HEADERS.items()
        if name.startswith(prefix) and path != SRC / header and not SETS.fullmatch(name)
    ]
    assert not astray


def test_a_constant_is_declared_once() -> None:
    seen: dict[tuple[str, str], Path] = {}
    twice = []
    for path in sorted([*SRC.rglob("*.pxd"), *SRC.rglob("*.pyx")]):
        for constant in declared(path).items():
            if constant in seen:
                twice.append(f"{' = '.join(constant)}: {seen[constant]}, {path}")
            seen[constant] = path
    assert not twice


def test_every_stop_of_a_machine_has_its_exception() -> None:
    from fastmmu.machine import stops  # for Python it has nothing but this table

    codes = enumerators("cpu/vcpu.pxd", "Abort") | enumerators("machine/guest_kernel.pxd", "KernelAborts")
    assert stops._STOPS.keys() == set(codes.values()) - {
        codes[name] for name in ("ABORT_NONE", "ABORT_PYTHON", "ABORT_ROOT_OPERATION")
    }
