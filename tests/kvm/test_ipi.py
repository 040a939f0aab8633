"""vCPUs with local APICs: interprocessor interrupts, timers and nested handlers, the same in each way of the TPR."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Host, Machine, OutOfMemoryError, StateError, TraceError
from fastmmu.ops import Op
from fastmmu.reference.processors import Processors

PROGRAMS = int(os.environ.get("FASTMMU_EXAMPLES", "10"))
FIRST = int(os.environ.get("FASTMMU_SEED", "0"))
TPR, EOI, SVR, LDR = 0x80, 0xB0, 0xF0, 0xD0
LVT_TIMER, INITIAL, CURRENT, DIVIDE = 0x320, 0x380, 0x390, 0x3E0
WAYS: dict[str, dict[str, Any]] = {
    "trap": {"mmu": "ept", "tpr": "trap"},
    "trap, no shadow": {"mmu": "ept", "tpr": "trap", "tpr_shadow": False},
    "trap, shadow paging": {"mmu": "shadow", "tpr": "trap"},
    "patch": {"mmu": "ept", "tpr": "patch"},
    "patch, shadow paging": {"mmu": "shadow", "tpr": "patch"},
    "patch, one vCPU": {"mmu": "ept", "tpr": "patch", "tpr_patch": "one-vcpu"},
    "flexpriority": {"mmu": "ept", "tpr": "flexpriority"},
    "flexpriority, slides": {"mmu": "ept", "tpr": "flexpriority", "tpr_threshold": "slides"},
    "flexpriority, shadow paging": {"mmu": "shadow", "tpr": "flexpriority", "vpid": True, "kvm": "6.1"},
    "apicv": {"mmu": "ept", "tpr": "apicv", "vpid": True, "kvm": "6.1"},
    "apicv, shadow paging": {"mmu": "shadow", "tpr": "apicv"},
}
Event = tuple[Op, int]
Turn = tuple[int, int, list[Event]]
"""vCPU, CPU, what it does there."""


# ---- random programs -------------------------------------------------------------------------------------------


def icr(chance: random.Random, vcpus: int, x2apic: bool) -> int:
    """An ICR of any kind that is a vector, and now and then an NMI, INIT or start-up."""
    low = chance.randrange(10, 256) | chance.choices([0, 1, 4, 5, 6], [12, 4, 1, 1, 1])[0] << 8
    shorthand = chance.choices(range(4), [6, 1, 1, 2])[0]
    if chance.random() < 0.5:
        destination = chance.choice([*range(vcpus + 1), 0xFF, 0xFFFF_FFFF if x2apic else 0xFF])
    else:
        low, destination = low | 1 << 11, chance.randrange(1, 1 << vcpus)
    return low | shorthand << 18 | destination << 32


def turns(chance: random.Random, vcpus: int, cpus: int, length: int, *, x2apic: bool = False) -> list[Turn]:
    """Each vCPU sets its APIC up; then TPR traffic, IPIs, timers, devices, CLI and STI, between reads of memory."""

    def register(offset: int, value: int, site: int = 0) -> Event:
        if x2apic:
            return Op.MSR_WRITE, 0x800 + (offset >> 4) << 32 | value
        return Op.APIC_WRITE, site << 48 | offset << 32 | value

    def some() -> Event:
        site = chance.randrange(12)
        kind = chance.choices(range(12), [24, 8, 10, 12, 6, 2, 1, 30, 4, 4, 2, 3])[0]
        match kind:
            case 0:
                return register(TPR, chance.randrange(16) << 4 | chance.choice([0, 0, 5]), site)
            case 1:
                if x2apic:
                    return Op.MSR_READ, 0x808 << 32
                return Op.APIC_READ, site << 48 | chance.choice([TPR, TPR, CURRENT]) << 32
            case 2:
                return Op.DEVICE_INTERRUPT, chance.randrange(16, 256) | chance.choice([0, 0, 0, 256])
            case 3:
                return Op.IPI, icr(chance, vcpus, x2apic)
            case 4:
                return Op.INTERRUPT_FLAG, chance.randrange(2)
            case 5:
                return register(EOI, 0)
            case 6:
                return Op.EXIT, 10
            case 8:
                mode = chance.choice([0, 1, 2, 2])
                return register(LVT_TIMER, chance.choice([0, 0, 0, 1]) << 16 | mode << 17 | chance.randrange(16, 256))
            case 9:
                return register(INITIAL, chance.choice([0, *range(1, 30)]))
            case 10:
                return register(DIVIDE, chance.choice([0b1011, 0, 1]))
            case 11:
                return Op.TSC_DEADLINE, chance.choice([0, 1, *range(2, 60)])
        return Op.READ, 0x40_0000 + 4096 * chance.randrange(64)

    found: list[Turn] = []
    for vcpu in range(vcpus):
        start: list[Event] = [(Op.MSR_WRITE, 0x1B << 32 | 0xFEE0_0D00)] if x2apic else [register(LDR, 1 << vcpu + 24)]
        found.append((vcpu, vcpu % cpus, [*start, register(SVR, 0x1FF)]))
    while length > 0:
        events = [some() for _ in range(chance.randrange(1, 25))]
        found.append((chance.randrange(vcpus), chance.randrange(cpus), events))
        length -= len(events)
    # at last all is let through, so that nothing can hide
    found += [(vcpu, 0, [register(TPR, 0), (Op.INTERRUPT_FLAG, 1)]) for vcpu in range(vcpus)]
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
                    want.write(vcpu, addr >> 32 & 0xFFFF, addr & 0xFFFF_FFFF)
                case Op.MSR_WRITE if addr >> 32 == 0x1B:
                    want.all[vcpu].apic.x2apic = True
                case Op.MSR_WRITE:
                    want.write(vcpu, (addr >> 32 & 0xFF) << 4, addr & 0xFFFF_FFFF)
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


@pytest.mark.parametrize("x2apic", [False, True], ids=["xAPIC", "x2APIC"])
@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_all_ways_deliver_the_same_interrupts_at_the_same_points(handler: str, x2apic: bool) -> None:
    """None lost, none early, on whichever vCPU and whatever the schedule; kicks and notifications as KVM has them."""
    delivered = nested = timers = 0
    exits, below, totals = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0)
    for seed in range(FIRST, FIRST + PROGRAMS):
        chance = random.Random(seed)
        vcpus, cpus, length = chance.randrange(1, 5), chance.randrange(1, 4), chance.choice([0, 0, 3, 12])
        program = turns(chance, vcpus, cpus, 200, x2apic=x2apic)
        plain, posted = (modelled(program, vcpus, handler, length, posted=posted) for posted in (False, True))
        want = plain.delivered()
        assert want == posted.delivered()
        delivered += sum(map(len, want))
        for name, config in WAYS.items():
            host = host_of(vcpus, cpus, guest_handler=handler, handler_length=length, **config)
            for turn in program:
                run(host, *turn)
            assert deliveries(host) == want, (seed, name)
            counters = [host.counters(vcpu) for vcpu in range(vcpus)]
            assert [each["apic_nested"] for each in counters] == [each.nested for each in plain.all]
            if config["mmu"] == "ept":
                total = host.totals()
                kicks = (0, posted.notifications) if config["tpr"] == "apicv" else (plain.kicks, 0)
                assert (total["kicks"], total["notifications"]) == kicks, (seed, name)
                totals[name] += sum(kicks)
            exits[name] += sum(each["vm_exits"] for each in counters)
            below[name] += sum(each["exits_by_reason"].get("tpr_below_threshold", 0) for each in counters)
            timers += sum(each["apic_timer"] for each in counters)
            nested += sum(each["apic_nested"] for each in counters)
    assert delivered > 20 * PROGRAMS
    assert timers > PROGRAMS
    assert totals["trap"] > 0 < totals["apicv"]
    assert nested > 0
    assert exits["trap, no shadow"] > exits["flexpriority"] > exits["apicv"]
    assert below["flexpriority, slides"] > below["flexpriority"] > 0 == below["apicv"]
    print(f"{PROGRAMS} programs from seed {FIRST}, {delivered} interrupts, {nested} nested, {timers} expiries")
    print(f"exits {exits}; of these TPR below threshold {below}; IPIs of the host {totals}")


@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_one_processor_without_a_vmm_does_the_same(handler: str) -> None:
    """Natively, batch by batch: timers and handlers run on between calls of run()."""
    for seed in range(FIRST, FIRST + 2 * PROGRAMS):
        chance = random.Random(seed)
        length = chance.choice([0, 3, 12])
        program = turns(chance, 1, 1, 200, x2apic=seed % 2 == 1)
        want = modelled(program, 1, handler, length).delivered()[0]
        for mmu, tpr in (("native", "trap"), ("ept", "apicv"), ("ept", "trap")):
            m = Machine(Config(mmu=mmu, memory="64M", tpr=tpr, guest_handler=handler, handler_length=length))
            for _, _, events in program:
                op = np.array([op for op, _ in events], np.uint8)
                m.run(op, (op <= 3).astype(np.uint8), np.array([addr for _, addr in events], np.uint64))
            assert m.apic is not None
            assert [tuple(each) for each in m.apic.deliveries] == want, (seed, mmu, tpr)


# ---- one thing at a time ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("tpr", ["trap", "patch", "flexpriority", "apicv"])
def test_a_kick_is_an_exit_of_the_target_and_a_posted_interrupt_is_none(tpr: str) -> None:
    host = ready(mmu="ept", tpr=tpr)
    before, writes = exits(host, 1), exits(host, 0).get("apic_write", 0)
    for _ in range(3):  # the second and third find the request pending, and the kick under way
        run(host, 0, 0, [(Op.IPI, 1 << 32 | 0x51)])
    assert host.deliveries(1) == []
    host.place(1, 1)
    after, counters = exits(host, 1), host.counters(0)
    assert [each.vector for each in host.deliveries(1)] == [0x51]
    kicked = after.get("external_interrupt", 0) - before.get("external_interrupt", 0)
    if tpr == "apicv":
        assert (counters["apic_kicks"], counters["apic_notifications"], kicked) == (0, 1, 0)
        assert sum(after.values()) == sum(before.values())
        assert (exits(host, 0)["apic_write"] - writes, host.counters(1)["apic_posted"]) == (3, 1)
    else:
        assert (counters["apic_kicks"], counters["apic_notifications"], kicked) == (1, 0, 1)
    assert (counters["apic_ipis"], host.counters(1)["apic_requested"], host.counters(1)["apic_delivered"]) == (3, 3, 1)
    assert host.totals()["interprocessor"] == 3
    run(host, 0, 0, [(Op.IPI, 1 << 32 | 0x51), *[(Op.READ, 0x40_0000)] * 40])
    host.place(1, 1)
    assert host.counters(1)["apic_latency"] == 0  # it stood still on its CPU


@pytest.mark.parametrize("tpr", ["trap", "flexpriority", "apicv"])
def test_a_vcpu_that_waits_for_a_cpu_gets_it_at_its_next_entry(tpr: str) -> None:
    host = ready(cpus=1, mmu="ept", tpr=tpr)
    run(host, 0, 0, [(Op.IPI, 1 << 32 | 0x51), *[(Op.READ, 0x40_0000)] * 70])
    before = sum(exits(host, 1).values())
    assert (host.totals()["kicks"], host.totals()["notifications"]) == (0, 0)
    host.place(1, 0)
    assert [tuple(each) for each in host.deliveries(1)] == [(0x51, 70)]
    assert host.counters(1)["apic_latency"] == 70
    assert sum(exits(host, 1).values()) - before == (tpr != "apicv")  # at the end of the interrupt


def test_an_interrupt_to_itself_takes_no_exit_under_apicv() -> None:
    for mode, events in (
        ("xAPIC", [(Op.APIC_WRITE, 0x300 << 32 | 0x4_0051)]),
        ("x2APIC", [(Op.MSR_WRITE, 0x83F << 32 | 0x51)]),
    ):
        host = ready(mmu="ept", tpr="apicv")
        if mode == "x2APIC":
            run(host, 0, 0, [(Op.MSR_WRITE, 0x1B << 32 | 0xFEE0_0D00)])
        run(host, 0, 0, [(Op.READ, 0x40_0000)])
        before = sum(exits(host, 0).values())
        run(host, 0, 0, events)
        counters = host.counters(0)
        assert sum(exits(host, 0).values()) == before, mode
        assert (counters["apic_ipis"], counters["apic_ipis_virtualized"], counters["apic_delivered"]) == (1, 1, 1)


@pytest.mark.parametrize("tpr", ["trap", "patch", "flexpriority", "apicv"])
def test_of_lowest_priority_goes_to_the_lowest_processor_priority(tpr: str) -> None:
    """The TPR of each counts, also where it is in a record; among equals the first; not those whose APIC is off."""
    host = ready(4, 4, mmu="ept", tpr=tpr)
    write = TPR << 32
    for vcpu, level in enumerate((0x70, 0x50, 0x30, 0x30)):
        run(host, vcpu, vcpu, [(Op.APIC_WRITE, write | 0xF0), (Op.APIC_WRITE, write), (Op.APIC_WRITE, write | level)])
    lowest, targets = 0x100 | 1 << 11 | 0x91, []
    for destination in (0b1111, 0b0011, 0b1001):
        run(host, 0, 0, [(Op.IPI, destination << 32 | lowest)])
        for vcpu in range(4):
            n = len(host.deliveries(vcpu))
            host.place(vcpu, vcpu)
            targets += [vcpu] * (len(host.deliveries(vcpu)) - n)
    assert targets == [2, 1, 3]
    run(host, 2, 2, [(Op.APIC_WRITE, SVR << 32 | 0xFF)])
    run(host, 0, 0, [(Op.IPI, 0b1111 << 32 | lowest)])
    host.place(3, 3)
    assert len(host.deliveries(3)) == 2


def test_nmi_init_and_start_up_are_counted_and_not_delivered() -> None:
    for config in WAYS.values():
        host = ready(**config)
        run(host, 0, 0, [(Op.IPI, 1 << 32 | mode << 8 | 0x51) for mode in (2, 4, 5, 6)])
        host.place(1, 1)
        counters = host.counters(0)
        assert (counters["apic_ipis"], counters["apic_ipis_other"], counters["apic_kicks"]) == (4, 4, 0)
        assert host.deliveries(1) == []


def test_each_vcpu_has_its_pages_and_the_vm_one_apic_access_page() -> None:
    """They go with the vCPU from CPU to CPU, and another VM's are elsewhere."""
    config = Config(mmu="ept", memory="64M", tpr="apicv", vpid=True)
    host = Host([(config, 3), (config, 2)], cpus=2)
    fields = []
    for vcpu in range(host.vcpus):
        vmcs = host.place(vcpu, vcpu % 2).vmcs
        fields.append({name: vmcs[name] for name in vmcs if "apic" in name or "posted" in name})
        run(host, vcpu, vcpu % 2, [(Op.APIC_WRITE, SVR << 32 | 0x1FF), (Op.APIC_WRITE, TPR << 32 | 16 + vcpu)])
    for name, different in (("virtual_apic_address", 5), ("posted_descriptor_address", 5), ("apic_access_address", 2)):
        assert len({each[name] for each in fields}) == different, name
    assert [each["apic_access_address"] for each in fields[:3]] == [fields[0]["apic_access_address"]] * 3
    for vcpu in range(host.vcpus):
        machine = host.place(vcpu, 1 - vcpu % 2)
        assert machine.vmcs["virtual_apic_address"] == fields[vcpu]["virtual_apic_address"]
        page = fields[vcpu]["virtual_apic_address"]
        assert host.memory.u8[page + TPR] == 16 + vcpu
        assert machine.apic is not None
        assert (machine.apic.read(TPR), machine.apic.read(0x20) >> 24) == (16 + vcpu, vcpu if vcpu < 3 else vcpu - 3)
    descriptor = fields[1]["posted_descriptor_address"] >> 3
    host.place(0, 0)
    host.place(2, 1)  # vCPU 1 waits
    run(host, 0, 0, [(Op.IPI, 1 << 32 | 0x51)])
    assert list(host.memory.u64[descriptor : descriptor + 5]) == [0, 1 << 0x51 - 64, 0, 0, 0xF2 << 16 | 1]
    host.place(1, 0)
    assert list(host.memory.u64[descriptor : descriptor + 5]) == [0, 0, 0, 0, 0xF2 << 16]
    host.place(1, 1)
    assert host.memory.u64[descriptor + 4] == 1 << 32 | 0xF2 << 16  # where notifications go


# ---- patching --------------------------------------------------------------------------------------------------


def test_every_vcpu_has_its_record_and_shares_the_patched_code() -> None:
    """A site that one vCPU's access had patched costs another a single exit, which puts its record to use."""
    host = ready(3, 3, mmu="ept", tpr="patch")
    site = 5 << 48 | TPR << 32
    run(host, 0, 0, [(Op.APIC_WRITE, site | 0x40)] * 10)
    assert host.counters(0)["apic_patched"] == 1
    for vcpu, level in ((1, 0x60), (2, 0x80)):
        run(host, vcpu, vcpu, [(Op.APIC_WRITE, site | level)] * 10)
        assert (host.counters(vcpu)["apic_patched"], exits(host, vcpu)["io_instruction"]) == (0, 1)
    assert exits(host, 0).get("io_instruction", 0) == 0
    records = []
    for vcpu in range(3):
        machine = host.place(vcpu, vcpu)
        assert machine.apic is not None
        records.append(machine.apic.read(TPR))
    assert records == [0x40, 0x60, 0x80]


def test_no_threshold_is_left_when_the_record_comes_into_use() -> None:
    """One that stays above a TPR lowered in the record would make the next VM entry fail (vmx.md §3.1, C5)."""
    m = machine(tpr="patch")
    m.apic.interrupt(0x51)
    m.apic.set_interrupts(False)
    m.apic.write_cr8(8)
    m.apic.interrupt(0x61)
    assert m.vmcs["tpr_threshold"] == 6
    for value in (0x80, 0x80, 0x20):
        events = np.array([1 << 48 | TPR << 32 | value], np.uint64)
        m.run(np.array([Op.APIC_WRITE], np.uint8), np.zeros(1, np.uint8), events)
        assert m.vmcs["tpr_threshold"] == 0
    m.exit_instruction(10)
    m.apic.set_interrupts(True)
    assert [each.vector for each in m.apic.deliveries] == [0x51, 0x61]


def test_the_first_version_patches_no_guest_with_two_vcpus() -> None:
    """It has one record for all; by record for each vCPU the same program exits once a site."""
    program: list[Event] = [(Op.APIC_WRITE, 3 << 48 | TPR << 32 | 0x40)] * 20
    for mode, patched, emulated in (("one-vcpu", 0, 20), ("per-vcpu", 1, 1)):
        host = ready(mmu="ept", tpr="patch", tpr_patch=mode)
        before = [host.counters(vcpu)["apic_emulated"] for vcpu in range(2)]
        for vcpu in (1, 0):
            run(host, vcpu, vcpu, program)
        counters = [host.counters(vcpu) for vcpu in range(2)]
        assert [each["apic_patched"] for each in counters] == [0, patched]
        assert counters[1]["apic_emulated"] - before[1] == emulated
        assert counters[0]["apic_emulated"] - before[0] == (0 if patched else 20)


# ---- the timer, and handlers that take time ----------------------------------------------------------------------


def machine(mmu: str = "ept", tpr: str = "flexpriority", **config: Any) -> Any:
    m = Machine(Config(mmu=mmu, memory="64M", tpr=tpr, **config))
    assert m.apic is not None
    m.apic.write(SVR, 0x1FF)
    return m


@pytest.mark.parametrize("tpr", ["native", "trap", "patch", "flexpriority", "apicv"])
def test_the_timer_runs_out_after_exactly_as_many_accesses(tpr: str) -> None:
    """One access is one bus clock. Divided by 4: 10 counts are 40 accesses."""
    m = machine("native", "trap") if tpr == "native" else machine("ept", tpr)
    apic = m.apic
    apic.write(DIVIDE, 0b0001)
    apic.write(LVT_TIMER, 1 << 17 | 0x41)
    apic.write(INITIAL, 10)
    apic.wait(15)
    assert apic.read(CURRENT) == 7
    m.run(np.zeros(70, np.uint8), np.ones(70, np.uint8), np.full(70, 0x40_0000, np.uint64))
    assert [tuple(each) for each in apic.deliveries] == [(0x41, 40), (0x41, 80)]
    apic.write(LVT_TIMER, 1 << 16 | 1 << 17 | 0x41)
    apic.wait(80)
    assert (len(apic.deliveries), m.counters()["apic_timer"]) == (2, 4)  # masked, it runs on
    apic.write(LVT_TIMER, 2 << 17 | 0x51)
    apic.wrmsr(0x6E0, apic.now + 30)
    assert apic.rdmsr(0x6E0) == apic.now + 30
    apic.wait(100)
    assert tuple(apic.deliveries[-1]) == (0x51, 195)
    assert (apic.rdmsr(0x6E0), apic.read(CURRENT)) == (0, 0)


@pytest.mark.parametrize(("kvm", "reason"), [("slides", "external_interrupt"), ("6.1", "preemption_timer")])
def test_the_vmm_learns_of_the_timer_by(kvm: str, reason: str) -> None:
    m = machine(kvm=kvm)
    m.apic.write(LVT_TIMER, 0x41)
    m.apic.write(INITIAL, 10)
    before = m.counters()["exits_by_reason"].get(reason, 0)
    m.apic.wait(1000)
    assert m.counters()["exits_by_reason"][reason] - before == 1
    assert len(m.apic.deliveries) == 1


def test_a_timer_goes_on_while_another_vcpu_runs() -> None:
    host = ready(cpus=1, mmu="ept", tpr="apicv")
    run(host, 0, 0, [(Op.APIC_WRITE, LVT_TIMER << 32 | 2 << 17 | 0x41), (Op.TSC_DEADLINE, 20)])
    run(host, 1, 0, [(Op.READ, 0x40_0000)] * 50)
    host.place(0, 0)
    assert [tuple(each) for each in host.deliveries(0)] == [(0x41, 50)]
    assert host.counters(0)["apic_latency"] == 30


def test_handlers_nest_by_class() -> None:
    """IRQL: a higher class interrupts, an equal or lower one waits; each returns to the TPR that it found."""
    for tpr in ("trap", "patch", "flexpriority", "apicv"):
        m = machine(tpr=tpr, guest_handler="irql", handler_length=100)
        for wait, vector in ((0, 0x51), (10, 0x55), (10, 0x41), (10, 0x91), (10, 0x61), (0, 0x99)):
            m.apic.wait(wait)
            m.apic.interrupt(vector)
        assert m.apic.read(TPR) == 0x90
        m.apic.wait(1000)
        # 51H runs 30 accesses, 91H interrupts it to 130, then 99H and 61H; 70 are left of 51H; 55H, 41H after it
        assert [tuple(each) for each in m.apic.deliveries] == [
            (0x51, 0), (0x91, 30), (0x99, 130), (0x61, 230), (0x55, 400), (0x41, 500)
        ]  # fmt: skip
        assert (m.counters()["apic_nested"], m.apic.read(TPR)) == (3, 0)


@pytest.mark.parametrize("tpr", ["native", "trap", "patch", "flexpriority", "apicv"])
@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_the_timer_runs_out_as_a_handler_returns(tpr: str, handler: str) -> None:
    """At one and the same access, and the VMM learns of both."""
    config = {"guest_handler": handler, "handler_length": 10}
    m = machine("native", "trap", **config) if tpr == "native" else machine("ept", tpr, **config)
    m.apic.write(LVT_TIMER, 0x31)
    m.apic.interrupt(0x51)
    m.apic.write(DIVIDE, 0b1011)
    m.apic.write(INITIAL, 10)
    before = m.counters()["exits_by_reason"].get("external_interrupt", 0)
    m.apic.wait(100)
    assert [tuple(each) for each in m.apic.deliveries] == [(0x51, 0), (0x31, 10)]
    assert m.counters()["exits_by_reason"].get("external_interrupt", 0) - before == (tpr != "native")


def test_without_raising_the_irql_nothing_nests() -> None:
    m = machine(guest_handler="eoi", handler_length=100)
    m.apic.interrupt(0x51)
    m.apic.wait(30)
    m.apic.interrupt(0x91)
    m.apic.wait(500)
    assert [tuple(each) for each in m.apic.deliveries] == [(0x51, 0), (0x91, 100)]
    assert m.counters()["apic_nested"] == 0


def test_any_events_of_several_vcpus_end_in_a_result_or_an_error() -> None:
    chance = random.Random(6)
    ops = [op for op in Op if op >= Op.APIC_READ] + [Op.READ]
    for seed in range(2 * PROGRAMS):
        host = host_of(3, 2, handler_length=seed % 3, **[*WAYS.values()][seed % len(WAYS)])
        for _ in range(20):
            events = [(chance.choice(ops), chance.getrandbits(chance.choice([8, 40, 64]))) for _ in range(10)]
            events = [(op, addr & 0x7FFF_FFFF_FFFF if op == Op.READ else addr) for op, addr in events]
            try:
                run(host, chance.randrange(3), chance.randrange(2), events)
            except (TraceError, StateError, OutOfMemoryError):
                continue
        for vcpu in range(3):
            assert host.counters(vcpu)["apic_delivered"] == len(host.deliveries(vcpu))


def test_as_many_vcpus_as_there_are_ids() -> None:
    for tpr, most in (("apicv", 255), ("patch", 16)):
        config = Config(mmu="ept", memory="64M", tpr=tpr)
        assert Host([(config, most)]).vcpus == most
        with pytest.raises(ConfigError, match=f"0..{most - 1}"):
            Host([(config, most + 1)])
