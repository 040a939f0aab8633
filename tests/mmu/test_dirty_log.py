"""What a dirty log does to EPT entries, method by method (kvm_policy.md §4.1, §4.2)."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu import Config, Machine, MemorySlot
from tests.support.flat_guest import PAGE, counted, entry, exits, flat

EPT = Config(memory="64M", mmu="ept", kvm="6.1", vpid=True)
LARGE = EPT.replace(host_pages="2m")
R, W, D, PS, MAY_WRITE = 1, 2, 1 << 9, 1 << 7, 1 << 58
ALL = (64 << 20) >> 12
SLOT = 0x201F_0000  # 16 pages before a large page begins


def rights(machine: Machine, gpa: int) -> int:
    """W, D, PS of the entry that maps gpa."""
    return entry(machine, gpa) & (W | D | PS)


def logged(machine: Machine, slot: int = 0) -> set[int]:
    """Pages in the log, but for the guest's tables: with EPT A/D flags a walk writes them."""
    return set(np.flatnonzero(machine.vmm.dirty_log(slot)).tolist()) - ({1, 2, 3} if slot == 0 else set())


def test_write_protection() -> None:
    """W goes when the log is read, and stays with a page that is not in it; a write gives it back alone."""
    machine = flat(EPT.replace(ept_ad=False))
    other = PAGE + 0x1000
    for page in (PAGE, other):
        machine.store(page, 1)
    machine.vmm.start_dirty_log(0)
    assert [rights(machine, page) & W for page in (PAGE, other)] == [0, 0]
    was = exits(machine)
    machine.access(PAGE)
    assert exits(machine) == was
    machine.store(PAGE, 2)
    assert (exits(machine), entry(machine, PAGE) & (W | MAY_WRITE)) == (was + 1, W | MAY_WRITE)
    assert counted(machine, "fast", "dirty_faults") == [1, 1]
    assert logged(machine) == {PAGE >> 12}
    assert entry(machine, PAGE) & (R | W | MAY_WRITE) == R | MAY_WRITE
    assert logged(machine) == set()
    machine.vmm.stop_dirty_log(0)
    assert rights(machine, PAGE) & W == 0  # comes back by the fault that misses it
    machine.store(PAGE, 3)
    assert rights(machine, PAGE) & W


def test_by_the_processor() -> None:
    """4K: W stays, D goes. What the processor has logged is read first, for whichever slot a log begins."""
    machine = flat_with_slot(EPT.replace(pml=True))
    machine.store(PAGE, 1)
    machine.vmm.start_dirty_log(0)
    assert rights(machine, PAGE) == W
    was = exits(machine)
    machine.store(PAGE, 2)
    assert (exits(machine), rights(machine, PAGE)) == (was, W | D)
    machine.vmm.start_dirty_log(1)
    assert logged(machine) == {PAGE >> 12}
    assert rights(machine, PAGE) == W
    machine.store(PAGE, 3)
    machine.vmm.delete_slot(1)
    assert PAGE >> 12 in logged(machine)


@pytest.mark.parametrize("pml", [False, True])
@pytest.mark.parametrize("eager", [False, True])
def test_large_pages(pml: bool, eager: bool) -> None:
    """Split when logging starts; or they lose W, with PML too, and the write splits them. Joined when it ends."""
    machine = flat(LARGE.replace(pml=pml, eager_page_split=eager))
    machine.store(PAGE, 1)
    assert rights(machine, PAGE) == W | D | PS
    machine.vmm.start_dirty_log(0)
    assert rights(machine, PAGE) & (W | PS) == ((W if pml else 0) if eager else PS)
    assert bool(counted(machine, "splits")[0]) is eager
    machine.store(PAGE, 2)
    assert rights(machine, PAGE) == W | D
    assert logged(machine) == {PAGE >> 12}
    machine.vmm.stop_dirty_log(0)
    machine.store(PAGE, 3)
    assert rights(machine, PAGE) == W | D | PS


def flat_with_slot(config: Config) -> Machine:
    """Slot 1: three large pages with 16 pages before them."""
    return flat(config, MemorySlot(SLOT, (16 + 3 * 512) << 12, host="2m"))


@pytest.mark.parametrize("pml", [False, True])
@pytest.mark.parametrize("eager", [False, True])
def test_logs_that_begin_full(pml: bool, eager: bool) -> None:
    """Nothing is protected before it is cleared; then the large pages in which the 64 lie, two of them here."""
    machine = flat_with_slot(EPT.replace(pml=pml, eager_page_split=eager))
    large = [SLOT + 0x10000 + (number << 21) for number in range(3)]
    for la in large:
        machine.access(la, "w")
    machine.vmm.start_dirty_log(1, manual=True, initially_set=True)
    assert [rights(machine, la) for la in large] == [W | D | PS] * 3
    assert len(logged(machine, 1)) == 16 + 3 * 512
    machine.vmm.clear_dirty_log(1, 512, 64)  # from 16 pages before the second large page
    now = [rights(machine, la) & (W | PS) for la in large]
    assert now == [W if eager else PS, (W if pml else 0) if eager else PS, W | PS]
    page = SLOT + (515 << 12)
    assert not machine.vmm.dirty_log(1)[512:576].any()
    assert machine.vmm.dirty_log(1).sum() == 16 + 3 * 512 - 64
    machine.access(page, "w")
    assert set(np.flatnonzero(machine.vmm.dirty_log(1)[512:576])) == {3}
    assert rights(machine, page) == W | D


def test_clearing_by_hand() -> None:
    """Reading leaves the log; clearing begins anew for the pages that it names and that are in it."""
    machine = flat(EPT)
    pages = [PAGE + (number << 12) for number in (0, 1, 64)]
    machine.vmm.start_dirty_log(0, manual=True)
    for page in pages:
        machine.store(page, 1)
    numbers = {page >> 12 for page in pages}
    for _ in range(2):
        assert logged(machine) == numbers
        assert [rights(machine, page) & W for page in pages] == [W] * 3
    machine.vmm.clear_dirty_log(0, PAGE >> 12, 64)
    assert logged(machine) == {pages[2] >> 12}
    assert [rights(machine, page) & W for page in pages] == [0, 0, W]
    machine.vmm.clear_dirty_log(0, 0, ALL)
    assert logged(machine) == set()


@pytest.mark.parametrize("pml", [False, True])
def test_a_ring_is_read_before_it_is_full(pml: bool) -> None:
    """64 entries stay free, with PML 512 more, which one reading of the processor's log may add."""
    machine = flat(EPT.replace(pml=pml))
    for page in range(16, 1040):
        machine.store(page << 12, 1)
    machine.vmm.use_dirty_ring(1024)
    machine.vmm.start_dirty_log(0)
    assert counted(machine, "ring_full") == [0]
    room = 1024 - 64 - 512 * pml - 3  # the guest's tables are in it
    for page in range(16, 16 + room - 1):
        machine.store(page << 12, 1)
    if pml:
        machine.exit_instruction(10)
    assert counted(machine, "ring_full") == [0]
    machine.store((16 + room - 1) << 12, 1)
    if pml:
        machine.exit_instruction(10)
    assert counted(machine, "ring_full") == [1]
    for page in range(16 + room, 1040):
        machine.store(page << 12, 1)
    assert set(range(16, 1040)) <= logged(machine)
