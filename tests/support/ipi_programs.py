"""Random programs of several vCPUs with local APICs, what the specification makes of them, and hosts to run them on."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from fastmmu import Config, Host, Machine
from fastmmu.ops import Op
from fastmmu.reference.cpu.processors import Processors

TPR, EOI, SVR, LDR = 0x80, 0xB0, 0xF0, 0xD0
LVT_TIMER, INITIAL, CURRENT, DIVIDE = 0x320, 0x380, 0x390, 0x3E0
Event = tuple[Op, int]
Turn = tuple[int, int, list[Event]]
"""vCPU, CPU, what it does there."""


def icr(chance: random.Random, vcpus: int, x2apic: bool) -> int:
    """An ICR of any kind that is a vector, and now and then an NMI, INIT or start-up."""
    low = chance.randrange(10, 256) | chance.choices([0, 1, 4, 5, 6], [12, 4, 1, 1, 1])[0] << 8
    shorthand = chance.choices(range(4), [6, 1, 1, 2])[0]
    everyone = [0xFF, 0xFFFF_FFFF if x2apic else 0xFF]
    if chance.random() < 0.5:
        destination = chance.choice([*range(vcpus + 1), *everyone])
    else:
        low, destination = low | 1 << 11, chance.choice([chance.randrange(1, 1 << vcpus)] * 4 + [*everyone, 0x1_0001])
    return low | shorthand << 18 | destination << 32


def turns(chance: random.Random, vcpus: int, cpus: int, length: int, *, x2apic: bool | None = False) -> list[Turn]:
    """Each vCPU sets its APIC up; then TPR traffic, IPIs, timers, devices, CLI and STI, between reads of memory.

    `x2apic` None: some in that mode, others not.
    """
    modes = [chance.random() < 0.5 if x2apic is None else x2apic for _ in range(vcpus)]

    def register(vcpu: int, offset: int, value: int, site: int = 0) -> Event:
        if modes[vcpu]:
            return Op.MSR_WRITE, 0x800 + (offset >> 4) << 32 | value
        return Op.APIC_WRITE, site << 48 | offset << 32 | value

    def some(vcpu: int) -> Event:
        site = chance.randrange(12)
        kind = chance.choices(range(13), [24, 8, 10, 12, 6, 2, 1, 30, 4, 4, 2, 3, 4])[0]
        match kind:
            case 0:
                return register(vcpu, TPR, chance.randrange(16) << 4 | chance.choice([0, 0, 5]), site)
            case 1:
                if modes[vcpu]:
                    return Op.MSR_READ, 0x808 << 32
                return Op.APIC_READ, site << 48 | chance.choice([TPR, TPR, CURRENT]) << 32
            case 2:
                return Op.DEVICE_INTERRUPT, chance.randrange(16, 256) | chance.choice([0, 0, 0, 256])
            case 3:
                return Op.IPI, icr(chance, vcpus, modes[vcpu])
            case 4:
                return Op.INTERRUPT_FLAG, chance.randrange(2)
            case 5:
                return register(vcpu, EOI, 0)
            case 6:
                return Op.EXIT, 10
            case 8:
                mode = chance.choice([0, 1, 2, 2])
                return register(
                    vcpu, LVT_TIMER, chance.choice([0, 0, 0, 1]) << 16 | mode << 17 | chance.randrange(16, 256)
                )
            case 9:
                return register(vcpu, INITIAL, chance.choice([0, *range(1, 30)]))
            case 10:
                return register(vcpu, DIVIDE, chance.choice([0b1011, 0, 1]))
            case 11:
                return Op.TSC_DEADLINE, chance.choice([0, 1, *range(2, 60)])
            case 12:
                return Op.CR8_WRITE, chance.randrange(16)
        return Op.READ, 0x40_0000 + 4096 * chance.randrange(64)

    found: list[Turn] = []
    for vcpu in range(vcpus):
        switch = Op.MSR_WRITE, 0x1B << 32 | 0xFEE0_0D00
        start: list[Event] = [switch] if modes[vcpu] else [register(vcpu, LDR, 1 << vcpu + 24)]
        found.append((vcpu, vcpu % cpus, [*start, register(vcpu, SVR, 0x1FF)]))
    while length > 0:
        vcpu = chance.randrange(vcpus)
        events = [some(vcpu) for _ in range(chance.randrange(1, 25))]
        found.append((vcpu, chance.randrange(cpus), events))
        length -= len(events)
    # at last all is let through, so that nothing can hide
    found += [(vcpu, 0, [register(vcpu, TPR, 0), (Op.INTERRUPT_FLAG, 1)]) for vcpu in range(vcpus)]
    return found


def modelled(program: list[Turn], vcpus: int, handler: str, length: int, *, posted: bool = False) -> Processors:
    """The program by the specification."""
    want = Processors(vcpus, handler, length, posted)
    for vcpu, cpu, events in program:
        want.place(vcpu, cpu)
        for op, addr in events:
            match op:
                case Op.READ:
                    want.access(vcpu)
                case Op.APIC_WRITE:
                    want.store(vcpu, addr >> 32 & 0xFFFF, addr & 0xFFFF_FFFF)
                case Op.MSR_WRITE:
                    want.write_msr(vcpu, addr >> 32, addr & 0xFFFF_FFFF)
                case Op.CR8_WRITE:
                    want.write_cr8(vcpu, addr)
                case Op.DEVICE_INTERRUPT:
                    want.interrupt(vcpu, addr & 0xFF, level=bool(addr >> 8))
                case Op.INTERRUPT_FLAG:
                    want.set_interrupts(vcpu, bool(addr))
                case Op.IPI:
                    want.write_icr(vcpu, addr)
                case Op.TSC_DEADLINE:
                    want.set_deadline(vcpu, addr)
    return want


def run(host: Host, vcpu: int, cpu: int, events: list[Event]) -> None:
    op = np.array([op for op, _ in events], np.uint8)
    host.run(vcpu, cpu, op, (op <= 3).astype(np.uint8), np.array([addr for _, addr in events], np.uint64))


def host_of(vcpus: int, cpus: int, **config: Any) -> Host:
    return Host([(Config(memory="64M", **config), vcpus)], cpus=cpus)


def deliveries(host: Host) -> list[list[tuple[int, int]]]:
    return [[tuple(each) for each in host.deliveries(vcpu)] for vcpu in range(host.vcpus)]  # type: ignore[misc]


def ready(vcpus: int = 2, cpus: int = 2, **config: Any) -> Host:
    """vCPU i in guest mode on CPU i, its APIC enabled, logical id 1 << i."""
    host = host_of(vcpus, cpus, **config)
    for vcpu in range(vcpus):
        setup: list[Event] = [(Op.APIC_WRITE, SVR << 32 | 0x1FF), (Op.APIC_WRITE, LDR << 32 | 1 << vcpu + 24)]
        run(host, vcpu, vcpu % cpus, setup)
    return host


def exits(host: Host, vcpu: int) -> dict[str, int]:
    found: dict[str, int] = host.counters(vcpu)["exits_by_reason"]
    return found


def machine(mmu: str = "ept", tpr: str = "flexpriority", **config: Any) -> Any:
    m = Machine(Config(mmu=mmu, memory="64M", tpr=tpr, **config))
    assert m.apic is not None
    m.apic.write(SVR, 0x1FF)
    return m
