"""What the guest kernel makes of a process: frames, tables, pages; who shares them."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fastmmu.ops import Op
from fastmmu.reference.machine.shootdown import Cpus
from fastmmu.reference.machine.thp import Thp

if TYPE_CHECKING:
    from fastmmu.reference.machine.compaction import Compaction

__all__ = ["Flush", "Frames", "Guest", "Page", "Pages"]

SMALL, LARGE = 1 << 12, 1 << 21


class Flush(NamedTuple):
    """What took rights away: pages from an address on, of this size (None: of all); page tables went with it."""

    pages: int | None
    large: bool = False
    freed_tables: bool = False


class Frames:
    """Guest memory, in blocks of 2 MB from the second on, each for one use; what comes back goes out first."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.next = nbytes, LARGE
        self.free: dict[str, list[int]] = {"table": [], "small": [], "large": []}
        self.open: dict[str, deque[int]] = {"table": deque(), "small": deque()}
        self.sharers: Counter[int] = Counter()  # of 4 KB, beside the first

    def block(self) -> int | None:
        """A new one, if there is one."""
        if self.next + LARGE > self.nbytes:
            return None
        self.next += LARGE
        return self.next - LARGE

    def take(self, kind: str, process: int = 0, la: int = 0) -> int | None:
        """A frame of a kind, for an address of a process."""
        if self.free[kind]:
            return self.free[kind].pop()
        if kind == "large":
            return self.block()
        if not self.open[kind]:
            block = self.block()
            if block is None:
                return None
            self.open[kind].extend(range(block, block + LARGE, SMALL))
        return self.open[kind].popleft()

    def give(self, frame: int, kind: str) -> None:
        """Back from one of those that have it; 2 MB that others have, whole or in part, by its pages of 4 KB."""
        if kind == "large" and self.shared(frame, kind):
            for part in range(frame, frame + LARGE, SMALL):
                self.give(part, "small")
        elif self.sharers[frame]:
            self.sharers[frame] -= 1
        else:
            self.back(frame, kind)

    def back(self, frame: int, kind: str) -> None:
        """Nobody has it."""
        self.free[kind].append(frame)

    def shared(self, frame: int, kind: str) -> bool:
        """Whether others have some of it, too."""
        return any(self.sharers[part] for part in range(frame, frame + (LARGE if kind == "large" else SMALL), SMALL))


@dataclass
class Page:
    """A page that is mapped."""

    frame: int
    writable: bool = True


@dataclass
class Pages:
    """The address space of a process: tables by (level, first address), pages of 4 KB and of 2 MB by first address."""

    tables: dict[tuple[int, int], int] = field(default_factory=dict)
    small: dict[int, Page] = field(default_factory=dict)
    large: dict[int, Page] = field(default_factory=dict)

    def below(self, la: int) -> list[int]:
        """Pages of the page table for la, in their order."""
        return sorted(page for page in self.small if page & -LARGE == la & -LARGE)

    def page(self, la: int) -> Page | None:
        """What maps la."""
        return self.small.get(la & -SMALL) or self.large.get(la & -LARGE)


class Guest:
    """The guest kernel of a machine.

    :param nbytes: of guest memory. :param pages: "4k", "2m", "thp". :param apic: the guest has one, which takes tables.
    :param frames: which it gives; None: in the order of first touch. :param thp: the policy of huge pages, with "thp";
        None: by the threshold. :param compaction: of these frames; None: there is none.
    """

    def __init__(
        self, cpus: Cpus, *, nbytes: int, pages: str = "4k", thp_threshold: int = 64, apic: bool = False,
        frames: Frames | None = None, thp: Thp | None = None, compaction: Compaction | None = None,
    ) -> None:  # fmt: skip
        self.compaction = compaction
        self.cpus, self.pages, self.threshold, self.thp = cpus, pages, thp_threshold, thp
        self.frames = frames or Frames(nbytes)
        self.spaces: dict[int, Pages] = {}
        blocks, half, giga = nbytes // LARGE, 1 << 18, 1 << 9  # of 512 GB, of 1 GB
        for _ in range(1 + -(-blocks // half) + -(-blocks // giga) + (8 if apic else 0)):
            self.table()  # of the kernel: the direct map, the APIC
        self.make(0)

    def table(self) -> int:
        """A page for a table."""
        frame = self.frames.take("table")
        assert frame is not None
        return frame

    def make(self, process: int) -> None:
        """A process without pages."""
        self.spaces[process] = Pages({(5, 0): self.table()})

    # ---- turns ----------------------------------------------------------------------------------------------------

    def turn(self, vcpu: int, cpu: int) -> None:
        """A vCPU runs on a CPU from now on; at its first turn in the process of its number."""
        self.cpus.enter(vcpu, cpu)
        if self.cpus.new(vcpu):
            if vcpu not in self.spaces:
                self.make(vcpu)
            self.cpus.switch(vcpu, vcpu)
        self.cpus.resume(vcpu)

    def event(self, vcpu: int, op: int, addr: int) -> int | None:
        """One event of a trace; of an access, the guest-physical address that it reaches."""
        process = self.cpus.current[vcpu]
        flush = None
        if op <= Op.FETCH:
            found = self.access(vcpu, process, addr, op in (Op.WRITE, Op.MODIFY))
            if self.thp is not None and self.thp.due():
                self.scan(vcpu, self.thp)
            return found
        if op == Op.SWITCH:
            if addr not in self.spaces:
                self.make(addr)
            self.cpus.switch(vcpu, addr)
        elif op == Op.UNMAP:
            flush = self.unmap(self.spaces[process], addr)
        elif op in (Op.MUNMAP, Op.PROTECT, Op.UNPROTECT):
            self.cpus.count(vcpu, {Op.MUNMAP: "munmaps", Op.PROTECT: "protects"}.get(Op(op)))
            flush = self.change(vcpu, process, Op(op), addr & -SMALL, (addr & 0xFFF) + 1)
        elif op == Op.FORK:
            self.cpus.count(vcpu, "forks")
            flush = self.fork(self.spaces[process], addr)
            if self.thp is not None:
                self.thp.inherit(process, addr)
        elif op in (Op.MADVISE_HUGE, Op.MADVISE_NOHUGE):
            if self.thp is not None:
                self.thp.advise(process, addr >> 12, (addr & 0xFFF) + 1, huge=op == Op.MADVISE_HUGE)
        elif op == Op.COLLAPSE and self.spaces[process].below(addr):
            flush = self.collapse(vcpu, process, addr & -LARGE)
        if flush is not None:
            self.cpus.shoot(vcpu, process, flush.pages, flush.freed_tables)
        return None

    # ---- pages ----------------------------------------------------------------------------------------------------

    def access(self, vcpu: int, process: int, la: int, write: bool) -> int:
        """What is not there is mapped, what is shared is copied, at the #PF."""
        space = self.spaces[process]
        page = space.page(la)
        if page is None:
            self.cpus.count(vcpu, "pages_touched")
            flush = self.touch(vcpu, process, la)
        elif write and not page.writable:
            flush = self.write_right(vcpu, process, la, page)
        else:
            flush = None
        if flush is not None:
            self.cpus.shoot(vcpu, process, flush.pages, flush.freed_tables)
        page = space.page(la)
        assert page is not None
        return page.frame + (la & (SMALL if la & -SMALL in space.small else LARGE) - 1)

    def touch(self, vcpu: int, process: int, la: int) -> Flush | None:
        """Demand paging; pages of 4 KB where none of 2 MB can be given, or such stand already."""
        space, behind = self.spaces[process], False
        for level in (4, 3):
            self.table_at(space, level, la)
        if self.wants_large(process, la) and (2, la & -LARGE) not in space.tables:
            frame = self.block(vcpu, process, la, touch=True)
            if frame is not None:
                self.cpus.count(vcpu, "thp_fault_alloc")
                space.large[la & -LARGE] = Page(frame)
                return None
            self.cpus.count(vcpu, "thp_fault_fallback")
            behind = self.compaction is not None and self.compaction.mode == "defer"
        self.table_at(space, 2, la)
        frame = self.frames.take("small", process, la)
        assert frame is not None
        space.small[la & -SMALL] = Page(frame)
        if behind and self.compaction is not None and not self.compaction.put_off():
            self.compaction.compact(self, vcpu)
        if self.pages == "thp" and self.thp is None and len(space.below(la)) == self.threshold:
            return self.collapse(vcpu, process, la & -LARGE)
        return None

    def block(self, vcpu: int, process: int, la: int, *, touch: bool) -> int | None:
        """2 MB for a page, made by compaction where who asks waits for it."""
        frame, made = self.frames.take("large", process, la), self.compaction
        advised = self.thp is not None and self.thp.advice(process, la) == {True}
        if frame is not None or made is None or not made.waits(touch=touch, advised=advised) or made.put_off():
            return frame
        self.cpus.count(vcpu, "compact_stall")
        if not made.compact(self, vcpu):
            self.cpus.count(vcpu, "compact_fail")
            return None
        self.cpus.count(vcpu, "compact_success")
        return self.frames.take("large", process, la)

    def wants_large(self, process: int, la: int) -> bool:
        """Whether a first touch asks for 2 MB."""
        return self.pages == "2m" if self.thp is None else self.thp.suits(process, la)

    def table_at(self, space: Pages, level: int, la: int) -> None:
        """The table of this level for la, made where there is none."""
        key = level, la & -(1 << 9 * level + 3)
        if key not in space.tables:
            space.tables[key] = self.table()

    def write_right(self, vcpu: int, process: int, la: int, page: Page) -> Flush | None:
        """Copy on write: the last that has the page keeps it, with its right back. A large page is split, and 4 KB are
        copied; with "2m" where no block is free."""
        kind = "small" if la & -SMALL in self.spaces[process].small else "large"
        if not self.frames.shared(page.frame, kind):
            self.cpus.count(vcpu, "write_rights")
            page.writable = True
            return None
        copy = self.frames.take(kind, process, la) if kind == "small" or self.pages == "2m" else None
        if copy is None:
            assert kind == "large"
            if self.pages == "2m":
                self.cpus.count(vcpu, "thp_fault_fallback")
            self.split(vcpu, process, la & -LARGE)
            return self.write_right(vcpu, process, la, self.spaces[process].small[la & -SMALL])
        self.cpus.count(vcpu, "cow_copies")
        self.frames.give(page.frame, kind)
        page.frame, page.writable = copy, True
        return Flush(1, kind == "large")

    def collapse(self, vcpu: int, process: int, first: int) -> Flush | None:
        """The small pages of 2 MB become one, unless one is read-only; their table goes."""
        space = self.spaces[process]
        below = space.below(first)
        if not all(space.small[page].writable for page in below):
            return None
        frame = self.block(vcpu, process, first, touch=False)
        if frame is None:
            self.cpus.count(vcpu, "thp_collapse_alloc_failed")
            return None
        for page in below:
            self.frames.give(space.small.pop(page).frame, "small")
        self.frames.free["table"].append(space.tables.pop((2, first)))
        space.large[first] = Page(frame)
        self.cpus.count(vcpu, "collapses")
        return Flush(None, freed_tables=True)

    def scan(self, vcpu: int, thp: Thp) -> None:
        """khugepaged's turn, on this vCPU: see Thp.areas."""
        left = thp.pages
        for process, base in thp.areas(self.spaces):
            if base is None:
                left -= 1
            else:
                left -= 512
                self.cpus.count(vcpu, "khugepaged_pages_scanned", 512)
                below = len(self.spaces[process].below(base))
                if (2, base) in self.spaces[process].tables and 512 - below <= thp.none:
                    failed = self.cpus.counters[vcpu]["thp_collapse_alloc_failed"]
                    flush = self.collapse(vcpu, process, base)
                    if flush is not None:
                        self.cpus.shoot(vcpu, process, flush.pages, flush.freed_tables)
                    if self.cpus.counters[vcpu]["thp_collapse_alloc_failed"] != failed:
                        left = 0
            if thp.process is None:
                self.cpus.count(vcpu, "khugepaged_full_scans")
            if left <= 0:
                return

    def split(self, vcpu: int, process: int, first: int) -> None:
        """A page table maps the 512 pages of 2 MB, which stay where they are."""
        space = self.spaces[process]
        page = space.large.pop(first)
        self.cpus.count(vcpu, "thp_split_pmd")
        self.table_at(space, 2, first)
        for i in range(0, LARGE, SMALL):
            space.small[first + i] = Page(page.frame + i, page.writable)
        self.cpus.shoot(vcpu, process, 1, False)

    def unmap(self, space: Pages, la: int) -> Flush | None:
        """One page goes."""
        page = space.page(la)
        if page is None:
            return None
        large = la & -SMALL not in space.small
        if large:
            del space.large[la & -LARGE]
        else:
            del space.small[la & -SMALL]
        self.frames.give(page.frame, "large" if large else "small")
        return Flush(1, large)

    # ---- ranges ---------------------------------------------------------------------------------------------------

    def change(self, vcpu: int, process: int, op: Op, first: int, n: int) -> Flush | None:
        """Pages of a range go, become read-only, or writable where nobody shares them. A large page of which a part
        does is split, and with "2m" does as a whole; tables that map nothing any more go with the pages."""
        end, changed, freed = first + n * SMALL, list[tuple[int, int]](), False
        space = self.spaces[process]
        if op == Op.MUNMAP and self.thp is not None:
            self.thp.forget(process, first >> 12, n)
        for base in range(first & -LARGE, end, LARGE):
            if self.pages != "2m" and base in space.large and not first <= base <= end - LARGE:
                self.split(vcpu, process, base)
            if base in space.large:
                if self.changes(space.large[base], op, "large"):
                    changed.append((base, LARGE))
                    if op == Op.MUNMAP:
                        self.frames.give(space.large.pop(base).frame, "large")
                continue
            inside = [page for page in space.below(base) if first <= page < end]
            for page in inside:
                if self.changes(space.small[page], op, "small"):
                    changed.append((page, SMALL))
                    if op == Op.MUNMAP:
                        self.frames.give(space.small.pop(page).frame, "small")
            if op == Op.MUNMAP and (2, base) in space.tables and not space.below(base):
                self.frames.free["table"].append(space.tables.pop((2, base)))
                freed = True
                if not changed:
                    changed.append((max(first, base), SMALL))
        if not changed:
            return None
        large = all(size == LARGE for _, size in changed)
        nbytes = changed[-1][0] + changed[-1][1] - changed[0][0]
        return Flush(nbytes // (LARGE if large else SMALL), large, freed)

    def changes(self, page: Page, op: Op, kind: str) -> bool:
        """Whether a flush is for it."""
        if op == Op.UNPROTECT:
            page.writable |= not self.frames.shared(page.frame, kind)
            return False
        if op == Op.PROTECT:
            was, page.writable = page.writable, False
            return was
        return True

    def fork(self, parent: Pages, child: int) -> Flush:
        """A process that shares all pages; tables are its own, made from the lowest address up, the upper first."""
        self.make(child)
        space = self.spaces[child]
        for level, la in sorted((key for key in parent.tables if key[0] < 5), key=lambda key: (key[1], -key[0])):
            space.tables[level, la] = self.table()
        for size, nbytes in (("small", SMALL), ("large", LARGE)):
            for la, page in getattr(parent, size).items():
                page.writable = False
                getattr(space, size)[la] = Page(page.frame, False)
                for part in range(page.frame, page.frame + nbytes, SMALL):
                    self.frames.sharers[part] += 1
        return Flush(None)
