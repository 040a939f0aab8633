"""A bare guest of 32 bits whose instructions access the TPR: replaced once its option ROM is known (apic.md §2.2)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from fastmmu import Config, GuestState, Host, Machine, StateError
from fastmmu.cpu import tpr_patch_py as patch
from tests.support.apic_guest import SVR, exits

CODE, LOW_CODE, ROM, APIC = 0x8040_0000, 0x4040_0000, 0x800C_D000, 0xFFFE_0000
TPR = (APIC + 0x80).to_bytes(4, "little")
READS = [b"\xa1" + TPR, *(bytes([0x8B, 5 | r << 3]) + TPR for r in (0, 1, 5, 7)), b"\xff\x35" + TPR]
WRITES = [b"\xa3" + TPR, *(bytes([0x89, 5 | r << 3]) + TPR for r in (0, 3, 6))]
IMMEDIATE = b"\xc7\x05" + TPR + (0x30).to_bytes(4, "little")
STATE = GuestState(cr0=0x8001_0033, cr3=0x1000, cr4=0x10, efer=0)
every_mmu = pytest.mark.parametrize("mmu", ["ept", "shadow"])
every_kvm = pytest.mark.parametrize("kvm", ["slides", "6.1"])


def mapped(m: Machine) -> Machine:
    """Pages of 4 MB at 0, 4000_0000H and 8000_0000H lead to memory, FFFE_0000H to the APIC."""
    words = m.guest_memory.u8.view("<u4")
    for base in (0, 0x4000_0000, 0x8000_0000):
        for i in range(8):
            words[(0x1000 >> 2) + (base >> 22) + i] = i << 22 | 0xE3
    words[(0x1000 >> 2) + (APIC >> 22)] = 0x2063
    words[(0x2000 >> 2) + (APIC >> 12 & 1023)] = 0xFEE0_0063
    for i, code in enumerate([*READS, *WRITES, IMMEDIATE]):
        m.guest_memory.u8[0x40_0000 + 16 * i : 0x40_0000 + 16 * i + len(code)] = list(code)
    return m


def machine(rom: bool = True, **config: Any) -> Machine:
    m = mapped(Machine(Config(memory="64M", **config), guest_kernel=False, state=STATE))
    begin(m)
    if rom:
        apic_of(m).enable_vapic(ROM)
    return m


def apic_of(m: Machine) -> Any:
    assert m.apic is not None
    return m.apic


def begin(m: Machine) -> None:
    apic_of(m).address = APIC
    apic_of(m).write(SVR, 0x1FF)


def code_at(m: Machine, number: int, n: int) -> bytes:
    return bytes(m.guest_memory.u8[0x40_0000 + 16 * number : 0x40_0000 + 16 * number + n])


@every_kvm
@every_mmu
def test_each_instruction_is_replaced_at_its_first_exit(mmu: str, kvm: str) -> None:
    m = machine(mmu=mmu, kvm=kvm, tpr="patch")
    apic = apic_of(m)
    codes = [*READS, *WRITES, IMMEDIATE]
    for round_ in range(3):
        for number, code in enumerate(codes):
            before = m.counters()
            tpr = (16 * number + round_) & 0xFF
            ip = CODE + 16 * number
            if code in READS:
                apic.tpr_instruction(CODE + 16 * len(READS), tpr)
                before = m.counters()
                assert apic.tpr_instruction(ip) == tpr
            elif code in WRITES:
                assert apic.tpr_instruction(ip, tpr) is None
                assert apic.tpr_instruction(CODE) == tpr
            else:
                assert apic.tpr_instruction(ip) is None
                assert apic.tpr_instruction(CODE) == 0x30
            new = patch.replace(code, ip, ROM)
            assert new is not None
            assert code_at(m, number, len(new)) == new
            if round_ == 2:
                assert m.counters()["vm_exits"] == before["vm_exits"]
    counters = m.counters()
    assert counters["apic_patched"] == len(codes)
    assert counters["exits_by_reason"].get("vmcall", 0) == 0
    assert apic.read(0x80) == 0x30  # by no instruction that can be replaced: emulated, from the record


@every_mmu
@pytest.mark.parametrize("seed", range(4))
def test_every_way_gives_the_same_values_and_interrupts(mmu: str, seed: int) -> None:
    """Writes that raise and lower the TPR, reads, requests of devices, and interrupts off and on between them."""
    found = {}
    ways = {
        "native": {"tpr": "trap"}, "trap": {"mmu": mmu, "tpr": "trap"}, "patch": {"mmu": mmu, "tpr": "patch"},
        "flexpriority": {"mmu": mmu, "tpr": "flexpriority"}, "apicv": {"mmu": mmu, "tpr": "apicv"},
    }  # fmt: skip
    for way, config in ways.items():
        random = Random(seed)
        m = machine(rom=way == "patch", guest_handler="irql", **config)
        apic, seen = apic_of(m), []
        for _ in range(400):
            what = random.random()
            if what < 0.3:
                seen.append(apic.tpr_instruction(CODE + 16 * random.randrange(len(READS))))
            elif what < 0.65:
                site = len(READS) + random.randrange(len(WRITES))
                apic.tpr_instruction(CODE + 16 * site, random.choice([0, 0x20, 0x41, 0x7F, 0xFF]))
            elif what < 0.9:
                apic.interrupt(random.randrange(0x31, 0xF0))
            else:
                apic.set_interrupts(random.random() < 0.7)
        apic.set_interrupts(True)
        apic.tpr_instruction(CODE + 16 * len(READS), 0)
        found[way] = seen, [each.vector for each in apic.deliveries]
        if way == "patch":
            counters = m.counters()
            assert counters["apic_patched"] == len(READS) + len(WRITES)
            assert counters["apic_polls"] == counters["exits_by_reason"]["vmcall"] > 0
    assert all(each == found["native"] for each in found.values())
    assert len(found["native"][1]) > 30


@every_mmu
def test_what_is_not_replaced(mmu: str) -> None:
    """Without a ROM; code where no kernel of 32-bit Windows lies; loads and stores, which come from no instruction."""
    m = machine(rom=False, mmu=mmu, tpr="patch")
    apic = apic_of(m)
    for _ in range(3):
        apic.tpr_instruction(CODE + 16 * len(READS), 0x40)
        assert apic.tpr_instruction(CODE) == 0x40
    assert m.counters()["apic_patched"] == 0
    apic.enable_vapic(ROM)
    for _ in range(3):
        assert apic.tpr_instruction(LOW_CODE) == 0x40
        m.store(APIC + 0x80, 0x50, 4)
        assert m.load(APIC + 0x80, 4).value == 0x50
        m.store(APIC + 0x80, 0x40, 4)
    assert m.counters()["apic_patched"] == 0
    assert code_at(m, 0, 5) == READS[0]
    assert apic.tpr_instruction(CODE) == 0x40
    with pytest.raises(StateError, match="accesses no TPR"):  # the call is relative: it leads elsewhere
        apic.tpr_instruction(LOW_CODE)
    assert m.counters()["apic_patched"] == 1


@every_mmu
def test_each_vcpu_has_its_record(mmu: str) -> None:
    host = Host([(Config(mmu=mmu, memory="64M", tpr="patch"), 3)], cpus=2, guest_kernel=False, state=STATE)
    (m,) = host.machines
    mapped(m)
    host.place(0, 0)
    begin(m)
    apic_of(m).enable_vapic(ROM)
    vcpus = [*host.vcpus_of(m), host.add_vcpu(m)]
    for round_ in range(3):
        for vcpu in vcpus:
            begin(host.place(vcpu, vcpu & 1))
            apic_of(m).tpr_instruction(CODE + 16 * len(READS), 16 * vcpu + round_)
        for vcpu in vcpus:
            host.place(vcpu, 1 - (vcpu & 1))
            assert apic_of(m).tpr_instruction(CODE) == 16 * vcpu + round_
            assert m.guest_memory.u8[0xCD800 + 128 * vcpu] == 16 * vcpu + round_
    assert sum(host.counters(vcpu)["apic_patched"] for vcpu in vcpus) == 2
    host.remove(vcpus.pop(1))
    vcpus.append(host.add_vcpu(m))
    begin(host.place(vcpus[-1], 0))
    assert apic_of(m).tpr_instruction(CODE) == 0


def test_the_first_version_replaces_for_one_vcpu_alone() -> None:
    for vcpus in (1, 2):
        config = Config(mmu="ept", memory="64M", tpr="patch", tpr_patch="one-vcpu")
        host = Host([(config, vcpus)], guest_kernel=False, state=STATE)
        (m,) = host.machines
        mapped(m)
        for vcpu in range(vcpus):
            host.place(vcpu, 0)
            begin(m)
            apic_of(m).enable_vapic(ROM)
            for _ in range(3):
                apic_of(m).tpr_instruction(CODE + 16 * len(READS), 0x40)
        assert sum(host.counters(vcpu)["apic_patched"] for vcpu in range(vcpus)) == (vcpus == 1)


def test_a_rom_that_is_none() -> None:
    m = machine(rom=False, mmu="ept", tpr="patch")
    for rom, why in (
        (ROM + 8, "begins a page"), (0, "begins a page"), (0xC000_0000, "maps no memory"), (APIC, "maps no memory"),
        (1 << 32, "32 bits"), (-1, "32 bits"),
    ):  # fmt: skip
        with pytest.raises(StateError, match=why):
            apic_of(m).enable_vapic(rom)
    for config in ({"tpr": "patch"}, {"tpr": "trap", "mmu": "ept"}, {"tpr": "apicv", "mmu": "ept"}):
        with pytest.raises(StateError, match="make the Machine with mmu='ept' or 'shadow' and tpr='patch'"):
            apic_of(machine(rom=False, **config)).enable_vapic(ROM)
    with pytest.raises(StateError, match="guest_kernel=False"):
        apic_of(Machine(Config(memory="64M", mmu="ept", tpr="patch"))).enable_vapic(ROM)
    apic_of(m).enable_vapic(ROM)
    assert exits(m, "io_instruction") == 1
    apic_of(m).tpr_instruction(CODE + 16 * len(READS), 0x40)
    assert m.counters()["apic_patched"] == 1


@every_mmu
def test_instructions_that_are_none(mmu: str) -> None:
    m = machine(mmu=mmu, tpr="patch")
    apic = apic_of(m)
    writes = CODE + 16 * len(READS)
    memory = m.guest_memory.u8
    for code in ("a18400feff", "8b4580", "a28000feff", "ff158000feff", "8b258000feff", "90", "e800000000"):
        memory[0x50_0000:0x50_0010] = 0x90
        memory[0x50_0000 : 0x50_0000 + len(code) // 2] = list(bytes.fromhex(code))
        with pytest.raises(StateError, match=r"at 0x80500000, opcode 0x\w+, accesses no TPR"):
            apic.tpr_instruction(0x8050_0000)
    for call, why in (
        (lambda: apic.tpr_instruction(CODE, 5), "takes no value"), (lambda: apic.tpr_instruction(writes), "give its"),
        (lambda: apic.tpr_instruction(CODE + 0xFF8), "end in another page"), (lambda: apic.tpr_instruction(-1), "ip"),
        (lambda: apic.tpr_instruction(1 << 32), "ip"), (lambda: apic.tpr_instruction(writes, 1 << 32), "value"),
        (lambda: apic.tpr_instruction(0xC000_0000), "#PF at 0xc0000000, .* the instruction at 0xc0000000"),
    ):  # fmt: skip
        with pytest.raises(StateError, match=why):
            call()
    words = memory.view("<u4")
    words[(0x1000 >> 2) + (0xC000_0000 >> 22)] = 0x1000_0083  # no memory there
    for _ in range(2):
        with pytest.raises(StateError, match="no memory behind the instruction at 0xc0000000"):
            apic.tpr_instruction(0xC000_0000)
    apic.tpr_instruction(writes, 0x40)
    apic.tpr_instruction(writes, 0x50)
    place = 0x1000 + (0x8000_0000 >> 22) * 4
    m.store(place, 0, 4)  # the ROM goes
    m.store(place + 4, 0xE3 | 1 << 22, 4)
    m.mov_cr3(0x1000)
    with pytest.raises(StateError, match=r"#PF at 0x800cd020, .* its APIC, or the option ROM"):
        apic.tpr_instruction(writes, 0x60)
    m.store(place, 0xE3, 4)
    assert apic.tpr_instruction(CODE) == 0x50
