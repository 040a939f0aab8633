"""A host with less memory than its guest uses, dirty logs by hand and in a ring, few shadow pages."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Machine, StateError, interleave, read_trace, simulate
from fastmmu.machine.simulation import Simulation
from fastmmu.trace import Trace
from fastmmu.trace.bundle import bundled

LINUX = Config(memory="256M", kvm="6.1", vpid=True)
SAME = ("accesses", "guest_faults", "pages_touched", "kernel_accesses", "cr3_switches", "invlpgs")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return read_trace(bundled()["sqlite"]).head(400_000)


@pytest.mark.parametrize("mmu", ["shadow", "ept"])
def test_half_the_memory(trace: Trace, mmu: str) -> None:
    """The guest sees nothing of it; pages go to disk and come back; those in use are kept."""
    config = LINUX.replace(mmu=mmu, host_pages="untouched")
    whole = simulate(trace, config)
    pages = whole.counters["pages_touched"]
    run = Simulation(config.replace(host_memory=pages * 4096 // 2))
    for batch in trace.batches():
        run.feed(batch)
    half = run.result()
    assert {key: half.counters[key] for key in SAME} == {key: whole.counters[key] for key in SAME}
    counted = run.machine.vmm.counters()
    assert counted["swap_outs"] > pages / 4
    assert 0 < counted["swap_ins"] <= counted["swap_outs"]
    assert half.counters["vm_exits"] > whole.counters["vm_exits"]


def test_exits_grow_with_switches_under_shadow_paging_alone(trace: Trace) -> None:
    """P7: EPT exits at the first touch of a page, however often the guest switches between address spaces."""
    exits: dict[str, list[int]] = {"ept": [], "shadow": []}
    for switch_every in (8000, 500):
        several = interleave([trace.head(40_000)] * 4, switch_every)
        for mmu, counts in exits.items():
            counters = simulate(several, LINUX.replace(mmu=mmu)).counters
            counts.append(counters["vm_exits"])
            if mmu == "ept":
                # each page once, and what the kernel keeps beside the program's: tables, its own memory
                assert counters["pages_touched"] <= counters["ept_build"] < 1.2 * counters["pages_touched"] + 50
    few, many = exits["ept"]
    assert abs(many - few) < 0.01 * few
    few, many = exits["shadow"]
    assert many > few + 200


def test_few_shadow_pages(trace: Trace) -> None:
    """Six address spaces in shadow pages for two."""
    trace = interleave([trace.head(40_000)] * 6, 4000)
    whole = simulate(trace, LINUX.replace(mmu="shadow"))
    run = Simulation(LINUX.replace(mmu="shadow", table_pages=20))
    for batch in trace.batches():
        run.feed(batch)
    few = run.result()
    assert {key: few.counters[key] for key in SAME} == {key: whole.counters[key] for key in SAME}
    assert run.machine.vmm.counters()["recycled"] > 20
    assert few.counters["vmm_tables"] <= 20 < whole.counters["vmm_tables"]
    assert few.counters["vm_exits"] > whole.counters["vm_exits"]


def test_logs_by_hand_and_in_a_ring(trace: Trace) -> None:
    """Every kind of log tells the same pages of the same run."""
    logs = []
    for kind in ("bitmap", "manual", "initially set", "ring", "pml"):
        run = Simulation(LINUX.replace(mmu="ept", pml=kind == "pml"))
        batches = trace.batches()
        run.feed(next(batches)[:100_000])
        vmm = run.machine.vmm
        if kind == "ring":
            vmm.use_dirty_ring(1024)
        vmm.start_dirty_log(0, manual=kind in ("manual", "initially set"), initially_set=kind == "initially set")
        if kind == "initially set":
            assert vmm.dirty_log(0).all()
            vmm.clear_dirty_log(0, 0, (256 << 20) >> 12)
        for batch in batches:
            run.feed(batch)
        logs.append(vmm.dirty_log(0))
        assert vmm.dirty_log(0).any() == (kind in ("manual", "initially set"))
    assert logs[0].sum() > 50
    assert all(np.array_equal(log, logs[0]) for log in logs)


def test_what_is_refused() -> None:
    machine = Machine(LINUX.replace(mmu="ept"), guest_kernel=False)
    vmm = machine.vmm
    for wrong in (lambda: vmm.dirty_log(0), lambda: vmm.clear_dirty_log(0, 0, 64), lambda: vmm.start_dirty_log(1)):
        with pytest.raises(StateError):
            wrong()
    with pytest.raises(StateError, match="1000 entries"):
        vmm.use_dirty_ring(1000)
    vmm.start_dirty_log(0, manual=True)
    with pytest.raises(StateError, match="multiples of 64"):
        vmm.clear_dirty_log(0, 1, 64)
    with pytest.raises(StateError, match="chosen once"):
        vmm.use_dirty_ring(1024)
    with pytest.raises(StateError, match="slot 0"):
        vmm.delete_slot(0)
    for page in (1 << 40, 1 << 70, -1):
        for wrong in (
            lambda page=page: vmm.swap_out(0, page),
            lambda page=page: vmm.young(0, page),
            lambda page=page: vmm.touch(0, 0, page),
            lambda page=page: vmm.merge(0, [page]),
            lambda page=page: vmm.invalidate_range_start(0, page, 1),
            lambda page=page: vmm.clear_dirty_log(0, page, 64),
        ):
            with pytest.raises(StateError, match=f"no pages? .*{page}"):
                wrong()
        with pytest.raises(StateError, match=f"no slot {page}"):
            vmm.dirty_log(page)
    for ratio in (-1, 1 << 32):
        with pytest.raises(StateError, match=f"ratio=({ratio}|{ratio:#x}) "):
            vmm.recover_nx(ratio)
    for value in (-1, 1 << 64):
        for wrong in (
            lambda value=value: machine.access(value),
            lambda value=value: machine.store(value, 0),
            lambda value=value: machine.load(value),
            lambda value=value: machine.invlpg(value),
            lambda value=value: machine.mov_cr0(value),
            lambda value=value: machine.mov_cr3(value),
            lambda value=value: machine.mov_cr4(value),
            lambda value=value: machine.wrmsr_efer(value),
        ):
            with pytest.raises(StateError, match=f"=({value}|{value:#x}) does not fit 64 bits"):
                wrong()
        with pytest.raises(StateError, match=f"an access of {value} bytes"):
            machine.access(0, size=value)
    with pytest.raises(ConfigError, match="table_pages"):
        LINUX.replace(table_pages=15)
    with pytest.raises(ConfigError, match="pml"):
        LINUX.replace(mmu="shadow", pml=True)
