"""One trace, every scheme: the guest kernel does the same under each, however the VMM gets there."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, GuestState, Machine, Op, OutOfMemoryError, Trace, TraceError
from tests.support.event_lists import ALL_SCHEMES, events, program, real_trace, run, with_events

NATIVE = ALL_SCHEMES[0]
SYSTEM_EVENTS = with_events(
    program(6000),
    150,
    (Op.SWITCH, 1),
    (Op.WRITE, 0x5555_5555_5FFC),
    (Op.UNMAP, 0x5555_5555_5000),
    (Op.READ, 0x5555_5555_5010),
    (Op.SWITCH, 0),
    (Op.INVLPG, 0x40_0000),
    (Op.UNMAP, 0x5555_5555_6000),
    (Op.UNMAP, 0x1234_5000),
    (Op.INTERRUPT, 0x20),
    (Op.EXIT, 10),
)


def tables(machine: Machine) -> np.ndarray:
    """The block of guest memory in which the first 512 page tables lie."""
    return machine.guest_memory.u64[0x20_0000 >> 3 : 0x40_0000 >> 3].copy()


@pytest.mark.parametrize("pcid", [False, True], ids=["", "pcid"])
@pytest.mark.parametrize("pages", ["4k", "2m", "thp"])
@pytest.mark.parametrize("trace", [SYSTEM_EVENTS, real_trace(20_000)], ids=["events", "real"])
def test_addresses_faults_and_page_tables_are_the_same(trace: Trace, pages: str, pcid: bool) -> None:
    native = Machine(NATIVE.replace(pages=pages, pcid=pcid, memory="2G", thp_threshold=16))
    gpas = run(native, trace)
    for config in ALL_SCHEMES[1:]:
        for host_pages in ("4k", "2m"):
            machine = Machine(config.replace(
                pages=pages, pcid=pcid, memory="2G", thp_threshold=16, host_pages=host_pages, tlb="nehalem"
            ))  # fmt: skip
            assert np.array_equal(run(machine, trace), gpas)
            assert np.array_equal(tables(machine), tables(native))
            for name in ("guest_faults", "pages_touched", "collapses", "cr3_switches", "invlpgs", "kernel_accesses"):
                assert machine.counters()[name] == native.counters()[name]
    if pages == "thp":
        assert native.counters()["collapses"] > 0


_page = st.sampled_from([0x1000_0000 + 4096 * i for i in (0, 1, 2, 511, 512)] + [0x7FFF_FFFF_F000])
_event = st.one_of(
    st.tuples(st.sampled_from([Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH]), _page),
    st.tuples(st.sampled_from([Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH]), _page),
    st.tuples(st.sampled_from([Op.UNMAP, Op.INVLPG]), _page),
    st.tuples(st.just(Op.SWITCH), st.sampled_from([0, 1, 2, 4095])),
    st.sampled_from([(Op.EXIT, 10), (Op.INTERRUPT, 32)]),
)
_configs = st.builds(
    lambda **fields: Config(memory="256M", **fields),
    pages=st.sampled_from(["4k", "2m", "thp"]),
    pcid=st.booleans(),
    thp_threshold=st.integers(1, 4),
    host_pages=st.sampled_from(["4k", "2m"]),
)


@settings(max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "40")), derandomize="FASTMMU_EXAMPLES" not in os.environ)
@given(_configs, st.lists(st.lists(_event, min_size=1, max_size=20), min_size=1, max_size=10))
def test_random_events(config: Config, parts: list[list[tuple[Op, int]]]) -> None:
    """Every page of every process keeps a frame of its own until it is unmapped or collapsed."""
    trace = events(*(event for part in parts for event in part))
    machines = [Machine(config.replace(mmu=scheme.mmu, vpid=scheme.vpid)) for scheme in ALL_SCHEMES]
    native, *others = (run(machine, trace).tolist() for machine in machines)
    assert others == [native] * 4
    for machine in machines[1:]:
        assert np.array_equal(tables(machine), tables(machines[0]))
    if config.pages == "thp":
        return
    shift, process = 12 if config.pages == "4k" else 21, 0
    frames: dict[tuple[int, int], int] = {}
    for (op, addr), gpa in zip((event for part in parts for event in part), native, strict=True):
        key = (process, addr >> shift)
        if op == Op.SWITCH:
            process = addr
        elif op == Op.UNMAP:
            frames.pop(key, None)
        elif op <= Op.FETCH:
            assert frames.setdefault(key, gpa >> shift) == gpa >> shift
            assert gpa & 0xFFF == 0
    assert len(set(frames.values())) == len(frames)


def test_a_pcid_given_to_two_processes_mixes_nothing_up() -> None:
    """There are 4095 PCIDs for the kernel to give; processes 0 and 4095 share one."""
    trace = events(*((op, operand) for process in (0, 4095, 0, 1, 4095) for op, operand in (
        (Op.SWITCH, process), (Op.WRITE, 0x1000_0000), (Op.READ, 0x1000_0000))))  # fmt: skip
    for config in ALL_SCHEMES:
        machine = Machine(config.replace(pcid=True))
        gpas = run(machine, trace).reshape(-1, 3)[:, 1:]
        first, other, again, third, back = (set(pair) for pair in gpas.tolist())
        assert len(first) == len(other) == len(third) == 1
        assert first == again != other == back
        assert third not in (first, other)
        assert machine.counters()["guest_faults"] == 3


def test_pcids_keep_translations_over_a_switch() -> None:
    trace = events(*((op, operand) for i in range(40) for op, operand in (
        (Op.SWITCH, i % 2), (Op.READ, 0x1000_0000))))  # fmt: skip
    without, with_pcid = (
        run_counters(NATIVE.replace(pcid=pcid, premapped=True), trace)["tlb_misses"] for pcid in (False, True)
    )
    assert (without, with_pcid) == (40, 2)


def run_counters(config: Config, trace: Trace) -> dict[str, int]:
    machine = Machine(config)
    run(machine, trace)
    return machine.counters()


# ---- premapped ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", ["4k", "2m", "thp"])
def test_premapped_runs_see_the_tlb_alone(pages: str) -> None:
    counters = {}
    changes = {"pages": pages, "premapped": True, "memory": "2G", "l1d": "4/2", "l1i": "4/2", "exit_every": 40}
    for config in ALL_SCHEMES:
        c = counters[config.name] = run_counters(config.replace(**changes), SYSTEM_EVENTS)
        for name in ("kernel_accesses", "guest_faults", "retries", "ad_writes", "pf_emulate", "collapses"):
            assert c[name] == 0
        exits = {"cpuid": c["exit_instructions"], "external_interrupt": c["interrupts"]}
        if config.mmu == "shadow":
            exits |= {"cr_access": c["cr3_switches"], "invlpg": c["invlpgs"]}
        assert c["exits_by_reason"] == ({} if config.mmu == "native" else exits)
    for name in ("tlb_misses", "stlb_hits", "l1d_hits", "l1i_hits", "walks"):
        assert counters["native"][name] == counters["EPT+VPID"][name] == counters["shadow+VPID"][name]
        assert counters["native"][name] > 0 or (pages != "4k" and name == "stlb_hits")
    for scheme in ("EPT", "shadow"):
        assert counters[scheme]["tlb_misses"] > counters["native"]["tlb_misses"]


def test_premapped_addresses_are_the_same() -> None:
    config = NATIVE.replace(premapped=True)
    gpas = run(Machine(config), SYSTEM_EVENTS)
    for other in ALL_SCHEMES[1:]:
        assert np.array_equal(run(Machine(other.replace(premapped=True)), SYSTEM_EVENTS), gpas)


# ---- memory used up ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("premapped", [False, True], ids=["", "premapped"])
@pytest.mark.parametrize("pages", ["4k", "2m", "thp"])
def test_guest_memory_used_up(pages: str, premapped: bool) -> None:
    """At the same event under every scheme; what ran before counts, and what is mapped can still be used."""
    stream = events((Op.READ, [0x1000_0000 + 4096 * i for i in range(20_000)]))
    messages = set()
    for config in ALL_SCHEMES:
        machine = Machine(config.replace(memory="64M", pages=pages, premapped=premapped))
        with pytest.raises(OutOfMemoryError, match=r"guest memory of 0x4000000 bytes is used up") as caught:
            run(machine, stream)
        messages.add(str(caught.value))
        c = machine.counters()
        assert f"event {c['accesses'] - 1}:" in str(caught.value)
        lookups = c["accesses"] + c["kernel_accesses"] + c["page_crossings"] + c["retries"]
        assert c["l1d_hits"] + c["l1i_hits"] + c["stlb_hits"] + c["tlb_misses"] == lookups
        assert run(machine, events((Op.READ, [0x1000_0000] * 5))).tolist()[4] < 64 << 20
        with pytest.raises(OutOfMemoryError):  # a new process needs frames for its tables
            run(machine, events(*((op, x) for i in range(1, 1000) for op, x in ((Op.SWITCH, i), (Op.READ, 0)))))
    assert len(messages) == 1


def test_events_that_are_none() -> None:
    """Named by their number; the same under every scheme, and the machine goes on."""
    cases = [
        (99, 0, TraceError, r"event 7: unknown operation or exit reason 99"),
        (4, 0, TraceError, r"event 7: unknown operation or exit reason 4"),
        (Op.EXIT, 80, TraceError, r"event 7: unknown operation or exit reason 80"),
        (Op.READ, 1 << 47, TraceError, r"event 7: 0x800000000000 is not an address of a user program"),
        (Op.FETCH, 0xFFFF_8880_0000_0000, TraceError, r"event 7: 0xffff888000000000 is not an address"),
        (Op.WRITE, 1 << 63, TraceError, r"event 7: 0x8000000000000000 is not an address"),
        (Op.UNMAP, 1 << 47, TraceError, r"event 7: 0x800000000000 is not an address"),
        (Op.SWITCH, 1 << 20, TraceError, r"event 7: process number 1048576 is not below 1048576"),
        (Op.SWITCH, (1 << 64) - 1, TraceError, r"event 7: process number 18446744073709551615 is not below"),
    ]
    for config in ALL_SCHEMES:
        machine = Machine(config)
        for op, addr, error, message in cases:
            ops = np.array([Op.READ, op, Op.READ], np.uint8)
            addrs = np.array([0x1000, addr, 0x1000], np.uint64)
            with pytest.raises(error, match=message):
                machine.run(ops, np.ones(3, np.uint8), addrs, None, 6)
        nothing = events((Op.INVLPG, [1 << 47, 1 << 63, (1 << 64) - 1]))
        assert run(machine, nothing).tolist() == [(1 << 64) - 1] * 3
        c = machine.counters()
        assert c["accesses"] == len(cases)
        lookups = c["accesses"] + c["kernel_accesses"] + c["page_crossings"] + c["retries"]
        assert c["l1d_hits"] + c["l1i_hits"] + c["stlb_hits"] + c["tlb_misses"] == lookups


def test_an_access_over_the_end_of_user_addresses() -> None:
    for config in ALL_SCHEMES:
        machine = Machine(config)
        with pytest.raises(TraceError, match="event 0: 0x800000000000 is not"):
            machine.run(np.zeros(1, np.uint8), np.full(1, 8, np.uint8), np.array([(1 << 47) - 4], np.uint64))
        c = machine.counters()
        lookups = c["accesses"] + c["kernel_accesses"] + c["page_crossings"] + c["retries"]
        assert c["l1d_hits"] + c["l1i_hits"] + c["stlb_hits"] + c["tlb_misses"] == lookups


# ---- the VMM's tables used up -------------------------------------------------------------------------------------


def test_shadow_tables_used_up_are_built_again() -> None:
    """More shadow pages than the VMM has room for: it forgets all and goes on, and the guest sees nothing of it.

    4096 page tables, each reached with all eight combinations of rights, have 8 shadows each (role.access).
    """
    tables, first = 4096, 0x100_0000
    p, rw, us, accessed_dirty, xd = 1, 2, 4, 0x60, 1 << 63
    rights = [p | accessed_dirty | w | u | x for w in (0, rw) for u in (0, us) for x in (0, xd)]
    root, pdpt, pds = 0x1000, 0x2000, [0x3000 + 4096 * i for i in range(8)]
    state = GuestState(cr3=root)
    machines = [
        Machine(config.replace(memory="64M"), guest_kernel=False, state=state) for config in (NATIVE, *ALL_SCHEMES[1:3])
    ]
    for machine in machines:
        words = machine.guest_memory.u64
        words[root >> 3 : (root >> 3) + 8] = np.array([pdpt | r for r in rights], np.uint64)
        words[pdpt >> 3 : (pdpt >> 3) + 8] = np.array(pds, np.uint64) | np.uint64(p | rw | us | accessed_dirty)
        entries = np.uint64(first) + np.arange(tables, dtype=np.uint64) * np.uint64(4096)
        words[pds[0] >> 3 : (pds[0] >> 3) + tables] = entries | np.uint64(p | rw | us | accessed_dirty)
        words[first >> 3 : (first >> 3) + tables * 512 : 512] = (entries + np.uint64(4096 * tables)) | np.uint64(
            p | rw | us | accessed_dirty
        )
    rng = np.random.default_rng(0)
    every = [(i, "r", False) for i in rng.permutation(8 * tables).tolist()]
    some = [(i, "rwx"[i % 3], i % 5 < 2) for i in rng.integers(0, 8 * tables, 3000).tolist()]
    for i, access, user in every + some:
        la = (i // tables) << 39 | (i % tables) << 21
        native, *others = (machine.access(la, access, user=user) for machine in machines)
        assert others == [native, native]
    for machine in machines[1:]:
        c = machine.counters()
        assert c["vmm_tables_made"] > 8 * tables
        assert c["vmm_tables"] <= 66 << 8  # 66 MB of 4 KB pages
        assert c["pf_spurious"] == 0
