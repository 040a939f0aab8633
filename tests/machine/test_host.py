"""Physical CPUs and vCPUs: nothing stale whatever the schedule, the flushes of both columns, and what they are for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import numpy as np
import pytest

import fastmmu
from fastmmu import Config, ConfigError, GuestState, Host, OutOfMemoryError, StateError
from fastmmu.ops import Op
from tests.support.host_events import alone, program
from tests.support.vmm_tables import check_reverse_maps, guest_memory_at

SMALL = Config(mmu="ept", memory="64M", tlb="nehalem")
SCHEMES = [SMALL.replace(mmu=mmu, vpid=vpid) for mmu in ("shadow", "ept") for vpid in (False, True)]
KVMS = ("slides", "6.1")
every_scheme = pytest.mark.parametrize("config", SCHEMES, ids=lambda config: config.name)


def turns(lengths: list[int], cpus: int, seed: int) -> Iterator[tuple[int, int, slice]]:
    """(vCPU, CPU, events) in any order, until every program has ended."""
    random, done = Random(seed), [0] * len(lengths)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        vcpu = random.choice([i for i, n in enumerate(lengths) if done[i] < n])
        stop = min(done[vcpu] + random.randrange(1, 700), lengths[vcpu])
        yield vcpu, random.randrange(cpus), slice(done[vcpu], stop)
        done[vcpu] = stop


@every_scheme
def test_one_vcpu_on_one_cpu_is_a_machine(config: Config) -> None:
    columns = program(1)
    out, counted = alone(config, columns)
    host, mine = Host([config]), np.zeros(len(out), np.uint64)
    host.run(0, 0, *columns, mine)
    assert np.array_equal(mine, out)
    first = {"invvpid", "invept"}  # it ran on its CPU for the first time
    assert {k: v for k, v in host.counters(0).items() if k not in first} == {
        k: v for k, v in counted.items() if k not in first
    }
    assert host.counters(0)["invvpid"] - counted["invvpid"] == config.vpid
    assert host.counters(0)["invept"] - counted["invept"] == (config.mmu == "ept")


@pytest.mark.parametrize("kvm", KVMS)
@pytest.mark.parametrize("cpus", [1, 3])
@every_scheme
def test_whatever_the_schedule_every_guest_sees_what_it_would_alone(config: Config, cpus: int, kvm: str) -> None:
    """Same linear addresses, same guest-physical ones, other host memory: every tag and every flush is needed."""
    config = config.replace(kvm=kvm)
    programs = [program(seed) for seed in range(4)]
    host, outs = Host([config] * 4, cpus=cpus), [np.zeros(6000, np.uint64) for _ in range(4)]
    for vcpu, cpu, at in turns([6000] * 4, cpus, seed=cpus):
        host.run(vcpu, cpu, *(column[at] for column in programs[vcpu]), outs[vcpu][at], at.start)
    for columns, out in zip(programs, outs, strict=True):
        assert np.array_equal(out, alone(config, columns)[0])
    assert host.totals()["switches"] > 40
    assert (host.totals()["migrations"] > 0) is (cpus > 1)
    by_cpu = sum(cpu.counters()["l1d"]["lookups"] for cpu in host.cpus)
    assert sum(host.counters(i)["l1d_hits"] + host.counters(i)["l1d_misses"] for i in range(4)) == by_cpu


@pytest.mark.parametrize("kvm", KVMS)
def test_no_entry_leads_to_the_memory_of_another_machine(kvm: str) -> None:
    """P4 of kvm_policy.md §13: linear and guest-physical addresses are the same in all, host memory is not shared."""
    configs = [
        Config(mmu="shadow", memory="64M", kvm=kvm),
        Config(mmu="ept", memory="64M", kvm=kvm, pages="thp", vpid=True),
        Config(mmu="shadow", memory="128M", kvm=kvm, pages="thp", host_pages="untouched"),
        Config(mmu="ept", memory="64M", kvm=kvm, tdp_mmu=False, pages="2m"),
    ]
    host = Host(configs, cpus=2)
    columns = program(7, 3000)
    for vcpu, cpu, at in turns([3000] * 4, 2, seed=3):
        host.run(vcpu, cpu, *(column[at] for column in columns))
    start = 0
    for machine in host.machines:
        end = guest_memory_at(machine) + machine.config.memory_bytes
        assert machine.vmm.reverse_maps()[0]
        check_reverse_maps(machine, start, end)
        start = end


@pytest.mark.parametrize("kvm", KVMS)
@every_scheme
def test_vcpus_of_one_machine(config: Config, kvm: str) -> None:
    """Against the same schedule with every TLB emptied before each turn: no answer is stale."""
    config = config.replace(kvm=kvm, pages="thp", thp_threshold=8)
    programs = [program(seed, 4000) for seed in range(3)]
    found = []
    for empty in (False, True):
        host, outs = Host([(config, 3)], cpus=2), [np.zeros(4000, np.uint64) for _ in range(3)]
        for vcpu, cpu, at in turns([4000] * 3, 2, seed=5):
            if empty:
                for tlb in host.cpus:
                    tlb.reset()
            host.run(vcpu, cpu, *(column[at] for column in programs[vcpu]), outs[vcpu][at], at.start)
        found.append(outs)
        totals = host.totals()
    assert all(np.array_equal(mine, fresh) for mine, fresh in zip(*found, strict=True))
    assert totals["flush_requests"] == 2 * totals["remote_flushes"]
    assert (totals["remote_flushes"] > 0) is (config.mmu == "shadow")
    assert (totals["ipis"] > 0) is (config.mmu == "shadow")
    assert totals["ipis"] < totals["flush_requests"] or not totals["ipis"]
    exits = sum(host.counters(i)["exits_by_reason"].get("external_interrupt", 0) for i in range(3))
    assert exits <= totals["switches"] + totals["ipis"]
    assert exits >= totals["switches"]


@pytest.mark.parametrize("kvm", KVMS)
def test_a_request_flushes_the_other_vcpu_and_an_ipi_makes_it_exit(kvm: str) -> None:
    config = SMALL.replace(mmu="shadow", vpid=True, kvm=kvm)
    quiet, busy = program(1, 500, unmaps=0), program(2, 3000)
    for omit, flushed in (((), True), (("remote",), False)):
        host = Host([(config, 2)], cpus=2, omit=omit)
        host.run(0, 0, *quiet)
        before, requests = host.counters(0), host.totals()["flush_requests"]
        cause = "invvpid_1" if kvm == "slides" else "invvpid_2"
        flushes = host.cpus[0].counters()["flushes"].get(cause, 0)
        host.run(1, 1, *busy)
        asked = host.totals()["flush_requests"] - requests
        assert (asked > 0) is flushed
        assert host.totals()["ipis"] == flushed  # one: it has not run since
        host.run(0, 0, *(column[:1] for column in quiet))
        after = host.counters(0)
        exits = [c["exits_by_reason"].get("external_interrupt", 0) for c in (before, after)]
        assert exits[1] - exits[0] == flushed
        assert after["invvpid"] - before["invvpid"] == flushed
        assert host.cpus[0].counters()["flushes"].get(cause, 0) - flushes == flushed


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("omit", [(), ("remote",)], ids=["flushed", "not flushed"])
def test_without_the_remote_flush_a_dirty_page_is_lost(mmu: str, omit: tuple[str, ...]) -> None:
    """A log begins while another CPU may write by what it has cached."""
    host = Host([(SMALL.replace(mmu=mmu, vpid=True, kvm="6.1"), 2)], cpus=2, omit=omit)
    store = np.array([Op.WRITE], np.uint8), np.array([8], np.uint8), np.array([1 << 40], np.uint64)
    gpa = np.zeros(1, np.uint64)
    for _ in range(2):  # the page is mapped, then cached as writable and dirty
        host.run(0, 0, *store, gpa)
    vmm = host.place(1, 1).vmm
    vmm.start_dirty_log(0)
    host.run(0, 0, *store, gpa)
    assert vmm.dirty_log(0)[int(gpa[0]) >> 12] == (not omit)


# ---- T12 -------------------------------------------------------------------------------------------------------

ROOT, PDPT, PD, PT, OLD, NEW = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
FULL = 0x67


@pytest.mark.parametrize("kvm", KVMS)
@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("omit", [(), ("moved",)])
def test_t12_migration_without_flush_finds_the_old_translation(mmu: str, kvm: str, omit: tuple[str, ...]) -> None:
    """A guest changes a page on CPU 1 and invalidates it there; back on CPU 0 only the flush of KVM makes it fresh."""
    # with unsync tables loading the root there owes a flush of its own
    config = SMALL.replace(mmu=mmu, vpid=True, kvm=kvm, unsync=False)
    host = Host([config], cpus=2, guest_kernel=False, state=GuestState(cr3=ROOT), omit=omit)
    guest = host.place(0, 0)
    for table, entry in ((ROOT, PDPT), (PDPT, PD), (PD, PT), (PT, OLD), (PT + 8, PT)):
        guest.guest_memory.write64(table, entry | FULL)
    assert guest.access(0).gpa == OLD
    host.place(0, 1)
    assert guest.access(0).gpa == OLD
    guest.store(0x1000, NEW | FULL)  # its own page table, mapped at 0x1000
    guest.invlpg(0)
    assert guest.access(0).gpa == NEW
    host.place(0, 0)
    assert guest.access(0).gpa == (OLD if omit else NEW)


# ---- VPIDs and the host's own pages ----------------------------------------------------------------------------


def test_vpids_of_a_host() -> None:
    config = SMALL.replace(vpid=True)
    host = Host([config, (config, 3), SMALL, config])
    assert [host.vpid(i) for i in range(host.vcpus)] == [1, 2, 3, 4, 0, 5]
    assert host.totals()["vpids"] == 5
    host.place(0, 0)
    host.remove(0)
    assert (host.vpid(0), host.totals()["vpids"]) == (0, 4)


@pytest.mark.skipif("FASTMMU_EXHAUSTIVE" not in os.environ, reason="skipped: FASTMMU_EXHAUSTIVE=1 runs it")
def test_70_000_vcpus_on_one_host() -> None:
    """65,535 have a VPID, in their order; the others run without, and flush at every exit. Those that end give back."""
    config = SMALL.replace(vpid=True)
    host = Host([(config, 1024)] * 69, cpus=2)
    vpids = [host.vpid(i) for i in range(host.vcpus)]
    assert vpids == [*range(1, 65536), *[0] * (host.vcpus - 65535)]
    columns, out = program(1, 2000), {}
    for vcpu in (0, 65534, 65535, host.vcpus - 1):
        out[vcpu] = np.zeros(2000, np.uint64)
        host.run(vcpu, vcpu % 2, *columns, out[vcpu])
    misses = [host.counters(vcpu)["tlb_misses"] for vcpu in out]
    assert max(misses[:2]) < min(misses[2:])
    assert [host.counters(vcpu)["invvpid"] for vcpu in out] == [1, 1, 0, 0]
    assert np.array_equal(out[0], alone(config, columns)[0])
    for vcpu in range(0, host.vcpus, 7):
        host.remove(vcpu)
    assert host.totals()["vpids"] == 65535 - len(range(0, 65535, 7))


@pytest.mark.parametrize("vpid", [False, True])
def test_pages_of_the_host_cost_entries(vpid: bool) -> None:
    """Without VPID each exit finds them flushed; with it they stay, and are what the guest has room beside."""
    config = SMALL.replace(vpid=vpid, exit_every=100, exit_pages=20, premapped=True, tlb="skylake")
    op, size, addr = program(1, pages=30, unmaps=0)
    plain, mine = alone(config.replace(exit_pages=0), (op, size, addr))[1], alone(config, (op, size, addr))[1]
    assert mine["vm_exits"] == plain["vm_exits"] == 60
    assert mine["host_accesses"] == 20 * 60
    assert mine["host_misses"] == (20 if vpid else 20 * 60)
    assert plain["host_accesses"] == plain["host_misses"] == 0
    lookups = mine["accesses"] + mine["kernel_accesses"] + mine["retries"] + mine["host_accesses"]
    hits = mine["l1d_hits"] + mine["l1i_hits"] + mine["stlb_hits"]
    assert hits + mine["tlb_misses"] + mine["host_misses"] == lookups + mine["page_crossings"]


def test_what_cannot_be_is_refused() -> None:
    for call, message in (
        (lambda: Host([]), "no machine"), (lambda: Host([SMALL], cpus=0), "cpus=0: a host has 1..4096"),
        (lambda: Host([Config(), SMALL]), "native"), (lambda: Host([(SMALL, 0)]), "0 vCPUs"),
        (lambda: Host([SMALL], omit=["cr3"]), "'cr3'"), (lambda: Host([(SMALL.replace(tpr="trap"), 256)]), "0..254"),
        (lambda: Host([(SMALL.replace(tpr="patch", apic_id=1), 16)]), "number 16; .* 0..15"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(OutOfMemoryError, match="46 bits"):
        Host([SMALL.replace(memory="32T")] * 3)
    host = Host([SMALL])
    for call, message in (
        (lambda: host.place(1, 0), "vCPU 1 is outside 0..0"), (lambda: host.place(0, 1), "CPU 1 is outside 0..0"),
        (lambda: host.counters(-1), "vCPU -1"), (lambda: host.vpid(9), "vCPU 9"),
    ):  # fmt: skip
        with pytest.raises(StateError, match=message):
            call()
    with pytest.raises(fastmmu.TraceError, match="event 3"):
        host.run(0, 0, np.array([0, 0, 0, 99], np.uint8), np.ones(4, np.uint8), np.zeros(4, np.uint64))
