"""What the tables of a VM hold, to look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .tables import Leaf, Link, Mark, Switch, TablePage, U
from .vm import Vm


class Mapping(NamedTuple):
    """A leaf of the VMM's tables: `address` is linear under shadow paging, guest-physical under EPT.

    A mark of MMIO has size 0, and no rights.
    """

    address: int
    size: int
    gpa: int
    access: int


def leaves(vm: Vm) -> Iterator[Mapping]:
    """What the tables below the root in use map."""
    return _below(vm, vm.root, 0)


def _below(vm: Vm, page: TablePage, base: int) -> Iterator[Mapping]:
    shift = 9 * page.role.level + 3
    for index, entry in page.entries.items():
        at = base | index << shift
        if vm.policy.shadow and at >> 47:
            at |= 0xFFFF << 48
        if isinstance(entry, Link):
            yield from _below(vm, entry.page, at)
        elif isinstance(entry, Switch):
            continue
        elif isinstance(entry, Mark):
            yield Mapping(at, 0, entry.gfn << 12, 0)
        else:
            access = 0 if entry.tracked else entry.access
            access |= 0 if vm.policy.shadow else U
            yield Mapping(at, 1 << shift, entry.gfn << 12, access)


def table_pages(vm: Vm) -> list[tuple[int, int, bool, int, int, bool]]:
    """(gfn, level, direct, access, registers, unsync) of every table page."""
    return [(page.gfn, *page.role, page.unsync) for page in vm.tables.pages.values()]


def mapped_pages(vm: Vm) -> tuple[int, int]:
    """Leaves there are, of 4 KB and of 2 MB."""
    found = [e for page in vm.tables.pages.values() for e in page.entries.values() if isinstance(e, Leaf)]
    return sum(leaf.level == 1 for leaf in found), sum(leaf.level == 2 for leaf in found)
