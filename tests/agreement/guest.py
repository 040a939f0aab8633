"""The vocabulary in which a recorded guest is written down.

A guest named X is the module `guest_<x>.py`, here or in the directory of the recordings, where it is found first; there
it begins with `from tests.agreement.guest import Guest, Layout`. It holds

    LAYOUT          a Layout: the memory slots, registers and tables that the VMM set up before the guest ran
    run(guest)      what the guest does, by the methods of Guest below, phase by phase
    Guest           the class below; of a guest that uses its local APIC `ApicGuest` of `tests.agreement.apic`

Each instruction of the guest is one call: the fetch of its code page comes first, then its accesses.

    guest.read(va)                  an aligned 8-byte load; gives the value, None where no memory answered
    guest.write(va, value)          an aligned 8-byte store; of 4 bytes to the registers of the local APIC, FEE00000H
    with guest.call(): ...          CALL: the return address is pushed; at the end RET pops it
    guest.push(), guest.pop()       one access to the stack
    guest.mov_cr3(value), guest.invlpg(va)
    guest.read_cr4(), guest.mov_cr4(value)
    guest.mov_cr8(value), guest.read_cr8()
    guest.cpuid()
    guest.mark(host)                CALL, OUT, which exits and ends the phase, RET, which begins the next; `host`: a
                                    function called between them, of what the host does then:
    guest.start_dirty_log(slot), guest.get_dirty_log(slot), guest.stop_dirty_log(slot), guest.delete_slot(slot)
    guest.on_page_fault = handler   a function of CR2; it runs between the pushes of delivery and IRET

Another operation is a method here and, where it is new to the machine, an instruction of fastmmu.Machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastmmu import Access, Config, Exit, GuestState, Machine, MemorySlot
from fastmmu.exits import ExitReason

from .exits import Noted, Recorder

PAGE = 4096
APIC_PAGE = 0xFEE00
MAX_FAULTS = 8


@dataclass(frozen=True)
class Layout:
    """How the VMM sets a guest up.

    memory: bytes of slot 0, from address 0. slots: the others, in order, without the APIC-access page. words: memory
    before the guest runs, address -> 64-bit value. loaded: pages that the loader wrote, so that the host has them even
    where nothing else touched guest memory. code, stack: linear addresses of the page that runs and of the stack's top.
    handler: of #PF. idt, gdt: linear addresses.
    """

    memory: int
    slots: tuple[MemorySlot, ...]
    state: dict[str, int]
    words: dict[int, int]
    loaded: tuple[int, ...]
    code: int
    stack: int
    handler: int
    idt: int
    gdt: int


@dataclass
class Phase:
    """What one phase came to."""

    exits: dict[ExitReason, int]
    dirty: npt.NDArray[np.bool_] | None = None  # of the log fetched after it
    pages: tuple[int, int, int] = (0, 0, 0)  # mapped, by size 4K, 2M, 1G
    unsync: int = 0
    statistics: dict[str, int] = field(default_factory=dict)  # KVM's, without what the host did before the guest ran
    noted: Counter[Noted] = field(default_factory=Counter)  # exits with their details, where a policy notes them


@dataclass
class Guest:
    """A guest on a machine of one configuration. noting: a policy in Python sees each exit, and notes it."""

    layout: Layout
    config: Config
    slots: tuple[MemorySlot, ...] = ()  # private ones that the machine does not add itself: of the specification
    noting: bool = False
    phases: list[Phase] = field(default_factory=list)
    on_page_fault: Callable[[int], None] | None = None
    unlike: ClassVar[frozenset[str]] = frozenset()  # KVM's statistics of which this guest shows less than KVM

    def __post_init__(self) -> None:
        layout = self.layout
        config = self.config.replace(memory=layout.memory)
        host = config.host_pages or "4k"
        slots = tuple(slot._replace(host=host) for slot in layout.slots) + self.slots
        self.recorder = Recorder()
        self._noted: Counter[Noted] = Counter()
        self._kind = "r"
        self._delivering = False
        self._vectoring = 0
        self.machine = self.make_machine(config, layout.state, slots)
        self.memory = self.machine.guest_memory.u64
        for address, word in layout.words.items():
            self.memory[address >> 3] = word
        for page in layout.loaded:
            self.machine.vmm.touch(0, page, 1)
        self.rip = layout.code
        self.rsp = layout.stack
        self._faults = 0
        self._before = self._exits()
        self._counted = self._statistics()
        self.recorder.note = self.note

    def make_machine(self, config: Config, state: dict[str, int], slots: tuple[MemorySlot, ...]) -> Any:
        """The machine of this guest."""
        registers = GuestState(**state)
        return Machine(config, guest_kernel=False, state=registers, slots=slots, **self.machine_arguments())

    def machine_arguments(self) -> dict[str, Any]:
        """More arguments of the machine."""
        return {"policy": self.recorder} if self.noting else {}

    # ---- instructions -------------------------------------------------------------------------------------------

    def read(self, va: int) -> int | None:
        self._fetch()
        return self._value(self._access(lambda: self.machine.access(va), va))

    def write(self, va: int, value: int) -> None:
        self._fetch()
        size = 4 if va >> 12 == APIC_PAGE else 8
        self._access(lambda: self.machine.store(va, value, size), va, "w")

    def push(self, value: int = 0) -> None:
        self._fetch()
        self.rsp -= 8
        at = self.rsp
        self._access(lambda: self.machine.store(at, value), at, "w")

    def pop(self) -> None:
        self._fetch()
        at = self.rsp
        self.rsp += 8
        self._access(lambda: self.machine.access(at), at)

    @contextmanager
    def call(self) -> Iterator[None]:
        self.push()
        yield
        self.pop()

    def mov_cr3(self, value: int) -> None:
        self._fetch()
        self.machine.mov_cr3(value)

    def invlpg(self, va: int) -> None:
        self._fetch()
        self.machine.invlpg(va)

    def read_cr4(self) -> int:
        self._fetch()
        return self.machine.mov_from_cr4()

    def mov_cr4(self, value: int) -> None:
        self._fetch()
        self.machine.mov_cr4(value)

    def mov_cr8(self, value: int) -> None:
        self._fetch()
        self.machine.apic.write_cr8(value)

    def read_cr8(self) -> None:
        self._fetch()
        self.machine.apic.read_cr8()

    def cpuid(self) -> None:
        self._fetch()
        self.machine.exit_instruction(ExitReason.CPUID)

    def mark(self, host: Callable[[], None] | None = None) -> None:
        with self.call():
            self._fetch()
            self.machine.exit_instruction(ExitReason.IO_INSTRUCTION)
            self._end_phase()
            if host is not None:
                host()
            self._counted = self._statistics()

    # ---- the host -----------------------------------------------------------------------------------------------

    def start_dirty_log(self, slot: int) -> None:
        self.machine.vmm.start_dirty_log(slot)

    def get_dirty_log(self, slot: int) -> None:
        self.phases[-1].dirty = self.machine.vmm.dirty_log(slot)

    def stop_dirty_log(self, slot: int) -> None:
        self.machine.vmm.stop_dirty_log(slot)

    def delete_slot(self, slot: int) -> None:
        self.machine.vmm.delete_slot(slot)

    # ---- how they are made --------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        self._access(lambda: self.machine.access(self.rip, "x"), self.rip, "x")

    def _value(self, access: Access) -> int | None:
        gpa = access.gpa
        if gpa is None or gpa >= self.layout.memory:
            return None
        return int(self.memory[gpa >> 3])

    def _access(self, make: Callable[[], Access], va: int, kind: str = "r") -> Access:
        """An access, and the guest's own answer to a #PF."""
        for _ in range(MAX_FAULTS):
            self._kind = kind
            access = make()
            if access.error_code is None:
                return access
            if self.on_page_fault is None or self._faults:
                raise AssertionError(f"#PF at {va:#x}, error code {access.error_code:#x}: no handler of the guest's")
            self._deliver(access.cr2 or 0)
        raise AssertionError(f"the guest's handler does not help: #PF at {va:#x}")

    def _deliver(self, cr2: int) -> None:
        """Delivery through the IDT, the handler, IRET (no change of privilege)."""
        assert self.on_page_fault is not None
        layout = self.layout
        self._faults += 1
        rip, rsp = self.rip, self.rsp
        exits = self._count_exits()
        self._delivering = True
        for table, at in ((layout.idt, 14 * 16), (layout.gdt, 8)):
            self._access(lambda at=table + at: self.machine.access(at), table)  # type: ignore[misc]
        self.rsp &= ~15
        for _ in range(6):  # SS, RSP, RFLAGS, CS, RIP, error code
            self.rsp -= 8
            self._access(lambda: self.machine.store(self.rsp, 0), self.rsp, "w")
        self._delivering = False
        self._vectoring += self._count_exits() - exits
        self.rip = layout.handler
        self.on_page_fault(cr2)
        self._fetch()  # IRET
        for _ in range(5):
            self._access(lambda: self.machine.access(self.rsp), self.rsp)
            self.rsp += 8
        self._access(lambda: self.machine.access(layout.gdt + 8), layout.gdt)
        self.rip, self.rsp = rip, rsp
        self._faults -= 1

    def _exits(self) -> dict[str, int]:
        counted: dict[str, int] = self.machine.counters()["exits_by_reason"]
        return dict(counted)

    def _count_exits(self) -> int:
        return int(self.machine.counters()["vm_exits"])

    def _statistics(self) -> dict[str, int]:
        return dict(self.machine.vmm.stats())

    def note(self, exit: Exit) -> None:
        """An exit, before it is handled."""
        self._noted[Noted(exit.reason, exit.qualification, exit.error_code, self._kind, self._delivering)] += 1

    def _end_phase(self) -> None:
        now = self._exits()
        exits = {}
        for name, count in now.items():
            if count != self._before.get(name, 0):
                exits[ExitReason[name.upper()]] = count - self._before.get(name, 0)
        self._before = now
        counters: dict[str, Any] = self.machine.vmm.counters()
        small, large, huge = counters["pages"]
        statistics = {name: n - self._counted.get(name, 0) for name, n in self._statistics().items()}
        # KVM asks for an event to be delivered for each #PF it passes on, and again where an exit broke a delivery off
        statistics["req_event"] = statistics["pf_guest"] + self._vectoring
        self.phases.append(Phase(exits, None, (small, large, huge), counters["unsync"], statistics, self._noted))
        self._noted, self._vectoring = Counter(), 0
