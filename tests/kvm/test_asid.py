"""The ASIDs of AMD: kernel, KVM in Python and specification, and what is cached under them (tlb.md §11).

FASTMMU_CREATIONS=100000 python -m pytest -s tests/kvm/test_asid.py -k come_and_go: so many vCPUs of each VMM.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from random import Random
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmmu import AsidAllocator, Config, ConfigError, GuestState, Host, Machine, StateError
from fastmmu.reference.kvm import asid as spec
from tests.support.host_events import alone, program

CREATIONS = int(os.environ.get("FASTMMU_CREATIONS", "400"))
AMD = Config(vendor="amd", mmu="ept", kvm="6.1", memory="64M", tlb="strict", find_missing_flushes=True)
every_vmm = pytest.mark.parametrize("vmm", ["kernel", "python"])
every_mmu = pytest.mark.parametrize("mmu", ["ept", "shadow"])


@given(st.integers(2, 9), st.integers(1, 4), st.lists(st.integers(0, 2), max_size=60))
def test_kernel_and_specification_give_out_the_same(asids: int, min_asid: int, cpus: list[int]) -> None:
    min_asid = min(min_asid, asids - 1)
    kernel, specified = (kind(3, asids=asids, min_asid=min_asid) for kind in (AsidAllocator, spec.AsidAllocator))
    for cpu in cpus:
        assert kernel.new_asid(cpu) == specified.new_asid(cpu)
        assert [kernel[i] for i in range(3)] == [specified[i] for i in range(3)]


def test_the_first_asid_begins_generation_2_as_linux_does() -> None:
    asids = AsidAllocator(2, asids=4)
    assert [asids.new_asid(1) for _ in range(4)] == [(1, 2, True), (2, 2, False), (3, 2, False), (1, 3, True)]
    assert asids[0] == (1, 4, 3, 1)
    assert asids[1] == (3, 2, 3, 1)
    assert len(asids) == 2


def test_what_is_no_asid_is_refused() -> None:
    for arguments in ({"asids": 1}, {"asids": 65537}, {"asids": 4, "min_asid": 4}, {"cpus": 0}):
        with pytest.raises(ConfigError, match=r"\d"):
            AsidAllocator(**arguments)
    with pytest.raises(StateError, match="cpu=1"):
        AsidAllocator().new_asid(1)
    with pytest.raises(ConfigError, match="leave none"):
        Config(vendor="amd", asids=8, sev_asids=7)


# ---- which ASID a vCPU runs under ---------------------------------------------------------------------------------

TABLES, PAGES = 4, 6
ROOT, GLOBAL_CR4 = 0x10_0000, 0x200A0  # PAE, PGE, PCIDE


def guest_tables(machine: Machine) -> None:
    """Of each of several CR3: linear 0 to 5 pages lead to pages of its own."""
    for n in range(TABLES):
        root = ROOT + n * 0x10000
        for table in range(3):
            machine.guest_memory.write64(root + table * 0x1000, root + (table + 1) * 0x1000 | 0x67)
        for page in range(PAGES):
            machine.guest_memory.write64(root + 0x3000 + 8 * page, root + 0x8000 + page * 0x1000 | 0x67)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Schedule:
    """vCPUs that come, move between CPUs, flush and end: on a host, and as specified."""

    def __init__(self, config: Config, *, cpus: int = 3, omit: tuple[str, ...] = (), seed: int = 0) -> None:
        self.random, self.cpus, self.most = Random(seed), cpus, 6
        bare = {"guest_kernel": False, "state": GuestState(cr3=ROOT, cr4=GLOBAL_CR4)}
        self.host = Host([config], cpus=cpus, omit=omit, **bare)
        (self.machine,) = self.host.machines
        guest_tables(self.machine)
        self.specified = spec.Asids(
            cpus, asids=config.asids, min_asid=config.min_asid, flush_by_asid=config.flush_by_asid
        )
        self.specified.create(0)
        self.live, self.created, self.runs = [0], 1, 0
        self.at: dict[int, int] = {}
        self.given: defaultdict[int, int] = defaultdict(int)

    def come(self) -> None:
        if len(self.live) == self.most or (len(self.live) > 1 and self.random.random() < 0.5):
            gone = self.live.pop(self.random.randrange(len(self.live)))
            self.host.remove(gone)
            self.specified.end(gone)
            self.given.pop(gone, None)
            self.at = {cpu: vcpu for cpu, vcpu in self.at.items() if vcpu != gone}
        vcpu = self.host.add_vcpu(self.machine)
        self.live.append(vcpu)
        self.specified.create(vcpu)
        self.created += 1

    def run(self) -> None:
        """One runs on some CPU; its guest uses a table of its own, without asking for a flush."""
        vcpu, cpu = self.random.choice(self.live), self.random.randrange(self.cpus)
        entered = self.at.get(cpu) != vcpu
        self.host.place(vcpu, cpu)
        self.at = {other: each for other, each in self.at.items() if each != vcpu} | {cpu: vcpu}
        if entered:
            self.specified.run(vcpu, cpu)
        self.follow(vcpu, cpu)
        table = vcpu % TABLES
        self.machine.mov_cr3(ROOT + table * 0x10000 | 1 << 63)
        for _ in range(2):
            page = self.random.randrange(PAGES)
            assert self.machine.access(page << 12, self.random.choice("rw")).gpa == (
                ROOT + table * 0x10000 + 0x8000 + (page << 12)
            )
            self.follow(vcpu, cpu)
            assert {each for each, _ in self.specified.use(vcpu, (vcpu, page))} == {vcpu}
        self.runs += 1

    def follow(self, vcpu: int, cpu: int) -> None:
        """The same ASID. Each flush at a VM exit gives a vCPU another one where the processor flushes none."""
        given = self.host.counters(vcpu)["asids_given"]
        while self.given[vcpu] < given and self.specified.allocator[cpu] != self.host.asids[cpu]:
            assert not self.specified.flush_by_asid
            self.specified.flush(vcpu)
            self.specified.run(vcpu, cpu)
            self.given[vcpu] += 1
        self.given[vcpu] = given
        assert self.host.asids[cpu] == self.specified.allocator[cpu]
        assert self.specified.asid(vcpu) == self.host.asid(vcpu)

    def stale(self) -> int:
        return int(self.machine.counters()["stale_uses"])


@every_mmu
@every_vmm
@pytest.mark.parametrize("flush_by_asid", [True, False])
def test_vcpus_come_and_go(vmm: str, mmu: str, flush_by_asid: bool) -> None:
    """Seven ASIDs of each of three CPUs, so that generations roll over; no use is stale."""
    config = AMD.replace(vmm=vmm, mmu=mmu, asids=10, sev_asids=2, flush_by_asid=flush_by_asid)
    schedule = Schedule(config, seed=len(vmm) + len(mmu))
    memory, start = [], process_time()
    for tenth in range(10):
        while schedule.created < CREATIONS * (tenth + 1) // 10:
            schedule.come()
            for _ in range(3):
                schedule.run()
        memory.append(resident())
    asids = [schedule.host.asids[cpu] for cpu in range(3)]
    counted = schedule.machine.counters()
    print(f"{schedule.created:,} vCPUs, {schedule.runs:,} turns, {process_time() - start:.1f} s; generations "
          f"{[each.asid_generation for each in asids]}; {counted['uses_compared']:,} uses compared, "
          f"{counted['stale_uses']} stale; resident MB {[each >> 20 for each in memory]}")  # fmt: skip
    assert schedule.stale() == 0
    assert counted["uses_compared"] > CREATIONS
    assert min(each.asid_generation for each in asids) > CREATIONS // 30
    assert memory[-1] - memory[1] < 8 << 20


def fares_well(schedule: Schedule) -> bool:
    """Every vCPU runs under the ASID that is specified, and finds its own memory."""
    try:
        for _ in range(200):
            schedule.come()
            for _ in range(3):
                schedule.run()
    except AssertionError:
        return False
    return True


@every_mmu
@every_vmm
def test_asids_that_begin_anew_without_a_flush_are_found(vmm: str, mmu: str) -> None:
    """What the flush of all ASIDs is for: another vCPU's translations under the same ASID."""
    schedule = Schedule(AMD.replace(vmm=vmm, mmu=mmu, asids=4), omit=("asids",))
    assert not fares_well(schedule)
    assert schedule.stale() > 0


@every_mmu
@every_vmm
def test_an_asid_of_another_cpu_is_found(vmm: str, mmu: str) -> None:
    """What the new ASID of a vCPU that moves is for."""
    schedule = Schedule(AMD.replace(vmm=vmm, mmu=mmu, asids=12), omit=("moved",))
    assert not fares_well(schedule)


@every_mmu
@every_vmm
@pytest.mark.parametrize("flush_by_asid", [True, False])
def test_a_flush_by_tlb_control_that_is_left_out_is_found(vmm: str, mmu: str, flush_by_asid: bool) -> None:
    config = AMD.replace(vmm=vmm, mmu=mmu, flush_by_asid=flush_by_asid)
    for omit in ((), ("tables",)):
        machine = Machine(config, guest_kernel=False, state=GuestState(cr3=ROOT, cr4=GLOBAL_CR4))
        guest_tables(machine)
        machine.vmm.omit = omit
        machine.access(0, "w")
        before = machine.counters()
        machine.vmm.start_dirty_log(0)
        machine.access(0, "w")
        counted = machine.counters()
        assert counted["stale_uses"] == (1 if omit else 0)
        assert counted["asid_flushes"] - before["asid_flushes"] == (0 if omit else 1)
        assert counted["asids_given"] - before["asids_given"] == (not omit and not flush_by_asid)
        assert counted["invept"] == counted["invvpid"] == 0
        if omit:
            assert [each.owed for each in machine.missing_flushes.examples()] == ["TLB_CONTROL"]


@every_vmm
@pytest.mark.parametrize("kvm", ["slides", "6.1"])
def test_invlpg_of_a_shadowed_guest_is_invlpga_of_its_asid(vmm: str, kvm: str) -> None:
    """Since 4.19; before, all that the ASID has goes: by another one before 2.6.38."""
    config = AMD.replace(vmm=vmm, mmu="shadow", kvm=kvm)
    for omit in ((), ("invlpg",)):
        machine = Machine(config, guest_kernel=False, state=GuestState(cr3=ROOT, cr4=GLOBAL_CR4))
        guest_tables(machine)
        machine.vmm.omit = omit
        for page in range(2):
            machine.access(page << 12)
        before = machine.counters()
        machine.invlpg(0)
        counted = machine.counters()
        asid = machine.vmcb["guest_asid"]
        held = {entry[5] for entry in machine.tlb.entries() if entry[0] == "l1d" and entry[2] == asid}
        assert held == ({0, 0x1000} if omit else {0x1000} if kvm == "6.1" else set())
        assert counted["invlpga"] - before["invlpga"] == (kvm == "6.1" and not omit)
        assert counted["asids_given"] - before["asids_given"] == (kvm == "slides" and not omit)


@every_mmu
def test_what_is_cached_bears_the_asid_alone(mmu: str) -> None:
    """No root of the nested tables: guest-physical entries have the ASID in its place (APM vol. 2, 15.16)."""
    machine = Machine(AMD.replace(mmu=mmu, vpid=True), guest_kernel=False, state=GuestState(cr3=ROOT))
    guest_tables(machine)
    machine.access(0)
    entries = machine.tlb.entries()
    asid = machine.vmcb["guest_asid"]
    assert asid == 1
    assert {entry[2] for entry in entries if entry[1] not in ("gpm", "epsc")} == {asid}
    assert {entry[4] for entry in entries} == {asid << 12 if mmu == "ept" else None}
    assert machine.counters()["exits_by_reason"]


def test_a_host_is_of_one_vendor() -> None:
    host = Host([AMD.replace(tlb="skylake", find_missing_flushes=False)])
    assert host.vpid(0) == 0
    with pytest.raises(ConfigError, match="vendor='amd'"):
        host.add(Config(mmu="ept", memory="64M"))


@every_mmu
@every_vmm
@pytest.mark.parametrize("kvm", ["slides", "6.12"])
def test_whatever_the_schedule_every_guest_sees_what_it_would_alone(vmm: str, mmu: str, kvm: str) -> None:
    """Four machines with the same addresses on two CPUs of two ASIDs each."""
    config = Config(vendor="amd", mmu=mmu, kvm=kvm, vmm=vmm, memory="64M", tlb="nehalem", asids=3)
    programs = [program(seed, 1200, pages=60) for seed in range(4)]
    host, outs, done = Host([config] * 4, cpus=2), [np.zeros(1200, np.uint64) for _ in range(4)], [0] * 4
    random = Random(mmu + kvm)
    while any(at < 1200 for at in done):
        vcpu = random.choice([i for i in range(4) if done[i] < 1200])
        stop = min(done[vcpu] + random.randrange(1, 200), 1200)
        at = slice(done[vcpu], stop)
        host.run(vcpu, random.randrange(2), *(column[at] for column in programs[vcpu]), outs[vcpu][at], at.start)
        done[vcpu] = stop
    for columns, out in zip(programs, outs, strict=True):
        assert np.array_equal(out, alone(config.replace(vmm="kernel"), columns)[0])
    assert min(host.asids[cpu].asid_generation for cpu in range(2)) > 5
