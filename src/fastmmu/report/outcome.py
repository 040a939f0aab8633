"""What a walk came to, in sentences."""

from __future__ import annotations

from typing import Any, Protocol

from fastmmu.dtypes import Fault, StepKind
from fastmmu.exits import Qualification
from fastmmu.report.bits import (
    address,
    entry_name,
    error_code_words,
    nested_fault_words,
    qualification_words,
    size_name,
)

__all__ = ["Registers", "Walk", "misconfiguration", "outcome"]

_ACCESS = {"r": "read", "w": "write", "rw": "read-modify-write", "x": "instruction fetch"}
_SMEP, _SMAP, _WP = 1 << 20, 1 << 21, 1 << 16


class Walk(Protocol):
    """What is told of a walk: :class:`fastmmu.WalkResult`."""

    @property
    def la(self) -> Any: ...
    @property
    def access(self) -> Any: ...
    @property
    def steps(self) -> Any: ...
    @property
    def pa(self) -> int: ...
    @property
    def gpa(self) -> int: ...
    @property
    def fault(self) -> Fault: ...
    @property
    def error_code(self) -> int | None: ...
    @property
    def qualification(self) -> Qualification | None: ...
    @property
    def page_size(self) -> int | None: ...
    @property
    def ept_page_size(self) -> int | None: ...
    @property
    def guest_refs(self) -> int: ...
    @property
    def ept_refs(self) -> int: ...
    @property
    def memory_type(self) -> Any: ...
    @property
    def rights(self) -> tuple[bool, bool, bool]: ...
    @property
    def npt(self) -> bool: ...


class Registers(Protocol):
    """The registers that decide about rights: :class:`fastmmu.GuestState`."""

    cr0: int
    cr4: int
    cpl: int
    ac: int

    @property
    def mode(self) -> Any: ...


def outcome(walk: Walk, state: Registers, *, ept: bool) -> list[str]:
    """Sentences: where the address went, or why it did not translate."""
    if walk.fault == Fault.NONE:
        return _translated(walk, ept)
    if walk.fault == Fault.PAGE_FAULT:
        assert walk.error_code is not None
        code = walk.error_code
        return [f"#PF, error code {code:04x}: {error_code_words(code)}", *_page_fault(walk, state, code)]
    if walk.fault == Fault.GENERAL_PROTECTION:
        if state.mode.name == "PAE":
            return ["#GP(0): a present PDPTE at CR3 has a reserved bit set, so that the load of CR3 fails"]
        return [
            f"#GP(0): {address(walk.la)} is not canonical; the upper bits must all equal the highest one translated"
        ]
    if walk.fault == Fault.EPT_VIOLATION:
        assert walk.qualification is not None
        q = int(walk.qualification)
        return [
            f"EPT violation (VM exit 48) at guest-physical address {address(walk.gpa)}",
            f"exit qualification {q:x}: {qualification_words(q)}",
            *([] if len(walk.steps) else ["while CR3 was loaded, which reads the PDPTEs"]),
        ]
    if walk.fault == Fault.EPT_MISCONFIG:
        lines = [f"EPT misconfiguration (VM exit 49) at guest-physical address {address(walk.gpa)}"]
        if not len(walk.steps):
            return [*lines, "while CR3 was loaded, which reads the PDPTEs"]
        entry, level = int(walk.steps[-1]["entry"]), int(walk.steps[-1]["level"])
        return [*lines, f"{entry_name(level, of='EPT ')} {entry:x}: {misconfiguration(entry, level)}"]
    if walk.fault == Fault.NESTED_PAGE_FAULT:
        return _nested_fault(walk)
    if walk.fault == Fault.BUS:
        return ["an entry points to a table outside the memory given; nothing was read there"]
    if walk.fault == Fault.SPP_EVENT:
        where = f"of guest-physical address {address(walk.gpa)}"
        return [f"the sub-page permissions {where} are missing or malformed (VM exit 66)"]
    if walk.fault == Fault.APIC_ACCESS:
        where = f"guest-physical address {address(walk.gpa)}"
        return [f"a paging structure of the guest, at {where}, is on the APIC-access page (VM exit 44)"]
    return ["the page-modification log is full (VM exit 62)"]


def _nested_fault(walk: Walk) -> list[str]:
    code = walk.error_code or 0
    lines = [
        f"nested page fault (#VMEXIT 400h) at guest-physical address {address(walk.gpa)}",
        f"EXITINFO1 {code:x}: {nested_fault_words(code)}",
    ]
    if (code & 1 and not code & 8) or not len(walk.steps):
        return lines
    entry, level = int(walk.steps[-1]["entry"]), int(walk.steps[-1]["level"])
    why = "a reserved bit is set" if code & 8 else "not present"
    return [*lines, f"{entry_name(level, of='NPT ')} {entry:x}: {why}"]


def _translated(walk: Walk, ept: bool) -> list[str]:
    user, writable, execute_disable = walk.rights
    where = f"host-physical {address(walk.pa)}" + (f", guest-physical {address(walk.gpa)}" if ept else "")
    refs = f"{walk.guest_refs + walk.ept_refs} references"
    if ept:
        refs += f": {walk.guest_refs} to guest tables, {walk.ept_refs} to the {'NPT' if walk.npt else 'EPT'}"
    pages = [f"{size_name(size)} page" + by for size, by in _pages(walk, ept) if size]
    rights = "user" if user else "supervisor", "writable" if writable else "read-only"
    kinds = [*rights, "not executable" if execute_disable else "executable"] if walk.page_size else ["paging is off"]
    kinds.append(f"memory type {walk.memory_type.name}")
    return [where, refs, ", ".join([*pages, *kinds])]


def _pages(walk: Walk, ept: bool) -> list[tuple[int | None, str]]:
    if not ept:
        return [(walk.page_size, "")]
    return [(walk.page_size, " in the guest"), (walk.ept_page_size, " in the NPT" if walk.npt else " in the EPT")]


def _page_fault(walk: Walk, state: Registers, code: int) -> list[str]:
    """The reason behind a #PF, from the entries and registers."""
    guest = [step for step in walk.steps if step["kind"] == StepKind.GUEST]
    if not guest:
        return ["the PDPTE register of this address is not present"]
    name = entry_name(int(guest[-1]["level"]))
    entry = int(guest[-1]["entry"])
    if not code & 1:
        return [f"{name} {entry:x} is not present"]
    if code & 8:
        return [f"{name} {entry:x} has a reserved bit set"]
    return _denied(walk, state, code)


def _denied(walk: Walk, state: Registers, code: int) -> list[str]:
    us, rw, xd = walk.rights
    user, write, fetch = bool(code & 4), bool(code & 2), walk.access == "x"
    why = []
    if user and not us:
        why.append("user mode has no right to a supervisor page (U/S=0 at some level)")
    if fetch and xd:
        why.append("the page is execute-disable (XD=1 at some level)")
    if fetch and not user and us and state.cr4 & _SMEP:
        why.append("SMEP: the kernel may not execute a user page")
    if not fetch and not user and us and state.cr4 & _SMAP:
        why.append("SMAP: the kernel may not touch a user page with RFLAGS.AC=0")
    if write and not rw and (user or state.cr0 & _WP):
        why.append("the page is read-only (R/W=0 at some level)" + ("" if user else " and CR0.WP=1"))
    if code & 32:
        why.append("the page's protection key forbids it")
    return why or [f"{_ACCESS[walk.access]} denied"]


def misconfiguration(entry: int, level: int) -> str:
    """Which rule of ept.md §3 a present EPT entry breaks."""
    leaf = level == 1 or bool(entry & 0x80)
    if not entry & 1 and entry & 2:
        return "writable but not readable (R=0, W=1)"
    if not entry & 1 and entry & 4:
        return "execute-only, which this processor does not support"
    if leaf and (entry >> 3 & 7) in (2, 3, 7):
        return f"memory type {entry >> 3 & 7} does not exist"
    return "a reserved bit is set"
