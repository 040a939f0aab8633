"""Root tables without a present entry, in each paging mode and under EPT."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmu import GuestState, PhysicalMemory
from fastmmu.cli import main
from fastmmu.image import empty_root

LONG = {"cr4": 0x20, "efer": 0x500}
STATES = {
    "32-bit": ({"cr4": 0, "efer": 0}, 0x1FFC, 4),
    "PAE": ({"cr4": 0x20, "efer": 0}, 0x1018, 8),
    "4 levels": (LONG, 0x1FF8, 8),
    "5 levels": ({"cr4": 0x1020, "efer": 0x500}, 0x1008, 8),
}


@pytest.mark.parametrize("name", STATES)
def test_one_present_entry_is_enough(name: str) -> None:
    registers, at, size = STATES[name]
    memory = PhysicalMemory(1 << 16)
    state = GuestState(cr3=0x1000, **registers)
    assert empty_root(memory, state) == "the root table at 1000"
    memory.write64(at & ~7, 1 << (32 if size == 4 else 0))
    assert empty_root(memory, state) == ""
    assert empty_root(memory, GuestState(cr0=0x10, cr3=0x2000)) == "", "paging is off"


def test_under_an_ept() -> None:
    memory = PhysicalMemory(1 << 16)
    state = GuestState(cr3=0x2000, **LONG)
    assert empty_root(memory, state, 0x101E) == "the root of the EPT at 1000"
    for level in (1, 2, 3):
        memory.write64(level << 12, (level + 1) << 12 | 7)
    memory.write64(0x4010, 0x5007)
    assert empty_root(memory, state, 0x101E) == "the root table at 2000 (guest-physical; 5000 in the file's memory)"
    memory.write64(0x5800, 1)
    assert empty_root(memory, state, 0x101E) == ""


def test_the_commands_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory.raw"
    path.write_bytes(bytes(1 << 14))
    for words in (["maps", path], ["maps", path, "--csv", "-"], ["walk", "--va", "0", "--memory", path]):
        assert main([*map(str, words), "--cr3", "1000"]) == 0
        error = capsys.readouterr().err
        assert "the root table at 1000 has no present entry" in error
        for reason in ("header", "hole", "CR3"):
            assert reason in error


def test_a_file_of_another_format_is_named_before_registers_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "memory.raw"
    path.write_bytes(b"QEVM".ljust(8192, b"\0"))
    for words in (["maps", path], ["walk", "--va", "0", "--memory", path], ["maps", path, "--cr3", "0"]):
        assert main([*map(str, words)]) == 2
        assert "this is a QEMU migration stream" in capsys.readouterr().err
    assert main(["maps", str(path), "--format", "raw", "--cr3", "1000"]) == 0
