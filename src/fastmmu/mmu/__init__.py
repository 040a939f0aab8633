"""The tables that the VMM owns, as Linux has them in arch/x86/kvm/mmu: direct (EPT) and shadow.

    memslots   guest-physical memory, the host memory behind it, the bitmap of pages written
    spte       one entry: what its bits say, how it is made
    mmu        the state of the tables as structs, and how an entry, its list, its table page are found
    table_iter a walk of the tables from a root down
    pages      table pages by (gfn, role), and which pages the guest may not write unseen
    rmap       reverse maps, the one place where an entry changes
    invariant  what a build with FASTMMU_CHECKS=1 asserts of every change
    roots      the root in use and those kept for their next use
    direct     the leaf for a page; direct mappings and their faults, fast faults, MMIO SPTEs
    shadow     what a #PF was, and the shadow entry that answers it
    sync       shadow pages out of sync, emulated writes to guest tables, INVLPG, prefetch
    agile      which of the guest's tables are walked nested, the EPT beside the shadow tables (agile.md §4)
    dirty_log  write protection or the processor's log; splitting and joining large pages
    entries    entries by page, many at a time: made, looked up, cleared, rights and flags taken away
    port       `Mmu`: all that in the hands of a VMM in Python, and an EPT of its own for one on `vmx.Cpu`; tables_port:
               its slots, a walk of its tables; entries_port: entries by page, NumPy arrays in and out
    ageing, reclaim, notifier   what the host asks of pages, takes away, changes

Imports `arch`, `cache`, `tlb`, `paging`. No exit and no policy of KVM's vCPUs is known here: a fault comes in, a result
goes out.

To add a kind of entry: its bits in `spte` (they may not overlap: static assertions), its making there, its change
through `rmap` alone; `reference/kvm/tables.py`; a property in tests/mmu.

To add an entry format, as NPT's would be: a literal beside those of `spte` (which bit says what; a bit that it lacks
is 0), with its assertion that none overlap, and a number in MmuFormat, which the machine gives to `mmu_init`. Nothing
else in the room knows which format it has.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.mmu.port import Mmu

__all__ = ["Mmu"]

_HOMES = {"fastmmu.mmu.port": ("Mmu",)}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
