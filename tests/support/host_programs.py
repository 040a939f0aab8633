"""Random programs of a bare guest and of the host under it: accesses, edits of page tables, requests to the VMM.

Memory is that of `guest_programs`: nine frames that may be tables and data, and a window on them. Beside it there are
pages where no memory is, a read-only slot, a slot that the host may delete, and one that ends within an aligned eight.
A step is a tuple; a :class:`Runner` carries it out on a machine, or on the specification behind the same methods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from fastmmu import MemorySlot
from tests.support.guest_layouts import ALL_FRAMES, FRAME, FRAMES, PS, WINDOW, WINDOW_TABLES, Mode, P, Regime
from tests.support.guest_programs import N_EDITS, edited

__all__ = ["DEVICES", "SLOTS", "Runner", "Step", "regimes", "steps"]

Step = tuple[Any, ...]
SLOTS = (
    MemorySlot(0x800_0000, 0x1_0000, readonly=True),
    MemorySlot(0x900_0000, 0x20_0000),
    MemorySlot(0xA00_0000, 0x5000),
)
DEVICES = (0x800_0000, 0x800_3000, 0x900_0000, 0x901_0000, 0xA00_0000, 0xA00_4000, 0xF00_0000, 0xF00_1000)
SPAN = (64 << 20) >> 12  # pages of slot 0

regimes = st.builds(
    Regime,
    wp=st.booleans(),
    smep=st.booleans(),
    smap=st.booleans(),
    ac=st.booleans(),
    nxe=st.sampled_from([True, True, True, False]),
    pge=st.booleans(),
    upper_a=st.sampled_from(["eager", "lazy"]),
    mode=st.just(Mode.LEVEL4),
    pse=st.just(True),
)
_frame = st.sampled_from(FRAMES)
_index = st.sampled_from([0, 0, 1, 1, 2])
addresses = st.builds(
    lambda i4, i3, i2, i1, word: i4 << 39 | i3 << 30 | i2 << 21 | i1 << 12 | word << 3,
    _index, _index, _index, _index, st.integers(0, 2),
)  # fmt: skip
_window = st.builds(lambda frame, word: WINDOW + frame + 8 * word, st.sampled_from(ALL_FRAMES), st.integers(0, 2))
_any = st.one_of(addresses, addresses, addresses, _window)
_how = st.integers(0, N_EDITS - 1)
_kind = st.sampled_from(["r", "w", "x", "rw"])
_access = st.tuples(st.just("access"), _any, _kind, st.booleans())
_path = st.tuples(st.just("path"), addresses, st.integers(0, 3), _how, _frame, _kind, st.booleans())
_device = st.tuples(st.just("device"), addresses, st.sampled_from(DEVICES), st.integers(0, 3), _kind, st.booleans())
_edit = st.tuples(st.just("edit"), st.sampled_from(FRAMES * 3 + WINDOW_TABLES[2:]), st.integers(0, 2), _how, _frame)
_poke = st.tuples(st.just("poke"), addresses, _how, _frame)
_cr3 = st.tuples(st.just("cr3"), st.integers(0, 5), _frame)
_invlpg = st.tuples(st.just("invlpg"), _any)
_rare = st.one_of(
    st.just(("cpuid",)),
    st.tuples(st.just("cr4"), st.sampled_from([7, 7, 20, 21])),
    st.tuples(st.just("delete"), st.sampled_from([1, 2, 3])),
)
_log = st.one_of(
    st.tuples(st.just("start"), st.sampled_from([0, 0, 0, 2]), st.sampled_from([(0, 0), (0, 0), (1, 0), (1, 1)])),
    st.tuples(st.just("get"), st.sampled_from([0, 0, 2])),
    st.tuples(st.just("get"), st.just(0)),
    st.tuples(st.just("clear"), st.sampled_from([(0, 64), (512, 64), (512, 512), (0, SPAN)])),
    st.tuples(st.just("stop"), st.just(0)),
)
_host = st.one_of(
    st.tuples(st.just("swap"), _frame),
    st.tuples(st.just("young"), _frame, st.booleans()),
)
_step = st.one_of(
    _access, _access, _access, _access, _path, _path, _path, _device, _edit, _poke, _cr3, _invlpg, _log, _host, _rare
)
_parts = st.lists(st.lists(_step, min_size=1, max_size=25), min_size=1, max_size=12)
steps = _parts.map(lambda parts: [step for part in parts for step in part])


def entries_of(words: Any, cr3: int, la: int) -> list[int]:
    """Addresses of the guest's entries that translate la, as far as tables lie in memory."""
    table, found = cr3 & FRAME, []
    for level in (4, 3, 2, 1):
        if table >= SPAN << 12:
            break
        found.append(table + 8 * (la >> (9 * level + 3) & 511))
        entry = int(words[found[-1] >> 3])
        if not entry & P or (entry & PS and level < 4):
            break
        table = entry & FRAME
    return found


class Runner:
    """A machine with what the programs have to know of it."""

    def __init__(self, machine: Any, cr3: int) -> None:
        self.machine, self.words, self.cr3 = machine, machine.guest_memory.u64, cr3
        self.roots = [cr3, *(frame for frame in FRAMES if frame != cr3 and int(self.words[frame >> 3]))][:2]
        self.logged: dict[int, bool] = {}  # slot -> cleared by hand
        self.deleted: set[int] = set()
        self.cr4 = 0

    def store(self, gpa: int, value: int) -> Any:
        return self.machine.store(WINDOW + gpa, value)

    def step(self, step: Step) -> Any:
        """What came of it: anything that can be compared."""
        kind, *rest = step
        return getattr(self, f"do_{kind}")(*rest)

    def do_access(self, la: int, access: str, user: bool) -> Any:
        return tuple(self.machine.access(la, access, user=user))

    def do_edit(self, table: int, word: int, how: int, frame: int) -> Any:
        gpa = table + 8 * word
        return tuple(self.store(gpa, edited(int(self.words[gpa >> 3]), how, frame, 21)))

    def do_path(self, la: int, level: int, how: int, frame: int, access: str, user: bool) -> Any:
        path = entries_of(self.words, self.cr3, la)
        gpa = path[min(level, len(path) - 1)]
        return (
            tuple(self.store(gpa, edited(int(self.words[gpa >> 3]), how, frame, 21))),
            self.do_access(la, access, user),
        )

    def do_device(self, la: int, frame: int, flags: int, access: str, user: bool) -> Any:
        """The leaf entry leads where no ordinary memory is; flags: of A and D, which."""
        path = entries_of(self.words, self.cr3, la)
        stored = tuple(self.store(path[-1], frame | 7 | flags << 5)) if len(path) == 4 else None
        return stored, self.do_access(la, access, user)

    def do_poke(self, la: int, how: int, frame: int) -> Any:
        return tuple(self.machine.store(la, edited(0, how, frame, 21)))

    def do_cr3(self, which: int, frame: int) -> None:
        self.cr3 = frame if which == 0 else self.roots[which % len(self.roots)]
        self.machine.mov_cr3(self.cr3)

    def do_invlpg(self, la: int) -> None:
        self.machine.invlpg(la)

    def do_cpuid(self) -> None:
        self.machine.exit_instruction(10)

    def do_cr4(self, bit: int) -> None:
        self.cr4 ^= 1 << bit
        self.machine.mov_cr4(self.machine.mov_from_cr4() ^ 1 << bit)

    def do_start(self, slot: int, how: tuple[int, int]) -> None:
        if slot not in self.deleted and slot not in self.logged:
            self.machine.vmm.start_dirty_log(slot, manual=bool(how[0]), initially_set=bool(how[1]))
            self.logged[slot] = bool(how[0])

    def do_get(self, slot: int) -> Any:
        if slot in self.logged:
            return np.flatnonzero(self.machine.vmm.dirty_log(slot)).tolist()
        return None

    def do_clear(self, pages: tuple[int, int]) -> None:
        if self.logged.get(0):
            self.machine.vmm.clear_dirty_log(0, *pages)

    def do_stop(self, slot: int) -> None:
        if self.logged.pop(slot, None) is not None:
            self.machine.vmm.stop_dirty_log(slot)

    def do_delete(self, slot: int) -> None:
        if slot not in self.deleted:
            self.logged.pop(slot, None)
            self.deleted.add(slot)
            self.machine.vmm.delete_slot(slot)

    def do_swap(self, frame: int) -> Any:
        return self.machine.vmm.swap_out(0, frame >> 12)

    def do_young(self, frame: int, clear: bool) -> Any:
        return bool(self.machine.vmm.young(0, frame >> 12, clear=clear))
