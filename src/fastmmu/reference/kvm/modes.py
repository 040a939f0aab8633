"""Changes of paging mode: what a write to a control register does, and how KVM runs the guest then.

`write` is the architecture (SDM volume 3, 2.5 and 4.1; volume 2, MOV to control registers; volume 4, IA32_EFER) and,
where KVM runs the guest, what it reserves. `hardware` is the table of kvm_policy.md §3.4: the guest's registers
in, those of the hardware and the controls out. `exit_of` says by which exit the VMM learns of an instruction
(vmx.md §6).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from ...exits import ExitReason
from ..paging.memory import Memory
from ..paging.state import CR0_EXISTING, CR4_EXISTING, EFER_EXISTING, bits

__all__ = ["IDENTITY_MAP", "Hardware", "Refused", "Registers", "Scheme", "exit_of", "hardware", "write"]

IDENTITY_MAP = 0xFFFB_C000
PE, MP, EM, TS, ET, NE, WP, NW, CD, PG = (1 << n for n in (0, 1, 2, 3, 4, 5, 16, 29, 30, 31))
VME, PSE, PAE, PGE, LA57, VMXE, PCIDE, SMEP, SMAP, PKE = (1 << n for n in (0, 4, 5, 7, 12, 13, 17, 20, 21, 22))
CET, PKS = 1 << 23, 1 << 24
LME, LMA = 1 << 8, 1 << 10
CR0_LOADING, CR4_LOADING = PG | CD | NW, PAE | PGE | PSE | SMEP  # changes of these load the PDPTEs
CR4_OWN = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 16  # the guest's, whatever the scheme


class Scheme(enum.Enum):
    """Who runs the guest."""

    NATIVE = "native"
    SHADOW = "shadow paging"
    EPT = "EPT without unrestricted guest"
    UNRESTRICTED = "EPT with unrestricted guest"

    @property
    def ept(self) -> bool:
        """Whether the hardware walks the guest's own tables, and EPT behind them."""
        return self in (Scheme.EPT, Scheme.UNRESTRICTED)


@dataclass(frozen=True)
class Registers:
    """A guest's registers as the guest has them."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    pdpte: tuple[int, ...] = (0, 0, 0, 0)
    maxphyaddr: int = 46

    @property
    def paging(self) -> bool:
        """CR0.PG."""
        return bool(self.cr0 & PG)

    @property
    def long_mode(self) -> bool:
        """EFER.LMA."""
        return bool(self.efer & LMA)

    @property
    def pae_paging(self) -> bool:
        """PAE paging is in use."""
        return self.paging and bool(self.cr4 & PAE) and not self.long_mode


class Refused(Exception):
    """#GP(0): the write changes nothing. Its argument names the rule of paging.md §1.2."""


@dataclass(frozen=True)
class Hardware:
    """What the processor has while the guest runs. cr3 None: a root of the VMM's, under shadow paging."""

    cr0: int
    cr3: int | None
    cr4: int
    efer: int
    vm86: bool
    cr3_exits: bool
    pdpte: tuple[int, ...] | None = None  # of PAE paging, where the hardware uses the guest's


def write(
    r: Registers,
    register: str,
    value: int,
    memory: Memory,
    scheme: Scheme = Scheme.NATIVE,
    shadow_keys: bool = False,
    npt: bool = False,
) -> Registers:
    """The registers after a write to "cr0", "cr3", "cr4" or "efer". :raises Refused: it is #GP(0).

    `shadow_keys`: shadow tables carry the guest's protection keys, which KVM's do not. `npt`: over nested page tables
    of AMD's, with which MOV to CR3 loads no PDPTEs (npt.md §3).
    """
    new = {"cr0": _cr0, "cr3": _cr3, "cr4": _cr4, "efer": _efer}[register](r, value)
    if new.cr4 & not_virtualized(scheme, shadow_keys):
        raise Refused("bits of CR4 that KVM reserves")
    changed = (r.cr0 ^ new.cr0) & CR0_LOADING or (r.cr4 ^ new.cr4) & CR4_LOADING
    if new.pae_paging and ((register == "cr3" and not npt) or (register in ("cr0", "cr4") and changed)):
        table = new.cr3 & bits(31, 5)
        loaded = tuple(memory.read64(table + 8 * i) for i in range(4))
        reserved = bits(2, 1) | bits(8, 5) | bits(63, r.maxphyaddr)
        if any(entry & 1 and entry & reserved for entry in loaded):
            raise Refused("PDPTE")
        new = replace(new, pdpte=loaded)
    return new


def not_virtualized(scheme: Scheme, shadow_keys: bool = False) -> int:
    """Bits of CR4 that the processor has and KVM refuses its guest, whatever its version: CR4_RESERVED_BITS has CET (to
    Linux 6.17) and PKS, and the CPUID of a guest on shadow paging has no protection keys (kvm_set_cpu_caps)."""
    if scheme is Scheme.NATIVE:
        return 0
    keys = PKS if scheme.ept else PKE | PKS
    return CET | (0 if scheme is Scheme.SHADOW and shadow_keys else keys)


def _cr0(r: Registers, value: int) -> Registers:
    if value >> 32:
        raise Refused("bits 63:32")
    value = value & CR0_EXISTING | ET
    if value & NW and not value & CD:
        raise Refused("NW without CD")
    if value & PG and not value & PE:
        raise Refused("PG without PE")
    entering = value & PG and not r.paging
    if entering and r.efer & LME and not r.cr4 & PAE:
        raise Refused("long mode without PAE")
    if not value & PG and r.cr4 & PCIDE:
        raise Refused("PCIDE without paging")
    if not value & WP and r.cr4 & CET:
        raise Refused("CET without WP")
    active = LMA if value & PG and r.efer & LME else 0
    return replace(r, cr0=value, efer=r.efer & ~LMA | active)


def _cr3(r: Registers, value: int) -> Registers:
    if r.cr4 & PCIDE:
        value &= ~(1 << 63)
    if value >> (r.maxphyaddr if r.long_mode else 32):
        raise Refused("reserved bits of CR3")
    return replace(r, cr3=value)


def _cr4(r: Registers, value: int) -> Registers:
    if value & ~CR4_EXISTING or value & VMXE:  # the guest is no VMM, whoever runs it
        raise Refused("reserved bits of CR4")
    if r.long_mode and (not value & PAE or (value ^ r.cr4) & LA57):
        raise Refused("PAE and LA57 in long mode")
    if value & PCIDE and not r.cr4 & PCIDE and (not r.long_mode or r.cr3 & bits(11, 0)):
        raise Refused("PCIDE")
    if value & CET and not r.cr0 & WP:
        raise Refused("CET without WP")
    return replace(r, cr4=value)


def _efer(r: Registers, value: int) -> Registers:
    if value & ~EFER_EXISTING:
        raise Refused("reserved bits of EFER")
    if r.paging and (value ^ r.efer) & LME:
        raise Refused("LME while paging")
    return replace(r, efer=value & ~LMA | r.efer & LMA)


def hardware(r: Registers, scheme: Scheme) -> Hardware:
    """What KVM has the processor run the guest with."""
    if scheme is Scheme.NATIVE:
        return Hardware(r.cr0, r.cr3, r.cr4, r.efer, False, False, r.pdpte if r.pae_paging else None)
    cr0, cr3, cr4, vm86 = r.cr0 & ~(CD | NW) | NE, r.cr3, r.cr4 | VMXE, False
    if scheme is not Scheme.UNRESTRICTED:
        vm86 = not r.cr0 & PE
        cr0 |= PE | PG
        cr4 |= VME if vm86 else 0
    if scheme is Scheme.EPT and not r.paging:
        cr3 = IDENTITY_MAP
        cr4 = cr4 & ~(PAE | SMEP | SMAP | PKE) | PSE
    efer = r.efer if r.long_mode else r.efer & ~LME
    exits = scheme is Scheme.SHADOW or (scheme is Scheme.EPT and not r.paging)
    if scheme is Scheme.SHADOW:
        return Hardware(cr0, None, cr4, efer, vm86, exits)
    return Hardware(cr0, cr3, cr4, efer, vm86, exits, r.pdpte if r.pae_paging else None)


def exit_of(r: Registers, scheme: Scheme, instruction: str, value: int = 0) -> ExitReason | None:
    """The exit of an instruction: "cr0", "cr3", "cr4", "efer" write; "read cr0", ... read; "lmsw", "clts"."""
    if scheme is Scheme.NATIVE:
        return None
    if hardware(r, scheme).vm86:
        return ExitReason.EXCEPTION_NMI
    mine0 = TS | (WP if scheme.ept else 0)
    mine4 = CR4_OWN | (PGE if scheme.ept else 0)
    match instruction:
        case "cr0":
            exits = bool((value ^ r.cr0) & ~mine0)
        case "lmsw":
            exits = bool((value ^ r.cr0) & (MP | EM) or (value & PE and not r.cr0 & PE))
        case "cr4":
            exits = bool((value ^ r.cr4) & ~mine4)
        case "cr3" | "read cr3":
            exits = hardware(r, scheme).cr3_exits
        case "efer":
            return ExitReason.WRMSR
        case "read efer":
            return ExitReason.RDMSR
        case _:  # CLTS of a guest that owns TS, other reads
            exits = False
    return ExitReason.CR_ACCESS if exits else None
