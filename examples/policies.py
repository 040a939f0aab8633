"""KVM's policy with one rule changed: figures of docs/policy.md.

python examples/policies.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import fastmmu
from fastmmu.exits import Exit
from fastmmu.trace import bundled, read_trace, tpr_profile, with_tpr

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualCpu

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
        "the TPR threshold",
        ["trace", "rule", "exits", "of no use", "interrupts", "waited"],
        [*threshold("sqlite")],
    )
