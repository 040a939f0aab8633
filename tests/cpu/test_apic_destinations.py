"""Where interprocessor interrupts go: every mode of sender and receivers x shorthand x destination, against a table."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fastmmu import reference as ref
from fastmmu.cpu import apic_py as kernel
from fastmmu.reference.cpu import apic as rules
from tests.support.apic_destinations import DESTINATIONS, IDS, Receiver, reached

SVR, DFR, LDR, ID = 0xF0, 0xE0, 0xD0, 0x20
MODELS = {"xAPIC flat": 0xF000_0000, "xAPIC cluster": 0, "xAPIC other": 0x7000_0000}
MODES = ("disabled", *MODELS, "x2APIC")

# in words: what is the same for all ids; then mixed ones, each id in its turn
UNIFORM = [[Receiver(id, mode) for id in IDS] for mode in MODES]
FLAT = [Receiver(id, "xAPIC flat", 1 << at % 8) for at, id in enumerate(IDS)]
CLUSTERS = [Receiver(id, "xAPIC cluster", at // 4 << 4 | 1 << at % 4) for at, id in enumerate(IDS)]
LAST_CLUSTER = [Receiver(id, "xAPIC cluster", 0xF0 | 1 << at % 4) for at, id in enumerate(IDS)]
RENAMED = [Receiver(id, "xAPIC flat", 3 << at % 7, physical=at + 1) for at, id in enumerate(IDS)]
MIXED = [[Receiver(id, MODES[(at + turn) % 5], 1 << at % 8) for at, id in enumerate(IDS)] for turn in range(5)]
SETTINGS = [*UNIFORM, FLAT, CLUSTERS, LAST_CLUSTER, RENAMED, *MIXED]


def made(make: Any, receiver: Receiver) -> Any:
    apic = make(receiver.id)
    apic.write(SVR, 0x1FF)
    if receiver.mode == "x2APIC":
        apic.x2apic = True
        return apic
    apic.write(LDR, receiver.logical << 24)
    apic.write(DFR, MODELS.get(receiver.mode, 0xF000_0000))
    if receiver.physical is not None:
        apic.write(ID, receiver.physical << 24)
    if receiver.mode == "disabled":
        if make is ref.LocalApic:
            apic.set_base(apic.base & ~0xC00)
        else:
            apic.wrmsr(0x1B, apic.base & ~0xC00)
    return apic


@pytest.mark.parametrize("make", [ref.LocalApic, kernel.LocalApic], ids=["specification", "kernel"])
def test_every_destination_in_every_mode(make: Any) -> None:
    route = kernel.route if make is kernel.LocalApic else rules.route
    checked = 0
    for receivers in SETTINGS:
        apics = {each.id: made(make, each) for each in receivers}
        senders = {each.mode: each.id for each in receivers if each.mode != "disabled"}
        for (mode, sender), shorthand, logical in itertools.product(senders.items(), range(4), (False, True)):
            for destination in DESTINATIONS if not shorthand else (0, 1, 0xFF):
                if mode != "x2APIC":
                    destination &= 0xFF
                    apics[sender].write(0x310, destination << 24)
                    ipi = apics[sender].write(0x300, shorthand << 18 | logical << 11 | 0x51)
                else:
                    ipi = apics[sender].send(destination << 32 | shorthand << 18 | logical << 11 | 0x51)
                got = set(route([*apics.values()], ipi))
                want = reached(receivers, sender, shorthand, destination, logical=logical)
                assert got == want, (receivers, sender, shorthand, hex(destination), logical)
                checked += len(receivers)
    assert checked > 15_000
    print(f"{checked} pairs of an interrupt and a processor")


def test_ffh_is_no_broadcast_in_x2apic_mode() -> None:
    """Linux in cluster mode sends to the first eight by it."""
    for make, route in ((ref.LocalApic, rules.route), (kernel.LocalApic, kernel.route)):
        apics: Any = [made(make, Receiver(id, "x2APIC")) for id in (*range(10), 17, 255)]
        for destination, logical, want in (
            (0xFF, True, [*range(8)]),
            (0xFF, False, [255]),
            (0xFFFF_FFFF, True, [*range(10), 17, 255]),
            (0xFFFF_FFFF, False, [*range(10), 17, 255]),
            (0x1_0002, True, [17]),
            (0x0002, True, [1]),
            (0xF_8000, True, [255]),
        ):
            assert route(apics, apics[0].send(destination << 32 | logical << 11 | 0x51)) == want


def test_who_is_software_disabled_accepts_nothing() -> None:
    for make, route in ((ref.LocalApic, rules.route), (kernel.LocalApic, kernel.route)):
        apics: Any = [make(id) for id in range(3)]
        apics[1].write(SVR, 0x1FF)
        for x2apic in (False, True):
            for each in apics:
                each.x2apic = x2apic
            assert route(apics, apics[0].send(2 << 18 | 0x51)) == [1]
