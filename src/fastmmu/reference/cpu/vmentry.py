"""What VM entry checks, and what follows right after it (vmx.md §3, §4.3).

The names of the checks are those of vmx.md §3.1 and §3.2: C1 to C18 on controls, G1 to G6 on guest state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastmmu.exits import ExitReason

from ..paging.ept import EptCap, eptp_valid
from ..paging.memory import Memory
from ..paging.state import CR4_EXISTING, EFER_EXISTING, bits
from .apic import TPR, put_word
from .vapic import VirtualApic

__all__ = [
    "Capabilities",
    "Entered",
    "EntryExit",
    "EntryFields",
    "VmFail",
    "enter",
    "invalid_controls",
    "invalid_state",
]

PIN_EXTERNAL, PIN_NMI, PIN_VIRTUAL_NMI, PIN_POSTED = 1 << 0, 1 << 3, 1 << 5, 1 << 7
INTERRUPT_WINDOW, NMI_WINDOW, TPR_SHADOW = 1 << 2, 1 << 22, 1 << 21
CR8_LOAD, CR8_STORE, TERTIARY, SECONDARY = 1 << 19, 1 << 20, 1 << 17, 1 << 31
APIC_ACCESSES, EPT, X2APIC, VPID, UNRESTRICTED = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 7
APIC_REGISTERS, VIRTUAL_INTERRUPTS = 1 << 8, 1 << 9
VMFUNC, PML, VE, MBEC, SPP = 1 << 13, 1 << 17, 1 << 18, 1 << 22, 1 << 23
HLAT, PAGING_WRITE, GUEST_PAGING_VERIFICATION = 1 << 1, 1 << 2, 1 << 3
EXIT_ACK_INTERRUPT = 1 << 15
ENTRY_LONG_MODE, ENTRY_LOAD_PAT, ENTRY_LOAD_EFER = 1 << 9, 1 << 14, 1 << 15
PE, NE, WP, PG = 1 << 0, 1 << 5, 1 << 16, 1 << 31
CR4_PAE, CR4_VMXE, CR4_PCIDE, CR4_CET = 1 << 5, 1 << 13, 1 << 17, 1 << 23
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS_VM = 1 << 17
ENTRY_FAILURE = 1 << 31


@dataclass(frozen=True)
class Capabilities:
    """Control bits that must be 1 and that may be 1, and fixed bits of CR0 and CR4 (capability MSRs)."""

    pin_based: tuple[int, int] = (0, 0xEB)
    primary: tuple[int, int] = (0, 0xFFFF_FFFF & ~0x0000_0073)
    secondary: tuple[int, int] = (0, 0x0FFF_FFFF)
    tertiary: tuple[int, int] = (0, 0x1F)
    vm_exit: tuple[int, int] = (0, 0xFFFF_FFFF)
    vm_entry: tuple[int, int] = (0, 0xFFFF_FFFF)
    vm_functions: int = 1
    cr0: tuple[int, int] = (PE | NE | PG, 0xFFFF_FFFF)
    cr4: tuple[int, int] = (CR4_VMXE, CR4_EXISTING)
    ept: int = EptCap.ALL
    maxphyaddr: int = 52


@dataclass(frozen=True)
class EntryFields:
    """VMCS fields that VM entry looks at here, by their names."""

    pin_based: int = 0
    primary: int = 0
    secondary: int = 0
    tertiary: int = 0
    vm_exit: int = 0
    vm_entry: int = 0
    cr3_target_count: int = 0
    vpid: int = 0
    posted_vector: int = 0
    guest_interrupt_status: int = 0
    virtual_apic_address: int = 0
    apic_access_address: int = 0
    tpr_threshold: int = 0
    posted_descriptor_address: int = 0
    vm_functions: int = 0
    eptp: int = 0
    eptp_list_address: int = 0
    pml_address: int = 0
    ve_information_address: int = 0
    sppt_pointer: int = 0
    guest_cr0: int = PE | NE | PG
    guest_cr3: int = 0
    guest_cr4: int = CR4_VMXE | CR4_PAE
    guest_efer: int = 0
    guest_pat: int = 0x0007_0406_0007_0406
    guest_rflags: int = 2
    guest_pdpte: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class VmFail:
    """VMfailValid: nothing of the guest was entered."""

    error: int


@dataclass(frozen=True)
class EntryExit:
    """A VM exit at entry: reason 33 with bit 31 (nothing entered), or 43 right after it."""

    reason: int
    qualification: int = 0


@dataclass(frozen=True)
class Entered:
    """The guest runs. With virtual-interrupt delivery, VPPR and whether a virtual interrupt was recognized."""

    vppr: int
    pending: bool


def invalid_controls(f: EntryFields, vtpr: int, caps: Capabilities = Capabilities()) -> list[str]:
    """Checks on control fields that fail, by their numbers. `vtpr`: byte at 080H of the virtual-APIC page."""
    second = f.secondary if f.primary & SECONDARY else 0
    third = f.tertiary if f.primary & TERTIARY else 0

    def page(address: int, aligned: int = 12) -> bool:
        return not address & (bits(aligned - 1, 0) | bits(63, caps.maxphyaddr))

    def allowed(value: int, must_may: tuple[int, int]) -> bool:
        return not must_may[0] & ~value and not value & ~must_may[1]

    shadow, vid = f.primary & TPR_SHADOW, second & VIRTUAL_INTERRUPTS
    c1 = [
        allowed(f.pin_based, caps.pin_based),
        allowed(f.primary, caps.primary),
        not f.primary & SECONDARY or allowed(f.secondary, caps.secondary),
        not f.primary & TERTIARY or allowed(f.tertiary, caps.tertiary),
        allowed(f.vm_exit, caps.vm_exit),
        allowed(f.vm_entry, caps.vm_entry),
    ]
    posted_ok = (
        vid
        and f.vm_exit & EXIT_ACK_INTERRUPT
        and not f.posted_vector >> 8
        and page(f.posted_descriptor_address, aligned=6)
    )
    needs_ept = UNRESTRICTED | MBEC | PML | SPP
    needs_ept_third = HLAT | PAGING_WRITE | GUEST_PAGING_VERIFICATION
    switching_ok = second & EPT and page(f.eptp_list_address)
    checks: dict[str, Callable[[], object]] = {
        "C1": lambda: all(c1),
        "C2": lambda: f.cr3_target_count <= 4,
        "C3": lambda: not shadow or page(f.virtual_apic_address),
        "C4": lambda: not shadow or vid or not f.tpr_threshold >> 4,
        "C5": lambda: not shadow or vid or second & APIC_ACCESSES or f.tpr_threshold & 15 <= vtpr >> 4,
        "C6": lambda: shadow or not second & (X2APIC | APIC_REGISTERS | VIRTUAL_INTERRUPTS),
        "C7": lambda: not second & APIC_ACCESSES or page(f.apic_access_address),
        "C8": lambda: not second & X2APIC or not second & APIC_ACCESSES,
        "C9": lambda: not vid or f.pin_based & PIN_EXTERNAL,
        "C10": lambda: not f.pin_based & PIN_POSTED or posted_ok,
        "C11": lambda: not second & VPID or f.vpid,
        "C12": lambda: not second & EPT or eptp_valid(f.eptp, caps=caps.ept, maxphyaddr=caps.maxphyaddr),
        "C13": lambda: second & EPT or not (second & needs_ept or third & needs_ept_third),
        "C14": lambda: not second & PML or page(f.pml_address),
        "C15": lambda: not second & SPP or page(f.sppt_pointer),
        "C16": lambda: (
            not second & VMFUNC
            or (not f.vm_functions & ~caps.vm_functions and (not f.vm_functions & 1 or switching_ok))
        ),
        "C17": lambda: not second & VE or page(f.ve_information_address),
        "C18": lambda: f.pin_based & PIN_NMI if f.pin_based & PIN_VIRTUAL_NMI else not f.primary & NMI_WINDOW,
    }
    return [name for name, holds in checks.items() if not holds()]


def invalid_state(
    f: EntryFields, mem: Memory | None = None, caps: Capabilities = Capabilities()
) -> tuple[str, int] | None:
    """First check on guest state that fails and the qualification of the exit, or None.

    `mem` holds the PDPTEs of a guest in PAE mode without EPT.
    """
    second = f.secondary if f.primary & SECONDARY else 0
    long_mode, exempt = bool(f.vm_entry & ENTRY_LONG_MODE), (PE | PG) if second & UNRESTRICTED else 0
    paging, pae = bool(f.guest_cr0 & PG), bool(f.guest_cr4 & CR4_PAE)
    cr0_ok = not (caps.cr0[0] & ~exempt) & ~f.guest_cr0 and not f.guest_cr0 & ~caps.cr0[1]
    cr4_ok = not caps.cr4[0] & ~f.guest_cr4 and not f.guest_cr4 & ~caps.cr4[1]
    efer_lma, efer_lme = bool(f.guest_efer & EFER_LMA), bool(f.guest_efer & EFER_LME)
    pat_types = f.guest_pat.to_bytes(8, "little")
    cet_ok = f.guest_cr0 & WP or not f.guest_cr4 & CR4_CET
    if not cr0_ok or not cr4_ok or not cet_ok or (paging and not f.guest_cr0 & PE):
        return "G1", 0
    if (long_mode and not (paging and pae)) or (not long_mode and f.guest_cr4 & CR4_PCIDE):
        return "G2", 0
    if f.guest_cr3 & bits(63, caps.maxphyaddr):
        return "G3", 0
    if f.vm_entry & ENTRY_LOAD_EFER and f.guest_efer & ~EFER_EXISTING:
        return "G4", 0
    if f.vm_entry & ENTRY_LOAD_EFER and (efer_lma != long_mode or (paging and efer_lma != efer_lme)):
        return "G4", 0
    if f.vm_entry & ENTRY_LOAD_PAT and not set(pat_types) <= {0, 1, 4, 5, 6, 7}:
        return "G4", 0
    if f.guest_rflags & RFLAGS_VM and (long_mode or not f.guest_cr0 & PE):
        return "G5", 0
    if paging and pae and not long_mode:
        reserved = bits(2, 1) | bits(8, 5) | bits(63, caps.maxphyaddr)
        entries = f.guest_pdpte
        if not second & EPT:
            assert mem is not None, "PDPTEs are in memory"
            base = f.guest_cr3 & 0xFFFF_FFE0
            first, other, third, last = (mem.read64(base + 8 * i) for i in range(4))
            entries = (first, other, third, last)
        if any(entry & 1 and entry & reserved for entry in entries):
            return "G6", 2
    return None


def virtual_apic(f: EntryFields, page: bytearray) -> VirtualApic:
    """The processor's view of the APIC controls of a VMCS."""
    second = f.secondary if f.primary & SECONDARY else 0
    return VirtualApic(
        tpr_shadow=bool(f.primary & TPR_SHADOW),
        virtualize_accesses=bool(second & APIC_ACCESSES),
        x2apic=bool(second & X2APIC),
        register_virtualization=bool(second & APIC_REGISTERS),
        interrupt_delivery=bool(second & VIRTUAL_INTERRUPTS),
        interrupt_window_exiting=bool(f.primary & INTERRUPT_WINDOW),
        cr8_load_exiting=bool(f.primary & CR8_LOAD),
        cr8_store_exiting=bool(f.primary & CR8_STORE),
        threshold=f.tpr_threshold & 15,
        rvi=f.guest_interrupt_status & 0xFF,
        svi=f.guest_interrupt_status >> 8,
        page=page,
    )


def enter(
    f: EntryFields, vtpr: int, mem: Memory | None = None, caps: Capabilities = Capabilities()
) -> VmFail | EntryExit | Entered:
    """VM entry with valid host state: controls, guest state, then what happens before the first instruction."""
    if invalid_controls(f, vtpr, caps):
        return VmFail(7)
    if failed := invalid_state(f, mem, caps):
        return EntryExit(ExitReason.ENTRY_FAILURE_GUEST_STATE | ENTRY_FAILURE, failed[1])
    page = bytearray(4096)
    put_word(page, TPR, vtpr)
    apic = virtual_apic(f, page)
    if apic.entered():
        return EntryExit(ExitReason.TPR_BELOW_THRESHOLD)
    return Entered(apic.vppr, apic.pending)
