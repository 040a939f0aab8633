"""Machines and vCPUs of a host that come and go: VPIDs, memory, what is cached, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from time import process_time

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu import (
    Config,
    ConfigError,
    Host,
    OutOfMemoryError,
)
from tests.support.host_events import BARE, NEW, OLD, SMALL, Columns, alone, few, program, tables
from tests.support.vmm_tables import check_reverse_maps, guest_memory_at

SCHEMES = [SMALL.replace(mmu=mmu, vpid=vpid) for mmu in ("shadow", "ept") for vpid in (False, True)]
every_scheme = pytest.mark.parametrize("config", SCHEMES, ids=lambda config: config.name)
every_kvm = pytest.mark.parametrize("kvm", ["slides", "6.1"])
every_mmu = pytest.mark.parametrize("mmu", ["ept", "shadow"])
CREATIONS = int(os.environ.get("FASTMMU_CREATIONS", "2000"))


# ---- whatever comes and goes, every guest sees what it would alone --------------------------------------------------


class Guest:
    """A vCPU with its program, or the part of it that it has done."""

    def __init__(self, seed: int, columns: Columns) -> None:
        self.columns, self.done, self.seed = columns, 0, seed
        self.out = np.zeros(len(columns[2]), np.uint64)


@every_kvm
@every_scheme
def test_whatever_comes_and_goes_every_guest_sees_what_it_would_alone(config: Config, kvm: str) -> None:
    """Few VPIDs and little memory, so that each new machine has those of one that ended, on CPUs that cached them."""
    random, cpus = Random(config.name + kvm), 3
    config = config.replace(kvm=kvm)
    host = Host([config], cpus=cpus, memory=4 * (132 << 20))
    live: dict[int, Guest] = {}
    seeds = iter(range(10_000))
    ended, most, vpids = 0, 0, set()

    def come(vcpu: int) -> None:
        seed = next(seeds)
        live[vcpu] = Guest(seed % 7, program(seed % 7, 1500, pages=200, unmaps=0.02))
        vpids.add(host.vpid(vcpu))

    come(0)
    for _ in range(400):
        if live and random.random() < 0.85:
            vcpu = random.choice(list(live))
            running = live[vcpu]
            stop = min(running.done + random.randrange(1, 400), 1500)
            at = slice(running.done, stop)
            host.run(vcpu, random.randrange(cpus), *(each[at] for each in running.columns), running.out[at], at.start)
            running.done = stop
            if stop < 1500 and random.random() < 0.9:
                continue
            expected = alone(config, running.columns)[0]
            assert np.array_equal(running.out[:stop], expected[:stop])
            (machine,) = (m for m in host.machines if vcpu in host.vcpus_of(m))
            guest = guest_memory_at(machine)
            check_reverse_maps(machine, guest - (66 << 20), guest + (64 << 20))
            host.remove(machine)
            del live[vcpu]
            ended += 1
        elif len(live) < 4:
            (vcpu,) = host.vcpus_of(host.add(config))
            come(vcpu)
        most = max(most, len(live))
    assert ended > 30
    assert most == 4
    assert max(vpids) <= (4 if config.vpid else 0)


@every_kvm
@every_mmu
def test_vcpus_come_and_go_in_one_machine(mmu: str, kvm: str) -> None:
    """Against the same schedule with every TLB emptied before each turn: no answer is stale."""
    config = SMALL.replace(mmu=mmu, kvm=kvm, pages="thp", thp_threshold=8)
    found = []
    for empty in (False, True):
        random, host, outs = Random(5), Host([(config, 2)], cpus=2), list[npt.NDArray[np.uint64]]()
        (machine,) = host.machines
        columns = [program(seed, 200, pages=300) for seed in range(6)]
        numbers = set()
        for turn in range(300):
            vcpus = host.vcpus_of(machine)
            if len(vcpus) < 4 and random.random() < 0.1:
                numbers.add(host.add_vcpu(machine))
            elif len(vcpus) > 1 and random.random() < 0.1:
                host.remove(random.choice(vcpus))
            vcpu = random.choice(host.vcpus_of(machine))
            if empty:
                for tlb in host.cpus:
                    tlb.reset()
            outs.append(np.zeros(200, np.uint64))
            host.run(vcpu, random.randrange(2), *columns[turn % 6], outs[-1])
        found.append(np.concatenate(outs))
        assert len(numbers) > 10
        assert host.vcpus == max(numbers) + 1
        totals = host.totals()
        assert (totals["remote_flushes"] > 0) is (mmu == "shadow")
        assert totals["flush_requests"] <= 3 * totals["remote_flushes"]
    assert np.array_equal(*found)


@every_kvm
@every_mmu
@pytest.mark.parametrize("omit", [(), ("moved",)], ids=["flushed", "not flushed"])
def test_a_vpid_that_comes_back_is_flushed_where_it_first_runs(mmu: str, kvm: str, omit: tuple[str, ...]) -> None:
    """The next machine has VPID, memory and root of the one that ended; without that flush it sees its translations."""
    config = SMALL.replace(mmu=mmu, kvm=kvm, unsync=False)
    host = Host([config], cpus=2, omit=omit, **BARE)
    (first,) = host.machines
    for vpid, page in ((1, OLD), (1, NEW)):
        (machine,) = host.machines
        (vcpu,) = host.vcpus_of(machine)
        host.place(vcpu, 0)
        assert host.vpid(vcpu) == vpid
        tables(machine, page)
        seen = machine.access(0).gpa
        assert seen == (OLD if omit else page)
        host.remove(machine)
        host.add(config, **BARE)
    assert host.machines[0] is not first


# ---- VPIDs, memory ---------------------------------------------------------------------------------------------------


def test_the_lowest_vpid_that_is_free_is_the_next() -> None:
    """KVM's bitmap: find_first_zero_bit (allocate_vpid)."""
    host = Host([(SMALL, 3)], cpus=1)
    (machine,) = host.machines
    second = host.add(SMALL, 2)
    assert [host.vpid(i) for i in range(5)] == [1, 2, 3, 4, 5]
    host.remove(1)
    host.remove(3)
    assert (host.vpid(1), host.totals()["vpids"]) == (0, 3)
    assert host.vpid(host.add_vcpu(second)) == 2
    assert host.vpid(host.add_vcpu(machine)) == 4
    assert host.vpid(*host.vcpus_of(host.add(SMALL))) == 6
    assert host.vpid(*host.vcpus_of(host.add(SMALL.replace(vpid=False)))) == 0
    host.remove(second)
    assert [host.vpid(v) for v in host.vcpus_of(host.add(SMALL, 3))] == [2, 5, 7]
    assert host.vcpus_of(machine) == (0, 2, 6)


@pytest.mark.skipif("FASTMMU_EXHAUSTIVE" not in os.environ, reason="skipped: FASTMMU_EXHAUSTIVE=1 runs it")
def test_without_a_vpid_left_vcpus_run_without() -> None:
    host = Host([(SMALL, 1024)] * 64, cpus=1)
    (more,) = host.vcpus_of(host.add(SMALL))
    assert [host.vpid(v) for v in (65534, 65535, more)] == [65535, 0, 0]
    host.run(more, 0, *few())
    assert host.counters(more)["invvpid"] == 0
    host.remove(host.machines[1])
    assert host.totals()["vpids"] == 65535 - 1024
    (again,) = host.vcpus_of(host.add(SMALL))
    assert (host.vpid(again), host.vpid(more)) == (1025, 0)


@every_mmu
def test_memory_comes_back_first_fit_and_reads_as_zero(mmu: str) -> None:
    config = SMALL.replace(mmu=mmu, host_pages="2m", unrestricted_guest=True)
    host = Host([config] * 3, cpus=1)
    free = host.free_memory
    starts = [guest_memory_at(m) for m in host.machines]
    for vcpu in range(3):
        host.run(vcpu, 0, *few(2000))
    _, second, _ = host.machines
    view = second.guest_memory
    assert view.u64.any()
    host.remove(second)
    assert not view.u8.any()
    assert host.free_memory > free
    small = host.add(config, **BARE)
    assert guest_memory_at(small) == starts[1]
    assert not small.guest_memory.u8.any()
    assert host.free_memory == free
    assert guest_memory_at(host.add(config)) > starts[2]
    host.remove(host.machines[0])
    large = host.add(config.replace(memory="128M"))
    assert guest_memory_at(large) > starts[2]
    assert guest_memory_at(host.add(config)) == starts[0]


def test_a_host_whose_memory_is_used_up() -> None:
    host = Host([SMALL], memory="300M")
    host.add(SMALL)
    with pytest.raises(OutOfMemoryError, match=r"no 130 MB .* 40 of 300 MB are free, 40 at most in one piece; remove"):
        host.add(SMALL)
    assert (len(host.machines), host.totals()["vpids"], host.vcpus) == (2, 2, 2)
    host.remove(host.machines[0])
    host.run(*host.vcpus_of(host.add(SMALL)), 0, *few())
    with pytest.raises(OutOfMemoryError, match="memory="):
        Host([SMALL] * 3, memory="300M")
    for memory in (-1, 0, "1k", 1 << 50, "64x"):
        with pytest.raises(ConfigError):
            Host([SMALL], memory=memory)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_creations_and_ends_take_neither_more_memory_nor_more_time() -> None:
    """FASTMMU_CREATIONS=200000 python -m pytest -s tests/machine/test_host_lives.py -k creations: machines of two vCPUs
    that run, one after the other in place of the oldest of four, and with each a vCPU of a machine that stays."""
    host = Host([SMALL], cpus=2)
    (stays,) = host.machines
    machines, n = [host.add(SMALL, 2) for _ in range(4)], CREATIONS // 3
    given: dict[int, int] = {}
    seconds, memory, columns = [], [], few()
    for tenth in range(10):
        start = process_time()  # not what other processes take
        for _ in range(n // 10):
            host.remove(machines.pop(0))
            machines.append(host.add(SMALL, 2))
            more = host.add_vcpu(stays)
            for cpu, vcpu in enumerate((*host.vcpus_of(machines[-1]), more)):
                host.run(vcpu, cpu & 1, *columns)
                given[host.vpid(vcpu)] = given.get(host.vpid(vcpu), 0) + 1
            host.remove(more)
        seconds.append((process_time() - start) / (n // 10))
        memory.append(resident())
        if tenth == 0:
            free = host.free_memory
    vcpus = 3 * (n // 10) * 10
    print(f"{vcpus:,} vCPUs came and went; a round of a machine and three vCPUs {min(seconds) * 1e6:.0f} us, by tenths "
          f"{' '.join(f'{s * 1e6:.0f}' for s in seconds)}; resident MB {' '.join(f'{m >> 20}' for m in memory)}; "
          f"VPIDs {sorted(given)}")  # fmt: skip
    assert sum(given.values()) == vcpus
    assert set(given) <= set(range(1, 14))
    assert host.totals()["vpids"] == 9
    assert host.vcpus == 9 + vcpus
    assert host.free_memory == free
    assert memory[-1] - memory[1] < 4 << 20
    assert min(seconds[5:]) < 1.5 * min(seconds[:5])
