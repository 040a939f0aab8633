"""Walks drawn and told: the picture against the steps, faults against the words for them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fastmmu._walk import walk
from fastmmu.cli.walk import EXAMPLE, example_memory
from fastmmu.dtypes import Fault
from fastmmu.exits import Qualification
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import Eptp, GuestState, Pml
from fastmmu.report import walkview
from fastmmu.report.bits import ept_flags, error_code_words, guest_flags, qualification_words

VA, CR3, EPTP = EXAMPLE["va"], EXAMPLE["cr3"], EXAMPLE["eptp"]
DATA_LEAF = 0x2_0000_3048


@pytest.fixture
def memory() -> PhysicalMemory:
    return example_memory()


def told(memory: PhysicalMemory, va: int = VA, eptp: int | None = EPTP, access: str = "r", **registers: Any) -> str:
    state = GuestState(cr3=CR3, **registers)
    found = walk(memory, state, va, access=access, eptp=eptp)
    return "\n".join(walkview.outcome(found, state, ept=eptp is not None))


def drawn(memory: PhysicalMemory, va: int = VA, eptp: int | None = EPTP, **more: Any) -> list[str]:
    return walkview.picture(walk(memory, GuestState(cr3=CR3), va, eptp=eptp, **more))


def cells(lines: list[str]) -> list[tuple[int, int]]:
    """(number, address) of each reference of a picture, in the order of reading."""
    text = "\n".join(line for line in lines if "─▸" in line)
    return [(int(n), int(a, 16)) for n, a in re.findall(r"▸ +(\d+) ([0-9a-f]+)", text)]


def test_the_worked_example_as_a_picture(memory: PhysicalMemory) -> None:
    lines = drawn(memory)
    tables = [0x2_0000_0000, 0x2_0000_1000, 0x2_0000_2000]
    wanted = []
    for leaf, hpa in ((0x08, 0x1_0000_1008), (0x10, 0x1_0000_2008), (0x18, 0x1_0000_3008), (0x20, 0x1_0000_4008)):
        wanted += [*tables, 0x2_0000_3000 + leaf, hpa]
    wanted += [*tables, DATA_LEAF]
    assert cells(lines) == list(enumerate(wanted, 1))
    assert len(wanted) == 24
    labels = [line.split()[:2] for line in lines if re.match("[gd]", line)]
    assert labels == [["gPML4E", "1008"], ["gPDPTE", "2008"], ["gPDE", "3008"], ["gPTE", "4008"], ["data", "9abc"]]
    assert next(line for line in lines if line.startswith("data")).endswith("▸    100009abc")
    assert max(map(len, lines)) <= 120


def test_entries_and_flags_stand_below_their_address(memory: PhysicalMemory) -> None:
    lines = drawn(memory)
    at = lines[1].index("5 100001008") + 2
    assert lines[2][at:] == "2067"
    assert lines[3][at:] == "P RW US A"
    at = lines[1].index("4 200003008") + 2
    assert lines[2][at:].startswith("100001037 ")
    assert lines[3][at:].startswith("RWX WB ")


def test_the_list_has_the_same_references(memory: PhysicalMemory) -> None:
    found = walk(memory, GuestState(cr3=CR3), VA, eptp=EPTP)
    rows = [line.split() for line in walkview.steps(found) if re.match(r" ?\d", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 25))
    hexadecimal = [[int(word, 16) for word in row[2:] if re.fullmatch("[0-9a-f]{4,}", word)][:2] for row in rows]
    assert hexadecimal == [[int(step["hpa"]), int(step["entry"])] for step in found.steps if step["kind"] != 4]


def test_flags_that_the_walk_sets_are_shown(memory: PhysicalMemory) -> None:
    lines = drawn(memory, eptp=EPTP | 0x40, access="w", set_ad=True)
    assert "→ 100009337" in "\n".join(lines)  # accessed and dirty in the leaf of the data
    assert "→ 200001107" in "\n".join(lines)  # accessed in the upper entry
    assert memory.read64(DATA_LEAF) == 0x1_0000_9337
    assert len(cells(lines)) == 24


def test_large_pages_leave_columns_out(memory: PhysicalMemory) -> None:
    memory.write64(0x2_0000_2000, 0x1_0000_00B7)  # guest-physical 0..200000 by one 2 MB entry
    assert len(cells(drawn(memory))) == 19
    memory.write64(0x1_0000_3008, 0x87)  # and a 2 MB page of the guest
    lines = drawn(memory)
    assert len(cells(lines)) == 15
    assert "EPT PTE" not in lines[0]
    assert "1_0000_1abc" in told(memory)
    assert "2 MB page in the guest, 2 MB page in the EPT" in told(memory)


def test_the_effective_memory_type_is_told(memory: PhysicalMemory) -> None:
    """The EPT's for all with IPAT, else combined with the guest's PAT; CR0.CD: UC (ept.md §8)."""
    leaf = memory.read64(0x2_0000_3048) & ~0x78
    for mt, ipat, guest, cr0, effective in (
        (6, 1, 0x18, 0x8005_0033, "WB"),  # PCD and PWT choose UC, which counts for nothing
        (6, 0, 0x18, 0x8005_0033, "UC"),
        (6, 0, 0x08, 0x8005_0033, "WT"),
        (4, 0, 0, 0x8005_0033, "WT"),
        (0, 0, 0, 0x8005_0033, "UC"),
        (6, 1, 0, 0xC005_0033, "UC"),
    ):
        memory.write64(0x2_0000_3048, leaf | mt << 3 | ipat << 6)
        memory.write64(0x1_0000_4008, 0x9067 | guest)
        assert told(memory, cr0=cr0).endswith(f"memory type {effective}")


def test_rows_of_different_length(memory: PhysicalMemory) -> None:
    memory.write64(0x1_0000_4008, 0x20_9067)  # the data at guest-physical 209abc,
    memory.write64(0x2_0000_2008, 0x7_0000_00B7)  # which one 2 MB entry maps
    lines = drawn(memory)
    assert [n for n, _ in cells(lines)] == list(range(1, 24))
    assert re.search(r"23 200002008 ─+▸ +700009abc$", "\n".join(lines), re.M)


def test_without_ept_a_line_a_level(memory: PhysicalMemory) -> None:
    small = PhysicalMemory(1 << 16)
    for table in range(1, 5):
        small.write64((table << 12) + 8, (table + 1 << 12) | 0x67)
    lines = drawn(small, eptp=None)
    assert [line.split()[1] for line in lines[2:6]] == ["PML4E", "PDPTE", "PDE", "PTE"]
    assert lines[6].split() == ["data", "5abc"]


# ---- faults -------------------------------------------------------------------------------------------------------


def test_page_faults_say_why(memory: PhysicalMemory) -> None:
    assert "PTE 0 is not present" in told(memory, VA + 0x1000)
    assert "#PF, error code 0006: P=0 not present, W write, U user mode" in told(memory, VA + 0x1000, access="w", cpl=3)
    memory.write64(0x1_0000_4008, 0x8000_0000_0000_9061)  # supervisor, read-only, execute-disable
    assert "user mode has no right to a supervisor page" in told(memory, cpl=3)
    assert "read-only (R/W=0 at some level) and CR0.WP=1" in told(memory, access="w")
    assert "execute-disable" in told(memory, access="x")
    memory.write64(0x1_0000_4008, 0x9067)
    assert "SMEP" in told(memory, access="x", cr4=0x1000A0)
    assert "SMAP" in told(memory, cr4=0x2000A0)
    assert "protection key" in told(memory, cr4=0x4000A0, pkru=3, cpl=3)
    memory.write64(0x1_0000_4008, 0x9067)
    memory.write64(0x1_0000_1008, 0x20E7)
    assert "PML4E 20e7 has a reserved bit set" in told(memory)
    assert "✗ #PF" in drawn(memory)[1]


def test_a_non_canonical_address_reads_nothing(memory: PhysicalMemory) -> None:
    assert "8000_0000_0000 is not canonical" in told(memory, 1 << 47)
    assert drawn(memory, 1 << 47) == []


def test_a_load_of_the_pdptes_that_fails(memory: PhysicalMemory) -> None:
    pae = {"cr4": 0x20, "efer": 0}
    memory.write64(0x1_0000_1000, 0x2021)  # a reserved bit
    assert "a present PDPTE at CR3 has a reserved bit set" in told(memory, 0x1ABC, **pae)
    memory.write64(0x2_0000_3008, 0)
    text = told(memory, 0x1ABC, **pae)
    assert "exit qualification 1: read no linear address" in text
    assert "while CR3 was loaded" in text
    memory.write64(0x2_0000_3008, 2)
    assert told(memory, 0x1ABC, **pae).endswith("while CR3 was loaded, which reads the PDPTEs")


def test_ept_violations_say_what_was_missing(memory: PhysicalMemory) -> None:
    memory.write64(DATA_LEAF, 0x1_0000_9031)
    text = told(memory, access="w")
    assert "EPT violation (VM exit 48) at guest-physical address 9abc" in text
    assert "78a: write of the translated address, the entries allow R--, a user page, writable" in text
    memory.write64(0x2_0000_3020, 0)
    text = told(memory)
    assert "address 4008" in text
    assert "read of a guest paging structure, the entries allow ---" in text
    assert "✗ EPT violation" in drawn(memory)[13]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (0x1_0000_9032, "writable but not readable (R=0, W=1)"),
        (0x1_0000_9013, "memory type 2 does not exist"),
    ],
)
def test_misconfigurations_say_which_rule(memory: PhysicalMemory, entry: int, says: str) -> None:
    memory.write64(DATA_LEAF, entry)
    text = told(memory)
    assert "EPT misconfiguration (VM exit 49) at guest-physical address 9abc" in text
    assert says in text


def test_a_reserved_bit_in_the_ept(memory: PhysicalMemory) -> None:
    memory.write64(0x2_0000_2000, 0x2_0000_300F)
    assert "EPT PDE 20000300f: a reserved bit is set" in told(memory)


def test_a_table_outside_memory(memory: PhysicalMemory) -> None:
    memory.write64(0x2_0000_2000, 0xF_0000_0007)
    assert "outside the memory given" in told(memory)
    assert drawn(memory)[1].endswith("✗ table outside memory")


# ---- words --------------------------------------------------------------------------------------------------------


def test_every_bit_of_an_error_code_has_a_word() -> None:
    base = error_code_words(0)
    assert base == "P=0 not present"
    assert len({error_code_words(1 << bit) for bit in range(7)} | {base}) == 8


def test_every_bit_of_a_qualification_has_a_word() -> None:
    bits = [bit for bit in Qualification if bit not in (Qualification.GLA_VALID, Qualification.TRANSLATED)]
    base = int(Qualification.GLA_VALID | Qualification.TRANSLATED)
    assert len({qualification_words(base | int(bit)) for bit in bits} | {qualification_words(base)}) == len(bits) + 1
    assert "no linear address" in qualification_words(1)


def test_flags_of_entries() -> None:
    assert guest_flags(0x8000_0000_0000_01E7, leaf=True, level=2) == "P RW US A D G PS XD"
    assert guest_flags(0xFFE, leaf=True, level=1) == "not present"
    assert ept_flags(0x775, leaf=True) == "R-X WB IPAT A D XU"
    assert ept_flags(0x107, leaf=False) == "RWX A"
    assert ept_flags(0, leaf=True) == "not present"


def test_a_walk_as_plain_values(memory: PhysicalMemory) -> None:
    found = walkview.as_dict(walk(memory, GuestState(cr3=CR3), VA, eptp=EPTP))
    assert found["pa"] == "0x100009abc"
    assert found["fault"] == Fault.NONE.name.lower()
    assert (found["guest_refs"], found["ept_refs"], len(found["steps"])) == (4, 20, 25)
    assert found["steps"][4] == {
        "kind": "guest", "level": 4, "guest_level": 4, "hpa": "0x100001008", "gpa": "0x1008", "entry": "0x2067",
    }  # fmt: skip


def test_the_heading_names_mode_indices_and_registers(memory: PhysicalMemory) -> None:
    lines = walkview.heading(walk(memory, GuestState(cr3=CR3), VA, eptp=EPTP), GuestState(cr3=CR3), EPTP)
    assert lines[0] == "linear address 80_4020_1abc, read by the kernel; 4-level paging"
    assert lines[1] == "indices: PML4E 1, PDPTE 1, PDE 1, PTE 1; offset abc"
    assert "EPTP 20000001e (4 levels, no accessed and dirty flags)" in lines[2]


def test_exits_of_the_log_and_of_sub_pages_are_told_apart(memory: PhysicalMemory) -> None:
    full = Eptp(EPTP | 0x40, pml=Pml(0x2_0000_3000, index=0xFFFF))
    memory.write64(DATA_LEAF, 1 << 61 | 0x1_0000_9035)  # read-only but for some sub-pages
    sub_pages = Eptp(EPTP, spptp=0x1_0000_0000)
    for eptp, access, says in (
        (full, "r", "log is full (VM exit 62)"),
        (sub_pages, "w", "9abc are missing or malformed"),
    ):
        found = walk(memory, GuestState(cr3=CR3), VA, eptp=eptp, access=access)
        assert says in walkview.outcome(found, GuestState(cr3=CR3), ept=True)[0]
