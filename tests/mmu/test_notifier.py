"""The host changes what is behind pages while the guest runs, and merges equal ones (kvm_policy.md §6)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, ConfigError, Host, Op, StateError
from tests.support.flat_guest import PAGE, counted, exits, flat
from tests.support.vmm_tables import leaves

EPT = Config(memory="64M", mmu="ept", kvm="6.1", vpid=True, host_pages="untouched")
NO_FLAGS = EPT.replace(ept_ad=False)
SHADOW = EPT.replace(mmu="shadow")

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "40")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)


# ---- equal pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kvm", ["6.1", "slides"])
@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_merged_pages(mmu: str, kvm: str) -> None:
    """Read-only, one page of the host's; a write gives a page its own again and leaves the others alone."""
    machine = flat(EPT.replace(mmu=mmu, kvm=kvm))
    pages = [PAGE, PAGE + 0x3000, PAGE + 0x9000]
    for page in pages:
        machine.store(page, 77)
    (resident,) = counted(machine, "resident")
    numbers = [page >> 12 for page in pages]
    assert machine.vmm.merge(0, [*numbers, 0x3333]) == 3  # the last was never touched
    assert counted(machine, "merged", "copied", "resident") == [3, 0, resident - 2]
    was = exits(machine)
    for page in pages:
        assert machine.access(page).gpa == page
    # Linux 6.1 takes the entries; before, they stay, read-only
    assert exits(machine) == was + (3 if kvm == "6.1" else 0)
    assert not [leaf for leaf in leaves(machine) if leaf.gpa in pages and leaf.w]
    was = exits(machine)
    machine.store(pages[1], 78)
    assert exits(machine) - was == 2  # the write is copied, and begun again
    machine.store(pages[1] + 8, 79)
    assert exits(machine) - was == 2
    assert counted(machine, "copied", "resident") == [1, resident - 1]
    assert [int(machine.guest_memory.u64[page >> 3]) for page in pages] == [77, 78, 77]
    assert not machine.vmm.swap_out(0, numbers[0])
    assert machine.vmm.merge(0, numbers) == 0
    for page in pages:
        machine.store(page, 5)
    assert counted(machine, "copied", "resident") == [3, resident]
    with pytest.raises(StateError, match="differ"):
        machine.vmm.merge(0, [numbers[0], numbers[1]])
    with pytest.raises(StateError, match="twice"):
        machine.vmm.merge(0, [numbers[0], numbers[0]])


# ---- changes under way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [EPT, NO_FLAGS, SHADOW], ids=["A flags", "no A flags", "shadow"])
def test_a_fault_waits_for_the_end(config: Config) -> None:
    machine = flat(config)
    for page in (PAGE, PAGE + 0x1000):
        machine.access(page, "w")
    machine.vmm.invalidate_range_start(0, PAGE >> 12, 1)
    for number in range(1, 3):
        with pytest.raises(StateError, match=rf"{PAGE:#x}.*invalidate_range_end"):
            machine.access(PAGE)
        assert counted(machine, "retries") == [number]
        assert PAGE not in {leaf.gpa for leaf in leaves(machine)}
    assert machine.access(PAGE + 0x1000, "w").gpa == PAGE + 0x1000
    assert machine.access(PAGE + 0x2000, "w").gpa == PAGE + 0x2000
    machine.vmm.invalidate_range_end(0)
    assert machine.access(PAGE, "w").gpa == PAGE
    assert counted(machine, "retries") == [2]
    for wrong in (
        lambda: machine.vmm.invalidate_range_end(0),
        lambda: machine.vmm.invalidate_range_start(0, 0, 1 << 20),
    ):
        with pytest.raises(StateError, match="slot 0"):
            wrong()
    with pytest.raises(StateError, match="clear=True"):
        machine.vmm.young(0, 0, flush=True)
    with pytest.raises(ConfigError, match="host_reclaim"):
        EPT.replace(host_reclaim="fifo")


def test_neighbours_are_not_prefetched_from_pages_on_their_way() -> None:
    """The fault beside them maps the other pages of its eight, but none of a slot that is being changed."""
    for change in (False, True):
        machine = flat(EPT.replace(tdp_mmu=False))
        for page in range(8):
            machine.access(PAGE + (page << 12), "w")
        machine.vmm.invalidate_range_start(0, PAGE >> 12, 8)
        machine.vmm.invalidate_range_end(0)
        if change:
            machine.vmm.invalidate_range_start(0, (PAGE >> 12) + 4, 4)
        machine.access(PAGE)
        mapped = {leaf.gpa for leaf in leaves(machine)}
        assert (PAGE + 0x1000 in mapped) is not change
        assert (PAGE + 0x5000 in mapped) is not change


PAGES = 12
steps = st.lists(
    st.one_of(
        st.tuples(st.just("access"), st.integers(0, 1), st.integers(0, PAGES - 1), st.booleans()),
        st.tuples(st.just("access"), st.integers(0, 1), st.integers(0, PAGES - 1), st.booleans()),
        st.tuples(st.just("move"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("start"), st.integers(0, 2 * PAGES - 1), st.integers(1, 6)),
        st.tuples(st.just("end")),
        st.tuples(st.just("young"), st.integers(0, 2 * PAGES - 1), st.booleans()),
        st.tuples(st.just("swap"), st.integers(0, 2 * PAGES - 1)),
        st.tuples(st.just("merge"), st.integers(0, 2 * PAGES - 1), st.integers(0, 2 * PAGES - 1)),
    ),
    min_size=5,
    max_size=60,
)


class TwoVcpus:
    """A machine of two vCPUs on two CPUs, each in an address space of its own with all its pages mapped."""

    def __init__(self, config: Config) -> None:
        self.host = Host([(config, 2)], cpus=2)
        self.cpu = [0, 1]
        self.gpa = [[0] * PAGES, [0] * PAGES]
        for vcpu in (0, 1):
            for page in range(PAGES):
                self.gpa[vcpu][page] = self.access(vcpu, page, True)
        self.all = sorted(gpa for mine in self.gpa for gpa in mine)
        self.machine = self.host.machines[0]

    def access(self, vcpu: int, page: int, write: bool) -> int:
        out = np.zeros(1, np.uint64)
        op, size = np.array([Op.WRITE if write else Op.READ], np.uint8), np.ones(1, np.uint8)
        self.host.run(vcpu, self.cpu[vcpu], op, size, np.array([(1 << 40) + (page << 12)], np.uint64), out)
        return int(out[0])


BEHIND = [
    EPT,
    NO_FLAGS,
    NO_FLAGS.replace(ageing="zap", vpid=False),
    EPT.replace(tdp_mmu=False),
    EPT.replace(kvm="slides"),
    SHADOW,
    SHADOW.replace(kvm="slides", vpid=False),
]


@examples
@given(steps, st.integers(0, len(BEHIND) - 1))
def test_interleavings_of_vcpus_and_the_host(taken: list[tuple[Any, ...]], which: int) -> None:
    """After the start no vCPU reaches a page, by tables or by what is cached; nothing maps it before the end; a fault
    that wants it begins anew; every other access comes to its page."""
    both = TwoVcpus(BEHIND[which])
    vmm = both.machine.vmm
    under_way, span, taken_away, shared = 0, range(0), set[int](), set[int]()

    def changed(first: int, last: int) -> None:
        # KVM keeps one range: what lies between two is held back as well, until all have ended
        nonlocal span
        span = range(min(first, span.start), max(last, span.stop)) if span else range(first, last)
        taken_away.update(range(first, last))

    for kind, *rest in taken:
        if kind == "access":
            vcpu, page, write = rest
            gpa = both.gpa[vcpu][page]
            before = vmm.counters()["retries"]
            try:
                came = both.access(vcpu, page, write)
            except StateError:
                if write and gpa >> 12 in shared:  # the host copies the page, which is one more change
                    changed(gpa >> 12, (gpa >> 12) + 1)
                assert gpa >> 12 in span
                assert vmm.counters()["retries"] == before + 1
            else:
                assert came == gpa
                assert gpa >> 12 not in taken_away
            if write:
                shared.discard(gpa >> 12)
        elif kind == "move":
            both.cpu[rest[0]] = rest[1]
        elif kind == "start":
            first, last = both.all[rest[0]] >> 12, (both.all[rest[0]] >> 12) + rest[1]
            vmm.invalidate_range_start(0, first, rest[1])
            changed(first, last)
            under_way += 1
        elif kind == "end" and under_way:
            vmm.invalidate_range_end(0)
            under_way -= 1
            if not under_way:
                taken_away.clear()
                span = range(0)
        elif kind == "young":
            vmm.young(0, both.all[rest[0]] >> 12, clear=True, flush=rest[1])
        elif kind == "swap":
            number = both.all[rest[0]] >> 12
            if vmm.swap_out(0, number) and under_way:
                changed(number, number + 1)
        elif kind == "merge" and rest[0] != rest[1]:
            numbers = [both.all[number] >> 12 for number in rest]
            if vmm.merge(0, numbers):
                shared.update(numbers)
                if under_way and BEHIND[which].kvm == "6.1":
                    for number in numbers:
                        changed(number, number + 1)
        assert not taken_away & {leaf.gpa >> 12 for leaf in leaves(both.machine)}
    for _ in range(under_way):
        vmm.invalidate_range_end(0)
    for vcpu in (0, 1):
        assert [both.access(vcpu, page, True) for page in range(PAGES)] == both.gpa[vcpu]
