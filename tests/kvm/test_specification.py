"""KVM's MMU, the kernels against the executable specification: random programs of a guest and of the host under it.

After every step: what came of it, VM exits by reason and by class, KVM's statistics, leaves and marks, table pages. The
machine's TLB is emptied before each step, so that every access walks, as those of the specification do.
FASTMMU_EXAMPLES=N runs N programs, at random.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, ExitLog, GuestState, Machine
from fastmmu.errors import BusError
from fastmmu.exits import ExitReason, FaultClass
from tests.agreement.specified import SpecifiedMachine
from tests.support.guest_layouts import Regime, start
from tests.support.host_programs import SLOTS, Runner, Step, regimes, steps
from tests.support.vmm_tables import check_reverse_maps, mapped

SLIDES = Config(memory="64M", exit_log=10_000)
LINUX = Config(memory="64M", kvm="6.1", vpid=True, exit_log=10_000)
CONFIGS = {
    "slides-shadow": SLIDES.replace(mmu="shadow"),
    "slides-shadow-2m": SLIDES.replace(mmu="shadow", host_pages="2m"),
    "slides-ept-2m": SLIDES.replace(mmu="ept", host_pages="2m"),
    "shadow": LINUX.replace(mmu="shadow"),
    "shadow-2m": LINUX.replace(mmu="shadow", host_pages="2m"),
    "shadow-untouched": LINUX.replace(mmu="shadow", host_pages="untouched"),
    "shadow-sync": LINUX.replace(mmu="shadow", unsync=False),
    "shadow-few": LINUX.replace(mmu="shadow", table_pages=20),
    "shadow-no-mmio-caching": LINUX.replace(mmu="shadow", mmio_caching=False),
    "tdp": LINUX.replace(mmu="ept"),
    "tdp-2m": LINUX.replace(mmu="ept", host_pages="2m"),
    "tdp-2m-nx": LINUX.replace(mmu="ept", host_pages="2m", nx_huge_pages=True),
    "tdp-pml": LINUX.replace(mmu="ept", pml=True, host_pages="2m"),
    "tdp-pml-lazy": LINUX.replace(mmu="ept", pml=True, host_pages="2m", eager_page_split=False),
    "tdp-noad": LINUX.replace(mmu="ept", ept_ad=False),
    "ept-untouched": LINUX.replace(mmu="ept", tdp_mmu=False, host_pages="untouched"),
    "ept-2m": LINUX.replace(mmu="ept", tdp_mmu=False, host_pages="2m"),
    "ept-pml-2m": LINUX.replace(mmu="ept", tdp_mmu=False, pml=True, host_pages="2m"),
    "ept-noad-2m": LINUX.replace(mmu="ept", tdp_mmu=False, ept_ad=False, host_pages="2m"),
    "ept-few": LINUX.replace(mmu="ept", tdp_mmu=False, table_pages=20),
    "ept-2m-nx": LINUX.replace(mmu="ept", tdp_mmu=False, host_pages="2m", nx_huge_pages=True),
    "shadow-2m-nx": LINUX.replace(mmu="shadow", host_pages="2m", nx_huge_pages=True),
    "amd": LINUX.replace(mmu="ept", vendor="amd"),
    "shadow-2m-5.10": LINUX.replace(kvm="5.10", mmu="shadow", host_pages="2m"),
    "ept-2m-5.10": LINUX.replace(kvm="5.10", mmu="ept", tdp_mmu=False, host_pages="2m"),
    "ept-untouched-5.10": LINUX.replace(kvm="5.10", mmu="ept", tdp_mmu=False, host_pages="untouched"),
    "tdp-2m-5.10": LINUX.replace(kvm="5.10", mmu="ept", host_pages="2m"),
    "shadow-6.12": LINUX.replace(kvm="6.12", mmu="shadow"),
    "shadow-2m-nx-6.12": LINUX.replace(kvm="6.12", mmu="shadow", host_pages="2m", nx_huge_pages=True),
    "ept-2m-nx-6.12": LINUX.replace(kvm="6.12", mmu="ept", tdp_mmu=False, host_pages="2m", nx_huge_pages=True),
    "tdp-2m-nx-6.12": LINUX.replace(kvm="6.12", mmu="ept", host_pages="2m", nx_huge_pages=True),
    "amd-2m": LINUX.replace(mmu="ept", vendor="amd", host_pages="2m"),
    "amd-older-2m": LINUX.replace(mmu="ept", vendor="amd", tdp_mmu=False, host_pages="2m", nx_huge_pages=True),
    "amd-untouched": LINUX.replace(mmu="ept", vendor="amd", host_pages="untouched"),
    "amd-no-flush-by-asid": LINUX.replace(mmu="ept", vendor="amd", flush_by_asid=False, asids=3),
    "amd-shadow": LINUX.replace(mmu="shadow", vendor="amd"),
    "amd-shadow-2m": LINUX.replace(mmu="shadow", vendor="amd", host_pages="2m", asids=3),
    "amd-5.10": LINUX.replace(mmu="ept", vendor="amd", kvm="5.10", tdp_mmu=False),
    "amd-6.12": LINUX.replace(mmu="ept", vendor="amd", kvm="6.12"),
    "amd-6.12-shadow": LINUX.replace(mmu="shadow", vendor="amd", kvm="6.12"),
}
CLASSES = (
    *("pf_fixed", "pf_guest", "pf_emulate", "pf_spurious", "ept_build", "ept_spurious", "mmio"),
    *("violations_build", "violations_dirty", "violations_mmio"),
    *("violations_protected", "violations_swapped_in", "violations_spurious"),
)
VMM_CLASSES = (
    *("dirty_faults", "fast", "retries", "swap_ins", "mmio_marked", "prefetched"),
    *("unsynced", "synced", "pte_writes", "flooded", "splits", "recycled"),
)

UNSPECIFIED = {
    *("dirty_pages", "pml_full", "shadow_bytes", "max_mmu_rmap_size", "mmu_pde_zapped"),
    *("remote_tlb_flush", "irq_window_exits", "pages_1g"),
}
"""Statistics of `Vmm.stats` that the specification has not."""

RESERVED = 8
"""Of EXITINFO1 of a nested page fault: a mark of MMIO was met."""

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "6")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)


def machines(config: Config, regime: Regime, seed: int) -> tuple[Machine, SpecifiedMachine, int]:
    """Both, with the same memory; and CR3."""
    cr3, memory = start(seed)
    state = regime.registers(cr3)
    machine = Machine(config, guest_kernel=False, state=GuestState(**state), slots=SLOTS)
    specified = SpecifiedMachine(config, state=state, slots=SLOTS)
    for each in (machine, specified):
        for gpa, value in memory.items():
            each.guest_memory.u64[gpa >> 3] = value
    return machine, specified, cr3


def counted(machine: Any) -> dict[str, Any]:
    counters, vmm = machine.counters(), machine.vmm.counters()
    classes = {name: counters.get(name, 0) for name in CLASSES} | {name: vmm.get(name, 0) for name in VMM_CLASSES}
    violations = sum(n for name, n in classes.items() if name.startswith("violations"))
    classes |= {f"stats {name}": n for name, n in machine.vmm.stats().items() if name not in UNSPECIFIED}
    logged = machine.exit_log()
    log = log_of(logged) if isinstance(logged, ExitLog) else logged
    nested = sum(reason == ExitReason.NPF and not code & RESERVED for reason, code, *_ in log)
    assert violations == counters["exits_by_reason"].get("ept_violation", 0) + nested
    return {"exits": counters["exits_by_reason"], "log": log, **{name: n for name, n in classes.items() if n}}


def log_of(log: ExitLog) -> list[tuple[int, int, int, str]]:
    """Reason, qualification, error code and class of each exit."""
    fields = [log.records[name].tolist() for name in ("reason", "qualification", "error_code", "class")]
    return [(reason, q, code, FaultClass(of).name.lower()) for reason, q, code, of in zip(*fields, strict=True)]


def differing(have: dict[str, Any], want: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (of the kernels, as specified)}."""
    return {name: (have.get(name), want.get(name)) for name in have | want if have.get(name) != want.get(name)}


def tables(machine: Any) -> dict[str, Any]:
    pages = machine.vmm.table_pages()
    assert len(set(pages)) == len(pages)
    return {"leaves": mapped(machine, SLOTS), "table pages": set(pages)}


def specified_tables(machine: SpecifiedMachine) -> dict[str, Any]:
    return {"leaves": machine.kvm.leaves(), "table pages": set(machine.kvm.table_pages())}


def compare(config: Config, regime: Regime, seed: int, program: list[Step], flush: bool = True) -> int:
    """Runs the program on both; returns the number of steps done: it ends where a guest's table lies in no memory."""
    machine, specified, cr3 = machines(config, regime, seed)
    ours, theirs = Runner(machine, cr3), Runner(specified, cr3)
    before: dict[str, Any] = {}
    for number, step in enumerate(program):
        if flush:
            machine.tlb.reset()
        try:
            have = ours.step(step)
        except BusError:
            return number
        want = theirs.step(step)
        where = f"step {number}, {step}"
        assert have == want, f"{where}: {have} is specified as {want}"
        now = counted(machine)
        assert now == (then := counted(specified)), f"{where}: {differing(now, then)}"
        if now != before or step[0] not in ("access", "edit", "poke"):
            have_tables, want_tables = tables(machine), specified_tables(specified)
            for name, value in want_tables.items():
                surplus, missing = have_tables[name] - value, value - have_tables[name]
                assert not surplus | missing, f"{where}: {name} too many {surplus}, missing {missing}"
        before = now
    check_reverse_maps(machine)
    return len(program)


@pytest.mark.parametrize("name", CONFIGS)
def test_kernels_do_what_is_specified(name: str) -> None:
    @examples
    @given(regimes, st.integers(0, 1 << 20), steps)
    def check(regime: Regime, seed: int, program: list[Step]) -> None:
        compare(CONFIGS[name], regime, seed, program)

    check()


@pytest.mark.parametrize("vpid", [False, True])
def test_what_the_host_takes_between_instructions_is_in_no_tlb(vpid: bool) -> None:
    """The VMM runs after a VM exit: without VPID that flushes, so that the write to come faults and is logged."""
    all_ = 0x67
    machine = Machine(
        LINUX.replace(mmu="shadow", vpid=vpid), guest_kernel=False, state=GuestState(**Regime().registers(0))
    )
    for gpa, value in {0: 0x1000, 0x1000: 0x2000, 0x2000: 0x3000, 0x3000: 0x20_0000}.items():
        machine.guest_memory.u64[gpa >> 3] = value | all_
    machine.vmm.start_dirty_log(0)
    for _ in range(3):
        machine.access(0, "w")
        assert machine.vmm.dirty_log(0).nonzero()[0].tolist()[-1:] == [0x200]
