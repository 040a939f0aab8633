"""KVM in Python and in the kernels, in lockstep: writes of registers, guests that edit tables, hosts that log.

FASTMMU_EXAMPLES=N runs N programs of each kind, at random.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, GuestState, Machine
from tests.support.guest_layouts import Regime, start
from tests.support.guest_programs import Program, programs, undisciplined
from tests.support.guest_runs import execute, machine_for
from tests.support.host_programs import SLOTS, Runner, Step, regimes, steps
from tests.support.two_vmms import Pair

MEMORY = "64M"
LINUX = Config(memory=MEMORY, kvm="6.1", vpid=True)
SCHEMES = [
    LINUX.replace(mmu="shadow"),
    LINUX.replace(mmu="shadow", vpid=False, host_pages="2m"),
    LINUX.replace(mmu="shadow", shadow_keys=True, table_pages=20),
    LINUX.replace(mmu="ept"),
    LINUX.replace(mmu="ept", tdp_mmu=False, pml=True, host_pages="2m"),
    LINUX.replace(mmu="ept", noncoherent_dma=True, vpid=False),
    LINUX.replace(mmu="ept", vendor="amd"),
    LINUX.replace(mmu="shadow", vendor="amd", asids=4),
    LINUX.replace(mmu="ept", vendor="amd", tdp_mmu=False, flush_by_asid=False, asids=3, host_pages="2m"),
    Config(memory=MEMORY, mmu="shadow", vendor="amd", asids=3),
    Config(memory=MEMORY, mmu="shadow", vpid=True),
    Config(memory=MEMORY, mmu="ept", vpid=True),
    Config(memory=MEMORY, mmu="ept", ept_ad=False, noncoherent_dma=True, cd_quirk=False),
]
CR0 = [1 << n for n in (0, 1, 3, 5, 16, 29, 30, 31)]
CR4 = [1 << n for n in (2, 4, 5, 7, 12, 13, 17, 20, 21, 22, 23, 24)]
examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "12")),
    derandomize="FASTMMU_EXAMPLES" not in os.environ,
    deadline=None,
)
schemes = pytest.mark.parametrize("config", SCHEMES, ids=lambda config: config.name)


def bare(config: Config) -> Machine:
    """A guest in real mode, with tables at 10000H that are good for every mode."""
    machine = Machine(config, guest_kernel=False, state=GuestState(cr0=0x10, cr3=0, cr4=0, efer=0, maxphyaddr=46))
    words = machine.guest_memory.u64
    words[0x10000 >> 3 : (0x10000 >> 3) + 4] = 0x11001
    words[0x11000 >> 3 : (0x11000 >> 3) + 4] = 0x83
    words[0x12000 >> 3 : (0x12000 >> 3) + 8] = [0x11001, 0x11000 | 3, 0, 0, 0x11001, 0, 0, 0x11009]
    return machine


_few = st.lists(st.sampled_from(CR0), max_size=2, unique=True).map(sum)
_writes = st.one_of(
    st.tuples(st.just("cr0"), st.sampled_from([1, 0x8000_0000, 0x8000_0001, 0x4000_0000]) | _few, st.just(True)),
    st.tuples(st.just("cr0"), st.sampled_from([0x11, 0x10, 0x8000_0011, 1 << 32]), st.just(False)),
    st.tuples(
        st.just("cr3"),
        st.sampled_from([0x10000, 0x11000, 0x12000, 0x12020, 0x10003, 1 << 63 | 0x10003, 1 << 46, 1 << 33]),
        st.just(False),
    ),
    st.tuples(st.just("cr4"), st.lists(st.sampled_from(CR4), max_size=2, unique=True).map(sum), st.just(True)),
    st.tuples(st.just("cr4"), st.sampled_from([0x20, 0x200A0, 0, 0x2020]), st.just(False)),
    st.tuples(st.just("efer"), st.sampled_from([0x100, 0x800, 0x900, 1, 2]), st.just(True)),
    st.tuples(st.just("efer"), st.just(0x900), st.just(False)),
    st.tuples(st.just("lmsw"), st.sampled_from([0, 1, 0xF]), st.just(False)),
    st.tuples(st.just("clts"), st.just(0), st.just(False)),
    st.tuples(st.just("invlpg"), st.sampled_from([0x2000, 0x40_0000]), st.just(False)),
    st.tuples(st.just("access"), st.sampled_from([0x2340, 0x1_2340, 0x40_0000]), st.just(False)),
    st.tuples(st.just("read"), st.just(0), st.just(False)),
)


@schemes
@examples
@given(st.lists(_writes, min_size=5, max_size=25))
def test_register_writes(config: Config, writes: list[tuple[str, int, bool]]) -> None:
    both = Pair(bare, config)
    for name, operand, toggle in writes:

        def write(machine: Machine, name: str = name, operand: int = operand, toggle: bool = toggle) -> object:
            if name == "access":
                return machine.access(operand, "w")
            if name == "read":
                return machine.mov_from_cr0(), machine.mov_from_cr3(), machine.mov_from_cr4(), machine.rdmsr_efer()
            if name in ("clts", "lmsw", "invlpg"):
                return getattr(machine, name)(*[operand] * (name != "clts"))
            value = getattr(machine.state, name) ^ operand if toggle else operand
            return getattr(machine, "wrmsr_efer" if name == "efer" else f"mov_{name}")(value)

        both.do(f"{name} {operand:#x}", write)
        if both.machines[0].counters()["vm_exits"] and "triple fault" in str(both):
            return


@schemes
@examples
@given(programs | undisciplined)
def test_guests_that_edit_their_tables(config: Config, program: Program) -> None:
    both = Pair(lambda each: machine_for(each, program.regime, program.cr3, program.before), config)
    for instruction in program.instructions:
        both.do(repr(instruction), lambda machine, each=instruction: execute(machine, each))  # type: ignore[misc]


@schemes
@examples
@given(st.integers(0, 1 << 32), regimes, steps)
def test_guests_and_hosts(config: Config, seed: int, regime: Regime, steps: list[Step]) -> None:
    cr3, memory = start(seed)
    runners: dict[Machine, Runner] = {}

    def make(each: Config) -> Machine:
        machine = Machine(
            each.replace(host_pages="untouched" if seed & 1 else each.host_pages),
            guest_kernel=False,
            state=GuestState(**regime.registers(cr3)),
            slots=SLOTS,
        )
        for gpa, value in memory.items():
            machine.guest_memory.u64[gpa >> 3] = value
        runners[machine] = Runner(machine, cr3)
        return machine

    both = Pair(make, config)
    for step in steps:
        both.do(repr(step), lambda machine, each=step: runners[machine].step(each))  # type: ignore[misc]
