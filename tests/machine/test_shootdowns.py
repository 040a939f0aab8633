"""TLB shootdowns of the guest kernel: what other vCPUs see is gone, in every scheme, and what leaving them out does."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu import Config, ConfigError, CostModel, Host, StateError
from fastmmu.machine.costs import cycles
from fastmmu.ops import Op
from tests.support.shared_spaces import SCHEMES, Step, run_steps

PAGE, OTHER = 0x4000_0000, 0x5000_0000
every_scheme = pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES.keys())

# vCPU 0 unmaps a page, its frame goes to another process, vCPU 1 reads it
REUSED: list[Step] = [
    (0, Op.SWITCH, 0), (1, Op.SWITCH, 0), (0, Op.WRITE, PAGE), (1, Op.READ, PAGE), (0, Op.UNMAP, PAGE),
    (0, Op.SWITCH, 1), (0, Op.WRITE, OTHER), (1, Op.READ, PAGE), (0, Op.READ, OTHER),
]  # fmt: skip
# the pages of a table become one of 2 MB
COLLAPSED: list[Step] = [
    (0, Op.SWITCH, 0), (1, Op.SWITCH, 0), *((0, Op.WRITE, PAGE + 4096 * i) for i in range(3)), (1, Op.READ, PAGE),
    (1, Op.READ, PAGE + 4096), (0, Op.WRITE, PAGE + 4096 * 3), (1, Op.READ, PAGE), (1, Op.READ, PAGE + 4096),
    (0, Op.READ, PAGE),
]  # fmt: skip


@every_scheme
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_frame_that_another_process_got_is_not_read(config: Config, cpus: int) -> None:
    came, host = run_steps(config, 2, REUSED, cpus=cpus)
    first, same, others, again, once_more = came
    assert (same, others, once_more) == (first, first, first)
    assert again != first
    assert host.counters(1)["stale_uses"] == 0
    assert sum(host.counters(vcpu)["shootdowns"] for vcpu in (0, 1)) == 1


@every_scheme
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_collapsed_page_is_seen_by_all(config: Config, cpus: int) -> None:
    came, host = run_steps(config.replace(pages="thp", thp_threshold=4), 2, COLLAPSED, cpus=cpus)
    *_, zero, one, base = came
    assert base & 0x1F_FFFF == 0
    assert (zero, one) == (base, base + 4096)
    assert host.counters(1)["stale_uses"] == 0
    assert host.counters(0)["collapses"] == 1
    assert host.counters(0)["shootdowns"] == 1


@pytest.mark.parametrize("name", [name for name in SCHEMES if "shadow" not in name])
def test_without_the_shootdown_it_is_found(name: str) -> None:
    """Under shadow paging the VMM's own flush of other vCPUs hides it."""
    came, host = run_steps(SCHEMES[name], 2, REUSED, omit=["shootdown"])
    assert came[3] == came[0]
    assert host.counters(1)["stale_uses"] == 1
    came, host = run_steps(SCHEMES[name].replace(pages="thp", thp_threshold=4), 2, COLLAPSED, omit=["shootdown"])
    assert host.counters(1)["stale_uses"] >= 1


@pytest.mark.parametrize("name", ["EPT, VPID, PV", "NPT, PV", "EPT, VPID, PV, VMM in Python", "NPT, PV, VMM in Python"])
def test_without_the_flush_at_vm_entry_it_is_found(name: str) -> None:
    """vCPU 1 has no CPU when vCPU 0 unmaps: the VMM flushes for it."""
    steps = [*REUSED[:4], (0, Op.READ, OTHER + 4096), *REUSED[4:]]
    for omit, stale in ((), 0), (("pv",), 1):
        came, host = run_steps(SCHEMES[name], 2, steps, cpus=1, omit=omit)
        assert host.counters(0)["shootdown_marked"] == 1
        assert host.counters(1)["stale_uses"] == stale
        assert (came[4] == came[0]) == bool(stale)


# ---- who is told -----------------------------------------------------------------------------------------------------

SMALL = SCHEMES["EPT, VPID"]
KINDS = ("shootdowns", "shootdown_ipis", "shootdown_preempted", "shootdown_marked", "shootdown_lazy", "late_flushes",
         "shootdown_interrupts", "cr3_flushes", "invlpgs", "invlpgbs", "tlbsyncs")  # fmt: skip


def counted(host: Host, vcpu: int) -> dict[str, int]:
    return {name: host.counters(vcpu)[name] for name in KINDS if host.counters(vcpu)[name]}


def both(*steps: Step) -> list[Step]:
    """Process 0 on both vCPUs, which have the page; then these."""
    return [(0, Op.SWITCH, 0), (1, Op.SWITCH, 0), (0, Op.WRITE, PAGE), (1, Op.READ, PAGE), *steps]


@pytest.mark.parametrize("mmu", ["native", "ept", "shadow"])
def test_only_vcpus_that_have_the_address_space_are_told(mmu: str) -> None:
    config = SMALL.replace(mmu=mmu, vpid=mmu != "native")
    _, host = run_steps(config, 3, both((2, Op.SWITCH, 0), (2, Op.SWITCH, 7), (0, Op.UNMAP, PAGE), (1, Op.READ, PAGE)))
    assert counted(host, 0) == {"shootdowns": 1, "shootdown_ipis": 1, "invlpgs": 1}
    assert counted(host, 1) == {"shootdown_interrupts": 1, "invlpgs": 1}
    assert counted(host, 2) == {}


def test_one_that_switched_away_flushes_where_it_comes_back() -> None:
    """With PCIDs what is tagged stays; its generation tells (choose_new_asid)."""
    steps = both((1, Op.SWITCH, 7), (1, Op.READ, OTHER), (0, Op.UNMAP, PAGE), (0, Op.READ, PAGE), (1, Op.SWITCH, 0))
    for pcid in (False, True):
        came, host = run_steps(SMALL.replace(pcid=pcid), 2, [*steps, (1, Op.READ, PAGE)])
        assert "shootdowns" not in counted(host, 0)
        assert host.counters(1)["late_flushes"] == pcid
        assert came[-1] == came[-2]
        assert host.counters(1)["stale_uses"] == 0


@pytest.mark.parametrize("mmu", ["native", "ept", "shadow"])
def test_lazy_mode(mmu: str) -> None:
    """One that idles is left alone, and flushes when it wakes; of freed tables it is told; without lazy mode it has no
    tables of a process, and loads them anew."""
    config = SMALL.replace(mmu=mmu, vpid=mmu != "native", pages="thp", thp_threshold=4)
    woken = (1, Op.READ, PAGE)
    _, host = run_steps(config, 2, both((1, "idle", 0), (0, Op.UNMAP, PAGE), (0, Op.READ, PAGE), woken))
    assert counted(host, 0) == {"shootdown_lazy": 1, "invlpgs": 1}
    assert counted(host, 1) == {"late_flushes": 1, "cr3_flushes": 1}
    assert host.counters(1)["stale_uses"] == 0
    _, host = run_steps(config, 2, both((1, "idle", 0), woken, (1, "idle", 0), (1, "idle", 0), woken))
    assert counted(host, 1) == {}
    collapse = ((0, Op.WRITE, PAGE + 4096 * i) for i in (1, 2, 3))
    _, host = run_steps(config, 2, both((1, "idle", 0), *collapse, woken))
    assert counted(host, 0)["shootdown_ipis"] == 1
    assert counted(host, 1) == {"shootdown_interrupts": 1, "cr3_flushes": 1}
    off = config.replace(lazy_tlb=False)
    _, host = run_steps(off, 2, both((1, "idle", 0), (0, Op.UNMAP, PAGE), (0, Op.READ, PAGE), woken))
    assert counted(host, 0) == {"invlpgs": 1}
    assert counted(host, 1) == {"cr3_flushes": 2}
    assert host.counters(1)["exits_by_reason"].get("hlt", 0) == (mmu != "native")


@pytest.mark.parametrize("again", [0, 1])
def test_a_generation_that_was_missed_takes_a_whole_flush(again: int) -> None:
    """PV: the VMM flushed, and the guest does not know when; the next range that it is told of is one too far
    (flush_tlb_func)."""
    host = Host([(SMALL.replace(shootdown="pv"), 2)], cpus=2)
    for vcpu, cpu, op, addr in (
        (0, 0, Op.SWITCH, 0), (1, 0, Op.SWITCH, 0), (0, 0, Op.WRITE, PAGE), (0, 0, Op.WRITE, OTHER),
        (1, 0, Op.READ, PAGE), (0, 0, Op.UNMAP, PAGE), (1, 1, Op.READ, OTHER), (0, 0, Op.UNMAP, OTHER),
        (1, 1, Op.READ, PAGE), (0, 0, Op.UNMAP, PAGE), (1, 1, Op.READ, OTHER),
    )[: None if again else 9]:  # fmt: skip
        host.run(vcpu, cpu, np.array([op], np.uint8), np.array([8], np.uint8), np.array([addr], np.uint64))
    assert host.counters(0)["shootdown_marked"] == 1
    assert counted(host, 1) == {
        "shootdown_interrupts": 1 + again,
        "cr3_flushes": 1,
        **({"invlpgs": 1} if again else {}),
    }


def test_invlpgb_interrupts_nobody() -> None:
    _, host = run_steps(SCHEMES["NPT, INVLPGB"], 3, both((1, "idle", 0), (0, Op.UNMAP, PAGE), (1, Op.READ, PAGE)))
    assert counted(host, 0) == {"shootdowns": 1, "invlpgbs": 1, "tlbsyncs": 1, "invlpgs": 1}
    assert counted(host, 1) == {}


@pytest.mark.parametrize(("way", "sends"), [("trap", 2), ("flexpriority", 2), ("apicv", 1)])
def test_the_icr_and_the_interrupt_take_exits_by_way_of_the_apic(way: str, sends: int) -> None:
    """Two writes of the ICR in xAPIC mode, of which APICv has the second alone exit; a kick, or a notification."""
    once = ((0, Op.UNMAP, PAGE), (1, Op.READ, PAGE))
    one, two = (run_steps(SMALL.replace(tpr=way), 2, both(*once * n, (1, Op.READ, PAGE)))[1] for n in (1, 2))
    exits = [two.counters(vcpu)["vm_exits"] - one.counters(vcpu)["vm_exits"] for vcpu in (0, 1)]
    assert exits == [sends, 0 if way == "apicv" else 2]
    assert [each.vector for each in two.deliveries(1)] == [0xFB, 0xFB]
    assert (two.totals()["kicks"], two.totals()["notifications"]) == ((2, 0) if way != "apicv" else (0, 2))


def test_what_a_shootdown_costs() -> None:
    _, host = run_steps(SMALL, 2, both((0, Op.UNMAP, PAGE), (1, Op.READ, PAGE)))
    costs = CostModel.load()
    assert cycles(host.counters(0), SMALL, costs)["shootdowns"] == costs.guest.shootdown + costs.guest.shootdown_ipi
    assert cycles(host.counters(1), SMALL, costs)["shootdowns"] == costs.guest.interrupt


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    for fields, message in (
        ({"mmu": "ept", "shootdown": "invlpgb"}, "AMD"),
        ({"mmu": "shadow", "vendor": "amd", "shootdown": "invlpgb"}, "nested"), ({"shootdown": "rar"}, "'ipi'"),
        ({"flush_ceiling": -1}, "flush_ceiling"), ({"lazy_tlb": 3}, "lazy_tlb"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Config(**fields)
    assert Config(mmu="ept", vendor="amd", shootdown="invlpgb").native.shootdown == "invlpgb"
    for vms, message in (
        ([Config(), Config()], "for itself"), ([(Config(tpr="trap", memory="1G"), 2)], "natively use tpr=None"),
        ([], "no machine"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Host(vms)
    host = Host([(Config(memory="64M"), 2)], cpus=2)
    with pytest.raises(ConfigError, match="for itself"):
        host.add(Config(mmu="ept", memory="64M"))
    with pytest.raises(StateError, match="keeps its CPUs"):
        host.remove(1)
    with pytest.raises(StateError, match="CPU 0 natively is not vCPU 1"):
        host.place(1, 0)
    with pytest.raises(StateError, match="outside"):
        host.idle(2)
    bare = Host([SMALL], guest_kernel=False)
    with pytest.raises(ConfigError, match="bare guest"):
        bare.idle(0)
    assert host.add_vcpu(host.machines[0]) == 2
