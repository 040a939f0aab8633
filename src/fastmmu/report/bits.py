"""Entries, error codes and qualifications in the architecture's own words (paging.md §3 and §5, ept.md §2 and §4.1)."""

from __future__ import annotations

from fastmmu.exits import Qualification

__all__ = [
    "MEMORY_TYPES",
    "address",
    "entry_name",
    "ept_flags",
    "error_code_words",
    "guest_flags",
    "guest_index",
    "nested_fault_words",
    "qualification_words",
    "size_name",
]

_NAMES = {1: "PTE", 2: "PDE", 3: "PDPTE", 4: "PML4E", 5: "PML5E"}
_GUEST = ((1, "RW"), (2, "US"), (3, "PWT"), (4, "PCD"), (5, "A"))
_LEAF = ((6, "D"), (8, "G"))
MEMORY_TYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}
_ERROR_CODE = (
    (1, "W", "write"),
    (2, "U", "user mode"),
    (3, "RSVD", "reserved bit set"),
    (4, "I/D", "instruction fetch"),
    (5, "PK", "protection key"),
    (6, "SS", "shadow stack"),
)


def address(value: int) -> str:
    """An address in hexadecimal, in groups of four digits from the right: 80_4020_1abc."""
    return f"{value:_x}"


def size_name(nbytes: int) -> str:
    """A number of bytes, 1 KB or more: 4 KB, 2 MB, 1.5 GB."""
    shift, unit = next((s, u) for s, u in ((40, "TB"), (30, "GB"), (20, "MB"), (10, "KB")) if nbytes >> s or s == 10)
    return f"{nbytes / (1 << shift):.4g} {unit}"


def entry_name(level: int, *, of: str = "") -> str:
    """PTE, PDE, ... of a level 1..5, with a prefix such as "g" or "EPT "."""
    return f"{of}{_NAMES[level]}"


def guest_index(la: int, level: int, index_bits: int) -> int:
    """Index of a linear address into the table of a level."""
    return la >> (12 + index_bits * (level - 1)) & ((1 << index_bits) - 1)


def guest_flags(entry: int, *, leaf: bool, level: int) -> str:
    """Flags of a guest entry: "P RW US A D"."""
    if not entry & 1:
        return "not present"
    names = ["P", *(name for bit, name in _GUEST if entry >> bit & 1)]
    if leaf:
        names += [name for bit, name in _LEAF if entry >> bit & 1]
        if level > 1:
            names.append("PS")
    if entry >> 63:
        names.append("XD")
    return " ".join(names)


def ept_flags(entry: int, *, leaf: bool) -> str:
    """Flags of an EPT entry: "RWX WB A D"."""
    if not entry & 7 and not entry >> 10 & 1:
        return "not present"
    names = ["".join(letter if entry >> bit & 1 else "-" for bit, letter in enumerate("RWX"))]
    if leaf:
        names.append(MEMORY_TYPES.get(entry >> 3 & 7, f"type {entry >> 3 & 7}"))
        names += [name for bit, name in ((6, "IPAT"), (8, "A"), (9, "D")) if entry >> bit & 1]
    elif entry >> 8 & 1:
        names.append("A")
    if entry >> 10 & 1:
        names.append("XU")
    return " ".join(names)


def error_code_words(code: int) -> str:
    """A #PF error code in words: "P=1 protection violation, W write, U user mode"."""
    words = ["P=1 protection violation" if code & 1 else "P=0 not present"]
    words += [f"{name} {what}" for bit, name, what in _ERROR_CODE if code >> bit & 1]
    return ", ".join(words)


def nested_fault_words(code: int) -> str:
    """EXITINFO1 of AMD's nested page fault in words: as a #PF's, and of what."""
    what = "the translated address" if code >> 32 & 1 else "a guest paging structure"
    return f"{error_code_words(code & 0xFFFF_FFFF)}, of {what}"


def qualification_words(qualification: int) -> str:
    """The exit qualification of an EPT violation in words."""
    q = qualification
    kinds = [name for bit, name in ((0, "read"), (1, "write"), (2, "fetch")) if q >> bit & 1]
    allowed = "".join(letter if q >> bit & 1 else "-" for bit, letter in ((3, "R"), (4, "W"), (5, "X")))
    if not q & Qualification.GLA_VALID:
        where = "no linear address"
    elif q & Qualification.TRANSLATED:
        where = "of the translated address"
    else:
        where = "of a guest paging structure"
    words = [f"{' and '.join(kinds) or 'access'} {where}", f"the entries allow {allowed}"]
    if q & Qualification.ENTRY_XU:
        words.append("and user-mode fetches")
    if q & Qualification.TRANSLATED:
        page = "user" if q & Qualification.USER_PAGE else "supervisor"
        writable = "writable" if q & Qualification.WRITABLE_PAGE else "read-only"
        nx = ", execute-disable" if q & Qualification.NX_PAGE else ""
        words.append(f"a {page} page, {writable}{nx} by the guest's tables")
    return ", ".join(words)
