"""KVM's MMU as Linux 6.1 has it, by the properties of kvm_policy.md §13: random programs that edit their page tables.

P1 equivalence, P2 soundness of shadow entries, P3 progress, P4 isolation, P5 nothing written is missing from the dirty
log, P6 the same leaves after everything was zapped. FASTMMU_EXAMPLES=N runs N programs, at random.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, GuestState, Machine, MemorySlot
from tests.support.guest_layouts import FRAMES, Regime, start
from tests.support.guest_programs import Access, MovCr3, Program, Store, access_of, programs, undisciplined
from tests.support.guest_runs import WORDS, History, check_vmm_tables, contents, differences, execute, machine_for
from tests.support.vmm_tables import check_reverse_maps, guest_memory_at, leaves

LINUX = Config(memory="64M", kvm="6.1", vpid=True)
SHADOW = [
    LINUX.replace(mmu="shadow"),
    LINUX.replace(mmu="shadow", host_pages="2m", vpid=False),
    LINUX.replace(mmu="shadow", host_pages="untouched"),
    LINUX.replace(mmu="shadow", unsync=False),
]
EPT = [
    LINUX.replace(mmu="ept", host_pages="2m"),
    LINUX.replace(mmu="ept", tdp_mmu=False),
    LINUX.replace(mmu="ept", tdp_mmu=False, ept_ad=False, host_pages="untouched"),
    LINUX.replace(mmu="ept", pml=True, host_pages="2m"),
    LINUX.replace(mmu="ept", nx_huge_pages=True, host_pages="2m", vpid=False),
]
FEW_TABLES = [
    LINUX.replace(mmu="shadow", table_pages=16),
    LINUX.replace(mmu="ept", tdp_mmu=False, table_pages=16),
]
SLIDES = [
    Config(memory="64M", mmu="shadow", host_pages="2m"),
    Config(memory="64M", mmu="ept", kvm="6.1", unrestricted_guest=False),
]
LOGGED = [
    *SHADOW[:3],
    *EPT,
    LINUX.replace(mmu="ept", pml=True),
    LINUX.replace(mmu="ept", pml=True, host_pages="2m", eager_page_split=False),
    LINUX.replace(mmu="ept", tdp_mmu=False, pml=True, host_pages="2m"),
    Config(memory="64M", mmu="shadow"),
    Config(memory="64M", mmu="ept", host_pages="2m"),
]

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "25")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)


def title(config: Config) -> str:
    defaults = Config(memory="64M")
    fields = ("mmu", "vpid", "host_pages", "kvm", "unsync", "ept_ad", "pml", "tdp_mmu", "eager_page_split")
    return ",".join(
        f"{name}={getattr(config, name)}" for name in fields if getattr(config, name) != getattr(defaults, name)
    )


@examples
@given(programs)
def test_a_guest_cannot_tell(program: Program) -> None:
    """P1 to P4, as `tests/machine/test_equivalence.py` has them for the policy of the slides."""
    want = contents(program.after)
    for config in SHADOW + EPT + FEW_TABLES:
        machine = machine_for(config, program.regime, program.cr3, program.before)
        exits = 0
        # more often where the host gives pages at their first touch: a page of zeros, then its own
        factor = 3 if config.host_pages == "untouched" or config.table_pages else 1
        for number, (instruction, came) in enumerate(zip(program.instructions, program.outcomes, strict=True)):
            if (found := execute(machine, instruction)) != came:
                assert stale_but_legal(config, program, number), (
                    f"{title(config)}, instruction {number}, {found}: {program!r}"
                )
                break
            before, exits = exits, machine.counters()["vm_exits"]
            assert exits - before <= {"ept": 6, "shadow": 2}[config.mmu] * factor
        else:
            assert differences(machine.guest_memory.u64[WORDS], want) == {}, f"{title(config)}: {program!r}"
            assert machine.counters()["mmio"] == 0
            check_vmm_tables(machine, program)
            check_reverse_maps(machine)


def stale_but_legal(config: Config, program: Program, number: int) -> bool:
    """Is what an instruction came to a translation of tables that were, which an unsync page table may hold?

    The programs invalidate what their own accesses cached. A processor may cache more, what no access has used since
    CR3 was loaded, and unsync shadow pages do: MOV CR3 brings them in sync, they keep their entries.
    """
    if config.mmu != "shadow" or config.kvm != "6.1" or config.unsync is False:
        return False
    machine = machine_for(config, program.regime, program.cr3, program.before)
    history = History(machine, program)
    for instruction in program.instructions[:number]:
        came = execute(machine, instruction)
        if isinstance(instruction, MovCr3) and came is None:
            history.load(instruction.cr3)
        history.update()
    unsync = machine.vmm.counters()["unsync"]
    instruction = program.instructions[number]
    came = execute(machine, instruction)
    if not unsync or came is None or came.gpa is None:
        return False
    la, access, user = access_of(instruction)
    return history.allows(la, access, user, came.gpa)


def test_an_entry_changed_after_cr3_was_loaded_may_be_stale() -> None:
    """Without INVLPG, though nothing used it since: legal, and what unsync page tables do. Not so if each store to a
    table is emulated."""
    root, pdpt, pd, pt, old, new = (number << 12 for number in range(6))
    tables = {at: to | 0x67 for at, to in {root: pdpt, pdpt: pd, pd: pt, pt + 8: old, pt + 16: pt}.items()}
    for unsync in (True, False):
        machine = machine_for(SHADOW[0].replace(unsync=unsync), Regime(), root, tables)
        assert machine.access(0x1000).gpa == old
        machine.mov_cr3(root)
        machine.store(0x2008, new | 0x67)
        assert machine.access(0x1000).gpa == (old if unsync else new)
        machine.invlpg(0x1000)
        assert machine.access(0x1000).gpa == new


@examples
@given(undisciplined)
def test_stale_translations_are_those_of_tables_that_were(program: Program) -> None:
    """P1 of a guest that does not invalidate: unsync pages may be stale, as a TLB may."""
    for config in SHADOW[:3]:
        machine = machine_for(config, program.regime, program.cr3, program.before)
        history = History(machine, program)
        for instruction in program.instructions:
            came = execute(machine, instruction)
            if isinstance(instruction, MovCr3) and came is None:
                history.load(instruction.cr3)
            elif came is not None and came.gpa is not None:
                la, access, user = access_of(instruction)
                assert history.allows(la, access, user, came.gpa), f"{title(config)}: {program!r}"
            history.update()


# ---- P5 -----------------------------------------------------------------------------------------------------------


def frames_changed(machine, before) -> set[int]:  # type: ignore[no-untyped-def]
    now = machine.guest_memory.u64[WORDS]
    return {int(word) >> 9 for word in WORDS[np.flatnonzero(now != before)]}


@examples
@given(programs, st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 3))
def test_nothing_written_is_missing_from_the_dirty_log(program: Program, reads: list[int], when: int) -> None:
    """P5: a page whose contents changed, or that an instruction wrote to, since the log was read is in it.

    The log starts amid the program, is read at random, ends and starts again; it is a bitmap, one that is cleared by
    hand (begun empty or full), or a ring.
    """
    for number, config in enumerate(LOGGED):
        machine = machine_for(config, program.regime, program.cr3, program.before)
        rng = random.Random(when)
        manual, initial = (number + when) % 4 in (1, 2), (number + when) % 4 == 2
        if (number + when) % 4 == 3:
            machine.vmm.use_dirty_ring(1024)
        logging = False
        written: set[int] = set()
        before = machine.guest_memory.u64[WORDS].copy()
        pauses = iter(reads * 1000)
        until = next(pauses)
        for instruction in program.instructions:
            came = execute(machine, instruction)
            writes = isinstance(instruction, Store) or (isinstance(instruction, Access) and "w" in instruction.access)
            if writes and came is not None and came.gpa is not None:
                written.add(came.gpa >> 12)
            until -= 1
            if until > 0:
                continue
            until = next(pauses)
            if logging:
                log = set(np.flatnonzero(machine.vmm.dirty_log(0)).tolist())
                if manual:
                    machine.vmm.clear_dirty_log(0, 0, (64 << 20) >> 12)
                assert written | frames_changed(machine, before) <= log, f"{title(config)}: {program!r}"
                if rng.random() < 0.2:
                    machine.vmm.stop_dirty_log(0)
                    logging = False
            else:
                machine.vmm.start_dirty_log(0, manual=manual, initially_set=initial)
                if rng.random() < 0.5:
                    machine.vmm.dirty_log(0)
                    if manual:
                        machine.vmm.clear_dirty_log(0, 0, (64 << 20) >> 12)
                logging = True
            written.clear()
            before = machine.guest_memory.u64[WORDS].copy()
        assert differences(machine.guest_memory.u64[WORDS], contents(program.after)) == {}, title(config)
        check_reverse_maps(machine)


def test_the_property_of_the_log_can_fail() -> None:
    """A write that is not looked for is missed: the log of a page written before it was read again is empty."""
    machine = machine_for(LINUX.replace(mmu="ept"), Regime(), *start(5))
    machine.vmm.start_dirty_log(0)
    window = 0xFFFF_8000_0000_0000
    machine.store(window + FRAMES[4], 1)
    assert FRAMES[4] >> 12 in np.flatnonzero(machine.vmm.dirty_log(0))
    assert FRAMES[4] >> 12 not in np.flatnonzero(machine.vmm.dirty_log(0))
    machine.store(window + FRAMES[4], 1)
    assert FRAMES[4] >> 12 in np.flatnonzero(machine.vmm.dirty_log(0))


# ---- P6, P7 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SHADOW + EPT, ids=title)
def test_the_same_leaves_after_everything_was_zapped(config: Config) -> None:
    spare = MemorySlot(1 << 32, 1 << 21)
    cr3, memory = start(11)
    machine = Machine(config, guest_kernel=False, state=GuestState(**Regime().registers(cr3)), slots=(spare,))
    for gpa, value in memory.items():
        machine.guest_memory.u64[gpa >> 3] = value
    window = 0xFFFF_8000_0000_0000

    def touch() -> list[tuple[int, ...]]:
        for _ in range(2):  # the second time A and D stand in the guest's tables
            for frame in FRAMES:
                machine.access(window + frame, "w")
                machine.access(frame, "r")
        return sorted(leaf[:3] for leaf in leaves_of(machine))

    def leaves_of(machine: Machine):  # type: ignore[no-untyped-def]
        return leaves(machine, guest_memory_at(machine))

    touch()
    first = touch()
    machine.vmm.delete_slot(1)
    assert list(leaves_of(machine)) == []
    assert touch() == first != []


@examples
@given(
    programs, st.lists(st.tuples(st.integers(0, 200), st.sampled_from("rwx"), st.booleans()), min_size=1, max_size=5)
)
def test_zapped_tables_come_back_as_in_a_new_machine(program: Program, again: list[tuple[int, str, bool]]) -> None:
    """P6: whatever the guest did before, nothing of it is left in what the same accesses build."""
    addresses = [i.la for i in program.instructions if isinstance(i, Access)] or [0]
    accesses = [(addresses[which % len(addresses)], access, user) for which, access, user in again]
    spare = (MemorySlot(1 << 32, 1 << 21),)
    for config in [*SHADOW, *EPT, *FEW_TABLES, *SLIDES]:
        if config.host_pages == "untouched":  # the host keeps the pages that it gave
            continue
        state = GuestState(**program.regime.registers(program.cr3))
        used = Machine(config, guest_kernel=False, state=state, slots=spare)
        for gpa, value in program.before.items():
            used.guest_memory.u64[gpa >> 3] = value
        for instruction in program.instructions:
            execute(used, instruction)
        used.vmm.delete_slot(1)
        gauges = used.vmm.stats()
        names = ("pages_4k", "pages_2m", "pages_1g", "mmu_unsync", "nx_lpage_splits")
        assert [gauges[name] for name in names] == [0] * 5
        cr3 = used.state.cr3
        new = Machine(config, guest_kernel=False, state=GuestState(**program.regime.registers(cr3)), slots=spare)
        new.guest_memory.u64[WORDS] = used.guest_memory.u64[WORDS]
        found = []
        for machine in (used, new):
            if execute(machine, MovCr3(cr3)) is not None:
                return  # PDPTEs that no MOV to CR3 takes
            for la, access, user in accesses * 2:
                machine.access(la, access, user=user)
            check_reverse_maps(machine)
            found.append(set(leaves(machine, guest_memory_at(machine))))
        assert found[0] == found[1], f"{title(config)}: {program!r}"
        assert differences(used.guest_memory.u64[WORDS], new.guest_memory.u64[WORDS]) == {}


# ---- a host short of memory ---------------------------------------------------------------------------------------


@examples
@given(programs, st.lists(st.tuples(st.sampled_from(FRAMES), st.booleans()), min_size=1, max_size=40))
def test_a_host_that_swaps_changes_nothing(program: Program, taken: list[tuple[int, bool]]) -> None:
    """Pages go to disk between any two instructions: the same results as with memory for all."""
    for config in (SHADOW[2], EPT[2], LINUX.replace(mmu="ept", host_pages="untouched", pml=True)):
        machine = machine_for(config, program.regime, program.cr3, program.before)
        victims = iter(taken * 1000)
        gone: set[int] = set()
        for instruction, came in zip(program.instructions, program.outcomes, strict=True):
            assert execute(machine, instruction) == came, title(config)
            frame, ask = next(victims)
            if ask:
                machine.vmm.young(0, frame >> 12, clear=True)
            elif machine.vmm.swap_out(0, frame >> 12):
                gone.add(frame)
                assert frame not in {leaf.gpa & -4096 for leaf in leaves(machine)}, "an entry leads to a page on disk"
        assert differences(machine.guest_memory.u64[WORDS], contents(program.after)) == {}, title(config)
        check_reverse_maps(machine)
        assert machine.vmm.counters()["swap_outs"] >= len(gone)
