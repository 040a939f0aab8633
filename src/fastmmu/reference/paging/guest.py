"""Guest paging-structure entries: where they are, what is reserved in them, what they permit (paging.md §2-§5).

5-level   56:48 | 47:39 | 38:30 | 29:21 | 20:12 | offset
4-level           47:39 | 38:30 | 29:21 | 20:12 | offset
PAE                (31:30) | 29:21 | 20:12 | offset       31:30 picks a PDPTE register
32-bit                       31:22 | 21:12 | offset
"""

from __future__ import annotations

from ...ops import Op
from .state import Mode, State, bits

__all__ = [
    "PRESENT",
    "Rights",
    "denied",
    "entry_size",
    "frame_of",
    "index_of",
    "is_leaf",
    "is_write",
    "page_fault_code",
    "page_shift",
    "pat_index",
    "protection_key",
    "reserved_bits",
    "root_pat_index",
    "table_of",
]

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
ACCESSED = 1 << 5
DIRTY = 1 << 6
LARGE = 1 << 7
GLOBAL = 1 << 8
XD = 1 << 63

P_CODE, W_CODE, U_CODE, RSVD_CODE, ID_CODE, PK_CODE = 1, 2, 4, 8, 16, 32


def is_write(access: Op) -> bool:
    """A read-modify-write is checked as a write (paging.md §5)."""
    return access in (Op.WRITE, Op.MODIFY)


# ---- geometry ------------------------------------------------------------------------------------------------


def entry_size(state: State) -> int:
    """Bytes of an entry."""
    return 4 if state.mode is Mode.LEGACY32 else 8


def page_shift(state: State, level: int) -> int:
    """log2 of the bytes that one entry of `level` covers."""
    return (12, 22)[level - 1] if state.mode is Mode.LEGACY32 else 12 + 9 * (level - 1)


def index_of(state: State, la: int, level: int) -> int:
    """Index into the table of `level` (paging.md §2)."""
    return la >> page_shift(state, level) & (0x3FF if state.mode is Mode.LEGACY32 else 0x1FF)


def root_table(state: State) -> int:
    """Address of the top table in memory, except for PAE, where the PDPTE registers take its place."""
    return state.cr3 & (bits(31, 12) if state.mode is Mode.LEGACY32 else state.frame)


# ---- entry formats -------------------------------------------------------------------------------------------


def is_leaf(state: State, entry: int, level: int) -> bool:
    """Does a well-formed entry map a page? (32-bit paging looks at PS only if CR4.PSE=1.)"""
    if level == 1:
        return True
    if state.mode is Mode.LEGACY32:
        return bool(entry & LARGE) and state.pse
    return level <= 3 and bool(entry & LARGE)


def reserved_bits(state: State, entry: int, level: int) -> int:
    """Bits that must be 0 in this present entry (paging.md §3.4; 3.1 for 32-bit paging)."""
    if state.mode is Mode.LEGACY32:
        return bits(21, state.psebits - 19) if level == 2 and is_leaf(state, entry, level) else 0
    mask = bits(62 if state.mode is Mode.PAE else 51, state.maxphyaddr)
    if not state.nxe:
        mask |= XD
    if level >= 4 or (level == 3 and not state.gb_pages):
        mask |= LARGE
    if entry & LARGE and level == 3:
        mask |= bits(29, 13)
    if entry & LARGE and level == 2:
        mask |= bits(20, 13)
    return mask


def table_of(state: State, entry: int) -> int:
    """Address of the table that a non-leaf entry points to."""
    return entry & (bits(31, 12) if state.mode is Mode.LEGACY32 else state.frame)


def frame_of(state: State, entry: int, level: int) -> int:
    """Address of the page that a leaf entry maps."""
    shift = page_shift(state, level)
    if state.mode is not Mode.LEGACY32:
        return entry & state.frame & ~bits(shift - 1, 0)
    if level == 1:
        return entry & bits(31, 12)
    # PSE-36: bits (N-20):13 of the entry are bits N-1:32 of the address.
    return entry & bits(31, 22) | (entry & bits(state.psebits - 20, 13)) << (32 - 13)


def pat_index(entry: int, level: int) -> int:
    """4*PAT + 2*PCD + PWT of a leaf (paging.md §8)."""
    return entry >> 3 & 3 | (entry >> (7 if level == 1 else 12) & 1) << 2


def root_pat_index(state: State) -> int:
    """PAT index of an access to the root table: PCD and PWT of CR3, taken as 0 when CR4.PCIDE=1."""
    return 0 if state.pcide else state.cr3 >> 3 & 3


def protection_key(state: State, leaf: int) -> int:
    """Bits 62:59 of a leaf in 4- and 5-level paging, else 0."""
    return leaf >> 59 & 0xF if state.lma else 0


# ---- permissions ---------------------------------------------------------------------------------------------


class Rights:
    """What the levels of a walk permit together: AND of U/S, AND of R/W, OR of XD (paging.md §4)."""

    def __init__(self) -> None:
        self.us, self.rw, self.xd = 1, 1, 0

    def add(self, state: State, entry: int) -> None:
        self.us &= entry >> 2 & 1
        self.rw &= entry >> 1 & 1
        self.xd |= entry >> 63 & int(state.xd_enabled)


def _key_violation(state: State, access: Op, rights: Rights, leaf: int) -> bool:
    """Protection keys (paging.md §4.2): PKRU guards user addresses, IA32_PKRS supervisor addresses.

    The address decides, not the access: a user access to a supervisor page is judged by IA32_PKRS too, and reports PK
    beside the U/S violation. That corner is the rule taken at its word; no source confirms it (paging.md §4.3).
    """
    enabled = state.pke if rights.us else state.pks
    if not (state.lma and enabled) or access is Op.FETCH:
        return False
    register = state.pkru if rights.us else state.pkrs
    pair = register >> (2 * protection_key(state, leaf)) & 3
    access_disabled, write_disabled = pair & 1, pair >> 1
    return bool(access_disabled) or (bool(write_disabled) and is_write(access) and (state.user_access() or state.wp))


def denied(state: State, access: Op, rights: Rights, leaf: int) -> tuple[bool, bool]:
    """(the access is refused, a protection key refused it): paging.md §4.2, row by row."""
    key = _key_violation(state, access, rights, leaf)
    if state.user_access():
        if not rights.us:
            classical = True
        elif access is Op.FETCH:
            classical = bool(rights.xd)
        else:
            classical = is_write(access) and not rights.rw
    elif access is Op.FETCH:
        classical = bool(rights.xd) or bool(rights.us and state.smep)
    else:
        smap_blocked = bool(rights.us) and state.smap and bool(state.implicit or not state.ac)
        classical = smap_blocked or (is_write(access) and not rights.rw and state.wp)
    return classical or key, key


def page_fault_code(state: State, access: Op, *, present: bool, reserved: bool = False, key: bool = False) -> int:
    """#PF error code (paging.md §5)."""
    code = P_CODE if present else 0
    code |= W_CODE if is_write(access) else 0
    code |= U_CODE if state.user_access() else 0
    code |= RSVD_CODE if reserved else 0
    code |= ID_CODE if access is Op.FETCH and (state.smep or (state.pae and state.nxe)) else 0
    return code | (PK_CODE if key else 0)
