"""A signal ends a long call within half a second, and what it left can be gone on with; chunks change no result."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmu import TLB, Config, Eptp, GuestState, Host, Machine, Op, PhysicalMemory, Simulation, translate
from fastmmu.machine.system_loop_py import SystemReplay
from fastmmu.study.curve.curve_kernel_py import StackDistances
from fastmmu.trace import Batch
from fastmmu.trace.system import RECORD_DTYPE
from tests.support.event_lists import ALL_SCHEMES, program, with_events
from tests.support.hammer import forked

AFTER = 0.05  # seconds until the signal
SLOW = Config(mmu="ept", tlb="strict", find_missing_flushes=True, memory="64M")  # compares each use of the TLB


def interrupted(call: Callable[[], object]) -> float:
    """Seconds between the signal and its exception coming out of the call; in a process of its own."""

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, AFTER)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call()
    return time.monotonic() - started - AFTER


def events(n: int) -> Batch:
    (batch,) = program(50_000, pages=3000).batches(1 << 30)
    times = n // len(batch)
    return Batch(*(np.tile(column, times) for column in (batch.op, batch.size, batch.addr)))


def of_machine() -> list[object]:
    simulation, batch = Simulation(SLOW), events(4_000_000)
    late = interrupted(lambda: simulation.feed(batch))
    done = simulation.events
    whole, rest = Machine(SLOW), slice(done, done + 1000)
    simulation.machine.run(batch.op[rest], batch.size[rest], batch.addr[rest])
    whole.run(batch.op[: done + 1000], batch.size[: done + 1000], batch.addr[: done + 1000])
    same = simulation.machine.counters() == whole.counters()
    return [late, done < len(batch), done == simulation.machine.counters()["accesses"] - 1000, same]


def of_host() -> list[object]:
    host, batch = Host([SLOW], cpus=1), events(4_000_000)
    late = interrupted(lambda: host.run(0, 0, batch.op, batch.size, batch.addr))
    done = host.machines[0].events
    return [late, 0 < done < len(batch), host.counters(0)["accesses"] == done]


def of_replay() -> list[object]:
    state = GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46)
    machine = Machine(SLOW, guest_kernel=False, state=state)
    for at, entry in ((0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x5003)):
        machine.guest_memory.write64(at, entry)
    replay, n = SystemReplay(machine, state), 8_000_000
    rows = np.zeros(n, RECORD_DTYPE)
    rows["size"], rows["val"] = 1, 0x5000
    none = np.zeros(0, np.uint64)
    late = interrupted(lambda: replay.run(rows.view(np.uint8), none, none.view(np.uint8)))
    done = replay.records
    return [late, 0 < done < n, machine.counters()["accesses"] == done, replay.counters()["mismatches"] == 0]


def of_tlb() -> list[object]:
    tlb, n = TLB(), 1 << 29
    late = interrupted(lambda: tlb.simulate(np.zeros(n, np.uint64)))  # pages that are only read take no memory
    done = tlb.counters()["l1d"]["lookups"]
    again = tlb.simulate(np.zeros(5, np.uint64))
    return [late, done < n, again["l1_hits"] >= 4]


def of_wait() -> list[object]:
    machine = Machine(Config(mmu="ept", memory="64M", tpr="apicv"))
    apic = machine.apic
    assert apic is not None
    for register, value in ((0xF0, 0x1FF), (0x3E0, 0xB), (0x320, 0x2_0040), (0x380, 3)):  # a periodic timer
        apic.write(register, value)
    before = apic.now
    late = interrupted(lambda: apic.wait(1 << 50))
    return [late, before < apic.now < 1 << 50, machine.counters()["apic_timer"] > 1000]


def of_curve() -> list[object]:
    curve, n = StackDistances([([16], 4)], [(0, 0, 4, None)] * 4, 12, False, 1 << 16, 1 << 32), 20_000_000
    batch = events(n)
    late = interrupted(lambda: curve.feed(batch.op, batch.size, batch.addr))
    return [late, 0 < curve.counts()["accesses"] < n]


def of_translate(threads: int) -> Callable[[], list[object]]:
    def call() -> list[object]:
        memory, n = PhysicalMemory(1 << 20), 1 << 28  # a second or more, signals are looked for each 0.2 s
        for at, entry in ((0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x5003)):
            memory.write64(at, entry)
        for at, entry in ((0x10000, 0x11007), (0x11000, 0x12007), (0x12000, 0xB7)):  # EPT: 2 MB as they are
            memory.write64(at, entry)
        out = np.zeros(n, np.uint64)  # what is not reached takes no memory
        va = np.zeros(n, np.uint64)
        state = GuestState(cr3=0x1000)
        late = interrupted(lambda: translate(memory, state, va, out=out, threads=threads, eptp=Eptp(0x1001E)))
        return [late, bool(out[0] == 0x5000), bool(out[-1] == 0)]

    return call


@pytest.mark.parametrize(
    "call",
    [of_machine, of_host, of_replay, of_tlb, of_wait, of_curve, of_translate(1), of_translate(3)],
    ids=["machine", "host", "replay", "tlb", "wait", "curve", "translate", "translate threads"],
)
def test_a_signal_ends_a_long_call(call: Callable[[], list[object]]) -> None:
    found = forked(call)
    assert isinstance(found, list)
    late, *right = found
    assert all(right), found
    assert late < 0.5, found


def test_a_handler_of_a_signal_uses_the_machine() -> None:
    """Between two events: it may look, and not run the guest."""

    def work() -> object:
        machine, batch = Machine(SLOW), events(4_000_000)
        seen: list[Any] = []

        def handler(number: int, frame: object) -> None:
            seen.append(machine.vmm.stats()["pages_4k"] > 0)
            seen.append(0 < machine.counters()["accesses"] < len(batch))
            try:
                machine.run(batch.op[:1], batch.size[:1], batch.addr[:1])
            except Exception as error:
                seen.append(f"{type(error).__name__}: {error}")

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, AFTER)
        run = slice(0, 2_000_000)
        machine.run(batch.op[run], batch.size[run], batch.addr[run])
        return [*seen, machine.events]

    *right, said, done = forked(work)  # type: ignore[misc]
    assert right == [True, True]
    assert "was interrupted" in said
    assert done == 2_000_000


@pytest.mark.parametrize("config", [*ALL_SCHEMES, ALL_SCHEMES[4].replace(tpr="apicv")], ids=lambda config: config.name)
def test_no_result_depends_on_how_events_are_cut(config: Config) -> None:
    """A run does them in chunks of a size that depends on the time they take."""
    config = config.replace(memory="64M", exit_every=77, exit_pages=3)
    inserted = [(Op.INTERRUPT, 0), (Op.SWITCH, 1), (Op.UNMAP, 0x5555_5555_5000), (Op.SWITCH, 0)]
    (batch,) = with_events(program(30_000), 331, *inserted).batches(1 << 30)
    rng = np.random.default_rng(5)
    whole = Machine(config)
    expected = np.empty(len(batch), np.uint64)
    whole.run(batch.op, batch.size, batch.addr, expected)
    for most in (3, 5000):
        machine, at, out = Machine(config), 0, np.empty(len(batch), np.uint64)
        while at < len(batch):
            cut = slice(at, at + int(rng.integers(1, most + 1)))
            machine.run(batch.op[cut], batch.size[cut], batch.addr[cut], out[cut], at)
            at = cut.stop
        assert machine.counters() == whole.counters()
        assert machine.tlb.counters() == whole.tlb.counters()
        assert (out == expected).all()
        assert machine.events == len(batch)
