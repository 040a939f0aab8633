"""VMX instructions: VMCS fields by their encoding, regions and their state, VM entry (vmx.md §1, §3; SDM volume 3,
chapters "VMX instruction reference", "VM entries", appendix B).

A field is what its encoding says: there is no list of names here, but the indexes that exist of each width and type.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...exits import Completion, ExitReason
from ..paging.memory import Memory
from ..paging.state import bits
from . import inv_operands
from .apic import TPR
from .vmentry import (
    CR4_CET,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    ENTRY_FAILURE,
    PE,
    SECONDARY,
    TPR_SHADOW,
    UNRESTRICTED,
    WP,
    Capabilities,
    EntryExit,
    EntryFields,
    invalid_controls,
    invalid_state,
)

__all__ = ["Failed", "Processor", "Region", "exists", "read_only", "width"]

REVISION = 0x464D0001
WIDTHS = (16, 64, 32, 64)  # bits 14:13 of an encoding: 16, 64, 32, natural
CONTROL, READ_ONLY, GUEST, HOST = range(4)  # bits 11:10
INDEXES = {  # (bits 14:13, bits 11:10) → bits 9:1 that exist
    (0, CONTROL): {0, 1, 2},
    (0, GUEST): set(range(10)),
    (0, HOST): set(range(7)),
    (1, CONTROL): {*range(0x13), 0x15, 0x18, 0x1A},
    (1, READ_ONLY): {0},
    (1, GUEST): {0, 1, 2, 3, 5, 6, 7, 8},
    (1, HOST): {0, 1},
    (2, CONTROL): set(range(16)),
    (2, READ_ONLY): set(range(8)),
    (2, GUEST): set(range(0x16)),
    (2, HOST): {0},
    (3, CONTROL): set(range(8)),
    (3, READ_ONLY): set(range(6)),
    (3, GUEST): set(range(0x14)),
    (3, HOST): set(range(12)),
}
FIELDS_OF_ENTRY = {
    "pin_based": 0x4000,
    "primary": 0x4002,
    "secondary": 0x401E,
    "tertiary": 0x2034,
    "vm_exit": 0x400C,
    "vm_entry": 0x4012,
    "cr3_target_count": 0x400A,
    "vpid": 0x0000,
    "posted_vector": 0x0002,
    "guest_interrupt_status": 0x0810,
    "virtual_apic_address": 0x2012,
    "apic_access_address": 0x2014,
    "tpr_threshold": 0x401C,
    "posted_descriptor_address": 0x2016,
    "vm_functions": 0x2018,
    "eptp": 0x201A,
    "eptp_list_address": 0x2024,
    "pml_address": 0x200E,
    "ve_information_address": 0x202A,
    "sppt_pointer": 0x2030,
    "guest_cr0": 0x6800,
    "guest_cr3": 0x6802,
    "guest_cr4": 0x6804,
    "guest_efer": 0x2806,
    "guest_pat": 0x2804,
    "guest_rflags": 0x6820,
}
INSTRUCTION_ERROR, EXIT_REASON, QUALIFICATION = 0x4400, 0x4402, 0x6400
ENTRY_INFO, ENTRY_ERROR_CODE, ENTRY_LENGTH = 0x4016, 0x4018, 0x401A
INTERRUPTIBILITY, ACTIVITY, SS_RIGHTS, LINK_POINTER = 0x4824, 0x4826, 0x4818, 0x2800
HOST_CR0, HOST_CR3, HOST_CR4, HOST_RIP, HOST_PAT, HOST_EFER = 0x6C00, 0x6C02, 0x6C04, 0x6C16, 0x2C00, 0x2C02
HOST_64, LOAD_HOST_PAT, LOAD_HOST_EFER = 1 << 9, 1 << 19, 1 << 21
VIRTUAL_NMIS = 1 << 5
PAT_TYPES = {0, 1, 4, 5, 6, 7}


def width(encoding: int) -> int:
    """Bits of the operand that VMREAD gives and VMWRITE takes."""
    return 32 if encoding & 1 else WIDTHS[encoding >> 13 & 3]


def read_only(encoding: int) -> bool:
    return encoding >> 10 & 3 == READ_ONLY


def exists(encoding: int) -> bool:
    """Is there such a field? Bit 12 and those above 14 are reserved, bit 0 names the high half of a 64-bit field."""
    if encoding & ~0x6FFF or (encoding & 1 and encoding >> 13 & 3 != 1):
        return False
    return encoding >> 1 & 0x1FF in INDEXES.get((encoding >> 13 & 3, encoding >> 10 & 3), ())


@dataclass(frozen=True)
class Failed:
    """VMfailValid with its number, or VMfailInvalid: None."""

    error: int | None


@dataclass
class Region:
    """What the processor keeps of a VMCS: its launch state, its fields by encoding."""

    launched: bool = False
    fields: dict[int, int] = field(default_factory=dict)


@dataclass
class Processor:
    """VMX root operation of a logical processor, and what comes of a VM entry. `revisions`: revision identifier by
    address of a region."""

    mem: Memory
    caps: Capabilities = field(default_factory=Capabilities)
    vmxon: int | None = None
    vmwrite_any: bool = False
    revisions: dict[int, int] = field(default_factory=dict)
    regions: dict[int, Region] = field(default_factory=dict)
    current: int | None = None

    # ---- results -------------------------------------------------------------------------------------------------

    @property
    def vmcs(self) -> Region:
        assert self.current is not None
        return self.regions[self.current]

    def get(self, encoding: int) -> int:
        return self.vmcs.fields.get(encoding, 0)

    def fail(self, error: int) -> Failed:
        if self.current is None:
            return Failed(None)
        self.vmcs.fields[INSTRUCTION_ERROR] = error
        return Failed(error)

    def is_page(self, address: int) -> bool:
        return not address & (bits(11, 0) | bits(63, self.caps.maxphyaddr))

    # ---- regions and fields --------------------------------------------------------------------------------------

    def vmclear(self, address: int) -> Failed | None:
        if not self.is_page(address):
            return self.fail(2)
        if address == self.vmxon:
            return self.fail(3)
        self.regions.setdefault(address, Region()).launched = False
        if address == self.current:
            self.current = None
        return None

    def vmptrld(self, address: int) -> Failed | None:
        if not self.is_page(address):
            return self.fail(9)
        if address == self.vmxon:
            return self.fail(10)
        if self.revisions.get(address) != REVISION:
            return self.fail(11)
        self.regions.setdefault(address, Region())
        self.current = address
        return None

    def vmptrst(self) -> int:
        return bits(63, 0) if self.current is None else self.current

    def vmread(self, encoding: int) -> Failed | int:
        if self.current is None:
            return Failed(None)
        if not exists(encoding):
            return self.fail(12)
        value = self.get(encoding & ~1)
        return value >> 32 if encoding & 1 else value

    def vmwrite(self, encoding: int, value: int) -> Failed | None:
        """`value` has no more bits than the field."""
        if self.current is None:
            return Failed(None)
        if not exists(encoding):
            return self.fail(12)
        if read_only(encoding) and not self.vmwrite_any:
            return self.fail(13)
        if encoding & 1:
            value = self.get(encoding & ~1) & bits(31, 0) | value << 32
        self.vmcs.fields[encoding & ~1] = value
        return None

    def invalidate(self, instruction: str, type: int, low: int, high: int = 0) -> Failed | None:
        x = inv_operands.Executing(maxphyaddr=self.caps.maxphyaddr, current_vmcs=self.current is not None)
        ended = inv_operands.check(instruction, x, type, (low, high))
        return None if ended is Completion.DONE else self.fail(28)

    # ---- VM entry ------------------------------------------------------------------------------------------------

    def entry_fields(self) -> EntryFields:
        values = {name: self.get(encoding) for name, encoding in FIELDS_OF_ENTRY.items()}
        pdpte = tuple(self.get(0x280A + 2 * i) for i in range(4))
        return EntryFields(**values, guest_pdpte=pdpte)  # type: ignore[arg-type]

    def event(self) -> tuple[int, int] | None:
        """(type, vector) of the event that the entry injects."""
        info = self.get(ENTRY_INFO)
        return (info >> 8 & 7, info & 0xFF) if info >> 31 else None

    def valid_event(self) -> bool:
        """SDM, "VM-entry controls for event injection"."""
        event, info = self.event(), self.get(ENTRY_INFO)
        if event is None:
            return True
        kind, vector = event
        unrestricted = self.get(0x4002) & SECONDARY and self.get(0x401E) & UNRESTRICTED
        with_code = (
            kind == 3 and vector in (8, 10, 11, 12, 13, 14, 17, 21) and (not unrestricted or self.get(0x6800) & PE)
        )
        return all(
            (
                kind != 1,
                kind != 2 or vector == 2,
                kind != 3 or vector <= 31,
                kind != 7 or vector == 0,
                bool(info >> 11 & 1) == bool(with_code),
                not info & bits(30, 12),
                not with_code or not self.get(ENTRY_ERROR_CODE) >> 16,
                kind not in (4, 5, 6) or 1 <= self.get(ENTRY_LENGTH) <= 15,
            )
        )

    def valid_host(self) -> bool:
        """SDM, "Checks on the host-state area", of a host in 64-bit mode; segments are outside the model."""
        (cr0_must, cr0_may), (cr4_must, cr4_may) = self.caps.cr0, self.caps.cr4
        cr0, cr4, efer, controls = self.get(HOST_CR0), self.get(HOST_CR4), self.get(HOST_EFER), self.get(0x400C)
        pat = self.get(HOST_PAT).to_bytes(8, "little")
        return all(
            (
                not cr0_must & ~cr0 and not cr0 & ~cr0_may,
                not cr4_must & ~cr4 and not cr4 & ~cr4_may,
                cr4 & CR4_PAE,
                not cr4 & CR4_CET or cr0 & WP,
                not self.get(HOST_CR3) & bits(63, self.caps.maxphyaddr),
                not controls & LOAD_HOST_PAT or set(pat) <= PAT_TYPES,
                not controls & LOAD_HOST_EFER or (not efer & ~0xD01 and efer & EFER_LMA and efer & EFER_LME),
                controls & HOST_64,
                self.get(HOST_RIP) >> 47 in (0, bits(16, 0)),
            )
        )

    def invalid_rest(self) -> int | None:
        """Guest state beyond G1 to G6: the qualification of the exit, where a check fails."""
        rflags, blocked, activity = self.get(0x6820), self.get(INTERRUPTIBILITY), self.get(ACTIVITY)
        sti, mov_ss, nmi = blocked & 1, blocked & 2, blocked & 8
        interrupts_on, event = rflags >> 9 & 1, self.event()
        interrupt, injected_nmi = event is not None and event[0] == 0, event is not None and event[0] == 2
        reserved = rflags & (bits(63, 22) | 1 << 15 | 1 << 5 | 1 << 3)
        if reserved or not rflags & 2 or (interrupt and not interrupts_on):
            return 0
        if activity > 3 or (activity and (sti or mov_ss)) or (activity == 1 and self.get(SS_RIGHTS) >> 5 & 3):
            return 0
        if blocked & bits(31, 5) or (sti and mov_ss) or (sti and not interrupts_on):
            return 0
        if interrupt and (sti or mov_ss):
            return 0
        if injected_nmi and sti:
            return 3
        if injected_nmi and (mov_ss or (nmi and self.get(0x4000) & VIRTUAL_NMIS)):
            return 0
        return 4 if self.get(LINK_POINTER) != bits(63, 0) else None

    def vtpr(self) -> int:
        """Byte at 080H of the virtual-APIC page, where the entry looks at it."""
        page = self.get(0x2012)
        if not self.get(0x4002) & TPR_SHADOW or not self.is_page(page):
            return 0
        return self.mem.read64(page + TPR) & 0xFF

    def enter(self, *, resume: bool = False, mov_ss: bool = False) -> Failed | EntryExit | None:
        """VMLAUNCH, VMRESUME: a failure, an exit in place of the entry, or None: the guest is entered."""
        if self.current is None:
            return Failed(None)
        if mov_ss:
            return self.fail(26)
        if self.vmcs.launched != resume:
            return self.fail(5 if resume else 4)
        fields = self.entry_fields()
        if invalid_controls(fields, self.vtpr(), self.caps) or not self.valid_event():
            return self.fail(7)
        if not self.valid_host():
            return self.fail(8)
        state = invalid_state(fields, self.mem, self.caps)
        qualification = state[1] if state else self.invalid_rest()
        if qualification is not None:
            self.vmcs.fields[EXIT_REASON] = ExitReason.ENTRY_FAILURE_GUEST_STATE | ENTRY_FAILURE
            self.vmcs.fields[QUALIFICATION] = qualification
            return EntryExit(ExitReason.ENTRY_FAILURE_GUEST_STATE | ENTRY_FAILURE, qualification)
        self.vmcs.launched = True
        return None
