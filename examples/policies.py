"""KVM's policy with one rule changed: figures of docs/policy.md.

python examples/policies.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import fastmmu
from fastmmu.exits import Exit
from fastmmu.trace import bundled, read_trace, tpr_profile, with_tpr

if TYPE_CHECKING:
    from fastmmu.kvm.log_port import DirtyLog
    from fastmmu.kvm.port import VirtualCpu

    Bits = npt.NDArray[np.bool_]

PAGE = 4096


class NextPages(fastmmu.Kvm):
    """An EPT violation maps the 8 pages behind it, too, by the same kind of access."""

    def on_ept_violation(self, vcpu: VirtualCpu, exit: Exit) -> int:
        action = super().on_ept_violation(vcpu, exit)
        if action == fastmmu.Action.RETRY:
            for page in range(1, 9):
                vcpu.map_page(exit.guest_physical + page * PAGE, write=self.writes(exit))
        return action

    def writes(self, exit: Exit) -> bool:
        return bool(exit.qualification & fastmmu.Qualification.WRITE)


class AsReads(NextPages):
    """The same, but as by reads."""

    def writes(self, exit: Exit) -> bool:
        return False


class HotPages(fastmmu.Kvm):
    """A log that protects only pages seen hot: used, by their A flags, since the log was read last. Such a page counts
    as written, once; one that was not used cannot have been."""

    def start_dirty_log(self, log: DirtyLog) -> None:
        log.clear_young()
        self.unprotected = np.ones(log.pages, np.bool_)

    def get_dirty_log(self, log: DirtyLog, dirty: Bits) -> Bits:
        dirty |= self.unprotected & log.clear_young()
        self.unprotected &= ~dirty
        return super().get_dirty_log(log, dirty)


class InService(fastmmu.Kvm):
    """No threshold where an interrupt in service blocks what waits, whatever the TPR: its end comes first."""

    def tpr_threshold(self, vcpu: VirtualCpu, tpr: int, irr: int) -> int:
        if vcpu.apic.isr >> 4 >= irr >> 4:
            return 0
        return super().tpr_threshold(vcpu, tpr, irr)


def prefetch(name: str) -> Iterator[list[Any]]:
    """EPT violations, pages that the host gave, misses of both levels of the TLB."""
    config = fastmmu.Config(mmu="ept", vpid=True, kvm="6.1", host_pages="untouched")
    for label, vmm in (("python", "python"), ("NextPages", NextPages), ("AsReads", AsReads)):
        machine = fastmmu.Machine(config.replace(vmm=vmm))
        for batch in read_trace(bundled()[name]).batches():
            machine.run(batch.op, batch.size, batch.addr)
        counters = machine.counters()
        given = machine.vmm.counters()["resident"]
        yield [name, label, counters["exits_by_reason"]["ept_violation"], given, counters["tlb_misses"]]


def dirty_log(name: str) -> Iterator[list[Any]]:
    """EPT violations from the start of the log on, and pages that were given as written, in all its readings."""
    config = fastmmu.Config(mmu="ept", vpid=True, kvm="6.1", memory="256M")
    for label, vmm in (("python", "python"), ("HotPages", HotPages)):
        machine = fastmmu.Machine(config.replace(vmm=vmm))
        before, written = 0, 0
        for number, batch in enumerate(read_trace(bundled()[name]).batches(100_000)):
            machine.run(batch.op, batch.size, batch.addr)
            if number == 4:
                machine.vmm.start_dirty_log(0)
                before = machine.counters()["exits_by_reason"]["ept_violation"]
            elif number > 4:
                written += int(machine.vmm.dirty_log(0).sum())
        yield [name, label, machine.counters()["exits_by_reason"]["ept_violation"] - before, written]


def threshold(name: str) -> Iterator[list[Any]]:
    """Exits below the threshold, those after which nothing is injected, interrupts, what they waited in accesses."""
    profile = tpr_profile("win2003", changes=2400.0, interrupts=400.0, held=2.0)
    trace = with_tpr(read_trace(bundled()[name]), profile)
    config = fastmmu.Config(
        mmu="ept", vpid=True, memory="2G", tpr="flexpriority", guest_handler="irql", handler_length=500
    )
    for rule, vmm in (("slides", "python"), ("kvm", "python"), ("kvm", InService)):
        counters = fastmmu.simulate(trace, config.replace(tpr_threshold=rule, vmm=vmm)).counters
        yield [
            name,
            rule if vmm == "python" else "InService",
            counters["exits_by_reason"]["tpr_below_threshold"],
            counters["apic_spurious"],
            counters["apic_delivered"],
            counters["apic_latency"],
        ]


def show(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    print(f"\n{title}")
    for row in [columns, *rows]:
        print("    " + "".join(f"{cell:<12}" if i < 2 else f"{cell:>14}" for i, cell in enumerate(row)).rstrip())


if __name__ == "__main__":
    show(
        "the next 8 pages, at an EPT violation",
        ["trace", "vmm", "violations", "host pages", "TLB misses"],
        [row for name in bundled() for row in prefetch(name)],
    )
    show(
        "a dirty log of pages seen hot",
        ["trace", "vmm", "violations", "pages given"],
        [row for name in bundled() for row in dirty_log(name)],
    )
    show(
        "the TPR threshold",
        ["trace", "rule", "exits", "of no use", "interrupts", "waited"],
        [*threshold("sqlite")],
    )
