"""VM exits: in the kernel layer, by a policy in Python, by a VMM in Python through `fastmmu.vmx`; and TPR traffic.

An EPT violation for each page of a first pass over memory, and the shadow page faults of one; with the guest's own
demand paging around them, and without. Beside those of the kernel layer stands the same pass over tables that are
filled without faults and exits (`premapped`): what is left is what the exits cost.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastmmu
from bench.race import Race, Rival, Scale, timed
from bench.streams import Events, cpuids, enable_apic, first_pass, tpr_traffic
from fastmmu.vmx import UNPAGED_GUEST, Cpu, Exit, ExitReason, Field, Secondary, Vmcs

EPT = fastmmu.Config(mmu="ept", vpid=True)
SHADOW = fastmmu.Config(mmu="shadow", vpid=True)
LARGE = EPT.replace(pages="2m", host_pages="4k")
"""The guest maps 512 pages at one fault; the VMM still maps each by itself."""

PASSES = {
    "EPT violation": (EPT, 0.6),
    "EPT violation, TLB of 98,304": (EPT.replace(stlb="98304/12"), 0.6),
    "EPT violation, strict TLB": (EPT.replace(tlb="strict"), 0.6),
    "EPT violation, no guest paging": (LARGE, 0.35),
    "EPT violation, no guest paging, TLB of 98,304": (LARGE.replace(stlb="98304/12"), 0.35),
    "shadow page fault": (SHADOW, 0.6),
}
"""A first pass over pages: how, and the microseconds an exit that are aimed at."""


class InPython(fastmmu.Policy):
    """Takes over the exits of this bench and has the kernel layer handle them."""

    def on_cpuid(self, machine: fastmmu.Machine, exit: fastmmu.Exit) -> fastmmu.Action:
        return machine.default()

    on_ept_violation = on_exception_nmi = on_cpuid


class Runs:
    """Runs of the same events on machines that have not seen them: `run` on the one that `fresh` made."""

    def __init__(self, config: fastmmu.Config, events: Events, policy: fastmmu.Policy | None = None) -> None:
        self.config, self.events, self.policy = config, events, policy
        self.fresh()

    def fresh(self) -> None:
        self.machine = fastmmu.Machine(self.config, policy=self.policy)

    def run(self) -> dict[str, int]:
        self.machine.run(*self.events)
        return self.machine.counters()

    def rival(self, name: str, items: int) -> Rival:
        def run() -> float:
            self.fresh()
            return timed(self.run)()

        return Rival(name, run, items)


@pytest.mark.benchmark(group="exits")
@pytest.mark.parametrize("cause", PASSES)
def test_first_pass(race: Race, scale: Scale, cause: str) -> None:
    config, aim = PASSES[cause]
    events = first_pass(scale.of(500, 20_000, 100_000))
    runs, made = Runs(config, events), Runs(config.replace(premapped=True), events)
    exits = runs.run()["vm_exits"]
    counters = race(runs.run, exits, [made.rival("premapped", exits)], fresh=runs.fresh, aim_us=aim)
    assert counters["vm_exits"] == exits >= len(events[0])
    assert counters["pages_touched"] == -(-len(events[0]) // (512 if config.pages == "2m" else 1))
    assert made.machine.counters()["vm_exits"] == 0
    if config.mmu == "ept":
        assert counters["violations_build"] == exits


@pytest.mark.benchmark(group="exits")
def test_cpuid(race: Race, scale: Scale) -> None:
    n = scale.of(1_000, 200_000, 1_000_000)
    runs = Runs(EPT, cpuids(n))
    assert race(runs.run, n, fresh=runs.fresh)["vm_exits"] == n


@pytest.mark.benchmark(group="exits by a policy in Python")
@pytest.mark.parametrize("cause", ["CPUID", "EPT violation", "shadow page fault"])
def test_policy(race: Race, scale: Scale, cause: str) -> None:
    """Beside the kernel layer, and with equal counters."""
    n = scale.of(300, 20_000, 100_000)
    config = SHADOW if "shadow" in cause else EPT
    events = cpuids(n) if cause == "CPUID" else first_pass(n // 4 if "shadow" in cause else n)
    outside, inside = Runs(config, events, InPython()), Runs(config, events)
    exits = inside.run()["vm_exits"]
    counters = race(outside.run, exits, [inside.rival("kernel layer", exits)], fresh=outside.fresh, aim_us=2.0)
    assert exits >= len(events[0])
    assert counters == inside.machine.counters()


# ---- a VMM in Python over fastmmu.vmx ------------------------------------------------------------------------------

TABLES, LAST = 0x10000, 0x20000


def processor(pages: int) -> Cpu:
    """A guest over an EPT whose upper tables are there, and no entry of the lowest."""
    cpu = Cpu(fastmmu.PhysicalMemory(LAST + 8 * 512 * (pages // 512 + 1)))
    vmcs = Vmcs(cpu.memory, 0x1000)
    cpu.vmclear(vmcs)
    cpu.vmptrld(vmcs)
    cpu.vmwrite_all({**UNPAGED_GUEST, Field.EPTP: TABLES | 0x1E, Field.VPID: 1})
    cpu.vmwrite(Field.SECONDARY_CONTROLS, UNPAGED_GUEST[Field.SECONDARY_CONTROLS] | Secondary.VPID)
    words = cpu.memory.u64
    words[TABLES >> 3] = TABLES + 0x1000 | 7
    words[TABLES + 0x1000 >> 3] = TABLES + 0x2000 | 7
    for table in range(pages // 512 + 1):
        words[(TABLES + 0x2000 >> 3) + table] = LAST + 0x1000 * table | 7
    cpu.vmlaunch()
    return cpu


def skip_cpuids(cpu: Cpu, events: Events) -> int:
    """The exits, each of which the VMM leaves out."""
    run, resume, skip, cpuid = cpu.run, cpu.vmresume, cpu.skip, ExitReason.CPUID
    stop, exits = run(*events), 0
    while isinstance(stop, Exit) and stop.reason == cpuid:
        exits += 1
        skip()
        resume()
        stop = run()
    return exits


def map_pages(cpu: Cpu, events: Events) -> int:
    """The exits, for each of which the VMM writes an entry."""
    entries: memoryview = memoryview(cpu.memory.u64)[LAST >> 3 :]  # type: ignore[arg-type]
    run, resume, violation = cpu.run, cpu.vmresume, ExitReason.EPT_VIOLATION
    stop, exits = run(*events), 0
    while isinstance(stop, Exit) and stop.reason == violation:
        exits += 1
        gpa = stop.guest_physical
        entries[gpa >> 12] = gpa | 0x37
        resume()
        stop = run()
    return exits


@pytest.mark.benchmark(group="exits by a VMM over fastmmu.vmx")
@pytest.mark.parametrize("cause", ["CPUID", "EPT violation"])
def test_vmx(race: Race, scale: Scale, cause: str) -> None:
    n = scale.of(500, 20_000, 100_000)
    handle = skip_cpuids if cause == "CPUID" else map_pages
    op, size, addr = cpuids(n) if cause == "CPUID" else first_pass(n)
    events = op, size, addr if cause == "CPUID" else addr - np.uint64(1 << 40)
    inside = Runs(EPT, (op, size, addr))
    kernel = inside.rival("kernel layer", inside.run()["vm_exits"])
    made: list[Cpu] = []

    def fresh() -> None:
        made[:] = [processor(0 if cause == "CPUID" else n)]

    assert race(lambda: handle(made[0], events), n, [kernel], fresh=fresh) == n


# ---- the local APIC ------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="TPR traffic")
def test_tpr(race: Race, scale: Scale) -> None:
    """FlexPriority: every fifth event accesses the TPR, half of them write, nothing is pending, so none exits; beside
    the accesses alone, event for event."""
    n = scale.of(20_000, 500_000, 2_000_000)
    events, (op, size, addr) = tpr_traffic(n), tpr_traffic(n, share=0.0)
    tpr = int(np.count_nonzero(events[0] >= fastmmu.Op.APIC_READ))

    def machine() -> fastmmu.Machine:
        made = fastmmu.Machine(EPT.replace(memory="1G", tpr="flexpriority"))
        made.run(*enable_apic())
        made.run(op, size, addr)
        return made

    plain, mixed = machine(), machine()
    before: dict[str, int] = {}

    def run() -> dict[str, int]:
        before.update(mixed.counters())
        mixed.run(*events)
        return mixed.counters()

    after = race(run, n, [Rival("without TPR", timed(lambda: plain.run(op, size, addr)), n)], target=2.0)
    assert after["vm_exits"] == before["vm_exits"]
    done = {name: after[name] - before[name] for name in ("apic_tpr_reads", "apic_tpr_writes")}
    assert sum(done.values()) == tpr > n / 6
    assert after["accesses"] - before["accesses"] == n - tpr
