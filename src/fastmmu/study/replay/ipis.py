"""The IPIs of a system trace, and the VM exits that they would take by way of handling the APIC.

The replay has no APIC: a trace tells an IPI and its interrupt, not what other registers are given. So the IPIs alone
run again, on a machine with as many vCPUs, each on a physical CPU of its own, in the order of the trace: who sends, and
whose turn comes next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.host import Host
from fastmmu.ops import Op, RecordOp
from fastmmu.report.table import Cell, Column, number, render
from fastmmu.trace.system import SystemTrace

__all__ = ["WAYS", "IpiCost", "Ipis", "ipi_costs", "ipis_of", "ipis_table"]

WAYS = ("trap", "flexpriority", "apicv")
SVR, LDR = 0xF0, 0xD0
PAGE = 0x40_0000  # that each vCPU reads at its turn


@dataclass(frozen=True)
class Ipis:
    """What a trace says: CPUs, IPIs sent by vector, interrupts taken by vector, and in ``order`` (CPU, ICR), or
    (CPU, None) where the turn of one comes that was sent some."""

    cpus: int
    sent: dict[int, int]
    taken: dict[int, int]
    order: tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class IpiCost:
    """A way: VM exits of all vCPUs by reason, those that a kick made, notifications without one, interrupts that the
    handlers of the vCPUs got."""

    way: str
    exits: dict[str, int]
    kicks: int
    notifications: int
    delivered: int


@checked
def ipis_of(trace: SystemTrace) -> Ipis:
    """The IPIs of a trace, read in one pass.

    :raises TraceError: a bad trace.
    """
    cpus = len(trace.cpus())
    sent: Counter[int] = Counter()
    taken: Counter[int] = Counter()
    order: list[tuple[int, int | None]] = []
    cpu, waiting = 0, set[int]()
    for chunk in trace.records():
        rows = chunk.rows[np.isin(chunk.rows["op"], (RecordOp.CPU, RecordOp.IPI, RecordOp.INTERRUPT))]
        for op, size, aux, val in zip(*(rows[name].tolist() for name in ("op", "size", "aux", "val")), strict=True):
            if op == RecordOp.INTERRUPT:
                taken[size] += 1
            elif op == RecordOp.CPU:
                cpu = aux
                if cpu in waiting:
                    waiting.discard(cpu)
                    order.append((cpu, None))
            else:
                sent[val & 0xFF] += 1
                order.append((cpu, val))
                waiting.update(targets(val, cpu, cpus))
    order += ((left, None) for left in sorted(waiting))
    return Ipis(cpus, dict(sent), {vector: taken[vector] for vector in sent}, tuple(order))


def targets(icr: int, sender: int, cpus: int) -> Iterator[int]:
    """CPUs that an ICR of xAPIC mode addresses, ids and flat logical destinations as Linux gives them (apic.md §1)."""
    shorthand, destination = icr >> 18 & 3, icr >> 56
    for cpu in range(cpus):
        addressed = destination >> cpu & 1 if icr >> 11 & 1 else destination in (cpu, 0xFF)
        if (addressed, cpu == sender, True, cpu != sender)[shorthand]:
            yield cpu


@checked
def ipi_costs(ipis: Ipis, ways: Sequence[str] = WAYS, *, kvm: str = "6.1") -> Iterator[IpiCost]:
    """What the IPIs of a trace cost in each way of handling the APIC.

    :raises ConfigError: more CPUs than the trace's xAPIC mode can name, or an unknown way.
    """
    for way in ways:
        if way not in WAYS:
            raise ConfigError(f"no way {way!r} to handle the APIC; there are {', '.join(WAYS)}")
    if ipis.cpus > 254:
        raise ConfigError(f"{ipis.cpus} CPUs; IPIs of xAPIC mode reach 254")
    for way in ways:
        yield _cost(ipis, way, kvm)


def _cost(ipis: Ipis, way: str, kvm: str) -> IpiCost:
    fields: dict[str, Any] = {"kvm": kvm, "tpr": way, "guest_handler": "eoi", "memory": "256M"}
    config = Config(mmu="ept", vpid=True, **fields)
    host = Host([(config, ipis.cpus)], cpus=ipis.cpus)
    for cpu in range(ipis.cpus):
        _run(host, cpu, Op.APIC_WRITE, SVR << 32 | 0x1FF)
        if cpu < 8:
            _run(host, cpu, Op.APIC_WRITE, LDR << 32 | 1 << 24 + cpu)
        _run(host, cpu, Op.READ, PAGE)
    before, sent = _exits(host), host.totals()
    for cpu, icr in ipis.order:
        if icr is None:
            _run(host, cpu, Op.READ, PAGE)
        else:
            _run(host, cpu, Op.IPI, icr & 0xFFFF_FFFF | icr >> 56 << 32)
    total = host.totals()
    return IpiCost(
        way,
        dict(_exits(host) - before),
        total["kicks"] - sent["kicks"],
        total["notifications"] - sent["notifications"],
        sum(len(host.deliveries(cpu)) for cpu in range(ipis.cpus)),
    )


def _run(host: Host, cpu: int, op: Op, addr: int) -> None:
    host.run(cpu, cpu, np.array([op], np.uint8), np.array([op == Op.READ], np.uint8), np.array([addr], np.uint64))


def _exits(host: Host) -> Counter[str]:
    found: Counter[str] = Counter()
    for vcpu in range(host.vcpus):
        found.update(host.counters(vcpu)["exits_by_reason"])
    return found


def ipis_table(ipis: Ipis, costs: Sequence[IpiCost], *, name: str = "", width: int = 120, colour: bool = False) -> str:
    """A row a way: VM exits by reason, kicks, notifications, interrupts delivered."""
    vectors = ", ".join(f"{vector:#x}: {ipis.sent[vector]:,} ({ipis.taken[vector]:,})" for vector in sorted(ipis.sent))
    reasons = sorted({reason for cost in costs for reason in cost.exits})
    columns = [Column("way", align="<"), Column("exits", "VM")]
    columns += [Column(reason.replace("_", " "), "by reason") for reason in reasons]
    columns += [Column("kicks"), Column("notified"), Column("delivered")]
    rows: list[list[Cell] | None] = []
    for cost in costs:
        numbers = [sum(cost.exits.values()), *(cost.exits.get(reason, 0) for reason in reasons)]
        numbers += [cost.kicks, cost.notifications, cost.delivered]
        rows.append([Cell(cost.way), *(Cell(number(n)) for n in numbers)])
    head = f"{name}: {ipis.cpus} CPUs, {sum(ipis.sent.values()):,} IPIs; sent (taken) by vector: {vectors or 'none'}"
    return "\n".join([head, "", *(render(columns, rows, width=width, colour=colour) if rows else []), ""])
