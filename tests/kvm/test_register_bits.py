"""Every single bit of CR0, CR3, CR4 and EFER, in every mode, whoever runs the guest: against a table.

The table is that of paging.md §1.2, written a second time: SDM volume 3, 2.5 and 4.1, volume 2, MOV to control
registers, volume 4, IA32_EFER; Linux 6.1, kvm_set_cr0, kvm_set_cr3, kvm_set_cr4, set_efer, CR4_RESERVED_BITS,
kvm_set_cpu_caps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from fastmmu import BusError, Config, ConfigError, GuestState, Machine, StateError, reference
from fastmmu.reference.kvm import modes
from fastmmu.reference.kvm.modes import Refused, Registers, Scheme
from fastmmu.reference.paging.state import bits

M = 46
REGISTERS = ("cr0", "cr3", "cr4", "efer")
PE, ET, WP, NW, CD, PG = (1 << n for n in (0, 4, 16, 29, 30, 31))
PSE, PAE, PGE, LA57, VMXE, PCIDE, SMEP, PKE, CET, PKS = (1 << n for n in (4, 5, 7, 12, 13, 17, 20, 22, 23, 24))
LME, LMA, NXE = 1 << 8, 1 << 10, 1 << 11
IGNORED = bits(28, 19) | 1 << 17 | bits(15, 6)  # of CR0
LACKING = bits(63, 25) | 1 << 19 | bits(15, 14)  # of CR4
TABLES, PDPT = 0x10000, 0x12000

# ---- who runs the guest ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runner:
    """A configuration, and what of the processor's CR4 its VMM does not offer the guest."""

    config: Config
    scheme: Scheme
    withheld: int

    @property
    def npt(self) -> bool:
        """AMD's nested page tables, with which MOV to CR3 loads no PDPTEs (npt.md §3)."""
        return self.config.mmu == "ept" and self.config.vendor == "amd"


NATIVE = Config(memory="64M")
OVER_EPT, SHADOWED = NATIVE.replace(mmu="ept"), NATIVE.replace(mmu="shadow")
RUNNERS = {
    "native": Runner(NATIVE, Scheme.NATIVE, 0),
    "ept, slides": Runner(OVER_EPT, Scheme.EPT, CET | PKS),
    "ept, 6.1": Runner(OVER_EPT.replace(kvm="6.1"), Scheme.UNRESTRICTED, CET | PKS),
    "ept, 6.1, restricted": Runner(
        OVER_EPT.replace(kvm="6.1", unrestricted_guest=False, vpid=True), Scheme.EPT, CET | PKS
    ),
    "ept, 6.1, amd": Runner(OVER_EPT.replace(kvm="6.1", vendor="amd"), Scheme.UNRESTRICTED, CET | PKS),
    "shadow, slides": Runner(SHADOWED, Scheme.SHADOW, CET | PKS | PKE),
    "shadow, 6.1": Runner(SHADOWED.replace(kvm="6.1", vpid=True), Scheme.SHADOW, CET | PKS | PKE),
    "shadow, 6.1, keys": Runner(SHADOWED.replace(kvm="6.1", shadow_keys=True), Scheme.SHADOW, CET),
}

# ---- where the guest is ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Registers before the write. `damaged`: the PDPT in memory has become malformed since it was loaded."""

    cr0: int
    cr4: int = 0
    efer: int = 0
    cr3: int = PDPT
    damaged: bool = False
    only_native: bool = False

    @property
    def state(self) -> dict[str, object]:
        pae = self.cr0 & PG and self.cr4 & PAE and not self.efer & LMA
        loaded = (0x11001, 0x11001, 0, 0x11009) if pae else None
        names = {name: getattr(self, name) for name in REGISTERS}
        return {**names, "pdptes": loaded, "maxphyaddr": M}


PAGED, LONG = PG | WP | ET | PE, LME | LMA
STARTS = {
    "real": Start(ET),
    "real, CD": Start(CD | ET),
    "real, CD and NW": Start(NW | CD | ET),
    "protected": Start(ET | PE),
    "protected, PAE": Start(ET | PE, PAE | PGE),
    "protected, PAE, PDPT damaged": Start(ET | PE, PAE, damaged=True),
    "protected, LME without PAE": Start(ET | PE, 0, LME),
    "protected, LME": Start(ET | PE, PAE, LME | NXE, TABLES),
    "protected, LME, LA57": Start(ET | PE, PAE | LA57, LME, TABLES),
    "32-bit": Start(PAGED, PSE, cr3=TABLES),
    "32-bit, no WP": Start(PAGED & ~WP, PSE | SMEP, cr3=TABLES),
    "PAE": Start(PAGED, PAE, NXE),
    "PAE, CD": Start(PAGED | CD, PAE | PGE),
    "PAE, PDPT damaged": Start(PAGED, PAE | PSE, damaged=True),
    "4-level": Start(PAGED, PAE | PGE, LONG | NXE | 1, TABLES),
    "4-level, no WP": Start(PAGED & ~WP, PAE, LONG, TABLES),
    "4-level, CR3[11:0]": Start(PAGED, PAE, LONG, TABLES | 0x18),
    "4-level, PCIDE": Start(PAGED, PAE | PCIDE, LONG, TABLES | 5),
    "4-level, CET": Start(PAGED, PAE | CET, LONG, TABLES, only_native=True),
    "5-level": Start(PAGED, PAE | LA57, LONG | NXE, TABLES),
    "5-level, PCIDE": Start(PAGED, PAE | LA57 | PCIDE | PGE, LONG, TABLES),
    "5-level, CET and PKS": Start(PAGED | CD, PAE | LA57 | CET | PKS | PKE, LONG, TABLES, only_native=True),
}

# ---- the table ---------------------------------------------------------------------------------------------------


def loads_pdptes(register: str, r: Start, value: int) -> bool:
    """The write loads the PDPTE registers."""
    cr0, cr4 = value if register == "cr0" else r.cr0, value if register == "cr4" else r.cr4
    changed = (cr0 ^ r.cr0) & (PG | CD | NW) or (cr4 ^ r.cr4) & (PAE | PGE | PSE | SMEP) or register == "cr3"
    return bool(cr0 & PG and cr4 & PAE and not r.efer & LME and changed)


def meets_damage(register: str, r: Start, value: int) -> bool:
    """It loads them from the PDPT that has become malformed."""
    at = value if register == "cr3" else r.cr3
    return r.damaged and at & bits(31, 5) == PDPT and loads_pdptes(register, r, value)


Condition = Callable[[Start, int], int | bool]
TABLE: list[tuple[str, str, Condition]] = [
    ("cr0", "bits 63:32", lambda r, v: v & bits(63, 32)),
    ("cr0", "NW without CD", lambda r, v: v & NW and not v & CD),
    ("cr0", "PG without PE", lambda r, v: v & PG and not v & PE),
    ("cr0", "into long mode without PAE", lambda r, v: v & ~r.cr0 & PG and r.efer & LME and not r.cr4 & PAE),
    ("cr0", "PG off with PCIDE", lambda r, v: not v & PG and r.cr4 & PCIDE),
    ("cr0", "WP off with CET", lambda r, v: not v & WP and r.cr4 & CET),
    ("cr0", "PDPTE", lambda r, v: meets_damage("cr0", r, v)),
    ("cr3", "bits 63:M", lambda r, v: r.efer & LMA and v & bits(63, M) & ~(1 << 63 if r.cr4 & PCIDE else 0)),
    ("cr3", "bits 63:32", lambda r, v: not r.efer & LMA and v & bits(63, 32)),
    ("cr3", "PDPTE", lambda r, v: meets_damage("cr3", r, v)),
    ("cr4", "bits that no such processor has", lambda r, v: v & LACKING),
    ("cr4", "no VMM in the guest", lambda r, v: v & VMXE),
    ("cr4", "PAE off in long mode", lambda r, v: r.efer & LMA and not v & PAE),
    ("cr4", "LA57 in long mode", lambda r, v: r.efer & LMA and (v ^ r.cr4) & LA57),
    ("cr4", "PCIDE outside long mode", lambda r, v: v & ~r.cr4 & PCIDE and not r.efer & LMA),
    ("cr4", "PCIDE with CR3[11:0]", lambda r, v: v & ~r.cr4 & PCIDE and r.cr3 & 0xFFF),
    ("cr4", "CET without WP", lambda r, v: v & CET and not r.cr0 & WP),
    ("cr4", "PDPTE", lambda r, v: meets_damage("cr4", r, v)),
    ("efer", "bits other than SCE, LME, LMA, NXE", lambda r, v: v & ~(1 | LME | LMA | NXE)),
    ("efer", "LME while paging", lambda r, v: r.cr0 & PG and (v ^ r.efer) & LME),
]


def refused(register: str, r: Start, value: int, withheld: int) -> list[str]:
    """The rows by which a write is #GP(0)."""
    rows = [why for name, why, holds in TABLE if name == register and holds(r, value)]
    return [*rows, "KVM does not offer it"] if register == "cr4" and value & withheld else rows


def written(register: str, r: Start, value: int) -> dict[str, int]:
    """The registers after a write that is accepted."""
    after = {name: getattr(r, name) for name in REGISTERS}
    if register == "cr0":
        value = value & ~IGNORED | ET
        after["efer"] = r.efer & ~LMA | (LMA if value & PG and r.efer & LME else 0)
    elif register == "cr3" and r.cr4 & PCIDE:
        value &= ~(1 << 63)
    elif register == "efer":
        value = value & ~LMA | r.efer & LMA
    return {**after, register: value}


# ---- writes --------------------------------------------------------------------------------------------------------


def machine_of(runner: Runner, start: Start) -> Machine:
    machine = Machine(runner.config, guest_kernel=False, state=GuestState(**start.state))  # type: ignore[arg-type]
    words = machine.guest_memory.u64
    for at in (TABLES, 0x11000):  # a top table of every mode, and one below
        words[at >> 3 : (at >> 3) + 4] = 0x11001 if at == TABLES else 0x83
    words[PDPT >> 3 : (PDPT >> 3) + 4] = [0x11001, 0x11001 | (2 if start.damaged else 0), 0, 0x11009]
    return machine


def write(machine: Machine, register: str, value: int) -> None:
    {"cr0": machine.mov_cr0, "cr3": machine.mov_cr3, "cr4": machine.mov_cr4, "efer": machine.wrmsr_efer}[register](
        value
    )


def registers_of(machine: Machine) -> dict[str, int]:
    state = machine.state
    return {name: getattr(state, name) for name in REGISTERS}


def values(start: Start) -> Iterator[tuple[str, int]]:
    for register in REGISTERS:
        for bit in range(64):
            value = getattr(start, register) ^ 1 << bit
            if register == "cr3" and 26 <= bit < 32 and loads_pdptes("cr3", start, value):
                continue  # there is no memory for PDPTEs
            yield register, value


def specified(
    runner: Runner, old: Registers, register: str, value: int, memory: reference.Memory
) -> dict[str, int] | None:
    """The registers after a write by the executable specification; None: #GP."""
    try:
        new = modes.write(old, register, value, memory, runner.scheme, runner.config.shadow_keys, runner.npt)
    except Refused:
        return None
    return {name: getattr(new, name) for name in REGISTERS}


def failure(machine: Machine, register: str, value: int) -> StateError | BusError | None:
    try:
        write(machine, register, value)
    except (StateError, BusError) as error:
        return error
    return None


@dataclass
class Seen:
    rows: set[str] = field(default_factory=set)
    writes: int = 0


@pytest.mark.parametrize("name", RUNNERS)
def test_every_bit_in_every_mode(name: str) -> None:
    runner, seen = RUNNERS[name], Seen()
    for where, start in STARTS.items():
        if start.only_native and runner.scheme is not Scheme.NATIVE:
            continue
        machine = machine_of(runner, start)
        before = {register: getattr(start, register) for register in REGISTERS}
        memory = reference.ArrayMemory(machine.guest_memory.u64)
        loaded = start.state["pdptes"] or (0, 0, 0, 0)
        old = Registers(start.cr0, start.cr3, start.cr4, start.efer, loaded, M)  # type: ignore[arg-type]
        assert registers_of(machine) == before, where
        for register, value in values(start):
            what = (name, where, register, hex(value))
            why = refused(register, start, value, runner.withheld)
            if register == "cr3" and runner.npt:
                why = [row for row in why if row != "PDPTE"]
            seen.rows |= set(why)
            seen.writes += 1
            after = specified(runner, old, register, value, memory)
            assert (after is None) == bool(why), (*what, why)
            assert after is None or after == written(register, start, value), what
            error = failure(machine, register, value)
            if isinstance(error, BusError):  # as KVM does it: a shadowed guest without a top table is shut down
                assert register == "cr3", what
                assert runner.scheme is Scheme.SHADOW, what
                assert (value ^ start.cr3) >> 26, what
                assert not why, (*what, why)
            elif error:
                assert why, (*what, str(error))
                assert "#GP(0)" in str(error) or "reserved bits" in str(error), what
                assert registers_of(machine) == before, what
            else:
                assert not why, (*what, why)
                assert registers_of(machine) == written(register, start, value), what
            if not why:
                machine = machine_of(runner, start)
    rows = {why for _, why, _ in TABLE} - ({"WP off with CET"} if runner.withheld & CET else set())
    assert seen.rows == (rows | {"KVM does not offer it"} if runner.withheld else rows)
    assert seen.writes > 4000


def test_lmsw_and_clts() -> None:
    """Bits 3:0, PE set and never cleared; neither can be #GP."""
    for runner in RUNNERS.values():
        for start in (STARTS["real"], STARTS["protected"], STARTS["4-level"]):
            for source in range(32):
                machine = machine_of(runner, start)
                machine.lmsw(source | 0x100)
                assert machine.state.cr0 == start.cr0 & ~0xE | source & 0xF
                machine.clts()
                assert machine.state.cr0 == (start.cr0 & ~0xE | source & 0xF) & ~8


# ---- states --------------------------------------------------------------------------------------------------------

STATE_TABLE: list[tuple[str, Callable[[Start], int | bool]]] = [
    ("bits 63:32 of CR0", lambda r: r.cr0 & bits(63, 32)),
    ("NW without CD", lambda r: r.cr0 & NW and not r.cr0 & CD),
    ("PG without PE", lambda r: r.cr0 & PG and not r.cr0 & PE),
    ("CR3", lambda r: r.cr3 & bits(63, M) & ~(1 << 63 if r.cr4 & PCIDE else 0)),
    ("bits of CR4", lambda r: r.cr4 & LACKING),
    ("PCIDE", lambda r: r.cr4 & PCIDE and not (r.efer & LMA and r.cr0 & PG)),
    ("CET", lambda r: r.cr4 & CET and not r.cr0 & WP),
    ("bits of EFER", lambda r: r.efer & ~(1 | LME | LMA | NXE)),
    ("LMA", lambda r: r.cr0 & PG and bool(r.efer & LMA) != bool(r.efer & LME)),
    ("PAE", lambda r: r.cr0 & PG and r.efer & LMA and not r.cr4 & PAE),
]


def refuses(make: Callable[..., object], given: dict[str, int]) -> bool:
    try:
        make(**given, maxphyaddr=M)
    except StateError:
        return True
    return False


def test_states_of_every_bit() -> None:
    """GuestState and the specification's State take what a write could have made, and nothing else."""
    seen: set[str] = set()
    for start in STARTS.values():
        for register in REGISTERS:
            for bit in range(64):
                given = {name: getattr(start, name) for name in REGISTERS}
                given[register] ^= 1 << bit
                why = [row for row, holds in STATE_TABLE if holds(Start(**given))]
                seen |= set(why)
                inactive = given["efer"] & LMA and not given["cr0"] & PG  # GuestState drops LMA, the other insists
                assert refuses(GuestState, given) == bool(why), (given, why)
                assert refuses(reference.State, given) == bool(why or inactive), (given, why)
    assert seen == {row for row, _ in STATE_TABLE}


def test_a_guest_does_not_begin_with_what_its_vmm_withholds() -> None:
    for name, runner in RUNNERS.items():
        for bit in range(64):
            cr4 = PAE | PGE | 1 << bit
            if refused("cr4", STARTS["4-level"], cr4, 0) and 1 << bit != VMXE:
                continue
            state = GuestState(cr4=cr4, cr3=TABLES, maxphyaddr=M)
            if refused("cr4", STARTS["4-level"], cr4, runner.withheld) and runner.withheld:
                with pytest.raises(ConfigError, match="cr4="):
                    Machine(runner.config, guest_kernel=False, state=state)
            else:
                assert Machine(runner.config, guest_kernel=False, state=state).state.cr4 == cr4, name
