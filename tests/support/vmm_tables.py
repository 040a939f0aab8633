"""The tables that the VMM of a Machine built, as they lie in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastmmu import Machine, MemorySlot

FRAME = 0x000F_FFFF_FFFF_F000


class Leaf(NamedTuple):
    """A mapping of `size` bytes at `address` (linear under shadow paging, guest-physical under EPT).

    gpa: where it leads. r, w, x, user: rights over all levels (EPT: user is always 1).
    """

    address: int
    size: int
    gpa: int
    r: int
    w: int
    x: int
    user: int


def guest_memory_at(machine: Machine) -> int:
    """Host-physical address of the guest's memory, which guest_memory is a window of."""
    window, whole = (memory.u64.__array_interface__["data"][0] for memory in (machine.guest_memory, machine.memory))
    return int(window - whole)


def leaves(machine: Machine, slot: int | None = None) -> Iterator[Leaf]:
    """Every leaf that can be reached from the root in use; checks that tables and pages lie where they belong.

    A table lies in the VMM's part of host memory, a page in the guest's memory slot (kvm_policy.md §13 P4).
    """
    if slot is None:
        slot = guest_memory_at(machine)
    if machine.config.mmu == "ept":
        yield from _below(machine, slot, machine.vmcs["eptp"] & FRAME, 4, 0, (1, 1, 1, 1))
    else:
        top = {0: 3, 1: 3, 2: 3, 3: 4, 4: 5}[machine.state.mode]
        if top == 3:  # PDPTEs, without rights of their own
            for gb in range(4):
                entry = int(machine.memory.u64[(machine.hw_cr3 >> 3) + gb])
                assert entry == 0 or entry & ~FRAME == 1
                if entry:
                    yield from _below(machine, slot, entry & FRAME, 2, gb << 30, (1, 1, 1, 1))
        else:
            yield from _below(machine, slot, machine.hw_cr3 & FRAME, top, 0, (1, 1, 1, 1))


def _below(
    machine: Machine, slot: int, table: int, level: int, address: int, rights: tuple[int, int, int, int]
) -> Iterator[Leaf]:
    assert 0 < table < slot, f"table {table:#x} of level {level} lies outside the VMM's memory"
    nested = machine.config.mmu == "ept"
    ept = nested and machine.config.vendor == "intel"  # AMD's entries are those of paging (npt.md §2)
    shift = 9 * level + 3
    for index in machine.memory.u64[table >> 3 : (table >> 3) + 512].nonzero()[0].tolist():
        entry = int(machine.memory.u64[(table >> 3) + index])
        if not entry & (7 if ept else 1):
            continue
        r, w, x, user = rights
        if ept:
            below = (r & entry, w & entry >> 1, x & entry >> 2, user)
        else:
            below = (r, w & entry >> 1, x & ~entry >> 63, user & entry >> 2)
        at = address | index << shift
        if level == 1 or entry & 1 << 7:
            size = 1 << shift
            hpa = entry & FRAME & -size
            assert slot <= hpa <= hpa + size <= machine.memory.nbytes, f"{at:#x} leads to {hpa:#x}, outside the slot"
            assert size == 4096 or (level == 2 and machine.config.backing == "2m")
            bits = {3: 48, 4: 57}.get(machine.state.mode, 64)
            canonical = at | -1 << bits & (1 << 64) - 1 if at >> (bits - 1) and not nested else at
            yield Leaf(canonical, size, hpa - slot, *below)
        else:
            yield from _below(machine, slot, entry & FRAME, level - 1, at, below)


def check_reverse_maps(machine: Machine, start: int = 0, end: int | None = None) -> None:
    """What the MMU has noted of its entries is what stands in its tables: an entry leads to a page just where the page
    knows of it (kvm_policy.md §2.3). Tables lie in the VMM's memory, pages in that of slots (§13 P4).

    start, end: host-physical addresses where the machine begins, and behind its slots; None: the end of host memory.
    """
    pages, tables = machine.vmm.reverse_maps()
    slot, end = guest_memory_at(machine), machine.memory.nbytes if end is None else end
    found: dict[tuple[int, int], list[tuple[int, int]]] = {place: [] for place in tables}
    for table, level in tables:
        assert start < table < slot, f"table {table:#x} of level {level} lies outside the VMM's memory"
        words = machine.memory.u64[table >> 3 : (table >> 3) + 512]
        for index in words.nonzero()[0].tolist():
            entry = int(words[index])
            if not entry & 1 << 11:  # a mark of MMIO
                continue
            size = 1 << 9 * level + 3
            if level == 1 or entry & 1 << 7:
                to, what = entry & FRAME & -size, size
                assert slot <= to <= to + size <= end, f"an entry leads to {to:#x}, outside the slots"
            else:
                to, what = entry & FRAME, level - 1
                assert (to, what) in tables, f"an entry of level {level} leads to {to:#x}, no table of the next level"
            found.setdefault((to, what), []).append((table, index))
    noted = {**pages, **tables}
    assert noted.keys() == found.keys()
    for place, entries in found.items():
        assert sorted(noted[place]) == sorted(entries), f"what leads to {place}"


Mapped = tuple[int, int, int | None, int]


def mapped(machine: Machine, slots: tuple[MemorySlot, ...] = ()) -> set[Mapped]:
    """(address, size, gpa, rights X=1 W=2 U=4) of every leaf below the root in use, of a machine with more slots.

    A mark of MMIO has size 0 and the gpa that it stands for. Rights are those of the leaf; upper entries allow all.
    """
    ept = machine.config.mmu == "ept"  # an NPT has entries of guest paging
    npt = ept and machine.config.vendor == "amd"
    nbytes = machine.config.memory_bytes
    end = nbytes + (((nbytes >> 5) + (1 << 26)) & ~0x1FFFFF)
    places = [(end - nbytes, nbytes, 0)]  # hpa, bytes, gpa
    for slot in slots:
        at = (end + 0x1FFFFF & ~0x1FFFFF) + (slot.gpa & 0x1FFFFF)
        end = at + slot.size
        places.append((at, slot.size, slot.gpa))
    found: set[Mapped] = set()
    words = machine.memory.u64

    def below(table: int, level: int, address: int) -> None:
        page = words[table >> 3 : (table >> 3) + 512]
        for index in page.nonzero()[0].tolist():
            entry = int(page[index])
            at = address | index << 9 * level + 3
            if not ept and at >> 47:
                at |= 0xFFFF << 48
            if entry & 0x807 == 6 if ept and not npt else entry & (1 << 51 | 1 << 11) == 1 << 51:
                found.add((at, 0, entry & FRAME & ~(1 << 51), 0))
            elif level == 1 or entry & 1 << 7:
                rights = (entry >> 2 & 1 | entry & 2 | 4) if ept and not npt else (1 - (entry >> 63) | entry & 6)
                hpa = entry & FRAME
                gpa = next((gpa + hpa - start for start, size, gpa in places if start <= hpa < start + size), None)
                found.add((at, 1 << 9 * level + 3, gpa, rights))
            else:
                below(entry & FRAME, level - 1, at)

    below((machine.vmcs["eptp"] if ept else machine.hw_cr3) & FRAME, 4, 0)
    return found
