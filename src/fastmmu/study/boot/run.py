"""A guest that boots: real and protected mode, 32-bit, PAE, 4-level, 5-level paging, and back (kvm_policy.md §3.4).

The guest is a list of steps, each a list of instructions, as data. In each mode it builds the tables of the next with
stores of its own. What it sees must be the same under every scheme; what the hardware has meanwhile, and which exits it
takes, is what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastmmu._arguments import shown
from fastmmu._checked import checked
from fastmmu.errors import ConfigError, StateError, WrongTypeError
from fastmmu.machine.config import Config
from fastmmu.machine.machine import Machine
from fastmmu.paging.state import GuestState
from fastmmu.study.schemes import BOOT as SCHEMES
from fastmmu.study.schemes import fields_of

__all__ = ["BOOT", "SCHEMES", "Boot", "Done", "Instruction", "Step", "boot", "broken"]

IDENTITY_MAP = 0xFFFB_C000

Instruction = tuple[Any, ...]
"""("access", la, kind, user), ("store", la, value, bytes), ("invlpg", la), ("cr0" | "cr3" | "cr4" | "efer", value),
("lmsw", value), ("clts",), ("read", register)."""


@dataclass(frozen=True)
class Step:
    """Part of the guest's program, with a name for people."""

    name: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Done:
    """What a step came to.

    outcomes: of each instruction: (gpa, error code, CR2) of an access or a store, the value of a read, "" or the
    rule by which a write was #GP. guest: the registers that the guest has after it, and its paging mode. hardware:
    those of the processor. exits: VM exits of the step by reason. broken: invariants that do not hold.
    """

    name: str
    outcomes: tuple[Any, ...]
    guest: dict[str, Any]
    hardware: dict[str, Any]
    exits: dict[str, int]
    broken: tuple[str, ...]


@dataclass(frozen=True)
class Boot:
    """The steps under one scheme."""

    scheme: str
    config: Config
    steps: tuple[Done, ...]


# ---- the program --------------------------------------------------------------------------------------------

PE, WP, PG = 1 << 0, 1 << 16, 1 << 31
PSE, PAE, PGE, LA57 = 1 << 4, 1 << 5, 1 << 7, 1 << 12
SCE, LME, NXE = 1 << 0, 1 << 8, 1 << 11
TABLE, LEAF, READ_ONLY, USER, LARGE, XD = 3, 3, 1, 4, 0x80, 1 << 63
PD32, PT32 = 0x1_0000, 0x1_1000
PDPT, PD, PT = 0x1_2000, 0x1_3000, 0x1_4000
PML4, PDPT4, PD4, PT4, PML5 = 0x2_0000, 0x2_1000, 0x2_2000, 0x2_3000, 0x2_4000
DATA = 0x10_0000  # pages of data from here on
WINDOW = 0x40_0000  # linear address of five small pages, whatever the mode
HIGH = 0xFFFF_8000_0000_0000


def _small(table: int, size: int, mode: int) -> tuple[Instruction, ...]:
    """Five small pages: user, read-only, supervisor, not present, and one of this mode alone."""
    frames = (
        DATA + 0x1000 * mode | LEAF | USER,
        DATA + 0x8000 | READ_ONLY | USER,
        DATA + 0x9000 | LEAF,
        0,
        DATA + 0xA000 + 0x1000 * mode | LEAF | USER | (XD if size == 8 else 0),
    )
    return tuple(("store", table + size * i, frame, size) for i, frame in enumerate(frames))


def _large(table: int, count: int, size: int, page: int) -> tuple[Instruction, ...]:
    """The lowest memory at its own address, by large pages."""
    return tuple(("store", table + size * i, i * page | LEAF | LARGE, size) for i in range(count))


def _look(base: int = WINDOW) -> tuple[Instruction, ...]:
    """Accesses to the small pages, allowed and not, by supervisor and user; to low memory and where nothing is."""
    return (
        ("access", 0x7C00, "x", False),
        ("access", base + 0x10, "w", True),
        ("access", base + 0x1010, "r", True),
        ("access", base + 0x1010, "w", True),
        ("access", base + 0x1010, "w", False),
        ("access", base + 0x2010, "rw", False),
        ("access", base + 0x2010, "r", True),
        ("access", base + 0x3010, "r", False),
        ("access", base + 0x4010, "r", False),
        ("access", base + 0x4010, "x", False),
        ("store", base + 0x28, 0x1234_5678, 4),
        ("access", base + 0x80_0000, "r", False),
    )


def _real() -> tuple[Instruction, ...]:
    vectors = tuple(("access", 4 * n, "r", False) for n in (0x08, 0x10, 0x13, 0x21))
    return (("access", 0x7C00, "x", False), *vectors, ("store", 0x7BF8, 0x7C00, 8), ("access", 0x9_FFFF, "w", False))


_DOWN = (("cr0", PE),)
BOOT: tuple[Step, ...] = (
    Step("real mode", (("cr0", 0), *_real(), ("lmsw", 0), ("clts",), ("read", "cr0"), ("read", "cr3"))),
    Step(
        "real mode: tables of 32-bit paging",
        (("store", PD32, LEAF | LARGE, 4), ("store", PD32 + 4, PT32 | TABLE | USER, 4), *_small(PT32, 4, 0)),
    ),
    Step(
        "protected mode",
        (
            ("lmsw", 1),
            ("access", 0x7C00, "x", False),
            ("access", DATA, "w", False),
            ("access", 0x30_0000, "rw", True),
            ("cr3", PD32),
            ("read", "cr3"),
            ("cr4", PSE),
            ("lmsw", 9),
            ("clts",),
            ("cr0", PG),
            ("read", "cr0"),
        ),
    ),
    Step("32-bit paging", (("cr0", PG | PE), *_look(), ("read", "cr3"), ("cr3", PD32), ("access", WINDOW, "r", True))),
    Step(
        "32-bit paging: WP, a page mapped elsewhere",
        (
            ("cr0", PG | WP | PE),
            ("access", WINDOW + 0x1010, "w", False),
            ("store", PT32, (DATA + 0xF000) | LEAF | USER, 4),
            ("invlpg", WINDOW),
            ("access", WINDOW, "r", True),
        ),
    ),
    Step(
        "32-bit paging: tables of PAE paging",
        (
            ("store", PDPT, PD | 1, 8),
            *_large(PD, 2, 8, 0x20_0000),
            ("store", PD + 16, PT | TABLE | USER, 8),
            *_small(PT, 8, 1),
        ),
    ),
    Step(
        "protected mode again", (*_DOWN, ("access", WINDOW, "r", False), ("read", "cr3"), ("cr4", PAE), ("cr3", PDPT))
    ),
    Step("PAE paging", (("efer", NXE), ("cr0", PG | WP | PE), *_look(), ("read", "cr3"), ("read", "cr4"))),
    Step(
        "PAE paging: a PDPTE counts when it is loaded",
        (
            ("store", PDPT + 8, PD | 1, 8),
            ("access", 0x4000_7C00, "r", False),
            ("cr4", PAE | PGE),
            ("access", 0x4000_7C00, "r", False),
            ("store", PDPT + 8, 0, 8),
            ("access", 0x4000_7C00, "r", False),
            ("cr3", PDPT),
            ("access", 0x4000_7C00, "r", False),
            ("store", PDPT + 24, 1 << 62 | 1, 8),
            ("cr3", PDPT),
            ("cr4", PAE),
            ("store", PDPT + 24, 0, 8),
            ("cr4", PAE),
        ),
    ),
    Step(
        "PAE paging: tables of 4-level paging",
        (
            ("store", PML4, PDPT4 | TABLE | USER, 8),
            ("store", PML4 + 8 * 256, PDPT4 | TABLE | USER, 8),
            ("store", PDPT4, PD4 | TABLE | USER, 8),
            *_large(PD4, 2, 8, 0x20_0000),
            ("store", PD4 + 16, PT4 | TABLE | USER, 8),
            *_small(PT4, 8, 2),
            ("efer", NXE | LME),
        ),
    ),
    Step(
        "4-level paging",
        (
            *_DOWN,
            ("efer", NXE | LME | SCE),
            ("cr3", PML4),
            ("cr0", PG | WP | PE),
            ("read", "efer"),
            *_look(),
            *_look(HIGH + WINDOW),
            ("cr4", 0),
            ("efer", NXE),
            ("cr4", PAE | LA57),
        ),
    ),
    Step(
        "4-level paging: a table for 5-level paging",
        (("store", PML5, PML4 | TABLE | USER, 8), ("store", PML5 + 8 * 1, PML4 | TABLE | USER, 8)),
    ),
    Step(
        "5-level paging",
        (
            *_DOWN,
            ("read", "efer"),
            ("cr3", PML5),
            ("cr4", PAE | LA57),
            ("cr0", PG | WP | PE),
            *_look(),
            *_look((1 << 48) + WINDOW),
            ("read", "cr3"),
        ),
    ),
    Step(
        "back to 32-bit paging",
        (
            *_DOWN,
            ("efer", LME),
            ("cr4", PSE),
            ("cr3", PD32),
            ("cr0", PG | PE),
            ("efer", 0),
            ("cr0", PE),
            ("efer", 0),
            ("cr0", PG | PE),
            *_look(),
            ("read", "efer"),
        ),
    ),
    Step("back to protected mode", (*_DOWN, ("access", WINDOW, "r", False), ("read", "cr3"), ("cr4", 0))),
    Step("back to real mode", (("cr0", 0), *_real(), ("read", "cr0"), ("read", "cr3"), ("cr3", 0), ("read", "cr3"))),
)
"""The program that :func:`boot` runs, from the state after reset."""


# ---- running it -----------------------------------------------------------------------------------------------


@checked
def boot(
    scheme: str = "native",
    *,
    vpid: bool = False,
    program: Sequence[Step] = BOOT,
    memory: int | str = "64M",
    **fields: Any,
) -> Boot:
    """Run a program of a guest that changes its paging mode.

    :param scheme: of ``study.schemes.BOOT``. :param fields: more fields of :class:`Config`, such as ``kvm``.
    :raises ConfigError: an unknown scheme, or a configuration that cannot be; a version of KVM for a scheme that has
        one in its name.
    """
    named = fields_of(scheme, SCHEMES)
    if scheme.endswith("-6.1") and fields.get("kvm", "6.1") != "6.1":
        raise ConfigError(f"scheme {scheme} with kvm={fields['kvm']!r}: its name says 6.1; use {scheme[:-4]}")
    chosen = {"memory": memory, "vpid": vpid, **named, **fields}
    if chosen["mmu"] == "native":
        chosen["vpid"] = False
    config = Config(**chosen)
    state = GuestState(cr0=0x6000_0010, cr3=0, cr4=0, efer=0, maxphyaddr=46)
    machine = Machine(config, guest_kernel=False, state=state)
    return Boot(scheme, config, tuple(steps(machine, program)))


@checked
def steps(machine: Machine, program: Sequence[Step]) -> Iterator[Done]:
    """Each step when it is done."""
    before: dict[str, int] = {}
    for step in program:
        outcomes, wrong = [], []
        for instruction in step.instructions:
            outcomes.append(execute(machine, instruction))
            wrong += broken(machine)
        now = machine.counters()["exits_by_reason"]
        exits = {name: count - before.get(name, 0) for name, count in now.items() if count != before.get(name, 0)}
        before = dict(now)
        state = machine.state
        guest = {"cr0": state.cr0, "cr3": state.cr3, "cr4": state.cr4, "efer": state.efer, "mode": state.mode.name}
        yield Done(step.name, tuple(outcomes), guest, machine.hardware, exits, tuple(dict.fromkeys(wrong)))


@checked
def execute(machine: Machine, instruction: Instruction) -> Any:
    """Run one instruction; its outcome as in :class:`Done`."""
    if not instruction or not isinstance(instruction[0], str):
        raise ConfigError(f"an instruction is a name and its operands, not {shown(instruction)}")
    name, *operands = instruction
    try:
        match name:
            case "access":
                la, kind, user = operands
                return tuple(machine.access(la, kind, user=user))
            case "store":
                return tuple(machine.store(*operands))
            case "read":
                reads = {"cr0": machine.mov_from_cr0, "cr3": machine.mov_from_cr3, "cr4": machine.mov_from_cr4}
                return reads.get(operands[0], machine.rdmsr_efer)()
            case "invlpg":
                machine.invlpg(*operands)
            case "clts":
                machine.clts()
            case "lmsw":
                machine.lmsw(*operands)
            case _:
                writes = {"cr0": machine.mov_cr0, "cr3": machine.mov_cr3, "cr4": machine.mov_cr4}
                writes.get(name, machine.wrmsr_efer)(*operands)
    except StateError as error:
        return str(error)
    return ""


def broken(machine: Machine) -> list[str]:
    """Invariants of kvm_policy.md §3.4 that do not hold now, as sentences."""
    if not all(hasattr(machine, name) for name in ("hardware", "state", "config")):
        raise WrongTypeError(f"machine must be a Machine, not {shown(machine)}")
    hw, guest, config = machine.hardware, machine.state, machine.config
    paging = bool(guest.cr0 & PG)
    if config.mmu == "native":
        same = all(hw[name] == getattr(guest, name) for name in ("cr0", "cr3", "cr4", "efer"))
        return [] if same else ["natively the hardware has other registers than the guest"]
    exits = hw["cr3_load_exiting"], hw["cr3_store_exiting"]
    claims = {"EFER.LMA of the hardware is not the guest's": bool(hw["efer"] >> 10 & 1) == bool(guest.efer >> 10 & 1)}
    if config.mmu == "shadow":
        claims["CR3 does not exit under shadow paging"] = all(exits)
        claims["paging is off in the hardware under shadow paging"] = bool(hw["cr0"] & PG)
    elif config.unrestricted:
        claims["CR3 exits, or is not the guest's, with unrestricted guest"] = hw["cr3"] == guest.cr3 and not any(exits)
        claims["PE or PG is not the guest's with unrestricted guest"] = not (hw["cr0"] ^ guest.cr0) & (PE | PG)
    elif paging:
        claims["PG=1: CR3 exits"] = not any(exits)
        claims["PG=1: CR3 is not the guest's"] = hw["cr3"] == guest.cr3
        claims["PG=1: PAE is not the guest's"] = not (hw["cr4"] ^ guest.cr4) & PAE
    else:
        claims["PG=0: CR3 does not exit"] = all(exits)
        claims["PG=0: CR3 is not the identity table"] = hw["cr3"] == IDENTITY_MAP
        claims["PG=0: PAE is on, or PSE off, in the hardware"] = hw["cr4"] & (PAE | PSE) == PSE
        claims["PG=0: PE or PG is off in the hardware"] = hw["cr0"] & (PE | PG) == PE | PG
    if config.mmu == "shadow" or not config.unrestricted:
        claims["real mode is not a virtual-8086 task, or another mode is"] = hw["vm86"] == (not guest.cr0 & PE)
    return [text for text, holds in claims.items() if not holds]
