"""Who gets in while a machine runs: handlers in Python, other machines of a host, threads that wait, forks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmu import Action, Exit, Host, Machine, Policy, PolicyError
from tests.support.hammer import forked, race
from tests.support.thread_calls import EPT, READ, VMM, bare, batch, made

# ---- handlers in Python -------------------------------------------------------------------------------------------


class Handler(Policy):
    """Uses the VMM in the handler, and finds that the guest stands still there."""

    def __init__(self) -> None:
        self.handled = 0

    def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
        self.handled += 1
        vmm = machine.vmm
        vmm.stats()
        vmm.young(0, exit.guest_physical >> 12, clear=True, flush=True)
        vmm.swap_out(0, (exit.guest_physical >> 12) + 1)
        machine.counters()
        machine.tlb.counters()
        with pytest.raises(PolicyError, match="stands still"):
            machine.load(0)
        return machine.default()


@pytest.mark.parametrize("name", ["dirty log", "swap_out", "stats", "slots", "table_pages"])
def test_a_handler_and_another_thread(name: str) -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        machine, (op, size, addr) = made(EPT, policy=Handler()), batch(3000)

        def other() -> None:
            VMM[name](machine)
            READ["counters"](machine)

        return lambda: machine.run(op, size, addr), other

    found = race(make, 10)
    assert (found.refused, found.long_refused) == (0, 0), found.said


def test_a_handler_that_waits_for_another_thread() -> None:
    """It holds nothing: the other thread gets its turn."""

    class Waits(Policy):
        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            found: list[Any] = []
            thread = threading.Thread(target=lambda: found.append(machine.vmm.stats()))
            thread.start()
            thread.join()
            refused: list[str] = []

            def instruction() -> None:
                try:
                    machine.load(0)
                except PolicyError as error:
                    refused.append(str(error))

            thread = threading.Thread(target=instruction)
            thread.start()
            thread.join()
            assert found
            assert "in another thread" in refused[0]
            return machine.default()

    def work() -> object:
        machine = bare(Waits())
        machine.exit_instruction(10)
        return machine.counters()["vm_exits"]

    assert forked(work) == 1


# ---- hosts --------------------------------------------------------------------------------------------------------


def test_a_host() -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        host, (op, size, addr) = Host([(EPT, 2), EPT.replace(tpr=None)], cpus=2), batch(5000)

        def other() -> None:
            host.totals()
            for vcpu in range(3):
                host.counters(vcpu)
                host.deliveries(vcpu)
                host.vpid(vcpu)
            for machine in host.machines:
                VMM["dirty log"](machine)
                machine.counters()
            host.cpus[0].counters()

        return lambda: [host.run(vcpu, vcpu % 2, op, size, addr) for vcpu in range(3)], other

    found = race(make, 20)
    assert (found.refused, found.long_refused) == (0, 0), found.said
    assert found.short == 20


@pytest.mark.parametrize("name", ["run", "place", "remove", "machine", "tlb"])
def test_one_cpu_of_a_host_runs_at_a_time(name: str) -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        host, (op, size, addr) = Host([EPT, EPT, EPT], cpus=2), (np.tile(column, 100) for column in batch())
        going = threading.Event()
        calls: dict[str, Callable[[], object]] = {
            "run": lambda: host.run(1, 1, op, size, addr),
            "place": lambda: host.place(1, 0),
            "remove": lambda: host.remove(2),
            "machine": lambda: host.machines[1].exit_instruction(10),
            "tlb": lambda: host.cpus[1].reset(),
        }

        def other() -> None:
            while host.machines[0].events == 0:
                pass
            going.set()
            calls[name]()

        return lambda: going.is_set() or host.run(0, 0, op, size, addr), other

    found = race(make, 1)
    assert (found.short, found.refused) == (0, 1)
    assert "Host.run() is under way in another thread" in found.said


# ---- turns --------------------------------------------------------------------------------------------------------


def test_turns_come_soon_and_to_all() -> None:
    """Four threads that ask at once: a call waits for milliseconds while the machine runs, and the run goes on."""

    def work() -> object:
        machine, (op, size, addr) = made(EPT.replace(tpr=None)), (np.tile(column, 40) for column in batch())
        stop = threading.Event()
        waits: list[list[float]] = [[] for _ in range(4)]

        def ask(mine: list[float]) -> None:
            while not stop.is_set():
                started = time.monotonic()
                machine.vmm.counters()
                mine.append(time.monotonic() - started)

        threads = [threading.Thread(target=ask, args=(mine,)) for mine in waits]
        for thread in threads:
            thread.start()
        machine.run(op, size, addr)
        stop.set()
        for thread in threads:
            thread.join()
        return [sorted(mine)[len(mine) // 2] for mine in waits] + [min(len(mine) for mine in waits)]

    *medians, least = forked(work)  # type: ignore[misc]
    assert least >= 20
    assert max(medians) < 0.05


def test_a_fork_while_another_thread_runs() -> None:
    """What the other thread used is refused in the child, at once; all else goes on."""

    def work() -> object:
        machine, (op, size, addr) = made(EPT), (np.tile(column, 100) for column in batch())
        thread = threading.Thread(target=machine.run, args=(op, size, addr), daemon=True)
        thread.start()
        while machine.events == 0:
            pass

        def child() -> object:
            said = []
            for use in (machine.counters, lambda: machine.vmm, lambda: machine.load(0), made(EPT).counters):
                try:
                    use()
                    said.append("")
                except PolicyError as error:
                    said.append(str(error))
            return said

        found = forked(child, 5)
        thread.join()
        return found

    *refused, fresh = forked(work)  # type: ignore[misc]
    assert fresh == ""
    assert all(said == "" or "forked" in said or "another thread" in said for said in refused), refused
    assert any(refused)
