"""Two threads on one machine: every call is done, or refused by an error that says what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from fastmmu import Config, Machine
from tests.support.hammer import forked, race
from tests.support.thread_calls import EPT, INSTRUCTIONS, LAST, READ, SCHEMES, VMM, bare, batch, made, running

BY_SCHEME = pytest.mark.parametrize("config", SCHEMES, ids=lambda config: config.mmu)

# ---- what may be done while the guest runs ------------------------------------------------------------------------


@BY_SCHEME
@pytest.mark.parametrize("name", READ)
def test_what_only_reads(config: Config, name: str) -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        machine, run = running(config)
        return run, lambda: READ[name](machine)

    found = race(make)
    assert found.refused == found.long_refused == 0, found.said
    assert found.short == 30
    assert found.long > 0


@BY_SCHEME
def test_reading_changes_no_result(config: Config) -> None:
    def work() -> object:
        alone, (op, size, addr) = made(config), batch(40_000)
        for _ in range(3):
            alone.run(op, size, addr)
        machine = made(config)
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                for look in READ.values():
                    look(machine)
                if config.mmu != "native":
                    machine.vmm.stats()
                    machine.vmm.table_pages()

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            machine.run(op, size, addr)
        stop.set()
        for thread in threads:
            thread.join()
        return [alone.counters() == machine.counters(), alone.tlb.counters() == machine.tlb.counters(), machine.events]

    assert forked(work) == [True, True, 3 * len(batch(40_000)[0])]


@pytest.mark.parametrize("config", SCHEMES[1:], ids=lambda config: config.mmu)
@pytest.mark.parametrize("name", VMM)
def test_the_vmm(config: Config, name: str) -> None:
    """As the ioctls of KVM: while vCPUs run."""

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        machine, run = running(config)
        return run, lambda: VMM[name](machine)

    found = race(make, 10)
    assert (found.short, found.refused) == (10, 0), found.said
    assert found.long > 0


def test_the_dirty_log_loses_nothing() -> None:
    """What the guest wrote while the log was read again and again is in it, once the last reading is taken too."""

    def work() -> object:
        machine, (op, size, addr) = made(EPT.replace(tpr=None, host_pages="4k")), batch()
        before = machine.guest_memory.u8.copy()
        machine.vmm.start_dirty_log(0)
        seen = machine.vmm.dirty_log(0)
        stop = threading.Event()

        def read() -> None:
            nonlocal seen
            while not stop.is_set():
                seen |= machine.vmm.dirty_log(0)

        thread = threading.Thread(target=read)
        thread.start()
        for _ in range(5):
            machine.run(op, size, addr)
        stop.set()
        thread.join()
        seen |= machine.vmm.dirty_log(0)
        changed = (machine.guest_memory.u8 != before).reshape(-1, 4096).any(axis=1)
        return [int((changed & ~seen).sum()), int(changed.sum()) > 10]

    assert forked(work) == [0, True]


def test_slots_go_while_the_guest_runs() -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        machine, (op, size, addr) = made(EPT), batch()
        return lambda: machine.run(op, size, addr), lambda: machine.vmm.delete_slot(LAST)

    found = race(make, 3)
    assert (found.short, found.refused) == (1, 2)
    assert "there is no slot" in found.said


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_what_is_refused(name: str) -> None:
    """A run is one call, as long as it takes; what would be an instruction of the guest, or a change of its TLB."""

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        machine, (op, size, addr) = made(EPT), (np.tile(column, 100) for column in batch())
        going = threading.Event()

        def other() -> None:
            while machine.events == 0:
                pass
            going.set()
            INSTRUCTIONS[name](machine)

        return lambda: going.is_set() or machine.run(op, size, addr), other

    found = race(make, 1)
    assert (found.short, found.refused, found.long_refused) == (0, 1, 0)
    assert "in another thread" in found.said or "no VM exit is under way" in found.said, found.said


@BY_SCHEME
def test_two_that_run(config: Config) -> None:
    """Both at once: each run is done as a whole, or refused."""

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        _, run = running(config)
        return run, run

    found = race(make, 20)
    assert found.long > 0
    assert "in another thread" in found.said or not found.said


INSTRUCTIONS_OF_BOTH: dict[str, Callable[[Machine], object]] = {
    name: INSTRUCTIONS[name]
    for name in ("load", "store", "invlpg", "exit_instruction", "tlb.lookup", "tlb.reset", "apic.wait", "apic.read_cr8")
}


@pytest.mark.parametrize("name", INSTRUCTIONS_OF_BOTH)
def test_short_calls_take_turns(name: str) -> None:
    """Instructions of a bare guest from two threads, and its VMM: one after the other, none refused."""

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        machine = bare()
        machine.load(0)

        def other() -> None:
            for _ in range(20):
                INSTRUCTIONS_OF_BOTH[name](machine)
            VMM["dirty log"](machine)
            READ["counters"](machine)

        return lambda: (machine.store(0x1008, 3), machine.load(0xFFC, 8), machine.vmm.swap_out(0, 5)), other

    found = race(make, 20)
    assert (found.short, found.refused, found.long_refused) == (20, 0, 0), found.said
