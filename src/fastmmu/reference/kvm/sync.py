"""Executable specification of KVM's shadow pages beside the guest's tables: in sync and out of it (kvm_policy.md §2.2).

A shadow page is in sync while the guest cannot write its table unseen. One of level 1 may go out of sync, and follows
again where the guest's TLB would be flushed: MOV CR3, INVLPG, CR4.
"""

from __future__ import annotations

from ..paging import guest
from .map import make_leaf, set_leaf, table
from .stats import loses
from .tables import ALL, Leaf, Link, Mark, Role, TablePage, U, W, X
from .vm import Vm

__all__ = [
    "gpte_of",
    "invalidate",
    "load_root",
    "new_registers",
    "prefetch_entry",
    "prefetch_guest",
    "rights_of",
    "root_kept",
    "sync_below",
    "sync_page",
    "wrote_table",
]


def rights_of(gpte: int) -> int:
    """What an entry of the guest's allows, by itself."""
    return (0 if gpte & guest.XD else X) | (W if gpte & guest.WRITABLE else 0) | (U if gpte & guest.USER else 0)


def usable(vm: Vm, gpte: int) -> bool:
    """May the entry be mapped without an access? Only one that the guest has used, and that is well-formed."""
    used = guest.PRESENT | guest.ACCESSED
    return gpte & used == used and not gpte & guest.reserved_bits(vm.state, gpte, 1)


def leaf_of(vm: Vm, page: TablePage, gpte: int) -> tuple[int, int]:
    """(gfn, rights) of a guest's entry in the table of `page`. D=0: the first write must fault, to set it."""
    access = page.role.access & rights_of(gpte)
    return (gpte & vm.state.frame) >> 12, access if gpte & guest.DIRTY else access & ~W


def gpte_of(vm: Vm, page: TablePage, index: int) -> int:
    return vm.memory.read64((page.gfn << 12) + 8 * index)


# ---- entries mapped without a fault ---------------------------------------------------------------------------


def prefetch_guest(vm: Vm, page: TablePage, index: int) -> None:
    """The other entries of the aligned eight, until one cannot be mapped (kvm_policy.md §2.1)."""
    for i in range(index & ~7, (index & ~7) + 8):
        if i != index and not isinstance(page.entries.get(i), Leaf) and not prefetch_entry(vm, page, i, log=False):
            return


def prefetch_entry(vm: Vm, page: TablePage, index: int, *, log: bool) -> bool:
    """Maps what the guest's entry says, if the host has it at hand. log: also where that marks the page as written."""
    gpte = gpte_of(vm, page, index)
    if not usable(vm, gpte):
        vm.tables.put(page, index, None)
        return False
    gfn, access = leaf_of(vm, page, gpte)
    slot = vm.slot_of(gfn)
    if slot is None or (slot.log and access & W and not log) or not slot.pinned(gfn):
        return False
    set_leaf(vm, page, index, slot, gfn, access, prefetch=True)
    vm.count["prefetched"] += 1
    return True


# ---- synchronizing --------------------------------------------------------------------------------------------


def sync_page(vm: Vm, page: TablePage) -> bool:
    """Every entry follows the guest's: dropped where that is gone or leads elsewhere, else with today's rights.

    Returns whether KVM flushes for that.
    """
    vm.count["synced"] += 1
    flush = False
    for index in sorted(page.entries):
        flush |= sync_entry(vm, page, index)
    return flush


def sync_entry(vm: Vm, page: TablePage, index: int, *, alone: bool = False) -> bool:
    """The same of one entry. alone: not with its whole table; then one that is as it was stays so, with its A."""
    entry, gpte = page.entries[index], gpte_of(vm, page, index)
    if not usable(vm, gpte):
        vm.tables.put(page, index, None)
        return True
    gfn, access = leaf_of(vm, page, gpte)
    assert isinstance(entry, Leaf | Mark)
    if entry.gfn != gfn:
        vm.tables.put(page, index, None)
        return isinstance(entry, Leaf)
    if isinstance(entry, Mark):
        vm.tables.put(page, index, Mark(gfn, vm.generation))
        return False
    slot = vm.slot_of(gfn)
    assert slot
    host = entry.host_writable
    prefetch = not (alone and entry.accessed)
    new, _ = make_leaf(vm, entry, slot, gfn, 1, access, prefetch=prefetch, host_writable=host, can_unsync=False)
    vm.tables.put(page, index, new)
    return loses(entry, new, flags=True)


def sync_below(vm: Vm, page: TablePage) -> None:
    """All pages out of sync that can be reached: first protected from the guest's writes, then synchronized."""
    unsync = [below for below in vm.tables.below(page) if below.unsync]
    protected = [vm.write_protect(below.gfn, 1, 2, for_good=True) for below in unsync]
    vm.stats.request(any(protected))
    flush = False
    for below in unsync:
        below.unsync = False
        flush |= sync_page(vm, below)
    vm.stats.request(flush)


def invalidate(vm: Vm, root: TablePage, la: int) -> None:
    """INVLPG below one root: an entry out of sync follows the guest's; before Linux 6.4 it is dropped and read again,
    an empty one as well."""
    page, index, entry = list(vm.tables.path(root, la))[-1]
    if page.unsync and vm.policy.rules.invlpg_syncs_entry:
        vm.stats.request(entry is not None and sync_entry(vm, page, index, alone=True))
    elif page.unsync:
        vm.stats.request(isinstance(page.entries.get(index), Leaf))
        vm.tables.put(page, index, None)
        prefetch_entry(vm, page, index, log=True)


# ---- roots ----------------------------------------------------------------------------------------------------


def root_kept(vm: Vm, cr3: int) -> TablePage | None:
    """The shadow root for a CR3, if it is among the one in use and three before it."""
    wanted = vm.tables.pages.get(((cr3 & vm.state.frame) >> 12, Role(4, False, ALL, vm.registers)))
    return wanted if wanted and wanted in vm.roots else None


def load_root(vm: Vm, cr3: int) -> None:
    """The shadow root for a CR3. The one in use and three before it are kept, latest first (kvm_policy.md §2.4)."""
    wanted = root_kept(vm, cr3)
    if wanted:
        place = vm.roots.index(wanted)
        vm.roots = [wanted, *vm.roots[:place], *vm.roots[place + 1 :]]
    else:
        if vm.roots[0]:  # else it went, and another takes its place
            vm.roots = [None, *vm.roots[:-1]]
        place = -1
        vm.make_room()
        wanted, _ = table(vm, (cr3 & vm.state.frame) >> 12, Role(4, False, ALL, vm.registers))
        vm.roots[0] = wanted
    if place:
        wanted.writes = 0
    sync_below(vm, wanted)


def new_registers(vm: Vm, cr3: int) -> None:
    """Registers that say what the guest's tables mean are new: no root is kept."""
    vm.roots = [None] * len(vm.roots)
    load_root(vm, cr3)


# ---- emulated writes ------------------------------------------------------------------------------------------


def wrote_table(vm: Vm, gpa: int, nbytes: int) -> None:
    """The guest changed a shadowed table: a store within an entry drops the shadow entry, any other the whole page; so
    does the third in a row to a table above level 1 that was not used meanwhile (kvm_policy.md §2.2)."""
    if not any(vm.tables.shadows.values()):
        return
    vm.count["pte_writes"] += 1
    flush = False
    within = gpa >> 3 == (gpa + nbytes - 1) >> 3 and (nbytes >= 4 or (nbytes == 1 and gpa & 7 == 0))
    for page in list(vm.tables.shadows[gpa >> 12]):
        if (page.gfn, page.role) not in vm.tables.pages:
            continue  # out of sync, and went with another
        if vm.policy.flooding and page.role.level > 1:
            page.writes += 1
        if not within or page.writes >= 3:
            vm.count["flooded"] += 1
            flush |= vm.zap(page)[1]
        else:
            index = (gpa & 0xFFF) >> 3
            flush |= isinstance(page.entries.get(index), Leaf | Link)
            vm.tables.put(page, index, None)
    vm.stats.request(flush)
