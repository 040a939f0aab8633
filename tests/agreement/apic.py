"""Guests that use their local APIC: instructions, interrupts, and the order of the exits.

    guest.apic_read(offset), guest.apic_write(offset, value)     registers through their page
    guest.mov_cr8(value), guest.read_cr8(), guest.rdmsr(msr), guest.wrmsr(msr, value)
    guest.sti(), guest.cli()
    guest.inject(vector)        OUT, at whose exit the host raises an interrupt
    guest.step                  what the guest noted last, kept beside each interrupt that its handler gets

The handler ends each interrupt. Its other accesses are not made: the pages they touch are mapped by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastmmu import Exit
from fastmmu.exits import ExitReason

from .guest import Guest, Phase

__all__ = ["ApicGuest", "ApicPhase"]


@dataclass
class ApicPhase(Phase):
    """And what happened in it, in order: (reason, detail) of an exit, ("inject", vector), ("mark", 0), ("out", 0)."""

    sequence: list[tuple[str, int]] = field(default_factory=list)
    interrupts: list[tuple[int, int]] = field(default_factory=list)  # vector, step


class ApicGuest(Guest):
    """A guest on a machine with ``Config.tpr``.

    Not compared is req_event: KVM asks for events to be looked at in many places of its APIC where nothing comes of it.
    """

    unlike = frozenset({"req_event"})

    def __post_init__(self) -> None:
        self.sequence: list[tuple[str, int]] = []
        self.interrupts_seen: list[tuple[int, int]] = []
        self.step = 0
        self._delivered = 0
        self._out: str | None = None
        super().__post_init__()
        self.apic.set_interrupts(False)

    @property
    def apic(self) -> Any:
        return self.machine.apic

    def apic_read(self, offset: int) -> int:
        with self.call():
            self._fetch()
            value: int = self.apic.read(offset)
            self._deliver_noted()
        return value

    def apic_write(self, offset: int, value: int) -> None:
        with self.call():
            self._fetch()
            self.apic.write(offset, value)
            self._deliver_noted()

    def mov_cr8(self, value: int) -> None:
        with self.call():
            self._fetch()
            self.apic.write_cr8(value)
            self._deliver_noted()

    def read_cr8(self) -> None:
        with self.call():
            self._fetch()
            self.apic.read_cr8()

    def rdmsr(self, msr: int) -> None:
        with self.call():
            self._fetch()
            self.apic.rdmsr(msr)

    def wrmsr(self, msr: int, value: int) -> None:
        with self.call():
            self._fetch()
            self.apic.wrmsr(msr, value)
            self._deliver_noted()

    def sti(self) -> None:
        self._fetch()
        self.apic.set_interrupts(True)
        self._deliver_noted()

    def cli(self) -> None:
        self._fetch()
        self.apic.set_interrupts(False)

    def inject(self, vector: int) -> None:
        with self.call():
            self._fetch()
            self._out = "out"
            self.apic.interrupt(vector, reason=ExitReason.IO_INSTRUCTION)
            self._deliver_noted()

    def mark(self, host: Callable[[], None] | None = None) -> None:
        self._out = "mark"
        super().mark(host)

    # ---- notes --------------------------------------------------------------------------------------------------

    def _deliver_noted(self) -> None:
        """Interrupts that the handler got since the last look; those of a processor that delivers are no injections."""
        found = self.apic.deliveries[self._delivered :]
        self._delivered += len(found)
        for delivered in found:
            self.interrupts_seen.append((delivered.vector, self.step))
            if self.config.tpr != "apicv":
                self.sequence.append(("inject", delivered.vector))

    def note(self, exit: Exit) -> None:
        super().note(exit)
        self._deliver_noted()
        if exit.reason == ExitReason.IO_INSTRUCTION:
            self.sequence.append((self._out or "out", 0))
            return
        self.sequence.append((exit.reason.name, exit.qualification))

    def _end_phase(self) -> None:
        super()._end_phase()
        self.phases[-1] = ApicPhase(**vars(self.phases[-1]), sequence=self.sequence, interrupts=self.interrupts_seen)
        injected = sum(name == "inject" for name, _ in self.sequence)
        self.phases[-1].statistics["irq_injections"] = injected
        self.sequence, self.interrupts_seen = [], []
