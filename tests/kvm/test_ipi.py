"""vCPUs with local APICs: interprocessor interrupts, the same in each way of the TPR."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Host, Machine, OutOfMemoryError, StateError, TraceError
from fastmmu.ops import Op
from tests.support.ipi_programs import (
    SVR,
    TPR,
    Event,
    deliveries,
    exits,
    host_of,
    machine,
    modelled,
    ready,
    run,
    turns,
)
from tests.support.tpr_ways import HOST_WAYS

PROGRAMS = int(os.environ.get("FASTMMU_EXAMPLES", "10"))
FIRST = int(os.environ.get("FASTMMU_SEED", "0"))


@pytest.mark.parametrize("x2apic", [False, True, None], ids=["xAPIC", "x2APIC", "mixed"])
@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_all_ways_deliver_the_same_interrupts_at_the_same_points(handler: str, x2apic: bool | None) -> None:
    """None lost, none early, on whichever vCPU and whatever the schedule; kicks and notifications as KVM has them."""
    delivered = nested = timers = 0
    exits, below, totals = dict.fromkeys(HOST_WAYS, 0), dict.fromkeys(HOST_WAYS, 0), dict.fromkeys(HOST_WAYS, 0)
    for seed in range(FIRST, FIRST + PROGRAMS):
        chance = random.Random(seed)
        vcpus, cpus, length = chance.randrange(1, 5), chance.randrange(1, 4), chance.choice([0, 0, 3, 12])
        program = turns(chance, vcpus, cpus, 200, x2apic=x2apic)
        plain, posted = (modelled(program, vcpus, handler, length, posted=posted) for posted in (False, True))
        want = plain.delivered()
        assert want == posted.delivered()
        delivered += sum(map(len, want))
        for name, config in HOST_WAYS.items():
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
    for config in HOST_WAYS.values():
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


def test_any_events_of_several_vcpus_end_in_a_result_or_an_error() -> None:
    chance = random.Random(6)
    ops = [op for op in Op if Op.APIC_READ <= op <= Op.TSC_DEADLINE] + [Op.READ]
    for seed in range(2 * PROGRAMS):
        host = host_of(3, 2, handler_length=seed % 3, **[*HOST_WAYS.values()][seed % len(HOST_WAYS)])
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
