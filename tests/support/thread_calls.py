"""Calls of a machine and its parts that threads make at the same time, and machines to make them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastmmu import Config, GuestState, Machine, MemorySlot, Op, Policy, walk
from tests.support.event_lists import program, with_events

__all__ = ["EPT", "INSTRUCTIONS", "LAST", "READ", "SCHEMES", "VMM", "bare", "batch", "made", "running"]

SCHEMES = [
    Config(memory="64M"),
    Config(mmu="shadow", memory="64M", tlb="strict", find_missing_flushes=True),
    Config(mmu="ept", vpid=True, memory="64M", host_pages="untouched", pml=True, tpr="apicv", table_pages=64),
]
EPT = SCHEMES[2]
SLOT = 0x1000_0000
LAST = 1  # number of the slot at SLOT


def batch(events: int = 20_000) -> tuple[Any, Any, Any]:
    trace = with_events(program(events, pages=3000), 500, (Op.UNMAP, 0x5555_5555_5000), (Op.SWITCH, 1), (Op.SWITCH, 0))
    (found,) = trace.batches(1 << 30)
    return found.op, found.size, found.addr


def made(config: Config, **named: Any) -> Machine:
    slots = [] if config.mmu == "native" else [MemorySlot(SLOT, 4 << 20, host="untouched")]
    return Machine(config, slots=slots, **named)


READ: dict[str, Callable[[Machine], object]] = {
    "counters": lambda m: m.counters(),
    "state": lambda m: m.state,
    "hardware": lambda m: m.hardware,
    "vmcs": lambda m: m.vmcs,
    "mmio": lambda m: m.mmio,
    "hw_cr3": lambda m: m.hw_cr3,
    "events": lambda m: m.events,
    "tlb.counters": lambda m: m.tlb.counters(),
    "tlb.entries": lambda m: m.tlb.entries(),
    "tlb.live": lambda m: (m.tlb.live(), m.tlb.contexts, m.tlb.omit),
    "missing_flushes": lambda m: m.missing_flushes and (m.missing_flushes.examples(), m.missing_flushes.counters()),
    "guest_memory": lambda m: m.guest_memory.u64[::4096].sum(),
    "apic": lambda m: m.apic and (m.apic.now, m.apic.deliveries, m.apic.page, m.apic.address),
}


def written(machine: Machine) -> int:
    log = machine.vmm.dirty_log(0)
    return int(log.sum())


def logged(machine: Machine, **how: Any) -> None:
    machine.vmm.start_dirty_log(0, **how)
    written(machine)
    if how:
        machine.vmm.clear_dirty_log(0, 0, len(machine.vmm.dirty_log(0)))
    machine.vmm.stop_dirty_log(0)


def each_page(call: Callable[[Machine, int], object]) -> Callable[[Machine], None]:
    def calls(machine: Machine) -> None:
        for page in range(0, 2000, 7):
            call(machine, page)

    return calls


def with_slot(machine: Machine) -> None:
    vmm = machine.vmm
    vmm.touch(LAST, 0, 64)
    vmm.merge(LAST, [3, 4, 5])
    vmm.touch(LAST, 4, 1)


def held_back(machine: Machine) -> None:
    machine.vmm.invalidate_range_start(LAST, 0, 16)
    machine.vmm.invalidate_range_end(LAST)


VMM: dict[str, Callable[[Machine], object]] = {
    "dirty log": logged,
    "manual dirty log": lambda m: logged(m, manual=True, initially_set=True),
    "stats": lambda m: (m.vmm.stats(), m.vmm.counters(), m.vmm.omit),
    "young": each_page(lambda m, page: m.vmm.young(0, page, clear=bool(page & 1), flush=bool(page & 1))),
    "swap_out": each_page(lambda m, page: m.vmm.swap_out(0, page)),
    "make_huge": each_page(lambda m, page: m.vmm.make_huge(0, page) if m.config.host_thp else None),
    "slots": with_slot,
    "invalidate_range": held_back,
    "table_pages": lambda m: m.vmm.table_pages(),
    "nested_tables": lambda m: m.vmm.nested_tables(),
    "reverse_maps": lambda m: m.vmm.reverse_maps(),
    "recover_nx": lambda m: m.vmm.recover_nx(1),
    "guest_caching": lambda m: m.vmm.guest_caching(uncached=False),
    "omit": lambda m: setattr(m.vmm, "omit", set()),
}


def running(config: Config) -> tuple[Machine, Callable[[], object]]:
    machine, (op, size, addr) = made(config), batch()
    machine.run(op, size, addr)
    return machine, lambda: machine.run(op, size, addr)


INSTRUCTIONS: dict[str, Callable[[Machine], object]] = {
    "run": lambda m: m.run(*batch(10)),
    "load": lambda m: m.load(0x1000),
    "store": lambda m: m.store(0x1000, 1),
    "mov_cr0": lambda m: m.mov_cr0(0x8005_0033),
    "mov_cr3": lambda m: m.guest.mov_cr3(0),
    "mov_from_cr4": lambda m: m.guest.mov_from_cr4(),
    "invlpg": lambda m: m.invlpg(0x1000),
    "exit_instruction": lambda m: m.exit_instruction(10),
    "default": lambda m: m.default(),
    "inject_page_fault": lambda m: m.inject_page_fault(0, 0),
    "tlb.simulate": lambda m: m.tlb.simulate(np.arange(100, dtype=np.uint64) << 12),
    "tlb.switch": lambda m: m.tlb.switch(1, 2, 0x3000),
    "tlb.lookup": lambda m: m.tlb.lookup(0x1000),
    "tlb.reset": lambda m: m.tlb.reset(),
    "tlb.reset_counters": lambda m: m.tlb.reset_counters(),
    "walk": lambda m: walk(m.memory, GuestState(cr3=0x1000), 0, set_ad=True, tlb=m.tlb),
    "apic.read_cr8": lambda m: m.apic.read_cr8(),
    "apic.interrupt": lambda m: m.apic.interrupt(0x40),
    "apic.wait": lambda m: m.apic.wait(5),
}


def bare(policy: Policy | None = None) -> Machine:
    state = GuestState(cr4=0xA0, cr3=0x1000, maxphyaddr=46)
    machine = made(EPT, guest_kernel=False, state=state, policy=policy)
    for at, entry in ((0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x5003), (0x4008, 0x6003)):
        machine.guest_memory.write64(at, entry)
    return machine
