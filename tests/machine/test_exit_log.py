"""The log of VM exits beside the counters and the cost model: a record an exit, none lost, each in its place."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu import Config, ConfigError, CostModel, Host, Kvm, Machine, Policy, StateError, read_trace, simulate
from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.exits import Action, Exit, ExitReason, FaultClass
from fastmmu.kvm.port import VirtualCpu
from fastmmu.machine.costs import exits_by_class
from fastmmu.machine.exit_log import ExitLog
from fastmmu.machine.result import Result
from fastmmu.machine.simulation import Simulation
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace import Trace
from fastmmu.trace.bundle import bundled
from fastmmu.trace.tpr import with_tpr
from tests.conformance import systems
from tests.support.event_lists import ALL_SCHEMES, events, program, with_events
from tests.support.flat_guest import PAGE, flat

WHOLE = os.environ.get("FASTMMU_EXHAUSTIVE") == "1"
EPT, SHADOW = Config(mmu="ept", memory="256M"), Config(mmu="shadow", memory="256M")
NAMES = [each.name.lower() for each in FaultClass if each not in (FaultClass.NONE, FaultClass.GUEST)]
EVENTS = ((Op.EXIT, 10), (Op.SWITCH, 1), (Op.UNMAP, 0x5555_5555_5000), (Op.INTERRUPT, 32), (Op.SWITCH, 0))
MIXED = with_events(program(4000, 3), 50, *EVENTS)


def logged(trace: Any, config: Config, **more: Any) -> tuple[Result, ExitLog]:
    """The result, and every exit."""
    parts: list[npt.NDArray[np.void]] = []
    result = simulate(trace, config, exits=parts.append, **more)
    return result, ExitLog(np.concatenate([np.empty(0, EXIT_DTYPE), *parts]))


def check(result: Result, log: ExitLog, *, one_vcpu: bool = True) -> None:
    """A record an exit; reasons, classes, kinds and cycles are those that were counted and priced."""
    counters = result.counters
    assert len(log) == counters["vm_exits"]
    assert log.by_reason() == counters["exits_by_reason"]
    classes = {name: n for name in NAMES if (n := counters[f"violations_{name}"])}
    assert log.by_class() == classes
    assert sum(classes.values()) == counters["exits_by_reason"].get("ept_violation", 0)
    faults = log.by_class(ExitReason.EXCEPTION_NMI)
    assert faults.get("guest", 0) == counters["pf_guest"]
    assert sum(faults.values()) == counters["exits_by_reason"].get("exception_nmi", 0)
    assert log.by_kind() == exits_by_class(counters)
    exits = {cause: n for cause, n in result.cycles_by.items() if cause.startswith("exit:")}
    assert log.cycles == pytest.approx(sum(exits.values()), rel=1e-12)
    times = log.records["time"]
    assert (times[1:] >= times[:-1]).all()
    assert not len(times) or times[-1] <= counters["accesses"]


@pytest.mark.parametrize("kvm", ["slides", "6.1"])
@pytest.mark.parametrize("name", bundled())
@pytest.mark.parametrize("config", ALL_SCHEMES, ids=lambda config: config.name)
def test_the_log_is_what_was_counted(config: Config, name: str, kvm: str) -> None:
    """All schemes, both traces; the whole of them with FASTMMU_EXHAUSTIVE=1."""
    trace = read_trace(bundled()[name])
    trace = trace if WHOLE else trace.head(150_000)
    config = config.replace(kvm=kvm, exit_every=5000, memory="1G")
    result, log = logged(trace, config)
    check(result, log)
    without = simulate(trace, config)
    assert without.counters == result.counters
    assert without.cycles == result.cycles
    assert (len(log) == 0) == (config.mmu == "native")


@pytest.mark.parametrize("config", ALL_SCHEMES, ids=lambda config: config.name)
@pytest.mark.parametrize("pages", ["4k", "thp"])
def test_a_guest_that_does_everything(config: Config, pages: str) -> None:
    result, log = logged(MIXED, config.replace(pages=pages, exit_every=333))
    check(result, log)


@pytest.mark.parametrize("way", ["trap", "patch", "flexpriority", "apicv"])
def test_a_guest_with_an_apic(way: str) -> None:
    trace = with_tpr(program(60_000, 1), "winxp")
    result, log = logged(trace, EPT.replace(tpr=way))
    check(result, log)
    assert result.counters["apic_tpr_writes"] > 10


def test_a_host_short_of_memory_and_a_dirty_log() -> None:
    trace = read_trace(bundled()["sqlite"]).head(150_000)
    pages = simulate(trace, EPT).counters["pages_touched"]
    parts: list[npt.NDArray[np.void]] = []
    for config in (EPT.replace(kvm="6.1"), SHADOW.replace(kvm="6.1"), EPT.replace(pml=True)):
        parts.clear()
        run = Simulation(config.replace(host_memory=pages * 4096 // 2), exits=parts.append)
        for batch in trace.batches():
            for first in range(0, len(batch), 20_000):
                run.feed(batch[first : first + 20_000])
                if run.events <= 20_000:
                    run.machine.vmm.start_dirty_log(0)
                run.machine.vmm.dirty_log(0)
        log = ExitLog(np.concatenate(parts))
        check(run.result(), log)
        reason = ExitReason.EPT_VIOLATION if config.mmu == "ept" else ExitReason.EXCEPTION_NMI
        assert {"build", "dirty", "swapped_in"} <= log.by_class(reason).keys()


def test_a_system_trace() -> None:
    for path in systems.traces(systems.sample_directory()):
        for config in (Config(mmu="ept", memory="1G"), Config(mmu="shadow", memory="1G", shadow_keys=True)):
            result, log = logged(read_trace(path), config)
            check(result, log)
            assert len(log) > 100
            assert (log.records["rip"] > 0).mean() > 0.99


# ---- when, and where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [EPT, SHADOW.replace(vpid=True)], ids=lambda config: config.name)
def test_time_and_instruction_of_each_exit(config: Config) -> None:
    """Against a run event by event, which tells of each exit the event that made it."""
    (batch,) = MIXED.batches(1 << 30)
    slow, want = Machine(config), []
    slow.take_exits()
    accesses = rip = 0
    for i, (op, addr) in enumerate(zip(batch.op.tolist(), batch.addr.tolist(), strict=True)):
        accesses += op <= LAST_ACCESS
        rip = addr if op == Op.FETCH else rip
        part = slice(i, i + 1)
        slow.run(batch.op[part], batch.size[part], batch.addr[part], first=i)
        want += [(accesses, rip)] * len(slow.take_exits())
    for length in (1, 7, 1000, len(batch)):
        fast, parts = Machine(config), []
        fast.take_exits()
        for first in range(0, len(batch), length):
            part = slice(first, first + length)
            fast.run(batch.op[part], batch.size[part], batch.addr[part], first=first)
            parts.append(fast.take_exits())
        have = np.concatenate(parts)
        assert [(int(r["time"]), int(r["rip"])) for r in have] == want, length
    assert len(want) > 300


def test_the_fields_of_a_violation() -> None:
    machine = flat(EPT.replace(exit_log=10))
    machine.access(PAGE + 0x123, "w")
    log = machine.exit_log()
    assert log.records["gpa"].tolist() == [0x1000, 0x2000, 0x3010, PAGE + 0x123]
    assert log.records["gla"].tolist() == [PAGE + 0x123] * 4
    assert log.records["qualification"][-1] == machine.vmcs["exit_qualification"]
    assert log.records["qualification"][-1] & 0x1FF == 0x182  # a write; the linear address is valid, and was translated
    assert log.records["time"].tolist() == [1] * 4
    assert set(log.records["reason"]) == {ExitReason.EPT_VIOLATION}
    machine.exit_instruction(ExitReason.HLT)
    last = machine.exit_log().records[-1]
    assert (last["reason"], last["gpa"], last["gla"], last["class"]) == (ExitReason.HLT, 0, 0, FaultClass.NONE)


def test_the_fields_of_a_page_fault() -> None:
    machine = flat(SHADOW.replace(exit_log=10))
    machine.access(PAGE + 0x123, "w")
    machine.invlpg(PAGE)
    fault, invlpg = machine.exit_log().records
    assert (fault["reason"], fault["intr_info"], fault["error_code"]) == (0, 0x80000B0E, 2)
    assert fault["qualification"] == fault["gla"] == PAGE + 0x123
    assert (invlpg["reason"], invlpg["gla"]) == (ExitReason.INVLPG, PAGE)


# ---- the ring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 100, 299, 5000, 1 << 20])
def test_the_last_ones_are_kept(keep: int) -> None:
    result, log = logged(MIXED, SHADOW.replace(exit_log=keep))
    kept = result.exit_log
    assert kept is not None
    many = min(keep, len(log))
    assert kept.records.tobytes() == log.records[len(log) - many :].tobytes()
    assert kept.lost == len(log) - many
    assert len(log) > 300
    alone = simulate(MIXED, SHADOW.replace(exit_log=keep)).exit_log  # without a stream
    assert alone is not None
    assert (alone.records.tobytes(), alone.lost) == (kept.records.tobytes(), kept.lost)
    assert repr(alone).startswith(f"<ExitLog of {many:,} exits")


@pytest.mark.parametrize("keep", [0, 3, 1000])
def test_what_is_taken_is_whole_however_often(keep: int) -> None:
    """In parts of any length, beside the ring; the ring is the same."""
    (batch,) = program(40_000, 5, pages=20_000).batches(1 << 30)
    every = logged(Trace.from_arrays(batch.addr, batch.op, batch.size), SHADOW)[1].records
    for length in (300, 40_000):
        machine, parts = Machine(SHADOW.replace(exit_log=keep)), []
        for first in range(0, len(batch), length):
            part = slice(first, first + length)
            machine.run(batch.op[part], batch.size[part], batch.addr[part])
            if first >= 600 or length == 40_000 or keep == 0:
                parts.append(machine.take_exits())
        taken = np.concatenate(parts)
        assert taken.tobytes() == every[len(every) - len(taken) :].tobytes()
        assert len(taken) >= (len(every) - 1000 if length == 300 else min(keep, len(every)))
        kept = machine.exit_log()
        assert kept.records.tobytes() == every[max(0, len(every) - keep) :].tobytes() if keep else not len(kept)
        assert not len(machine.take_exits())
    assert len(every) > 4500  # more than the first room of a stream


def test_none_without_a_vmm_and_none_unless_asked_for() -> None:
    assert simulate(MIXED, EPT).exit_log is None
    assert not len(Machine(EPT).exit_log())
    native = simulate(MIXED, Config(memory="256M", exit_log=50)).exit_log
    assert native is not None
    assert (len(native), native.lost, native.by_reason(), native.cycles) == (0, 0, {}, 0.0)


@pytest.mark.parametrize("value", [-1, (1 << 30) + 1, "many", 1.5, None])
def test_bad_lengths(value: Any) -> None:
    with pytest.raises(ConfigError, match="exit_log"):
        Config(exit_log=value)


def test_records_of_another_kind() -> None:
    with pytest.raises(StateError, match="EXIT_DTYPE"):
        ExitLog(np.zeros(3))


# ---- whose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_vcpus_of_a_host(mmu: str, cpus: int) -> None:
    """One log a machine, in the order of its clock; each vCPU's part is what the host counts of it."""
    config = Config(mmu=mmu, memory="64M", vpid=True, exit_log=1 << 16)
    host = Host([(config, 3), (config.replace(exit_log=7), 1)], cpus=cpus)
    for round_ in range(6):
        for vcpu in range(4):
            (batch,) = program(400, 10 * round_ + vcpu).batches()
            host.run(vcpu, (vcpu + round_) % cpus, batch.op, batch.size, batch.addr)
    for vcpu in range(3):
        log = host.exit_log(vcpu)
        assert set(log.records["vcpu"]) == {vcpu}
        assert log.by_reason() == host.counters(vcpu)["exits_by_reason"]
    whole = host.machines[0].exit_log()
    assert len(whole) == sum(host.counters(vcpu)["vm_exits"] for vcpu in range(3))
    times = whole.records["time"]
    assert (times[1:] >= times[:-1]).all()
    assert 3 * 6 * 300 < times[-1] <= 3 * 6 * 400
    short = host.exit_log(3)
    assert (len(short), short.lost) == (7, host.counters(3)["vm_exits"] - 7)
    outside = whole.records[whole.records["reason"] == ExitReason.EXTERNAL_INTERRUPT]
    assert len(outside) > 6
    assert not outside["qualification"].any()


def test_exits_in_the_hands_of_a_policy() -> None:
    """Those that it passes on have a class; those that it handles have none; the log can be read in a handler."""
    seen = []

    class Odd(Policy):
        def on_exception_nmi(self, machine: Machine, exit: Exit) -> Action:
            under_way = machine.exit_log().records[-1]
            seen.append((int(under_way["reason"]), int(under_way["qualification"])))
            assert under_way["qualification"] == exit.qualification
            return machine.default()

        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            return Action.EMULATED

    result, log = logged(MIXED, SHADOW.replace(exit_log=1), policy=Odd())
    check(result, log)
    assert len(seen) == result.counters["exits_by_reason"]["exception_nmi"]


@pytest.mark.parametrize("config", [EPT, SHADOW], ids=lambda config: config.name)
def test_both_vmms_log_the_same(config: Config) -> None:
    logs = [logged(MIXED, config.replace(vmm=vmm, kvm="6.1"))[1].records for vmm in ("kernel", "python")]
    assert logs[0].tobytes() == logs[1].tobytes()
    assert len(logs[0]) > 300


def test_a_vmm_in_python_says_the_class() -> None:
    class Own(Kvm):
        def default(self, vcpu: VirtualCpu, exit: Exit) -> int:
            action = super().default(vcpu, exit)
            if exit.reason == ExitReason.CPUID:
                vcpu.classify(FaultClass.MMIO)
            if exit.reason == ExitReason.EPT_VIOLATION and exit.guest_physical >> 12 & 1:
                vcpu.classify(FaultClass.PROTECTED if exit.guest_physical >> 13 & 1 else FaultClass.DIRTY)
            return action

    result, log = logged(MIXED, EPT.replace(vmm=Own))
    assert log.by_class(ExitReason.CPUID) == {"mmio": log.by_reason()["cpuid"]}
    classes = log.by_class()
    assert set(classes) == {"build", "dirty", "protected"}
    for name in ("dirty", "protected"):
        assert result.counters[f"violations_{name}"] == classes[name]

    class Wrong(Kvm):
        def default(self, vcpu: VirtualCpu, exit: Exit) -> int:
            vcpu.classify(99)
            return super().default(vcpu, exit)

    with pytest.raises(StateError, match="99"):
        simulate(MIXED, EPT.replace(vmm=Wrong))


def test_cycles_are_those_of_the_model_that_is_given() -> None:
    costs = CostModel.load(generation="prescott")
    result, log = logged(MIXED, EPT.replace(exit_log=1 << 16), costs=costs)
    check(result, log)
    assert result.exit_log is not None
    assert result.exit_log.cycles == log.cycles
    run = Simulation(EPT.replace(exit_log=1 << 16))
    for batch in MIXED.batches():
        run.feed(batch)
    assert run.machine.exit_log(costs).cycles == log.cycles
    assert run.machine.exit_log().cycles < log.cycles
    transition = costs.transition()
    assert (log.records["cycles"] >= transition).all()


def test_an_error_in_the_middle_of_a_run_loses_none() -> None:
    """What was done until then is in the stream."""
    trace = events((Op.READ, [0x1000 * i for i in range(1, 200)]), (Op.READ, 1 << 60))
    parts: list[npt.NDArray[np.void]] = []
    run = Simulation(EPT, exits=parts.append)
    (batch,) = trace.batches()
    with pytest.raises(Exception, match="event 199"):
        run.feed(batch)
    log = ExitLog(np.concatenate(parts))
    assert len(log) == run.machine.counters()["vm_exits"] > 190
    assert np.concatenate(parts).dtype == EXIT_DTYPE
