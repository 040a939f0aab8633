"""vCPUs of one machine whose registers differ, on the same page tables (kvm_policy.md §1, §2.4).

CR0.WP, SMEP, SMAP, NXE and the paging mode are each vCPU's own, and so are its roots: under shadow paging a table has a
shadow page for each role. The oracle is the specification's walk of the guest's tables by the registers of each vCPU.
FASTMMU_EXAMPLES=N runs N programs, at random.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, ConfigError, GuestState, Host, Machine, reference
from tests.support.guest_layouts import ALL_FRAMES, FRAMES, MAXPHYADDR, Mode, P, Regime, start_of
from tests.support.guest_programs import N_EDITS, edited
from tests.support.guest_runs import WORDS
from tests.support.vmm_tables import leaves

LINUX = Config(memory="64M", mmu="shadow", kvm="6.1", vpid=True)
CONFIGS = [
    LINUX,
    LINUX.replace(vpid=False, host_pages="2m"),
    LINUX.replace(unsync=False),
    LINUX.replace(table_pages=40),
    Config(memory="64M", mmu="shadow"),
    LINUX.replace(mmu="ept", host_pages="2m"),
]
NAMES = ["6.1", "2m", "in sync", "few tables", "slides", "ept"]
VCPUS, CPUS = 3, 2
PDPT = 0xA0_0000  # of PAE paging; its page directories are frames that other modes use, too
MEMORY = 64 << 20

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "20")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)


class Vcpu:
    """One vCPU: its registers as the specification has them."""

    def __init__(self, regime: Regime, cr3: int) -> None:
        self.regime, self.cr3 = regime, PDPT if regime.mode is Mode.PAE else cr3
        self.pdptes: tuple[int, ...] = ()
        self.stale = False

    def state(self, user: bool) -> reference.State:
        return self.regime.state(self.cr3, self.pdptes, user=user)

    def write_registers(self, machine: Machine) -> None:
        """Those of `regime`, in an order that no rule forbids while the guest does not page."""
        wanted: Any = self.regime.registers(self.cr3)
        machine.mov_cr4(wanted["cr4"])
        machine.wrmsr_efer(wanted["efer"] & ~(1 << 10))
        machine.mov_cr3(self.cr3)
        machine.mov_cr0(wanted["cr0"])


class Guest:
    """All vCPUs, their memory, and the memory as specified."""

    def __init__(self, config: Config, seed: int, regimes: list[Regime]) -> None:
        roots, memory = start_of(seed, regimes[0])
        memory |= {PDPT + 8 * i: frame | P for i, frame in enumerate(FRAMES[:4])}
        off = GuestState(cr0=0x11, cr4=0, efer=0x100, maxphyaddr=MAXPHYADDR)
        self.host = Host([(config, VCPUS)], cpus=CPUS, guest_kernel=False, state=off)
        self.words = self.host.machines[0].guest_memory.u64
        self.memory = reference.SparseMemory(memory, nbytes=MEMORY)
        for gpa, value in memory.items():
            self.words[gpa >> 3] = value
        self.frames = roots + [frame for frame in FRAMES if frame not in roots]
        self.vcpus = [Vcpu(regime, roots[0]) for regime in regimes]
        for number, vcpu in enumerate(self.vcpus):
            vcpu.write_registers(self.host.place(number, number % CPUS))
            if vcpu.regime.mode is Mode.PAE:
                vcpu.pdptes = tuple(memory[PDPT + 8 * i] for i in range(4))

    def run(self, number: int, cpu: int) -> tuple[Machine, Vcpu]:
        """The vCPU on this CPU; it flushes what edits since its last turn made stale."""
        machine, vcpu = self.host.place(number, cpu), self.vcpus[number]
        if vcpu.stale:
            machine.mov_cr3(vcpu.cr3)
            vcpu.stale = False
        return machine, vcpu

    def expect(self, vcpu: Vcpu, la: int, kind: str, user: bool) -> tuple[int | None, ...] | None:
        """What the access comes to; None: it leaves memory, by frame numbers that PSE-36 extends."""
        outcome = reference.walk(self.memory, vcpu.state(user), la, kind, write=False)
        if isinstance(outcome, reference.Mapped) and outcome.gpa >= MEMORY:
            return None
        outcome = reference.walk(self.memory, vcpu.state(user), la, kind, write=True)
        if isinstance(outcome, reference.Mapped):
            return outcome.gpa, None, None
        assert isinstance(outcome, reference.PageFault)
        return None, outcome.error_code, outcome.cr2

    def access(self, number: int, cpu: int, path: tuple[int, ...], word: int, kind: str, user: bool) -> None:
        machine, vcpu = self.run(number, cpu)
        la = vcpu.regime.layout.address(path, word)
        want = self.expect(vcpu, la, kind, user)
        if want is not None:
            assert tuple(machine.access(la, kind, user=user)) == want, f"vCPU {number}, {la:#x} {kind} {user}"

    def each(self, first: int, path: tuple[int, ...], word: int, kind: str, user: bool) -> None:
        """The same access by every vCPU: what one has made of it must not serve the next."""
        for i in range(VCPUS + 1):
            self.access((first + i) % VCPUS, i % CPUS, path, word, kind, user)

    def store(self, number: int, cpu: int, la: int, how: int, frame: int) -> None:
        """An entry is edited, wherever it may be: all vCPUs flush before their next turn."""
        machine, vcpu = self.run(number, cpu)
        want = self.expect(vcpu, la, "w", False)
        if want is None:
            return
        size = vcpu.regime.layout.size
        word, shift = self.memory.read64((want[0] or 0) & ~7), 8 * ((want[0] or 0) & 4) * (size == 4)
        old = word >> shift & ((1 << 8 * size) - 1)
        value = edited(old, how, frame, 22 if size == 4 else 21) & ((1 << 8 * size) - 1)
        assert tuple(machine.store(la, value, size)) == want, f"vCPU {number}, store to {la:#x}"
        if want[0] is not None:
            self.memory.write64(want[0] & ~7, word & ~(((1 << 8 * size) - 1) << shift) | value << shift)
            for other in self.vcpus:
                other.stale = True

    def edit(self, cpu: int, table: int, word: int, how: int, frame: int) -> None:
        """By vCPU 0, which sees all frames in its window."""
        layout = self.vcpus[0].regime.layout
        self.store(0, cpu, layout.window_la + table + layout.offsets[word], how, frame)

    def flood(self, word: int, frame: int) -> None:
        """Stores in a row to one table, the root of a vCPU that waits among them, which KVM forgets for that."""
        for how in (0, 1, 2, 3):
            self.edit(how % CPUS, frame, word, how, frame)

    def poke(self, number: int, cpu: int, path: tuple[int, ...], word: int, how: int, frame: int) -> None:
        self.store(number, cpu, self.vcpus[number].regime.layout.address(path, word), how, frame)

    def cr3(self, number: int, cpu: int, which: int) -> None:
        machine, vcpu = self.run(number, cpu)
        if vcpu.regime.mode is not Mode.PAE:
            vcpu.cr3 = self.frames[which]
        machine.mov_cr3(vcpu.cr3)

    def flip(self, number: int, cpu: int, bit: str) -> None:
        """A register of one vCPU alone."""
        machine, vcpu = self.run(number, cpu)
        vcpu.regime = vcpu.regime._replace(**{bit: not getattr(vcpu.regime, bit)})
        wanted: Any = vcpu.regime.registers(vcpu.cr3)
        if bit == "wp":
            machine.mov_cr0(wanted["cr0"])
        elif bit == "nxe":
            machine.wrmsr_efer(wanted["efer"])
        else:
            machine.mov_cr4(wanted["cr4"])
        vcpu.stale = True

    def check(self) -> None:
        """Memory, A and D flags among it; and what the VMM's tables of each vCPU map, by its registers (§13 P2, P4)."""
        want = np.array([self.memory.read64(int(word) << 3) for word in WORDS], np.uint64)
        assert not np.flatnonzero(self.words[WORDS] != want).size
        for number, vcpu in enumerate(self.vcpus):
            machine, _ = self.run(number, number % CPUS)
            machine.mov_cr3(vcpu.cr3)
            if machine.config.mmu == "shadow":
                for leaf in leaves(machine):
                    self.sound(vcpu, leaf)

    def sound(self, vcpu: Vcpu, leaf: Any) -> None:
        state = vcpu.regime._replace(smep=False, smap=False).state(vcpu.cr3, vcpu.pdptes)
        outcome = reference.walk(self.memory, state, leaf.address, "r", write=False)
        assert isinstance(outcome, reference.Mapped)
        assert outcome.gpa == leaf.gpa
        assert not outcome.changes
        assert leaf.user <= outcome.us
        assert leaf.x <= 1 - outcome.xd
        assert not leaf.w or outcome.dirty
        assert leaf.w <= outcome.rw or (not vcpu.regime.wp and not leaf.user)
        assert not (leaf.x and leaf.w > outcome.rw and vcpu.regime.smep), "fetched with supervisor's rights: SMEP"


def regimes_of(modes: list[Mode]) -> Any:
    """The registers of each vCPU: alike but for one bit, or the paging mode."""
    base = st.builds(
        Regime,
        wp=st.booleans(),
        smep=st.booleans(),
        smap=st.booleans(),
        nxe=st.booleans(),
        mode=st.just(modes[0]),
        ac=st.just(False),
        pge=st.just(False),
        upper_a=st.just("eager"),
        pse=st.just(True),
    )
    others = st.lists(st.sampled_from(["wp", "wp", "smep", "smap", "nxe", *modes]), min_size=2, max_size=2)
    return st.builds(lambda first, ways: [first, *(other(first, way) for way in ways)], base, others)


def other(first: Regime, way: str | Mode) -> Regime:
    if isinstance(way, Mode):
        return first._replace(mode=way)
    return first._replace(**{way: not getattr(first, way)})


FOUR = [Mode.LEVEL4, Mode.LEVEL4, Mode.LEVEL4, Mode.LEVEL5, Mode.PAE, Mode.NONE]
LEGACY = [Mode.LEGACY32, Mode.LEGACY32, Mode.NONE]
who = st.integers(0, VCPUS - 1)
where = st.integers(0, CPUS - 1)
paths = st.tuples(*[st.sampled_from([0, 0, 1, 2])] * 5)
words = st.integers(0, 2)
edits = words, st.integers(0, N_EDITS - 1), st.sampled_from(FRAMES)
access = st.tuples(
    st.just("access"), who, where, paths, words, st.sampled_from(["r", "w", "x", "rw"]), st.booleans()
)  # fmt: skip
together = st.tuples(st.just("each"), who, paths, words, st.sampled_from(["r", "w", "x", "rw"]), st.booleans())
step = st.one_of(
    access,
    access,
    together,
    together,
    together,
    st.tuples(st.just("edit"), where, st.sampled_from(FRAMES), *edits),
    st.tuples(st.just("poke"), who, where, paths, *edits),
    st.tuples(st.just("cr3"), who, where, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("flip"), who, where, st.sampled_from(["wp", "smep", "smap", "nxe"])),
    st.tuples(st.just("flood"), words, st.sampled_from(FRAMES)),
)
steps = st.lists(step, min_size=30, max_size=150)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("modes", [FOUR, LEGACY], ids=["8-byte", "4-byte"])
def test_each_vcpu_sees_the_tables_by_its_own_registers(config: Config, modes: list[Mode]) -> None:
    @examples
    @given(st.integers(0, 1 << 20), regimes_of(modes), steps)
    def check(seed: int, regimes: list[Regime], program: list[tuple[Any, ...]]) -> None:
        guest = Guest(config, seed, regimes)
        for what, *rest in program:
            getattr(guest, what)(*rest)
        guest.check()

    check()


# ---- roots are each vCPU's own ------------------------------------------------------------------------------------

ALL = 0x67  # P, R/W, U/S, A, D
ROOT, OTHER_ROOT, PDPT_4, PD, PT, OLD, NEW = (number << 12 for number in range(1, 8))
TABLES = {ROOT: PDPT_4, OTHER_ROOT: PDPT_4, PDPT_4: PD, PD: PT, PT: OLD, PT + 8: PT}
EDIT = 0x1000  # linear address of the page table


def two_vcpus(config: Config = LINUX) -> Host:
    """A guest with PCIDs, two vCPUs, and two roots of one address space."""
    state = GuestState(cr3=OTHER_ROOT | 2, cr4=0x200A0, maxphyaddr=MAXPHYADDR)
    host = Host([(config, 2)], cpus=2, guest_kernel=False, state=state)
    for gpa, to in TABLES.items():
        host.machines[0].guest_memory.u64[gpa >> 3] = to | ALL
    return host


def test_a_root_that_another_vcpu_keeps_is_not_kept() -> None:
    """MOV CR3 without flush, by a vCPU that never had this PCID: nothing is cached there that could be stale."""
    host = two_vcpus()
    first = host.place(0, 0)
    first.mov_cr3(ROOT | 1)
    assert first.access(0).gpa == OLD
    first.mov_cr3(OTHER_ROOT | 2)
    assert first.store(EDIT, NEW | ALL).gpa == PT
    assert first.vmm.counters()["unsync"] == 1
    first.mov_cr3(1 << 63 | ROOT | 1)
    assert first.access(0).gpa == OLD  # which its TLB may hold, too
    second = host.place(1, 1)
    second.mov_cr3(1 << 63 | ROOT | 1)
    assert second.access(0).gpa == NEW


def test_a_vcpu_that_runs_on_has_its_root_as_it_was() -> None:
    """Linux synchronizes where the guest flushes, not at each VM entry."""
    host = two_vcpus()
    host.place(1, 0)
    machine = host.place(0, 0)
    assert machine.access(0).gpa == OLD
    assert machine.store(EDIT, NEW | ALL).gpa == PT
    for vcpu in (1, 0):
        machine = host.place(vcpu, 0)
        assert [machine.vmm.counters()[name] for name in ("unsync", "tables_zapped")] == [1, 0]
        assert machine.access(0).gpa == OLD
    machine.invlpg(0)
    assert machine.access(0).gpa == NEW


@pytest.mark.parametrize("kvm", ["6.1", "slides"])
def test_all_tables_go_for_every_vcpu(kvm: str) -> None:
    host = two_vcpus(LINUX.replace(kvm=kvm, noncoherent_dma=True))
    for _ in range(3):
        for vcpu in (0, 1):
            machine = host.place(vcpu, vcpu)
            assert machine.access(0).gpa == OLD
            assert machine.access(EDIT).gpa == PT
            assert {leaf.gpa for leaf in leaves(machine)} == {OLD, PT}
        machine.vmm.guest_caching(uncached=True)
        assert machine.vmm.stats()["pages_4k"] == 0


def test_vcpus_of_a_pae_guest_have_pdpte_registers_from_the_start() -> None:
    with pytest.raises(ConfigError, match="pdptes="):
        Host([(LINUX, 2)], guest_kernel=False, state=GuestState(cr4=0x20, efer=0, maxphyaddr=MAXPHYADDR))


def test_frames_of_the_programs() -> None:
    assert PDPT not in ALL_FRAMES
