"""A guest cannot tell the schemes apart: random programs that edit their page tables (kvm_policy.md §13 P1-P4).

FASTMMU_EXAMPLES=N runs N programs, at random, instead of the few that are the same each time.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings

from fastmmu import Config, reference
from tests.support.guest_layouts import FRAMES, PS, RW, US, WINDOW, XD, A, D, P, Regime, start
from tests.support.guest_programs import GENERAL_PROTECTION, MovCr3, Program, access_of, programs, undisciplined
from tests.support.guest_runs import WORDS, History, check_vmm_tables, contents, differences, execute, machine_for

SMALL = Config(memory="64M")
TINY_TLB = {"l1d": "2/1", "l1i": "1/1", "stlb": "4/4"}
SCHEMES = [
    SMALL,
    SMALL.replace(**TINY_TLB),
    *(
        SMALL.replace(mmu=mmu, vpid=vpid, host_pages=host_pages)
        for mmu in ("shadow", "ept")
        for vpid in (False, True)
        for host_pages in ("4k", "2m")
    ),
    SMALL.replace(mmu="shadow", vpid=True, **TINY_TLB),
    *(
        SMALL.replace(mmu="agile", vpid=vpid, host_pages=host_pages, kvm=kvm, agile=agile)
        for vpid, host_pages, kvm, agile in (
            (True, "4k", "6.1", "interval=8"),
            (False, "2m", "6.1", "writes=1 interval=3"),
            (True, "2m", "slides", "writes=1 interval=0 begin=nested"),
            (False, "4k", "slides", "writes=3 interval=2 back=all"),
            (True, "4k", "6.1", "writes=1 interval=5 begin=nested back=never"),
        )
    ),
]

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "60")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)


@examples
@given(programs)
def test_every_scheme_does_what_the_specification_says(program: Program) -> None:
    """Addresses, #PF with CR2 and error code, and all of memory at the end, A and D flags among it."""
    want = contents(program.after)
    for config in SCHEMES:
        machine = machine_for(config, program.regime, program.cr3, program.before)
        exits = 0
        for number, (instruction, came) in enumerate(zip(program.instructions, program.outcomes, strict=True)):
            assert execute(machine, instruction) == came, f"{config.name}, instruction {number}: {program!r}"
            before, exits = exits, machine.counters()["vm_exits"]
            # P3. Under EPT a page of each table and one of data; under shadow paging what is filled, emulated or
            # reflected, and twice only for a write to a page that the first time made a table of.
            assert exits - before <= {"native": 0, "ept": 6, "shadow": 2, "agile": 9}[config.mmu]
        assert differences(machine.guest_memory.u64[WORDS], want) == {}, f"{config.name}: {program!r}"
        counters = machine.counters()
        assert counters["mmio"] == 0
        assert counters["ept_spurious"] == 0
        check_vmm_tables(machine, program)


# ---- without the invalidations that the architecture asks for ----------------------------------------------------


@examples
@given(undisciplined)
def test_a_guest_that_does_not_invalidate_sees_nothing_that_no_table_said(program: Program) -> None:
    """Stale translations are legal, others are not; and a fault is one of the tables as they are (tlb.md §1.1)."""
    for config in SCHEMES[:3] + SCHEMES[5::4]:
        machine = machine_for(config, program.regime, program.cr3, program.before)
        history = History(machine, program)
        for instruction in program.instructions:
            came = execute(machine, instruction)
            if isinstance(instruction, MovCr3) and came is None:
                history.load(instruction.cr3)
            if came in (None, GENERAL_PROTECTION):
                continue
            la, access, user = access_of(instruction)
            if came.gpa is None:
                state = program.regime.state(history.cr3, history.pdptes, user=user)
                outcome = reference.walk(history.memory, state, la, access, write=False)
                assert isinstance(outcome, reference.PageFault)
                assert came[1:] == (outcome.error_code, outcome.cr2)
            else:
                assert history.allows(la, access, user, came.gpa), f"{config.name}: {program!r}"
            history.update()


# ---- what random programs might miss ---------------------------------------------------------------------------


def scheme_name(config: Config) -> str:
    return f"{config.name}-{config.agile or config.backing}" + ("-tiny" if config.l1d else "")


@pytest.fixture(params=SCHEMES, ids=scheme_name)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


ALL = P | RW | US | A | D
ROOT, PDPT, PD, PT, DATA, OTHER = 0, 0x1000, 0x2000, 0x3000, 0x20_0000, 0x20_1000
PLAIN = {ROOT: PDPT | ALL, PDPT: PD | ALL, PD: PT | ALL, PT: DATA | ALL, PT + 8: OTHER | ALL}


def test_the_root_is_written_while_in_use(config: Config) -> None:
    """Through a page that user mode may write, too: the new address space is there at once after CR3 is loaded."""
    memory = {**PLAIN, PT + 16: ROOT | ALL, ROOT + 8: 0}
    machine = machine_for(config, Regime(), ROOT, memory)
    second = 1 << 39
    assert machine.access(second, "r") == (None, 0, second)
    assert machine.store(0x2008, PDPT | ALL).gpa == ROOT + 8
    assert machine.access(second | 0x1123, "r", user=True).gpa == OTHER | 0x123
    assert machine.store(0x2008, 0).gpa == ROOT + 8
    machine.mov_cr3(ROOT)
    assert machine.access(second, "w", user=True) == (None, 6, second)
    assert machine.access(0x2000, "w", user=True).gpa == ROOT


def test_one_table_serves_at_two_levels(config: Config) -> None:
    """PD[1] points to PD: at 2 MB, PD is the page table; the edit of an entry is one of both levels."""
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, PD + 8: PD | ALL})
    assert machine.access(0x1000).gpa == OTHER
    assert machine.access(0x20_0000).gpa == PT  # PD[0] as a page-table entry
    assert machine.access(0x20_1000).gpa == PD  # PD[1], itself
    assert machine.store(0x20_1000, OTHER | ALL).gpa == PD  # PD[0] through itself
    machine.mov_cr3(ROOT)
    assert machine.access(0x20_0000).gpa == OTHER
    assert machine.access(0x1000) == (None, 0, 0x1000)  # OTHER, which is empty, is the page table now
    assert machine.store(0x20_0008, DATA | ALL).gpa == OTHER + 8
    assert machine.access(0x1000).gpa == DATA


def test_dirty_is_set_again_after_it_was_cleared_and_the_page_invalidated(config: Config) -> None:
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, PT + 16: PT | ALL})
    words = machine.guest_memory.u64
    assert machine.access(0x1000, "w", user=True).gpa == OTHER
    assert machine.store(0x2008, OTHER | ALL & ~(A | D)).gpa == PT + 8
    machine.invlpg(0x1000)
    assert machine.access(0x1000, "r", user=True).gpa == OTHER
    assert int(words[PT + 8 >> 3]) & (A | D) == A
    assert machine.access(0x1000, "w", user=True).gpa == OTHER
    assert int(words[PT + 8 >> 3]) & (A | D) == A | D


@pytest.mark.parametrize("window", [0x2000, 0x60_1000], ids=["4k", "2m"])
def test_a_page_becomes_a_table_after_it_was_written(config: Config, window: int) -> None:
    """No translation, small or large, that lets the guest write it unseen may be left (kvm_policy.md §2.2)."""
    memory = {PT + 16: OTHER | ALL, PT + 24: PD | ALL, PD + 24: DATA | ALL | PS}
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, **memory})
    assert machine.store(window, DATA | ALL).gpa == OTHER
    assert machine.store(0x3008, OTHER | ALL).gpa == PD + 8
    assert machine.access(0x20_0000).gpa == DATA
    assert machine.store(window, PT | ALL).gpa == OTHER
    machine.invlpg(0x20_0000)
    assert machine.access(0x20_0000).gpa == PT


def test_address_spaces_alternate(config: Config) -> None:
    """One address, two roots: loaded again, each has its own page."""
    second, pdpt, pd, pt = (0x40_0000 + 4096 * i for i in range(4))
    memory = {second: pdpt | ALL, pdpt: pd | ALL, pd: pt | ALL, pt: OTHER | ALL}
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, **memory})
    for _ in range(3):
        for root, frame in ((ROOT, DATA), (second, OTHER)):
            machine.mov_cr3(root)
            assert machine.access(0).gpa == frame


def test_supervisor_writes_read_only_pages_without_write_protection(config: Config) -> None:
    """CR0.WP = 0, in turn with reads and writes of user mode (kvm_policy.md §2.1)."""
    machine = machine_for(config, Regime(wp=False, smep=True), ROOT, {**PLAIN, PT: DATA | ALL & ~RW})
    for _ in range(2):
        assert machine.access(0, "w").gpa == DATA
        assert machine.access(0, "x") == (None, 0x11, 0)  # writable for the supervisor, but no page of its own
        assert machine.access(0, "r", user=True).gpa == DATA
        assert machine.access(0, "w", user=True) == (None, 7, 0)
        assert machine.access(0, "x", user=True).gpa == DATA


def test_a_large_page_over_a_table_in_use(config: Config) -> None:
    """The page is cut up, and the table found written (kvm_policy.md §4.3)."""
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, PD + 8: ALL | PS})
    for gpa in (PT, PD, ROOT):
        assert machine.access(0x20_0000 | gpa, "w", user=True).gpa == gpa
    assert machine.access(0x1000).gpa == OTHER  # the tables are shadowed now
    assert machine.access(0x3F_F000, "w", user=True).gpa == 0x1F_F000
    assert machine.store(0x20_0000 | PT + 8, DATA | ALL | XD).gpa == PT + 8
    machine.invlpg(0x1000)
    assert machine.access(0x1000, "r").gpa == DATA
    assert machine.access(0x1000, "x") == (None, 0x11, 0x1000)


def test_one_table_is_reached_with_different_rights(config: Config) -> None:
    """What one way to a page table allows another may deny (role.access of kvm_policy.md §1)."""
    memory = {**PLAIN, PD + 8: PT | ALL & ~RW, PD + 16: PT | ALL & ~US, PD + 24: PT | ALL | XD}
    machine = machine_for(config, Regime(), ROOT, memory)
    for _ in range(2):
        for number, denied in enumerate([(), ("w",), ("r", "w", "x"), ("x",)]):
            for access, code in (("r", 5), ("w", 7), ("x", 0x15)):
                came = machine.access(number << 21 | 0x1008, access, user=True)
                assert came == ((None, code, number << 21 | 0x1008) if access in denied else (OTHER | 8, None, None))


def test_window_of_programs(config: Config) -> None:
    """The programs' window shows every frame, also with a root that any frame may become."""
    cr3, memory = start(5)
    machine = machine_for(config, Regime(), cr3, memory)
    for root in (cr3, *FRAMES):
        machine.mov_cr3(root)
        for frame in FRAMES:
            assert machine.access(WINDOW + frame + 8, "rw").gpa == frame + 8
