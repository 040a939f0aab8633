"""Devices in Python behind MMIO: what they are asked, what the guest's registers get, and what is refused."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest

from fastmmu import Bus, Config, ConfigError, Device, Machine, MemorySlot, PolicyError, StateError
from tests.support.device_guest import DEVICE, LINUX, Recorder, flat, pattern

every_mmu = pytest.mark.parametrize("mmu", ["ept", "shadow"])
every_kvm = pytest.mark.parametrize("kvm", ["6.1", "slides"])
WIDTHS = (1, 2, 4, 8, 16)
END = DEVICE + 0x1000  # of the first device's page; the second one begins there


def parts(la: int, size: int) -> list[tuple[int, int]]:
    """Address and bytes of what devices are asked: by page, then by 8 bytes."""
    pages = [(la, min(size, 0x1000 - la % 0x1000))]
    if pages[0][1] < size:
        pages.append((la + pages[0][1], size - pages[0][1]))
    return [(at + i, min(8, n - i)) for at, n in pages for i in range(0, n, 8)]


class Bytes(Device):
    """Memory behind a bus, byte by byte, of any size."""

    def __init__(self, size: int = 4096) -> None:
        self.size, self.bytes, self.asked = size, bytearray(range(1, 256)) * (size // 255 + 1), list[tuple[Any, ...]]()

    def read(self, offset: int, size: int) -> int:
        self.asked.append((offset, size))
        assert 0 < size <= 8
        assert offset + size <= self.size
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.asked.append((offset, size, value))
        assert 0 < size <= 8
        assert offset + size <= self.size
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


@every_mmu
@every_kvm
def test_a_device_gets_what_the_guest_does(mmu: str, kvm: str) -> None:
    first, second = Recorder(), Recorder()
    bus = Bus({DEVICE: first, END: second})
    machine = flat(LINUX.replace(mmu=mmu, kvm=kvm), policy=bus)
    for _ in range(2):
        machine.access(DEVICE | 8)
        machine.store(DEVICE | 0x1010, 7)
        machine.access(DEVICE | 0x5000)  # nobody there
        machine.store(0x8000, 1)  # memory
    assert first.asked == [("read", 8, 1)] * 2
    assert second.asked == [("write", 0x10, 8, 7)] * 2
    assert machine.counters()["mmio"] == 6
    marked = machine.counters()["exits_by_reason"].get("ept_misconfig", 0)
    assert marked == (3 if mmu == "ept" and kvm == "6.1" else 0)


@every_mmu
@every_kvm
def test_loads_of_every_width_across_every_border(mmu: str, kvm: str) -> None:
    """The first access to a page (EPT violation), later ones (its mark), the end of a page, from memory into MMIO."""
    first, second = Recorder(), Recorder()
    machine = flat(LINUX.replace(mmu=mmu, kvm=kvm), policy=Bus({DEVICE: first, END: second}))
    for size, back in product(WIDTHS, (0x800, 16, 9, 8, 7, 3, 2, 1, 0)):
        la = END - back
        first.asked.clear()
        second.asked.clear()
        found = machine.load(la, size)
        assert found.gpa == la
        assert found.value == sum(pattern(at & 0xFFF, n) << 8 * (at - la) for at, n in parts(la, size))
        assert first.asked == [("read", at - DEVICE, n) for at, n in parts(la, size) if at < END]
        assert second.asked == [("read", at - END, n) for at, n in parts(la, size) if at >= END]


@every_mmu
@every_kvm
def test_devices_are_as_memory(mmu: str, kvm: str) -> None:
    """Random loads and stores of all widths over devices of odd sizes, gaps between them: memory says what is there."""
    config = LINUX.replace(mmu=mmu, kvm=kvm)
    random, model = Random(5), {}
    devices = {DEVICE + 3: Bytes(0x123), DEVICE + 0x126: Bytes(1), DEVICE + 0x200: Bytes(0x1F00)}
    machine = flat(config, policy=Bus(devices))
    for base, device in devices.items():
        model |= {base + i: device.bytes[i] for i in range(device.size)}
    known = set()
    for _ in range(3000):
        la = DEVICE + random.choice(
            [random.randrange(0x2200), random.randrange(0xF0, 0x140), random.randrange(0xFF0, 0x1010)]
        )
        size = random.choice(WIDTHS)
        if random.random() < 0.5:
            value = random.getrandbits(8 * size)
            machine.store(la, value, size)
            model |= {la + i: value >> 8 * i & 0xFF for i in range(size) if la + i in model}
            continue
        there = [model.get(la + i) for i in range(size)]
        want = None if None in there else int.from_bytes(bytes(each or 0 for each in there), "little")
        assert machine.load(la, size).value == want
        known.add(want is None)
    assert known == {True, False}


@every_mmu
@every_kvm
@pytest.mark.parametrize("maxphyaddr", [46, 51, 52])
def test_marks_need_an_address_bit_that_is_reserved(mmu: str, kvm: str, maxphyaddr: int) -> None:
    """With 52 bits shadow entries have none: KVM marks nothing then (kvm_mmu_reset_all_pte_masks)."""
    device = Recorder()
    machine = flat(LINUX.replace(mmu=mmu, kvm=kvm), policy=Bus({DEVICE: device}), maxphyaddr=maxphyaddr)
    for _ in range(3):
        assert machine.load(DEVICE + 8, 4) == (DEVICE + 8, None, None, pattern(8, 4))
    marked = machine.vmm.counters()["mmio_marked"]
    assert marked == (kvm == "6.1" and (mmu == "ept" or maxphyaddr < 52))
    assert len(device.asked) == 3


@every_mmu
def test_half_in_memory_and_half_in_a_device(mmu: str) -> None:
    device = Bytes()
    slot = MemorySlot(DEVICE + 0x1000, 0x1000)
    machine = flat(LINUX.replace(mmu=mmu), policy=Bus({DEVICE: device, DEVICE + 0x2000: device}), slots=(slot,))
    machine.store(DEVICE + 0xFFD, 0x1122_3344_5566_7788)
    assert device.bytes[0xFFD:0x1000] == bytes([0x88, 0x77, 0x66])
    assert machine.load(DEVICE + 0x1000, 4).value is not None
    assert machine.load(DEVICE + 0xFFD).value == 0x1122_3344_5566_7788
    machine.store(DEVICE + 0x1FFA, 0x1122_3344_5566_7788_99AA_BBCC_DDEE_FF00, 16)
    assert machine.load(DEVICE + 0x1FFA, 16).value == 0x1122_3344_5566_7788_99AA_BBCC_DDEE_FF00
    assert device.bytes[:10] == 0x1122_3344_5566_7788_99AA.to_bytes(10, "little")
    assert device.asked[-4:] == [(0, 8, 0x3344_5566_7788_99AA), (8, 2, 0x1122), (0, 8), (8, 2)]


@every_mmu
def test_a_read_modify_write_reads_then_writes(mmu: str) -> None:
    first, second = Recorder(), Recorder()
    machine = flat(LINUX.replace(mmu=mmu), policy=Bus({DEVICE: first, END: second}))
    for _ in range(2):
        machine.access(DEVICE + 8, "rw", size=16)
    one = [("read", 8, 8), ("read", 16, 8), ("write", 8, 8, pattern(8, 8)), ("write", 16, 8, pattern(16, 8))]
    assert first.asked == one * 2
    machine.access(DEVICE + 8, "w", size=4)  # moves no data
    assert first.asked[8:] == [("write", 8, 4, 0)]


@every_mmu
@every_kvm
def test_a_fetch_from_a_device_is_refused(mmu: str, kvm: str) -> None:
    """KVM cannot fetch the instruction that it should emulate: KVM_EXIT_INTERNAL_ERROR."""
    device = Recorder()
    machine = flat(LINUX.replace(mmu=mmu, kvm=kvm), policy=Bus({DEVICE: device}))
    for _ in range(2):
        with pytest.raises(StateError, match=r"fetch at 0x10000008, from the Recorder at 0x10000000: .*INTERNAL_ERROR"):
            machine.access(DEVICE + 8, "x")
    assert machine.access(DEVICE + 0x5000, "x").gpa == DEVICE + 0x5000  # nobody there, nothing happens
    assert device.asked == []
    assert machine.load(DEVICE + 8, 2).value == pattern(8, 2)
    assert machine.access(0x8000, "x").gpa == 0x8000


@pytest.mark.parametrize("wrong", [None, -1, 0x100, 1.5, "7", True, b"a", [1]])
@every_mmu
def test_a_device_that_returns_no_value(mmu: str, wrong: object) -> None:
    """Refused, naming the device and what it returned; the machine is whole, the load done again asks again."""

    class Wrong(Recorder):
        wrong = True

        def read(self, offset: int, size: int) -> int:
            value = super().read(offset, size)
            return wrong if self.wrong else value  # type: ignore[return-value]

    device = Wrong()
    machine = flat(LINUX.replace(mmu=mmu), policy=Bus({DEVICE: device}))
    for _ in range(2):
        with pytest.raises(PolicyError, match=r"the Wrong at 0x10000000: read\(0x8, 1\) returned .*0\.\.0xff"):
            machine.load(DEVICE + 8, 1)
    device.wrong = False
    assert machine.load(DEVICE + 8, 1).value == 9
    assert len(device.asked) == 3


def test_numpy_numbers_are_values() -> None:
    class Numpy(Device):
        def read(self, offset: int, size: int) -> int:
            return np.uint8(7)  # type: ignore[return-value]

    assert flat(LINUX.replace(mmu="ept"), policy=Bus({DEVICE: Numpy()})).load(DEVICE, 16).value == 7 << 64 | 7


def test_a_device_of_the_first_version_is_refused() -> None:
    class Old(Device):
        def read(self, offset: int) -> None:  # type: ignore[override]
            pass

    with pytest.raises(ConfigError, match=r"Old: its read takes no \(offset, size\)"):
        Bus({0: Old()})


def test_what_overrides_nothing_reads_as_all_ones() -> None:
    machine = flat(LINUX.replace(mmu="ept"), policy=Bus({DEVICE: Device()}))
    assert [machine.load(DEVICE, size).value for size in WIDTHS] == [(1 << 8 * size) - 1 for size in WIDTHS]
    machine.store(DEVICE, 5)


def test_what_is_no_device() -> None:
    with pytest.raises(ConfigError, match="0x1000"):
        Bus({0: Device(), 0x800: Device()})
    for address in (-1, 1 << 52, "a", 0.5):
        with pytest.raises(ConfigError, match=f"a device at {address!r}"):
            Bus({address: Device()})  # type: ignore[dict-item]
    for device in (None, Device):
        with pytest.raises(ConfigError, match="is no Device"):
            Bus({0: device})  # type: ignore[dict-item]
    for size in (0, -4, "4"):
        small = Device()
        small.size = size  # type: ignore[assignment]
        with pytest.raises(ConfigError, match=f"size={size!r}"):
            Bus({0: small})


@every_mmu
def test_sizes_of_stores_to_devices(mmu: str) -> None:
    """All of the bytes, eight at a time; a store across the end of a page is two."""
    first, second = Recorder(), Recorder()
    machine = flat(LINUX.replace(mmu=mmu), policy=Bus({DEVICE: first, END: second}))
    for size in (1, 2, 4, 8):
        machine.store(DEVICE, (1 << 8 * size) - 2, size)
    machine.store(DEVICE, (1 << 128) - 2, 16)
    machine.store(DEVICE | 0xFFC, 0x1122_3344_5566_7788)
    ones = (1 << 64) - 1
    assert first.asked == [
        *(("write", 0, size, (1 << 8 * size) - 2) for size in (1, 2, 4, 8)),
        ("write", 0, 8, ones - 1), ("write", 8, 8, ones), ("write", 0xFFC, 4, 0x5566_7788),
    ]  # fmt: skip
    assert second.asked == [("write", 0, 4, 0x1122_3344)]


@every_mmu
@every_kvm
def test_a_device_that_raises(mmu: str, kvm: str) -> None:
    """It comes out unchanged; the machine is whole, and the instruction done again asks again."""

    class Broken(Recorder):
        broken = True

        def write(self, offset: int, size: int, value: int) -> None:
            super().write(offset, size, value)
            if self.broken:
                raise ZeroDivisionError("device")

    device = Broken()
    machine = flat(LINUX.replace(mmu=mmu, kvm=kvm), policy=Bus({DEVICE: device}))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="device"):
            machine.store(DEVICE, 5)
    device.broken = False
    assert machine.store(DEVICE, 6).gpa == DEVICE
    assert [value for _, _, _, value in device.asked] == [5, 5, 6]
    assert machine.store(0x8000, 1).gpa == 0x8000


def test_the_local_apic_is_no_device() -> None:
    """KVM's own APIC answers first."""
    device = Recorder()
    machine = flat(Config(mmu="ept", memory="64M", tpr="trap"), policy=Bus({0xFEE0_0000: device}))
    words = machine.guest_memory.u64
    words[0x2000 + 3 * 8 >> 3], words[0x5000 + (0xFEE0_0000 >> 21 & 511) * 8 >> 3] = 0x5063, 0xFEE0_00E3
    for _ in range(2):
        assert machine.load(0xFEE0_0030, 4).value == machine.apic.read(0x30) != 0  # type: ignore[union-attr]
    assert device.asked == []


def test_a_policy_completes_loads() -> None:
    """What a Bus uses, by hand: outside an exit, for a store, and too wide it is refused."""

    class Fixed(Bus):
        def __init__(self) -> None:
            super().__init__({})
            self.seen: list[object] = []

        def _finish(self, machine: Machine) -> Any:
            action = machine.default()
            self.seen.append(machine.mmio)
            if machine.mmio is not None:
                for wrong in (-1, 1 << 16, 1 << 200):
                    with pytest.raises(StateError, match=r"does not fit a load of 2 bytes|completes no load"):
                        machine.complete_mmio(wrong)
                if machine.mmio.access == "r":
                    machine.complete_mmio(0x1234)
            return action

    policy = Fixed()
    machine = flat(LINUX.replace(mmu="ept"), policy=policy)
    assert machine.load(DEVICE, 2).value == 0x1234
    machine.store(DEVICE, 7, 2)
    machine.load(0x8000)
    assert policy.seen[-3:] == [(DEVICE, "r", 2, None), (DEVICE, "w", 2, 7), None]
    assert machine.mmio is None
    with pytest.raises(PolicyError, match="no VM exit is under way"):
        machine.complete_mmio(1)
