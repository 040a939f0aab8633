"""Address spaces as objects, for tools that import fastmmu: what is seen through page tables, rights left aside.

    space     `AddressSpace`: bytes, translations, mappings, who maps a page, what changed
    gather    its kernel of reads: pages translated, bytes copied, holes named
    rows      its kernel of questions to the rows of an enumeration: the reverse index, two enumerations side by side
    guest     `guest_memory`: what an EPT makes of host memory, as a memory of its own
    roots     `find_roots`: what CR3 and EPT pointers may be, ranked
    search    its scan in threads; `scan` looks at pages by themselves, `facts` judges what hangs from a table

Imports `paging`; it knows no file format, memory is a `PhysicalMemory`.

To add a question: a method of `AddressSpace` and its kernel; what it must answer in `reference/space/` first.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.space.guest import guest_memory
    from fastmmu.space.roots import Root, find_roots
    from fastmmu.space.space import AddressSpace, SpaceDiff, compare_mappings

__all__ = ["AddressSpace", "Root", "SpaceDiff", "compare_mappings", "find_roots", "guest_memory"]

_HOMES = {
    "fastmmu.space.guest": ("guest_memory",),
    "fastmmu.space.roots": ("Root", "find_roots"),
    "fastmmu.space.space": ("AddressSpace", "SpaceDiff", "compare_mappings"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
