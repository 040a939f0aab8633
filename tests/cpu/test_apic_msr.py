"""CR8 and the MSRs of a local APIC: every number x access x mode x bit, specification and kernel, against tables."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fastmmu import StateError
from fastmmu import reference as ref
from fastmmu.cpu.apic_py import LocalApic
from fastmmu.reference.cpu import apic as rules
from fastmmu.reference.cpu import apic_msr
from tests.support.apic_msrs import MODES, MSRS, VALUES, refused


def in_mode(mode: str, id: int = 0) -> tuple[ref.LocalApic, LocalApic]:
    """One by the specification, one of the kernel."""
    pair = ref.LocalApic(id), LocalApic(id)
    for each in pair:
        each.write(rules.SVR, 0x1FF)
        if mode == "x2APIC":
            each.x2apic = True
    if mode == "disabled":
        pair[0].set_base(pair[0].base & ~0x800)
        pair[1].wrmsr(0x1B, pair[1].base & ~0x800)
    return pair


def tried(act: Any, *arguments: Any, **more: Any) -> Any:
    """What it gives; of #GP the word alone."""
    try:
        return act(*arguments, **more)
    except StateError as error:
        return str(error).split("(")[0]


def read(pair: tuple[ref.LocalApic, LocalApic], msr: int) -> list[Any]:
    return [tried(apic_msr.rdmsr, pair[0], msr), tried(pair[1].rdmsr, msr)]


def write(pair: tuple[ref.LocalApic, LocalApic], msr: int, value: int, tsc: int = 0, width: int = 52) -> list[Any]:
    """What each sends."""
    first = tried(apic_msr.wrmsr, pair[0], msr, value, tsc=tsc, maxphyaddr=width)
    second = tried(pair[1].wrmsr, msr, value, tsc=tsc, maxphyaddr=width)
    return [tuple(vars(first).values()) if isinstance(first, ref.Ipi) else first, second]


def alike(pair: tuple[ref.LocalApic, LocalApic]) -> None:
    first, second = pair
    assert first.page == second.page
    assert (first.base, first.x2apic, first.ticks_left) == (second.base, second.x2apic, second.ticks_left)
    assert first.deliverable() == second.deliverable()


@pytest.mark.parametrize("mode", MODES)
def test_every_read(mode: str) -> None:
    for msr in MSRS:
        pair = in_mode(mode, 3)
        first, second = read(pair, msr)
        assert first == second, hex(msr)
        assert (first == "#GP") == refused(mode, msr, None), hex(msr)
        alike(pair)


@pytest.mark.parametrize("mode", MODES)
def test_every_write(mode: str) -> None:
    """Of each bit, and of values that are common; what is refused changes nothing."""
    checked = 0
    for msr in MSRS:
        pair = in_mode(mode)
        for value in VALUES:
            before = bytes(pair[1].page), pair[1].base
            first, second = write(pair, msr, value)
            assert first == second, (hex(msr), hex(value))
            assert (first == "#GP") == refused(mode, msr, value), (hex(msr), hex(value))
            alike(pair)
            if first == "#GP":
                assert (bytes(pair[1].page), pair[1].base) == before
            elif msr == 0x1B:
                pair = in_mode(mode)
            checked += 1
    assert checked == 258 * len(VALUES)


def test_bits_above_the_physical_address_width() -> None:
    for width in (32, 36, 46, 52):
        for bit in range(12, 64):
            for mode in ("xAPIC", "x2APIC"):
                value = 0xFEE0_0800 | MODES[mode] | 1 << bit
                assert (write(in_mode(mode), 0x1B, value, width=width) == ["#GP", "#GP"]) == (bit >= width)
                assert refused(mode, 0x1B, value, width) == (bit >= width)


def test_the_modes_one_after_the_other() -> None:
    """The id register and the logical id follow; what else the APIC holds stays."""
    apic = LocalApic(0x23)
    assert apic.rdmsr(0x1B) == 0xFEE0_0800
    assert LocalApic(0).rdmsr(0x1B) == 0xFEE0_0900
    apic.write(rules.SVR, 0x1FF)
    apic.write(rules.LDR, 4 << 24)
    apic.request(0x51)
    with pytest.raises(StateError, match=r"WRMSR of 0x1b with 0xfee00400: x2APIC mode \(bit 10\) of a disabled APIC"):
        apic.wrmsr(0x1B, 0xFEE0_0400)
    apic.wrmsr(0x1B, 0xFEE0_0C00)
    assert (apic.rdmsr(0x802), apic.rdmsr(0x80D)) == (0x23, 2 << 16 | 1 << 3)
    assert (apic.rdmsr(0x80F), apic.rdmsr(0x822)) == (0x1FF, 1 << 0x11)
    with pytest.raises(StateError, match="left for xAPIC mode by way of disabled"):
        apic.wrmsr(0x1B, 0xFEE0_0800)
    apic.wrmsr(0x1B, 0xFEE0_0000)
    assert (apic.deliverable(), apic.request(0x61), apic.deadline) == (None, False, 0)
    with pytest.raises(StateError, match="gets into x2APIC mode by way of xAPIC mode"):
        apic.wrmsr(0x1B, 0xFEE0_0C00)
    apic.wrmsr(0x1B, 0xFEE0_0800)
    assert (apic.read(rules.ID), apic.read(rules.LDR), apic.acknowledge()) == (0x23 << 24, 0, 0x51)


def test_what_is_refused_is_named_with_a_remedy() -> None:
    apic = LocalApic()
    for act, text in (
        (lambda: apic.rdmsr(0x808), "RDMSR of 0x808: the APIC is in xAPIC mode, and MSRs 0x800 to 0x8ff are x2APIC"),
        (lambda: apic.wrmsr(0x808, 0x50), "WRMSR of 0x808 with 0x50: the APIC is in xAPIC mode.*set bits 11 and 10"),
        (lambda: apic.wrmsr(0x1B, 0xFEE0_0A01), "WRMSR of 0x1b with 0xfee00a01: bits 0x201 are reserved; leave them 0"),
        (lambda: apic.rdmsr(0x10), "MSR 0x10 is none of the APIC's; give 0x1b, 0x6e0 or 0x800 to 0x8ff"),
        (lambda: apic.write_cr8(16), "cr8=0x10 has bits above 3; give 0 to 15"),
    ):
        with pytest.raises(StateError, match=text):
            act()
    apic.x2apic = True
    for act, text in (
        (lambda: apic.wrmsr(0x828, 1), "WRMSR of 0x828 with 0x1: bits 0x1 are reserved"),
        (lambda: apic.wrmsr(0x808, 0x100), "bits 0x100 are reserved"),
        (lambda: apic.wrmsr(0x80B, 1), "bits 0x1 are reserved"),
        (lambda: apic.wrmsr(0x802, 1), "the register can only be read"),
        (lambda: apic.rdmsr(0x83F), "RDMSR of 0x83f: the register can only be written"),
        (lambda: apic.rdmsr(0x80E), "RDMSR of 0x80e: x2APIC mode has no such register"),
        (lambda: apic.rdmsr(0x8FF), "RDMSR of 0x8ff: x2APIC mode has no such register"),
    ):
        with pytest.raises(StateError, match=f"^#GP.0.: .*{text}"):
            act()


def test_cr8_in_every_mode() -> None:
    for mode in MODES:
        pair = in_mode(mode)
        for value in (0, 5, 15, 16, 17, 0x80, 1 << 32, (1 << 64) - 1):
            got = [tried(apic_msr.move_to_cr8, pair[0], value), tried(pair[1].write_cr8, value)]
            assert got == (["#GP", "#GP"] if value > 15 else [None, None])
            if value <= 15:
                assert (pair[1].read_cr8(), pair[0].page[rules.TPR]) == (value, value << 4)


def test_an_interrupt_to_itself_leaves_the_icr_alone() -> None:
    pair = in_mode("x2APIC", 7)
    write(pair, 0x830, 0x23 << 32 | 0x31)
    assert write(pair, 0x83F, 0x61) == [(7, 0x61, 0, 1, 0, False)] * 2
    assert read(pair, 0x830) == [0x23 << 32 | 0x31] * 2
    assert write(pair, 0x83F, 0x0F) == [None, None]  # an illegal vector: SDM, "Error Handling"
    assert read(pair, 0x828) == [rules.SEND_ILLEGAL] * 2


def test_random_programs() -> None:
    random.seed(11)
    accepted = refusals = 0
    for _ in range(150):
        pair = in_mode(random.choice([*MODES]), random.randrange(256))
        for step in range(60):
            msr = random.choice([*MSRS, *[0x1B] * 40, *[0x830, 0x832, 0x838, 0x83E, 0x808, 0x80B, 0x6E0] * 20])
            value = random.choice([*VALUES, *(0xFEE0_0000 | mode for mode in MODES.values()), random.getrandbits(8)])
            first, second = read(pair, msr) if random.random() < 0.3 else write(pair, msr, value, tsc=step)
            assert first == second
            refusals += first == "#GP"
            accepted += first != "#GP"
            vector = random.randrange(256)
            assert pair[0].request(vector) == pair[1].request(vector)
            assert pair[0].acknowledge() == pair[1].acknowledge()
            alike(pair)
    assert accepted > 1000 < refusals
