"""Each EPT violation has one class: what it needed the VMM for (`fastmmu.exits.FaultClass`)."""

from __future__ import annotations

import pytest

from fastmmu import Config, Machine, MemorySlot, Policy, StateError, read_trace, simulate
from fastmmu.exits import FaultClass
from fastmmu.machine.policy import Action
from fastmmu.machine.simulation import Simulation
from fastmmu.trace.bundle import bundled
from tests.support.flat_guest import PAGE, flat

EPT = Config(memory="64M", mmu="ept", kvm="6.1", vpid=True)
READ_ONLY = 0x1000_0000
NOWHERE = 0x3000_0000
NAMES = [each.name.lower() for each in FaultClass if each not in (FaultClass.NONE, FaultClass.GUEST)]


def classes(machine: Machine) -> dict[str, int]:
    """Those that there were; they sum to the exits."""
    counters = machine.counters()
    found = {name: counters[f"violations_{name}"] for name in NAMES}
    assert sum(found.values()) == counters["exits_by_reason"].get("ept_violation", 0)
    return {name: n for name, n in found.items() if n}


def gained(machine: Machine, before: dict[str, int]) -> dict[str, int]:
    now = classes(machine)
    return {name: n - before.get(name, 0) for name, n in now.items() if n != before.get(name, 0)}


def test_build_protected_and_mmio() -> None:
    machine = flat(EPT, MemorySlot(READ_ONLY, 0x1000, readonly=True))
    machine.access(PAGE)
    assert classes(machine) == {"build": 4}  # three tables and the page
    before = classes(machine)
    machine.access(READ_ONLY)
    assert gained(machine, before) == {"build": 1}
    machine.access(READ_ONLY, "w")
    machine.access(READ_ONLY, "w")
    assert gained(machine, before) == {"build": 1, "protected": 2}
    before = classes(machine)
    machine.access(NOWHERE)  # marked: the next is a misconfiguration
    machine.access(NOWHERE)
    assert gained(machine, before) == {"mmio": 1}
    assert machine.counters()["mmio"] == 4
    assert machine.counters()["exits_by_reason"]["ept_misconfig"] == 1


def test_every_access_to_no_memory_is_a_violation_without_marks() -> None:
    machine = flat(EPT.replace(mmio_caching=False))
    machine.access(PAGE)
    before = classes(machine)
    machine.access(NOWHERE)
    machine.access(NOWHERE)
    assert gained(machine, before) == {"mmio": 2}


@pytest.mark.parametrize("kvm", ["slides", "6.1"])
def test_a_dirty_log(kvm: str) -> None:
    """The first store to a page while its slot is logged, mapped before or not."""
    machine = flat(EPT.replace(kvm=kvm))
    machine.access(PAGE, "w")
    machine.vmm.start_dirty_log(0)
    machine.access(PAGE + 0x1000)  # its flags in the guest's tables are stores to them
    assert classes(machine) == {"build": 5, "dirty": 3}
    before = classes(machine)
    for _ in range(2):
        machine.access(PAGE, "w")
        machine.access(PAGE + 0x2000, "w")
        machine.access(PAGE + 0x3000)
    assert gained(machine, before) == {"dirty": 2, "build": 1}
    assert machine.vmm.counters()["dirty_faults"] == classes(machine)["dirty"]


def test_a_page_from_disk_and_a_copy_on_write() -> None:
    machine = flat(EPT.replace(host_pages="untouched"))
    machine.access(PAGE)
    before = classes(machine)
    machine.access(PAGE, "w")  # of the page of zeros: the host unmaps it, and the fault begins anew
    assert gained(machine, before) == {"protected": 1, "build": 1}
    assert machine.vmm.swap_out(0, PAGE >> 12)
    before = classes(machine)
    machine.access(PAGE)
    assert gained(machine, before) == {"swapped_in": 1}
    machine.access(PAGE, "w")  # of a page that is on disk as well
    assert gained(machine, before) == {"swapped_in": 1, "protected": 1}


def test_rights_given_back() -> None:
    """The host took them to see whether the page is used."""
    machine = flat(EPT.replace(ept_ad=False, host_pages="untouched"))
    machine.access(PAGE, "w")
    machine.vmm.young(0, PAGE >> 12, clear=True, flush=True)
    before, fast = classes(machine), machine.counters()["pf_fast"]
    machine.access(PAGE)
    assert gained(machine, before) == {"protected": 1}
    assert machine.counters()["pf_fast"] == fast + 1


def test_one_that_begins_anew() -> None:
    """A store to a page of zeros that nothing maps any more, and one to a page that the host is taking away."""
    machine = flat(EPT.replace(host_pages="untouched"), MemorySlot(READ_ONLY, 0x1000))
    machine.access(PAGE)
    machine.vmm.delete_slot(1)
    before = classes(machine)
    machine.access(PAGE, "w")
    assert gained(machine, before) == {"spurious": 1, "build": 4}
    machine.vmm.invalidate_range_start(0, PAGE >> 12, 1)
    before = classes(machine)
    with pytest.raises(StateError):
        machine.access(PAGE)
    assert gained(machine, before) == {"spurious": 1}
    machine.vmm.invalidate_range_end(0)
    machine.access(PAGE)
    assert gained(machine, before) == {"spurious": 1, "build": 1}
    assert machine.counters()["ept_spurious"] == 0


def test_what_a_policy_handles_has_none() -> None:
    class Own(Policy):
        own = False

        def on_ept_violation(self, machine, exit):  # type: ignore[no-untyped-def]
            if not self.own:
                return machine.default()
            return Action.EMULATED

    policy = Own()
    machine = flat(EPT, policy=policy)
    machine.access(PAGE)
    found = classes(machine)
    policy.own = True
    machine.access(NOWHERE)
    counters = machine.counters()
    assert counters["exits_by_reason"]["ept_violation"] == sum(found.values()) + 1
    assert {name: n for name in NAMES if (n := counters[f"violations_{name}"])} == found


@pytest.mark.parametrize(
    "config",
    [EPT, EPT.replace(kvm="slides", vpid=False), EPT.replace(tdp_mmu=False), EPT.replace(pml=True)],
    ids=["tdp", "slides", "older", "pml"],
)
def test_of_a_trace_with_a_log_and_a_host_short_of_memory(config: Config) -> None:
    """Every violation has its class, whatever the VMM does meanwhile."""
    trace = read_trace(bundled()["sqlite"]).head(200_000)
    config = config.replace(memory="256M")
    pages = simulate(trace, config).counters["pages_touched"]
    run = Simulation(config.replace(host_memory=pages * 4096 // 2))
    for batch in trace.batches():
        for first in range(0, len(batch), 20_000):
            run.feed(batch[first : first + 20_000])
            if run.events <= 20_000:
                run.machine.vmm.start_dirty_log(0)
            else:
                run.machine.vmm.dirty_log(0)
    found, counters = classes(run.machine), run.machine.counters()
    assert min(found["build"], found["dirty"], found["swapped_in"]) > 10
    assert found["dirty"] <= run.machine.vmm.counters()["dirty_faults"]
    assert found.get("spurious", 0) >= counters["ept_spurious"]
    assert found["build"] + found.get("protected", 0) + found["swapped_in"] >= counters["ept_build"]
