"""Dirty logs of machines with several vCPUs on several CPUs: nothing written is missing (kvm_policy.md §4, §13 P5)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, Host, Op, StateError
from tests.support.vmm_tables import leaves

EPT = Config(memory="64M", mmu="ept", kvm="6.1", vpid=True)
LARGE = EPT.replace(host_pages="2m")
SHADOW = EPT.replace(mmu="shadow")
CONFIGS = [
    EPT,
    EPT.replace(pml=True),
    EPT.replace(ept_ad=False, host_pages="untouched"),
    EPT.replace(tdp_mmu=False, vpid=False),
    LARGE,
    LARGE.replace(pml=True),
    LARGE.replace(pml=True, eager_page_split=False),
    LARGE.replace(eager_page_split=False, tdp_mmu=False),
    LARGE.replace(nx_huge_pages=True, ept_ad=False),
    EPT.replace(kvm="slides"),
    SHADOW,
    SHADOW.replace(host_pages="2m", vpid=False),
    SHADOW.replace(kvm="slides", host_pages="2m"),
    # a host short of memory, which merges equal pages as well; a guest whose memory types count
    EPT.replace(pml=True, host_memory="192k", noncoherent_dma=True),
    EPT.replace(ept_ad=False, host_memory="192k", host_reclaim="lru"),
    EPT.replace(kvm="slides", host_memory="192k", noncoherent_dma=True),
    SHADOW.replace(host_memory="256k", noncoherent_dma=True),
]
KINDS = ("bitmap", "manual", "initially set", "ring")
VCPUS, CPUS, PAGES = 3, 2, 24
ALL = (64 << 20) >> 12

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "10")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)
kinds_of_events = st.sampled_from([Op.READ, Op.WRITE, Op.WRITE, Op.MODIFY, Op.FETCH, Op.UNMAP])
turns = st.tuples(
    st.just("run"),
    st.integers(0, VCPUS - 1),
    st.integers(0, CPUS - 1),
    st.lists(st.tuples(kinds_of_events, st.integers(0, PAGES - 1)), min_size=1, max_size=12),
)
looks = st.one_of(
    st.sampled_from([("log",), ("log",), ("young",), ("restart",), ("merge",), ("types",)]),
    st.tuples(st.just("swap"), st.integers(0, 100)),
    st.tuples(st.just("remove"), st.integers(0, VCPUS - 1)),
)
schedules = st.lists(st.one_of(turns, turns, turns, looks), min_size=3, max_size=30)


class Logged:
    """A machine of several vCPUs whose slot 0 is logged, and what it must have written since the log was read."""

    def __init__(self, config: Config, kind: str) -> None:
        self.host = Host([(config, VCPUS)], cpus=CPUS)
        self.machine, self.kind = self.host.machines[0], kind
        self.vmm = self.machine.vmm
        if kind == "ring":
            self.vmm.use_dirty_ring(1024)
        self.words = self.machine.guest_memory.u64
        self.gone: set[int] = set()
        self.held = 0  # the vCPU whose registers the machine shows
        self.seen: set[int] = set()
        self.written: set[int] = set()
        self.every_vcpu()  # before the log: large pages there are
        self.start()

    def start(self) -> None:
        self.vmm.start_dirty_log(0, manual=self.kind in KINDS[1:3], initially_set=self.kind == "initially set")
        if self.kind == "initially set":
            assert self.vmm.dirty_log(0).all()
            self.vmm.clear_dirty_log(0, 0, ALL)
        self.begin()

    def begin(self) -> None:
        self.written: set[int] = set()
        self.before = self.words.copy()

    def run(self, vcpu: int, cpu: int, events: list[tuple[Op, int]]) -> None:
        if vcpu in self.gone:
            return
        self.held = vcpu
        op = np.array([kind for kind, _ in events], np.uint8)
        addr = np.array([(1 << 40) + (page << 12) for _, page in events], np.uint64)
        out = np.zeros(len(events), np.uint64)
        self.host.run(vcpu, cpu, op, np.ones(len(events), np.uint8), addr, out)
        self.written |= {int(gpa) >> 12 for gpa in out[(op == Op.WRITE) | (op == Op.MODIFY)]}
        self.seen |= {int(gpa) >> 12 for gpa in out[op <= Op.FETCH]}

    def every_vcpu(self) -> None:
        for vcpu in range(VCPUS):
            self.run(vcpu, vcpu % CPUS, [(Op.WRITE, page) for page in range(0, PAGES, 5)])

    def finish(self) -> None:
        """Writes of which a translation is cached, and then none is allowed; aged pages lose it without a flush."""
        for ageing in (False, True):
            self.log()
            self.every_vcpu()
            if ageing:
                self.young()
                self.log()
                self.every_vcpu()
        self.log()

    def young(self) -> None:
        for page in list(self.written):
            self.vmm.young(0, page, clear=True)

    def restart(self) -> None:
        self.vmm.stop_dirty_log(0)
        self.start()

    def merge(self) -> None:
        """Pages of the programs hold zeros, but for those that are tables by now."""
        self.vmm.merge(0, [page for page in sorted(self.seen) if not self.words[page << 9 :][:512].any()])

    def types(self) -> None:
        """With non-coherent DMA every table goes."""
        self.vmm.guest_caching(uncached=True)

    def swap(self, which: int) -> None:
        for page in sorted(self.seen)[which % 7 :: 3]:
            self.vmm.swap_out(0, page)

    def remove(self, vcpu: int) -> None:
        if len(self.gone | {vcpu}) < VCPUS and vcpu not in self.gone:
            self.gone.add(vcpu)
            self.held = vcpu
            self.host.remove(vcpu)

    def log(self) -> None:
        """Data written by the programs, and every word that is another now: tables, A and D flags."""
        changed = {int(word) >> 9 for word in np.flatnonzero(self.words != self.before)}
        log = set(np.flatnonzero(self.vmm.dirty_log(0)).tolist())
        assert self.written | changed <= log
        if self.kind in KINDS[1:3]:
            self.vmm.clear_dirty_log(0, 0, ALL)
        # under shadow paging the CR3 of a vCPU that ended may be one of tables that have gone; the EPT is that of all
        if self.machine.config.mmu == "ept" or self.held not in self.gone:
            assert not [leaf for leaf in leaves(self.machine) if leaf.size > 4096 and leaf.w]
        self.begin()


@pytest.mark.parametrize("kind", KINDS)
def test_every_configuration_in_every_kind_of_log(kind: str) -> None:
    """What each example below ends with, for all of them."""
    for config in CONFIGS:
        Logged(config, kind).finish()


@pytest.mark.parametrize("kind", KINDS)
@examples
@given(schedules, st.integers(0, len(CONFIGS) - 1))
def test_nothing_written_by_any_vcpu_is_missing(kind: str, schedule: list[tuple[Any, ...]], which: int) -> None:
    """P5, at any interleaving of vCPUs that move between CPUs, or end, with looks at the log, ageing, new logs, pages
    taken and merged, tables that all go."""
    logged = Logged(CONFIGS[which], kind)
    for what, *rest in schedule:
        getattr(logged, what)(*rest)
    logged.finish()


@pytest.mark.parametrize("cpus", [1, 2])
def test_each_vcpu_logs_by_the_processor(cpus: int) -> None:
    """All of a machine's vCPUs, not the one that was held when the log began; and none overwrites another's entries."""
    host = Host([(EPT.replace(pml=True), VCPUS)], cpus=cpus)
    gpa = np.zeros(1, np.uint64)
    store = np.array([Op.WRITE], np.uint8), np.array([8], np.uint8)
    pages = [np.array([(1 << 40) + (page << 12)], np.uint64) for page in range(3)]
    for vcpu in range(VCPUS):
        for page in pages:
            host.run(vcpu, vcpu % cpus, *store, page)
    vmm = host.machines[0].vmm
    vmm.start_dirty_log(0)
    vmm.dirty_log(0)
    written = set()
    exits = host.machines[0].vmm.counters()["dirty_faults"]
    for page in pages:  # in turns: every one has entries in its log when the others run
        for vcpu in range(VCPUS):
            host.run(vcpu, vcpu % cpus, *store, page, gpa)
            written.add(int(gpa[0]) >> 12)
    assert len(written) == 3 * VCPUS
    assert written <= set(np.flatnonzero(vmm.dirty_log(0)).tolist())
    assert vmm.counters()["dirty_faults"] == exits


@pytest.mark.parametrize("config", [EPT, EPT.replace(kvm="slides"), SHADOW], ids=["6.1", "slides", "shadow"])
def test_a_log_begun_when_a_vcpu_has_ended(config: Config) -> None:
    """Others flush, though the machine was left holding the one that ended."""
    host = Host([(config, 2), (config, 1)], cpus=2)
    store = np.array([Op.WRITE], np.uint8), np.array([8], np.uint8), np.array([1 << 40], np.uint64)
    gpa = np.zeros(1, np.uint64)
    for vcpu, cpu in ((1, 0), (2, 0), (0, 1)):
        host.run(vcpu, cpu, *store)
    host.remove(1)
    vmm = host.machines[0].vmm
    vmm.start_dirty_log(0)
    host.run(0, 1, *store, gpa)
    assert vmm.dirty_log(0)[int(gpa[0]) >> 12]


@pytest.mark.parametrize("kvm", ["6.1", "slides"])
def test_every_vcpu_gets_the_new_root(kvm: str) -> None:
    """All tables went while one vCPU ran: the others have the new EPT from their next VM entry on."""
    host = Host([(EPT.replace(kvm=kvm, noncoherent_dma=True), 2)], cpus=2)
    store = np.array([Op.WRITE], np.uint8), np.array([8], np.uint8), np.array([1 << 40], np.uint64)
    found = []
    for _ in range(3):
        gpa = np.zeros((2, 1), np.uint64)
        for vcpu in (0, 1):
            host.run(vcpu, vcpu, *store, gpa[vcpu])
        found.append(gpa.tolist())
        roots = [host.place(vcpu, vcpu).vmcs["eptp"] for vcpu in (0, 1)]
        assert roots[0] == roots[1]
        host.machines[0].vmm.guest_caching(uncached=True)
    assert found[0] == found[1] == found[2]


def stored(host: Host, vcpu: int, cpu: int, first: int, pages: int) -> set[int]:
    """Pages that stores by a vCPU to so many pages from its page `first` on came to."""
    op, gpa = np.full(pages, Op.WRITE, np.uint8), np.zeros(pages, np.uint64)
    addr = np.array([(1 << 40) + (page << 12) for page in range(first, first + pages)], np.uint64)
    host.run(vcpu, cpu, op, np.ones(pages, np.uint8), addr, gpa)
    return {int(at) >> 12 for at in gpa}


@pytest.mark.parametrize("pml", [False, True])
def test_each_vcpu_has_a_ring(pml: bool) -> None:
    """Soft full is that of the vCPU that runs; its exit to user space reads all of them, and so does a look."""
    room = 1024 - 64 - 512 * pml
    host = Host([(EPT.replace(pml=pml), 3)], cpus=2)
    vmm = host.machines[0].vmm
    for vcpu in range(3):
        stored(host, vcpu, vcpu % 2, 0, 1000)
    vmm.use_dirty_ring(1024)
    vmm.start_dirty_log(0)
    written = set[int]()
    for vcpu in range(3):  # together more than one ring holds
        written |= stored(host, vcpu, vcpu % 2, 0, room // 2)
    assert vmm.counters()["ring_full"] == 0
    assert written <= set(np.flatnonzero(vmm.dirty_log(0)).tolist())
    for vcpu in (0, 2):
        written |= stored(host, vcpu, vcpu % 2, 0, room // 2)
    assert vmm.counters()["ring_full"] == 0
    written |= stored(host, 1, 1, 0, 1000)
    assert vmm.counters()["ring_full"] == 1
    assert written <= set(np.flatnonzero(vmm.dirty_log(0)).tolist())


def test_a_ring_is_read_where_vcpus_leave_without_a_handled_exit() -> None:
    """The host's timer takes the CPU: the processor's log is read into the ring, and that before it is full."""
    host = Host([(EPT.replace(pml=True), 2)], cpus=1)
    vmm = host.machines[0].vmm
    for vcpu in (0, 1):
        stored(host, vcpu, 0, 0, 2000)
    vmm.use_dirty_ring(1024)
    vmm.start_dirty_log(0)
    for _ in range(3):
        written = set[int]()
        for first in range(0, 2000, 400):
            written |= stored(host, 0, 0, first, 400)
            host.place(1, 0)
        assert written <= set(np.flatnonzero(vmm.dirty_log(0)).tolist())
    assert vmm.counters()["ring_full"] >= 3


def test_what_a_host_refuses() -> None:
    host = Host([(EPT, 2)], cpus=1)
    with pytest.raises(StateError, match="vCPU 2 is outside"):
        host.place(2, 0)
    for cpu in (-1, 1, 1 << 70):
        with pytest.raises(StateError, match=rf"CPU {cpu} is outside 0\.\.0"):
            host.place(0, cpu)
    host.remove(1)
    for ended in (lambda: host.place(1, 0), lambda: host.remove(1)):
        with pytest.raises(StateError, match=r"vCPU 1 has ended, by Host\.remove"):
            ended()
    assert host.counters(1)["accesses"] == 0
