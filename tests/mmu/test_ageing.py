"""The host asks which pages are in use, and takes those to disk that are not (kvm_policy.md §6)."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config
from tests.support.flat_guest import PAGE, counted, entry, exits, flat

EPT = Config(memory="64M", mmu="ept", kvm="6.1", vpid=True, host_pages="untouched")
NO_FLAGS = EPT.replace(ept_ad=False)
SHADOW = EPT.replace(mmu="shadow")
R, W, X, SAVED_R, SAVED_X, HOST_WRITE, MAY_WRITE = 1, 2, 4, 1 << 54, 1 << 56, 1 << 57, 1 << 58

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "40")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)


# ---- young and old pages ------------------------------------------------------------------------------------------


def test_rights_are_set_aside_and_given_back() -> None:
    """Without A flags: RWX cleared, R and X kept in bits 54 and 56; the next access has them back without the host."""
    machine = flat(NO_FLAGS)
    machine.store(PAGE, 1)
    before = entry(machine, PAGE)
    assert before & (R | W | X | HOST_WRITE | MAY_WRITE) == R | W | X | HOST_WRITE | MAY_WRITE
    number = PAGE >> 12
    assert machine.vmm.young(0, number)
    assert entry(machine, PAGE) == before
    assert machine.vmm.young(0, number, clear=True, flush=True)
    assert entry(machine, PAGE) == before & ~(R | W | X) | SAVED_R | SAVED_X
    assert not machine.vmm.young(0, number)
    assert not machine.vmm.young(0, number, clear=True)
    assert entry(machine, PAGE) == before & ~(R | W | X) | SAVED_R | SAVED_X
    assert counted(machine, "aged_young", "aged_old") == [2, 2]
    fast, was = counted(machine, "fast"), exits(machine)
    assert machine.access(PAGE).gpa == PAGE
    assert (entry(machine, PAGE), exits(machine)) == (before & ~W, was + 1)
    assert machine.vmm.young(0, number)
    assert machine.access(PAGE, "w").gpa == PAGE
    assert (entry(machine, PAGE), exits(machine)) == (before, was + 2)
    assert counted(machine, "fast") == [fast[0] + 2]
    machine.vmm.young(0, number, clear=True, flush=True)
    assert machine.access(PAGE, "w").gpa == PAGE  # a write has all of them back at once
    assert (entry(machine, PAGE), exits(machine)) == (before, was + 3)


def test_a_write_given_back_is_logged() -> None:
    machine = flat(NO_FLAGS)
    machine.store(PAGE, 1)
    machine.vmm.young(0, PAGE >> 12, clear=True, flush=True)
    machine.vmm.start_dirty_log(0)
    machine.access(PAGE)
    assert not machine.vmm.dirty_log(0)[PAGE >> 12]
    machine.vmm.young(0, PAGE >> 12, clear=True, flush=True)
    machine.access(PAGE, "w")
    assert machine.vmm.dirty_log(0)[PAGE >> 12]


@pytest.mark.parametrize("kind", ["bitmap", "manual", "ring"])
def test_a_log_is_flushed_though_no_entry_lost_a_right(kind: str) -> None:
    """Clearing A alone flushes nothing: the entry has no W any more, what is cached has."""
    machine = flat(NO_FLAGS)
    if kind == "ring":
        machine.vmm.use_dirty_ring(1024)
    machine.vmm.start_dirty_log(0, manual=kind == "manual")
    for _ in range(2):
        machine.store(PAGE, 1)
        machine.vmm.young(0, PAGE >> 12, clear=True)
        was = exits(machine)
        machine.store(PAGE, 2)  # by the translation that is cached
        assert exits(machine) == was
        assert machine.vmm.dirty_log(0)[PAGE >> 12]
        if kind == "manual":
            machine.vmm.clear_dirty_log(0, 0, (64 << 20) >> 12)


@pytest.mark.parametrize("config", [EPT, NO_FLAGS, SHADOW], ids=["A flags", "no A flags", "shadow"])
@pytest.mark.parametrize("flush", [False, True])
def test_a_cached_translation_hides_a_use_unless_it_is_flushed(config: Config, flush: bool) -> None:
    machine = flat(config)
    for _ in range(2):
        machine.access(PAGE, "w")
    assert machine.vmm.young(0, PAGE >> 12, clear=True, flush=flush)
    machine.access(PAGE, "w")
    assert machine.vmm.young(0, PAGE >> 12) is flush


def test_a_large_page_is_asked_as_a_whole() -> None:
    machine = flat(EPT.replace(host_pages="2m"))
    machine.access(PAGE)
    for page in (PAGE, PAGE + 0x5000):
        assert machine.vmm.young(0, page >> 12)
    machine.vmm.young(0, (PAGE >> 12) + 7, clear=True)
    assert not machine.vmm.young(0, PAGE >> 12)


@pytest.mark.parametrize(("ageing", "kvm"), [("zap", "6.1"), (None, "slides"), ("old", "6.1"), ("old", "slides")])
def test_what_was_done_before_access_tracking(ageing: str | None, kvm: str) -> None:
    """The entry goes, so that the next access faults; before that, no page ever looked used."""
    machine = flat(NO_FLAGS.replace(ageing=ageing, kvm=kvm))
    machine.access(PAGE, "w")
    was, mapped = exits(machine), entry(machine, PAGE)
    young = [machine.vmm.young(0, PAGE >> 12, clear=True, flush=True) for _ in range(2)]
    assert young == ([False, False] if ageing == "old" else [True, False])
    assert entry(machine, PAGE) == (mapped if ageing == "old" else 0)
    machine.access(PAGE, "w")
    assert (exits(machine) - was, counted(machine, "fast")) == (int(ageing != "old"), [0])
    assert entry(machine, PAGE) == mapped


def test_code_in_a_tracked_large_page() -> None:
    """A large page that is split while its accesses are tracked is executable in small pages, once it is restored."""
    machine = flat(NO_FLAGS.replace(host_pages="2m", nx_huge_pages=True))
    machine.access(PAGE, "w")
    machine.vmm.young(0, PAGE >> 12, clear=True, flush=True)
    assert entry(machine, PAGE) & (SAVED_R | SAVED_X | R | W | X) == SAVED_R
    machine.vmm.start_dirty_log(0)
    assert entry(machine, PAGE) & (SAVED_R | SAVED_X | R | W | X) == SAVED_R | SAVED_X
    assert machine.access(PAGE, "x").gpa == PAGE
    assert entry(machine, PAGE) & (SAVED_R | SAVED_X | R | W | X) == R | X


# ---- pages on disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [EPT, NO_FLAGS, SHADOW], ids=["A flags", "no A flags", "shadow"])
def test_a_page_is_written_to_disk_where_it_was_written(config: Config) -> None:
    """D, or W without D flags, goes over to the host's page when an entry goes (§6)."""
    machine = flat(config)
    number = PAGE >> 12
    machine.access(PAGE, "w")
    assert machine.vmm.swap_out(0, number)  # new: not on disk yet
    assert not machine.vmm.swap_out(0, number)
    machine.access(PAGE)
    machine.vmm.young(0, number, clear=True)
    assert machine.vmm.swap_out(0, number)  # read alone: still there
    assert counted(machine, "swap_outs", "swap_writes", "swap_ins") == [2, 1, 1]
    machine.access(PAGE, "w")
    for forget in (lambda: None, lambda: machine.vmm.young(0, number, clear=True),
                   lambda: machine.vmm.start_dirty_log(0), lambda: machine.vmm.dirty_log(0)):  # fmt: skip
        machine.access(PAGE, "w")
        forget()
        outs, writes = counted(machine, "swap_outs", "swap_writes")
        assert machine.vmm.swap_out(0, number)
        assert counted(machine, "swap_outs", "swap_writes") == [outs + 1, writes + 1]
        machine.access(PAGE)


class Reclaimed:
    """The rules of the two policies over pages whose use is seen in full; an access uses the tables, then its page."""

    TABLES = (1, 2, 3)

    def __init__(self, limit: int, lru: bool) -> None:
        self.limit, self.lru = limit, lru
        self.state: dict[int, str] = {}
        self.used: dict[int, bool] = {}  # of mapped pages: their A flag
        self.order: list[int] = []
        self.seen: dict[int, int] = {}
        self.generation = self.hand = 0
        self.counts = dict.fromkeys(("swap_outs", "swap_ins", "aged_young", "aged_old", "retries"), 0)

    def ask(self, page: int) -> bool:
        young = self.used.get(page, False)
        if page in self.used:
            self.used[page] = False
        self.counts["aged_young" if young else "aged_old"] += 1
        return young

    def promote(self, page: int) -> None:
        self.order.remove(page)
        self.order.append(page)
        self.seen[page] = self.generation

    def victim_lru(self) -> int:
        while True:
            page = self.order[0]
            if self.generation - self.seen[page] < 2:
                for other in list(self.order):
                    if self.ask(other):
                        self.promote(other)
                self.generation += 1
            elif self.ask(page):
                self.promote(page)
            else:
                return page

    def victim_clock(self) -> int:
        while True:
            page, self.hand = self.hand, (self.hand + 1) % (1 << 14)
            if self.state.get(page) == "present" and not self.ask(page):
                return page

    def fault(self, page: int) -> None:
        retry = False
        if self.state.get(page) != "present":
            while len(self.order) >= self.limit:
                victim = self.victim_lru() if self.lru else self.victim_clock()
                self.order.remove(victim)
                self.used.pop(victim, None)
                self.state[victim] = "disk"
                self.counts["swap_outs"] += 1
                retry = True
            self.counts["swap_ins"] += self.state.get(page) == "disk"
            self.state[page] = "present"
            self.order.append(page)
            self.seen[page] = self.generation
        if retry:
            self.counts["retries"] += 1
        else:
            self.used[page] = True

    def access(self, page: int) -> None:
        wanted = [*self.TABLES, page]
        while wanted:
            for at in wanted:
                if at not in self.used:
                    self.fault(at)
                    break
                self.used[at] = True
            else:
                return


@pytest.mark.parametrize("reclaim", ["clock", "lru"])
@examples
@given(pages=st.lists(st.lists(st.integers(16, 45), max_size=40), max_size=12))
def test_which_pages_go(reclaim: str, pages: list[list[int]]) -> None:
    """Against the rules written down plainly: the same verdicts and the same traffic after every access."""
    config = EPT.replace(host_memory="80k", host_reclaim=reclaim, walk_caches=False)
    machine, model = flat(config), Reclaimed(20, reclaim == "lru")
    for page in (*range(16, 36), *(page for some in pages for page in some)):
        machine.invlpg(page << 12)  # every access is seen: no translation is cached
        machine.access(page << 12, "w")
        model.access(page)
        counters = machine.vmm.counters()
        assert {name: counters[name] for name in model.counts} == model.counts
        assert counters["resident"] == len(model.order) <= 20
