"""Accesses to data of known size, in memory."""

from __future__ import annotations

import random

import pytest

from fastmmu import Action, Config, Exit, GuestState, Machine, Policy
from tests.support.apic_tables import SIZES
from tests.support.flat_guest import PAGE, flat


@pytest.mark.parametrize("mmu", ["native", "ept", "shadow"])
def test_in_memory_a_store_is_what_a_load_gets(mmu: str) -> None:
    """Any size and offset, over the end of a page too, and both halves or none."""
    chance = random.Random(5)
    state = GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46)
    m = Machine(Config(memory="64M", mmu=mmu), guest_kernel=False, state=state)
    pages = [0x10_0000, 0x1F_0000, 0x20_0000, 0x15_0000]  # neither in order nor together
    for address, entry in {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003}.items():
        m.guest_memory.write64(address, entry)
    for n, page in enumerate(pages):
        m.guest_memory.write64(0x4000 + 8 * n, page | 3)
    shadow = bytearray(0x4000)
    for _ in range(2000):
        size = chance.choice(SIZES)
        at = chance.choice([chance.randrange(0x4000 - size), 0x1000 * chance.randrange(1, 4) - chance.randrange(1, 17)])
        value = chance.getrandbits(8 * size)
        m.store(at, value, size)
        shadow[at : at + size] = value.to_bytes(size, "little")
        at = chance.randrange(0x4000 - 16)
        size = chance.choice(SIZES)
        assert m.load(at, size).value == int.from_bytes(shadow[at : at + size], "little")
    held = b"".join(bytes(m.guest_memory.u8[page : page + 0x1000]) for page in pages)
    assert held == bytes(shadow)
    assert m.store(0x3FFC, 1 << 63, 8) == (None, 2, 0x4000)
    assert m.load(0x3FFC, 4).value == int.from_bytes(shadow[0x3FFC:], "little")


class ReadsTheLog(Policy):
    """Reads the dirty log once, at the first exit for the page after the one at PAGE."""

    def __init__(self) -> None:
        self.armed = False
        self.logged: set[int] = set()

    def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
        action = machine.default()
        if self.armed and PAGE + 0x1000 in (exit.guest_physical & ~0xFFF, exit.qualification & ~0xFFF):
            self.armed = False
            self.logged = pages_in_log(machine)
        return action

    on_exception_nmi = on_ept_violation


def pages_in_log(machine: Machine) -> set[int]:
    log = machine.vmm.dirty_log(0)
    return {page for page in (PAGE >> 12, (PAGE >> 12) + 1) if log[page]}


@pytest.mark.parametrize("options", [{"mmu": "ept"}, {"mmu": "ept", "pml": True}, {"mmu": "shadow"}], ids=str)
def test_a_log_that_is_read_between_the_pages_of_a_store_loses_none(options: dict[str, object]) -> None:
    """A VM exit begins the instruction anew (SDM vol. 3, chapter "VM Exits"): both pages are dirty after it."""
    policy = ReadsTheLog()
    machine = flat(Config(memory="64M").replace(**options), policy=policy)  # type: ignore[arg-type]
    machine.store(PAGE, 1, 8)  # the other page is not mapped yet
    machine.vmm.start_dirty_log(0)
    policy.armed = True
    machine.store(PAGE + 0xFFC, 0x1122334455667788, 8)
    assert not policy.armed
    assert PAGE >> 12 in policy.logged
    assert pages_in_log(machine) == {PAGE >> 12, (PAGE >> 12) + 1}
    assert machine.guest_memory.read64(PAGE + 0x1000) & 0xFFFFFFFF == 0x11223344
