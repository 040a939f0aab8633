"""Accesses to data of known size, in memory."""

from __future__ import annotations

import random

import pytest

from fastmmu import Config, GuestState, Machine
from tests.support.apic_tables import SIZES


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
