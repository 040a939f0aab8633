"""Registers of a logical processor, and what paging derives from them (paging.md §1)."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, field

from ...errors import StateError
from .memtype import PAT_RESET, MemType, Mtrrs

__all__ = ["CR0_EXISTING", "CR4_EXISTING", "EFER_EXISTING", "Mode", "State", "bits"]


def bits(high: int, low: int) -> int:
    """The mask with bits high..low set; 0 where high < low."""
    return ((1 << (high + 1)) - 1) & ~((1 << low) - 1) if high >= low else 0


CR0_EXISTING = bits(5, 0) | 1 << 16 | 1 << 18 | bits(31, 29)
CR4_EXISTING = bits(13, 0) | bits(18, 16) | bits(24, 20)
EFER_EXISTING = 1 << 0 | 1 << 8 | bits(11, 10)
"""Bits that the modelled processor has: of CR4 all of SDM volume 3, 2.5 but SMXE (14), KL (19), UINTR (25), LASS (27),
LAM_SUP (28) and FRED (32)."""


class Mode(enum.IntEnum):
    """Paging modes (paging.md §1.1)."""

    NONE = 0
    LEGACY32 = 1
    PAE = 2
    LEVEL4 = 3
    LEVEL5 = 4


@dataclass(frozen=True, kw_only=True)
class State:
    """Registers, processor features and knobs that a guest walk depends on.

    The defaults are a supervisor in long mode. `pdpte` holds the four PDPTE registers, used by PAE paging only
    (:func:`~fastmmu.reference.load_pdptes` loads them). `maxphyaddr` is M of paging.md; `pse36_bits` overrides
    N = min(M, 40) of paging.md §3.1 (32 = no PSE-36). `upper_a` says when the A flag of an upper entry is set:
    ``"eager"`` as soon as the entry was found well-formed, ``"lazy"`` after all permission checks (paging.md §6).
    """

    cr0: int = 0x8001_0031
    cr3: int = 0
    cr4: int = 0x20
    efer: int = 0xD00
    cpl: int = 0
    ac: int = 0
    implicit: int = 0
    pkru: int = 0
    pkrs: int = 0
    pat: int = PAT_RESET
    mtrrs: Mtrrs = field(default_factory=Mtrrs)
    pdpte: tuple[int, int, int, int] = (0, 0, 0, 0)
    maxphyaddr: int = 52
    gb_pages: int = 1
    pse36_bits: int | None = None
    upper_a: str = "eager"

    def __post_init__(self) -> None:
        if self.cr0 >> 32:
            raise StateError(f"CR0={self.cr0:#x}: bits 63:32 are reserved; clear them")
        if self.cr0 >> 29 & 3 == 1:
            raise StateError(f"CR0={self.cr0:#x}: NW=1 (bit 29) needs CD=1 (bit 30)")
        if reserved := self.cr4 & ~CR4_EXISTING:
            raise StateError(f"CR4={self.cr4:#x}: no processor here has {reserved:#x}; clear it")
        if reserved := self.efer & ~EFER_EXISTING:
            raise StateError(f"EFER={self.efer:#x}: no processor here has {reserved:#x}; clear it")
        if self.cr4 >> 23 & 1 and not self.wp:
            raise StateError(f"CR4={self.cr4:#x}: CET=1 (bit 23) needs CR0.WP=1 (bit 16)")
        if self.pcide and not self.lma:
            raise StateError(f"CR4={self.cr4:#x}: PCIDE=1 (bit 17) needs long mode")
        if (self.cr3 & ~(self.pcide << 63)) >> self.maxphyaddr:
            raise StateError(f"CR3={self.cr3:#x} has bits at or above MAXPHYADDR={self.maxphyaddr}; clear them")
        if self.pg and bool(self.efer >> 8 & 1) != self.lma:
            raise StateError(f"EFER={self.efer:#x}: with paging on, LMA (bit 10) equals LME (bit 8)")
        if self.pg and not self.cr0 & 1:
            raise StateError(f"CR0={self.cr0:#x}: PG=1 needs PE=1")
        if self.lma and not (self.pg and self.pae):
            raise StateError(f"EFER={self.efer:#x} with LMA=1 needs CR0.PG=1 and CR4.PAE=1; clear LMA or set them")
        if not 32 <= self.maxphyaddr <= 52:
            raise StateError(f"MAXPHYADDR {self.maxphyaddr} is outside 32..52")
        if not 0 <= self.cpl <= 3:
            raise StateError(f"CPL {self.cpl} is outside 0..3")
        if unknown := [byte for byte in self.pat.to_bytes(8, "little") if byte not in tuple(MemType)]:
            raise StateError(f"IA32_PAT={self.pat:#x}: {unknown[0]:#x} is not a memory type (WRMSR refuses it)")
        if self.upper_a not in ("eager", "lazy"):
            raise StateError(f"upper_a={self.upper_a!r}: use 'eager' or 'lazy'")
        if self.mode is Mode.PAE and (bad := [f"{e:#x}" for e in self.pdpte if e & 1 and e & self.pdpte_reserved]):
            raise StateError(f"PDPTE register {bad[0]} has a reserved bit: loading it is #GP(0); clear the bit")

    # ---- control bits ----

    @property
    def pg(self) -> bool:
        return bool(self.cr0 >> 31 & 1)

    @property
    def wp(self) -> bool:
        return bool(self.cr0 >> 16 & 1)

    @property
    def cd(self) -> bool:
        return bool(self.cr0 >> 30 & 1)

    @property
    def pse(self) -> bool:
        return bool(self.cr4 >> 4 & 1)

    @property
    def pae(self) -> bool:
        return bool(self.cr4 >> 5 & 1)

    @property
    def pge(self) -> bool:
        return bool(self.cr4 >> 7 & 1)

    @property
    def la57(self) -> bool:
        return bool(self.cr4 >> 12 & 1)

    @property
    def pcide(self) -> bool:
        return bool(self.cr4 >> 17 & 1)

    @property
    def smep(self) -> bool:
        return bool(self.cr4 >> 20 & 1)

    @property
    def smap(self) -> bool:
        return bool(self.cr4 >> 21 & 1)

    @property
    def pke(self) -> bool:
        return bool(self.cr4 >> 22 & 1)

    @property
    def pks(self) -> bool:
        return bool(self.cr4 >> 24 & 1)

    @property
    def lma(self) -> bool:
        return bool(self.efer >> 10 & 1)

    @property
    def nxe(self) -> bool:
        return bool(self.efer >> 11 & 1)

    # ---- what follows from them ----

    @functools.cached_property
    def mode(self) -> Mode:
        """paging.md §1.1."""
        if not self.pg:
            return Mode.NONE
        if self.lma:
            return Mode.LEVEL5 if self.la57 else Mode.LEVEL4
        return Mode.PAE if self.pae else Mode.LEGACY32

    @property
    def levels(self) -> int:
        """Levels whose entries are read from memory."""
        return {Mode.NONE: 0, Mode.LEGACY32: 2, Mode.PAE: 2, Mode.LEVEL4: 4, Mode.LEVEL5: 5}[self.mode]

    @property
    def frame(self) -> int:
        """Bits M-1:12."""
        return bits(self.maxphyaddr - 1, 12)

    @property
    def xd_enabled(self) -> bool:
        """Bit 63 of an entry is XD: NXE=1 and entries of 8 bytes (paging.md §4.2)."""
        return self.nxe and self.mode in (Mode.PAE, Mode.LEVEL4, Mode.LEVEL5)

    @property
    def pdpte_reserved(self) -> int:
        """Bits that must be 0 in a present PDPTE register (paging.md §3.2)."""
        return 0x1E6 | bits(63, self.maxphyaddr)

    @property
    def psebits(self) -> int:
        """N of paging.md §3.1: width of the physical addresses that a 4 MB page can have."""
        return min(self.maxphyaddr, 40) if self.pse36_bits is None else self.pse36_bits

    def user_access(self) -> bool:
        """paging.md §4.1: CPL 3 and not an implicit access to a descriptor table."""
        return self.cpl == 3 and not self.implicit

    def linear(self, la: int) -> int:
        """The linear address that is looked up: 64 bits in long mode, else 32."""
        return la & (bits(63, 0) if self.lma else bits(31, 0))

    def canonical(self, la: int) -> bool:
        """paging.md §1.3; outside long mode every address is."""
        if not self.lma:
            return True
        sign = la >> (56 if self.la57 else 47)
        return sign in (0, bits(63, 56 if self.la57 else 47) >> (56 if self.la57 else 47))
