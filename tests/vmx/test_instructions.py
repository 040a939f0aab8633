"""VMX instructions of root operation: operands, error numbers, launch state; and the processor after each failure."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest

import fastmmu
from fastmmu import reference as ref
from fastmmu.errors import BusError, ConfigError, StateError, VmFail, VmFailInvalid, VmFailValid
from fastmmu.reference.cpu import vmx as rules
from fastmmu.vmx import Capabilities, Cpu, ExitReason, Field, Op, Vmcs
from tests.support.vmx import OTHER, VMCS, processor, unpaged

NONE = 2**64 - 1


def error(call: Callable[[], object]) -> int | None:
    with pytest.raises(VmFail) as failed:
        call()
    return failed.value.error


def test_regions_have_a_state() -> None:
    cpu = Cpu(fastmmu.PhysicalMemory(1 << 16))
    first, second = Vmcs(cpu.memory, 0x1000), Vmcs(cpu.memory, 0x2000)
    assert (cpu.vmptrst(), first.current, first.launched) == (NONE, False, False)
    cpu.vmptrld(first)
    assert (cpu.vmptrst(), first.current, second.current) == (0x1000, True, False)
    cpu.vmwrite(Field.VPID, 5)
    cpu.vmptrld(second)
    assert (cpu.vmptrst(), first.current, second.current, cpu.vmread(Field.VPID)) == (0x2000, False, True, 0)
    cpu.vmclear(first)  # another one stays current
    assert cpu.vmptrst() == 0x2000
    cpu.vmptrld(first)
    assert cpu.vmread(Field.VPID) == 5
    cpu.vmclear(first)
    assert (cpu.vmptrst(), first.current) == (NONE, False)
    assert (first.revision, repr(first)) == (0x464D0001, "<Vmcs at 0x1000, clear>")


def test_a_copy_of_a_region_is_the_same_vmcs() -> None:
    cpu = processor()
    cpu.vmwrite(Field.GUEST_CR3, 0x1234000)
    cpu.vmclear(VMCS)
    cpu.memory.u8[OTHER : OTHER + 4096] = cpu.memory.u8[VMCS : VMCS + 4096]
    cpu.vmptrld(OTHER)
    assert cpu.vmread(Field.GUEST_CR3) == 0x1234000


@pytest.mark.parametrize(("name", "number"), [("vmclear", 2), ("vmptrld", 9)])
@pytest.mark.parametrize("address", [0x1001, 0x1800, 1 << 52, NONE])
def test_addresses_that_no_region_has(name: str, number: int, address: int) -> None:
    cpu = processor()
    assert error(lambda: getattr(cpu, name)(address)) == number
    assert cpu.vmread(Field.VM_INSTRUCTION_ERROR) == number
    bare = Cpu(cpu.memory)
    with pytest.raises(VmFailInvalid, match="invalid physical address"):
        getattr(bare, name)(address)


def test_the_width_of_addresses_is_the_processors() -> None:
    cpu = processor(caps=Capabilities(maxphyaddr=36))
    assert error(lambda: cpu.vmptrld(1 << 36)) == 9
    with pytest.raises(BusError, match="0x800000000 lies outside memory"):
        cpu.vmptrld(1 << 35)


@pytest.mark.parametrize(("name", "number"), [("vmclear", 3), ("vmptrld", 10)])
def test_the_vmxon_region_is_no_vmcs(name: str, number: int) -> None:
    cpu = processor(vmxon=0x3000)
    assert error(lambda: getattr(cpu, name)(0x3000)) == number
    assert cpu.vmptrst() == VMCS


def test_the_revision_identifier_counts() -> None:
    cpu = processor()
    for revision in (0, 0x464D0002, 0x464D0001 | 1 << 31):  # the last: a shadow VMCS, which this processor has not
        cpu.memory.u8[OTHER : OTHER + 4].view("<u4")[0] = revision
        cpu.vmclear(OTHER)
        assert error(lambda: cpu.vmptrld(OTHER)) == 11
        assert cpu.vmptrst() == VMCS


def test_without_a_current_vmcs_everything_is_vmfailinvalid() -> None:
    cpu = Cpu(fastmmu.PhysicalMemory(1 << 16))
    for call in (
        lambda: cpu.vmread(Field.VPID),
        lambda: cpu.vmread(0x1000),
        lambda: cpu.vmwrite(Field.EXIT_REASON, 0),
        cpu.vmlaunch,
        cpu.vmresume,
        lambda: cpu.vmlaunch(mov_ss=True),
        lambda: cpu.invept(9),
        lambda: cpu.invvpid(1, 0),
    ):
        with pytest.raises(VmFailInvalid, match="VMfailInvalid") as failed:
            call()
        assert failed.value.error is None
    cpu.invept(2)
    cpu.invvpid(2)


def test_launch_state() -> None:
    cpu = unpaged()
    assert error(cpu.vmresume) == 5
    assert cpu.vmlaunch() is None
    vmcs = _view(cpu)
    assert (vmcs.launched, vmcs.current) == (True, True)
    cpu.run(Op.EXIT, 0, ExitReason.CPUID)
    assert error(cpu.vmlaunch) == 4
    assert cpu.vmread(Field.VM_INSTRUCTION_ERROR) == 4
    assert error(lambda: cpu.vmresume(mov_ss=True)) == 26
    assert cpu.vmresume() is None
    cpu.run(Op.EXIT, 0, ExitReason.CPUID)
    Vmcs(cpu.memory, OTHER)
    cpu.vmptrld(OTHER)
    assert error(cpu.vmresume) == 5
    cpu.vmptrld(VMCS)  # launched it stays
    assert cpu.vmresume() is None
    cpu.run(Op.EXIT, 0, ExitReason.CPUID)
    cpu.vmclear(VMCS)
    cpu.vmptrld(VMCS)
    assert error(cpu.vmresume) == 5
    assert cpu.vmlaunch() is None


def _view(cpu: Cpu) -> Vmcs:
    """A region that is there, as an object."""
    vmcs = Vmcs.__new__(Vmcs)
    vmcs.memory, vmcs.address = cpu.memory, VMCS
    return vmcs


@pytest.mark.parametrize(("type", "eptp"), [(0, 0x401E), (3, 0x401E), (1 << 32 | 1, 0x401E), (1, 0x4000), (1, 0x403E)])
def test_operands_of_invept(type: int, eptp: int) -> None:
    cpu = processor()
    assert error(lambda: cpu.invept(type, eptp)) == 28
    cpu.invept(1, 0x401E)
    cpu.invept(2, 0x4000)  # no EPTP is looked at


@pytest.mark.parametrize(
    ("type", "vpid", "la"),
    [(4, 1, 0), (0, 0, 0), (1, 0, 0), (3, 0, 0), (1, 1 << 16, 0), (2, 1 << 16, 0), (0, 1, 1 << 47)],
)
def test_operands_of_invvpid(type: int, vpid: int, la: int) -> None:
    cpu = processor()
    assert error(lambda: cpu.invvpid(type, vpid, la)) == 28
    for ok in ((0, 1, 2**64 - 4096), (1, 1), (2,), (3, 0xFFFF)):
        cpu.invvpid(*ok)


def test_a_processor_without_an_instruction() -> None:
    cpu = processor(caps=Capabilities(ept_vpid=Capabilities().ept_vpid & ~(1 << 20 | 1 << 32)))
    with pytest.raises(StateError, match="INVEPT: #UD"):
        cpu.invept(2)
    with pytest.raises(StateError, match="INVVPID: #UD"):
        cpu.invvpid(2)


def test_wrong_types_and_numbers() -> None:
    cpu = processor()
    for call in (lambda: cpu.vmread("EPTP"), lambda: cpu.vmptrld(1.0), lambda: cpu.vmwrite(Field.VPID, None)):
        with pytest.raises(TypeError):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(StateError, match="does not fit 64 bits"):
        cpu.vmread(1 << 64)
    with pytest.raises(StateError, match="multiple of 4096"):
        Vmcs(cpu.memory, 0x1008)
    with pytest.raises(BusError):
        Vmcs(cpu.memory, 1 << 40)
    with pytest.raises(StateError, match="vmxon"):
        processor(vmxon=0x123)
    with pytest.raises(TypeError, match="caps must be a Capabilities"):
        processor(caps={})
    with pytest.raises(ConfigError, match="writable"):
        Cpu(fastmmu.PhysicalMemory.from_array(np.frombuffer(bytes(4096), np.uint8)))
    with pytest.raises(StateError, match="made already"):
        cpu.__init__(cpu.memory)  # type: ignore[misc]
    for wrong in ({"pin_based": (4, 3)}, {"maxphyaddr": 53}, {"primary": (0, 1 << 32)}, {"ept_vpid": -1}):
        with pytest.raises(StateError):
            Capabilities(**wrong)  # type: ignore[arg-type]
    assert cpu.vmread(Field.VPID) == 0


def test_a_failure_says_what_failed_and_can_be_pickled() -> None:
    cpu = unpaged()
    cpu.vmwrite(Field.EPTP, 0)
    with pytest.raises(VmFailValid, match=r"VMLAUNCH: VM-instruction error 7, .*C12 \(enable EPT: EPTP must") as failed:
        cpu.vmlaunch()
    again = pickle.loads(pickle.dumps(failed.value))
    assert (again.instruction, again.error, again.failed, str(again)) == ("VMLAUNCH", 7, ("C12",), str(failed.value))


def test_random_programs_of_instructions_do_the_same_in_both() -> None:
    chance = random.Random(5)
    seen: set[object] = set()
    for _ in range(60):
        cpu = Cpu(fastmmu.PhysicalMemory(1 << 16), vmxon=0x3000)
        spec = rules.Processor(ref.SparseMemory(), vmxon=0x3000)
        for address in (0x1000, 0x2000):
            Vmcs(cpu.memory, address)
            spec.revisions[address] = rules.REVISION
        for _ in range(60):
            address = chance.choice([0x1000, 0x1000, 0x2000, 0x2000, 0x3000, 0x4000, 0x1800, 1 << 52])
            kind, low, high = chance.randrange(5), chance.choice([0, 1, 0x401E, 1 << 16]), chance.choice([0, 1 << 47])
            field, value = chance.choice([Field.VPID, Field.EXIT_REASON, 0x1000]), chance.getrandbits(16)
            calls: list[tuple[str, tuple[int, ...]]] = [
                *[("vmclear", (address,)), ("vmptrld", (address,)), ("vmptrld", (address,)), ("vmptrst", ())],
                *[("vmread", (field,)), ("vmwrite", (field, value)), ("vmread", (Field.VM_INSTRUCTION_ERROR,))],
                *[("invept", (kind, low)), ("invvpid", (kind, low, high)), ("vmlaunch", ()), ("vmresume", ())],
            ]
            name, args = chance.choice(calls)
            if name in ("invept", "invvpid"):
                want = spec.invalidate(name, *args)
            elif name in ("vmlaunch", "vmresume"):
                want = spec.enter(resume=name == "vmresume")
            else:
                want = getattr(spec, name)(*args)
            try:
                got = getattr(cpu, name)(*args)
            except VmFail as failed:
                got = rules.Failed(failed.error)
            assert got == want
            seen.add(want.error if isinstance(want, rules.Failed) else type(want))
    assert {2, 3, 9, 10, 11, 12, 13, 28, 5, 8, None, int, type(None)} <= seen
