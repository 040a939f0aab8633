"""The fields of a VMCS: encodings, widths, types; every one through VMWRITE and VMREAD; the specification's."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from fastmmu import reference as ref
from fastmmu.errors import StateError, VmFailValid
from fastmmu.reference.cpu import vmx as rules
from fastmmu.vmx import Capabilities, Field
from fastmmu.vmx.checks import EXISTS
from tests.support.vmx import processor

CHAPTER = Path(__file__).parents[2] / "docs" / "spec" / "vmx.md"


def test_widths_and_types_are_in_the_encoding() -> None:
    assert (Field.VPID.width, Field.VPID.type, Field.VPID.natural) == (16, "control", False)
    assert (Field.EPTP.width, Field.GUEST_PHYSICAL_ADDRESS.type) == (64, "read-only")
    assert (Field.EXIT_REASON.width, Field.GUEST_CR3.width, Field.GUEST_CR3.natural) == (32, 64, True)
    assert (Field.GUEST_CR3.type, Field.HOST_RIP.type) == ("guest", "host")


def test_every_field_of_the_chapter_is_there() -> None:
    table = CHAPTER.read_text().partition("## 1.")[2].partition("## 2.")[0]
    cells = [cell.strip() for line in table.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]
    encodings = {int(code, 16) for cell in cells for code in re.findall(r"\b[0-6][0-9A-F]{3}\b", cell)}
    assert len(encodings) > 70
    assert encodings <= {int(field) for field in Field}


def test_the_specification_has_the_same_fields() -> None:
    assert {encoding for encoding in range(1 << 15) if not encoding & 1 and rules.exists(encoding)} == set(Field)
    assert all(rules.width(field) == field.width for field in Field)
    assert all(rules.read_only(field) == (field.type == "read-only") for field in Field)


def test_every_field_holds_what_is_written_and_no_other_changes() -> None:
    cpu, chance = processor(caps=Capabilities(vmwrite_any=True)), random.Random(1)
    values = {field: chance.getrandbits(field.width) for field in Field}
    for field in chance.sample(list(Field), len(Field)):
        cpu.vmwrite(field, values[field])
    assert {field: cpu.vmread(field) for field in Field} == values
    cpu.vmclear(0x1000)  # and in memory
    cpu.vmptrld(0x1000)
    assert {field: cpu.vmread(field) for field in Field} == values


def test_a_field_of_64_bits_has_a_high_half() -> None:
    cpu = processor()
    cpu.vmwrite(Field.EPTP, 0x1122_3344_5566_7788)
    assert cpu.vmread(Field.EPTP + 1) == 0x1122_3344
    cpu.vmwrite(Field.EPTP + 1, 0xAABB_CCDD)
    assert cpu.vmread(Field.EPTP) == 0xAABB_CCDD_5566_7788
    with pytest.raises(StateError, match="wider than the 32 bits"):
        cpu.vmwrite(Field.EPTP + 1, 1 << 32)
    for field in (Field.VPID, Field.PRIMARY_CONTROLS, Field.GUEST_CR3):  # other widths have none
        with pytest.raises(VmFailValid) as failed:
            cpu.vmread(field + 1)
        assert failed.value.error == 12


@pytest.mark.parametrize("encoding", [0x0006, 0x1000, 0x2026, 0x8000, 0x1_2014, 1 << 32 | 0x201A, 0x7000, 2**64 - 1])
def test_a_field_that_does_not_exist_is_error_12(encoding: int) -> None:
    cpu = processor()
    for call in (lambda: cpu.vmread(encoding), lambda: cpu.vmwrite(encoding, 0)):
        with pytest.raises(VmFailValid, match=rf"12, VMREAD/VMWRITE .*: field {encoding:#x}") as failed:
            call()
        assert failed.value.error == 12
        assert cpu.vmread(Field.VM_INSTRUCTION_ERROR) == 12
    cpu.vmwrite(Field.VPID, 7)
    assert cpu.vmread(Field.VPID) == 7


def test_values_wider_than_their_field() -> None:
    cpu = processor()
    for field in Field:
        if field.type == "read-only":
            continue
        cpu.vmwrite(field, 5)
        with pytest.raises(StateError, match=r"wider than|does not fit 64 bits"):
            cpu.vmwrite(field, 1 << field.width)
        with pytest.raises(StateError, match="does not fit 64 bits"):
            cpu.vmwrite(field, -1)
        assert cpu.vmread(field) == 5


def test_exit_information_is_read_only_but_on_processors_that_let_it_be_written() -> None:
    cpu, free = processor(), processor(caps=Capabilities(vmwrite_any=True))
    fields = [field for field in Field if field.type == "read-only"]
    assert len(fields) == 15
    for field in fields:
        with pytest.raises(VmFailValid) as failed:
            cpu.vmwrite(field, 1)
        assert failed.value.error == 13
        free.vmwrite(field, 3)
        assert free.vmread(field) == 3


def test_a_field_needs_its_control() -> None:
    plain = Capabilities()
    for field, (word, bit) in EXISTS.items():
        must, may = getattr(plain, word)
        cpu = processor(caps=Capabilities(**{word: (must, may & ~(1 << bit))}))
        with pytest.raises(VmFailValid) as failed:
            cpu.vmread(field)
        assert failed.value.error == 12
        assert cpu.vmread(Field.GUEST_CR3) == 0


def test_random_encodings_do_the_same_in_both() -> None:
    chance, cpu = random.Random(2), processor()
    spec = rules.Processor(ref.SparseMemory(), revisions={0x1000: rules.REVISION})
    spec.vmptrld(0x1000)
    seen = set()
    for _ in range(20_000):
        encoding = chance.choice([*Field]) ^ chance.choice([0, 0, 0, 1, 1 << chance.randrange(16)])
        args = [encoding, chance.getrandbits(rules.width(encoding))][: chance.choice([1, 2])]
        name = ("vmread", "vmwrite")[len(args) - 1]
        want = getattr(spec, name)(*args)
        try:
            got: object = getattr(cpu, name)(*args)
        except VmFailValid as failed:
            got = rules.Failed(failed.error)
        assert got == want, hex(encoding)
        seen.add(want.error if isinstance(want, rules.Failed) else type(want))
    assert seen == {12, 13, int, type(None)}
