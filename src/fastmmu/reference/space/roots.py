"""Root tables in memory: what a page says by itself, and what hangs from it (space/scan.pxd, space/facts.pxd)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..paging.memory import Memory, holds
from ..paging.state import bits

__all__ = ["EPT", "LONG", "PAE", "TWO", "Facts", "candidates", "rows"]

LONG, PAE, TWO, EPT = range(4)
MALFORMED_QUARTER, BARREN_QUARTERS, FEW = 4, 3, 8
LARGE, XD = 1 << 7, 1 << 63


@dataclass
class Facts:
    """Of a table and all below; pages and tables as often as entries lead there."""

    tables: int = 0
    malformed: int = 0
    pages: int = 0
    inside: int = 0
    user: int = 0
    code: int = 0
    kernel_code: int = 0
    typed: int = 0


def read(mem: Memory, address: int, size: int, n: int) -> list[int] | None:
    """n entries; None where some are not in memory."""
    if not all(holds(mem, at) for at in range(address, address + size * n, 8)):
        return None
    words = [mem.read64(at) for at in range(address, address + size * n, 8)]
    return words if size == 8 else [word >> shift & bits(31, 0) for word in words for shift in (0, 32)]


def is_present(form: int, entry: int) -> bool:
    return bool(entry & (7 if form == EPT else 1))


def is_leaf(form: int, level: int, entry: int) -> bool:
    return level == 1 or bool(entry & LARGE and level <= {TWO: 2, PAE: 2, LONG: 3, EPT: 3}[form])


def frame_of(form: int, level: int, entry: int) -> int:
    shift = (10 if form == TWO else 9) * (level - 1) + 12 if is_leaf(form, level, entry) else 12
    if form == TWO and shift == 22:  # PSE-36 with 40 bits
        return entry & bits(31, 22) | (entry & bits(20, 13)) << 19
    return entry & bits(51, shift)


def is_malformed(form: int, level: int, entry: int, width: int) -> bool:
    """Reserved bits (paging.md §3, ept.md §3)."""
    leaf = is_leaf(form, level, entry)
    if form == TWO:
        return leaf and level == 2 and bool(entry & 1 << 21)
    if entry & bits(51, width):
        return True
    low = bits(9 * (level - 1) + 11, 12) if leaf and level > 1 else 0
    if form == EPT:
        if entry & 3 == 2:
            return True
        return bool(entry & low) or entry >> 3 & 7 in (2, 3, 7) if leaf else bool(entry & bits(7, 3))
    if form == PAE and entry & bits(62, 52):
        return True
    return bool(entry & low & ~0x1000) if leaf else bool(entry & LARGE)


def candidates(mem: Memory, page: int) -> list[tuple[int, int]]:
    """(address, form) of what a page may hold, by itself."""
    words = read(mem, page, 8, 512)
    if words is None:
        return []
    high = bits(51, (mem.nbytes - 1).bit_length())
    found = []
    for form, must_be_0 in ((LONG, LARGE), (EPT, bits(7, 3))):
        there = [word for word in words if is_present(form, word)]
        if there and not any(word & (high | must_be_0) for word in there):
            found.append((page, form))
    if page >> 32 == 0:
        entries = read(mem, page, 4, 1024) or []
        there = [entry for entry in entries if entry & 1]
        fine = all(not entry & (1 << 21 if entry & LARGE else high & bits(31, 12)) for entry in there)
        if fine and any(entry & 1 for entry in entries[::2]) and any(entry & 1 for entry in entries[1::2]):
            found.append((page, TWO))
        for i in range(0, 512, 4):
            four = words[i : i + 4]
            fine = all(not word or (word & 1 and not word & (high | bits(63, 52) | 0x1C6)) for word in four)
            if fine and any(four):
                found.append((page + 8 * i, PAE))
    return found


class _Judge:
    def __init__(self, mem: Memory, width: int) -> None:
        self.mem, self.width = mem, width
        self.known: dict[tuple[int, int, int], tuple[Facts, bool] | None] = {}
        self.held: dict[int, bool] = {}

    def table(self, form: int, level: int, address: int) -> tuple[Facts, bool] | None:
        """Facts, and whether it is plausible; None: it is not in memory."""
        key = (form, level, address)
        if key not in self.known:
            entries = read(self.mem, address, 4 if form == TWO else 8, 1024 if form == TWO else 512)
            self.known[key] = None if entries is None else self.entries(form, level, entries)
        return self.known[key]

    def inside(self, page: int) -> bool:
        if page not in self.held:
            self.held[page] = all(holds(self.mem, at) for at in range(page, page + 4096, 8))
        return self.held[page]

    def entries(self, form: int, level: int, entries: list[int]) -> tuple[Facts, bool]:
        facts = Facts(tables=1)
        there = [(i, entry) for i, entry in enumerate(entries) if is_present(form, entry)]
        fine = [(i, entry) for i, entry in there if not is_malformed(form, level, entry, self.width)]
        bad, barren, stray = len(there) - len(fine), 0, 0
        if MALFORMED_QUARTER * bad > len(there):
            facts.malformed = bad
            return facts, False
        for i, entry in fine:
            frame = frame_of(form, level, entry)
            code = bool(entry & 4) if form == EPT else not entry & XD
            user = form != EPT and bool(entry & 4)
            if not is_leaf(form, level, entry):
                below = self.table(form, level - 1, frame) if frame else None
                if below is None or not below[1]:
                    bad += 1
                else:
                    barren += below[0].pages == 0
                    add(facts, below[0], user, code)
                continue
            facts.pages += 1
            facts.inside += self.inside(frame) and (frame > 0 or level > 1)
            facts.user += user
            facts.code += code
            facts.kernel_code += code and not user
            facts.typed += (entry >> 3 & 7) == 6 if form == EPT else bool(entry & 0x10)
            if level == 1 and not self.inside(frame):
                before, behind = entries[i - 1] if i else 0, entries[i + 1] if i + 1 < len(entries) else 0
                stray += not (goes_on(form, before, entry) or goes_on(form, entry, behind))
        facts.malformed += bad
        plausible = MALFORMED_QUARTER * bad <= len(there)
        if level == 2:
            plausible = plausible and 4 * (bad + barren) <= BARREN_QUARTERS * len(there)
        return facts, plausible and (stray <= FEW or 2 * stray <= len(there))

    def pdptes(self, address: int) -> tuple[Facts, bool]:
        facts, bad = Facts(), 0
        there = [entry for entry in read(self.mem, address, 8, 4) or [] if entry & 1]
        for entry in there:
            frame = entry & bits(51, 12)
            below = self.table(PAE, 2, frame) if frame else None
            if below is None or not below[1]:
                bad += 1
            else:
                add(facts, below[0], True, True)
        facts.malformed += bad
        return facts, MALFORMED_QUARTER * bad <= len(there)


def goes_on(form: int, one: int, behind: int) -> bool:
    """The next page of a run, with the same rights; accessed and dirty flags are no matter."""
    return is_present(form, one) and is_present(form, behind) and not (one + 4096 ^ behind) & ~0x60 & bits(63, 0)


def add(facts: Facts, below: Facts, user: bool, code: bool) -> None:
    facts.tables += below.tables
    facts.malformed += below.malformed
    facts.pages += below.pages
    facts.inside += below.inside
    facts.typed += below.typed
    facts.user += below.user if user else 0
    facts.code += below.code if code else 0
    facts.kernel_code += (below.kernel_code if user else below.code) if code else 0


def rows(mem: Memory, *, maxphyaddr: int = 52) -> list[tuple[int, ...]]:
    """(address, form, levels, facts...) of the candidates that lead to pages of memory, in the order of addresses."""
    judge, found = _Judge(mem, maxphyaddr), []
    for page in range(0, mem.nbytes, 4096):
        for address, form in candidates(mem, page):
            for levels in {LONG: (4, 5), EPT: (4, 5), PAE: (3,), TWO: (2,)}[form]:
                judged = judge.pdptes(address) if form == PAE else judge.table(form, levels, address)
                if judged is not None and judged[1] and judged[0].inside:
                    found.append((address, form, levels, *(getattr(judged[0], each.name) for each in fields(Facts))))
    return sorted(found)
