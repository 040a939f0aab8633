"""--npt: AMD's nested page tables on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastmmu
from fastmmu.cli import main


def image(tmp_path: Path) -> Path:
    """Nested tables at 1000: guest-physical 0..1F_FFFF are 20_0000 up, all else is nowhere; of the guest, at 5000: 0
    leads to 9000, 1000 to 20_0000."""
    memory = bytearray(0x40_0000)

    def put(at: int, value: int) -> None:
        memory[at : at + 8] = value.to_bytes(8, "little")

    for at, entry in {
        0x1000: 0x2027,
        0x2000: 0x3027,
        0x3000: 0x20_00E7,
        0x3008: 0x8000_0000_0000_0007 | 0x4000,
    }.items():
        put(at, entry)
    for at, entry in {0x5000: 0x6067, 0x6000: 0x7067, 0x7000: 0x8067, 0x8000: 0x9067, 0x8008: 0x20_0067}.items():
        put(0x20_0000 + at, entry)
    path = tmp_path / "host.raw"
    path.write_bytes(memory)
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([*map(str, argv)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_demonstration(capsys: pytest.CaptureFixture[str]) -> None:
    """The same walk as over the EPT, 24 references, its tables called by their name."""
    out = run(capsys, "walk", "--npt", "200000000")
    assert "nCR3 200000000 (4 levels)" in out
    assert "NPT PML4E" in out
    assert "EPT" not in out
    assert "24 references: 4 to guest tables, 20 to the NPT" in out
    assert "host-physical 1_0000_9abc, guest-physical 9abc" in out


def test_a_walk_and_its_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = image(tmp_path)
    where = ["walk", "--memory", path, "--cr3", "5000", "--npt", "1000"]
    assert "host-physical 20_9123" in run(capsys, *where, "--va", "123")
    out = run(capsys, *where, "--va", "1123", "--access", "x", "--steps")
    assert "nested page fault (#VMEXIT 400h) at guest-physical address 20_0123" in out
    assert "EXITINFO1 100000014: P=0 not present, U user mode, I/D instruction fetch, of the translated address" in out
    found = json.loads(run(capsys, *where, "--va", "1123", "--json", "-"))
    assert (found["fault"], found["error_code"], found["gpa"]) == ("nested_page_fault", 0x1_0000_0004, "0x200123")


def test_maps_and_roots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = image(tmp_path)
    out = run(capsys, "maps", path, "--cr3", "5000", "--npt", "1000", "--faults")
    assert "1 pages in 1 ranges" in out
    assert "1 places that the NPT does not map, and malformed entries of it" in out
    assert "NPT PTE 0 at 4000" in out
    assert "guest-physical" in out
    roots = run(capsys, "roots", path, "--npt", "1000", "--json", "-")
    assert "0x5000" in [row["address"] for row in json.loads(roots)["roots"]]


def test_what_does_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = image(tmp_path)
    for more, why in (
        (["--npt", "1000", "--eptp", "101e"], "give one of them"),
        (["--npt-levels", "5"], "needs --npt"),
    ):
        assert main(["walk", "--memory", str(path), "--cr3", "5000", "--va", "0", *more]) == 2
        assert why in capsys.readouterr().err


def test_a_replay_on_amd(capsys: pytest.CaptureFixture[str]) -> None:
    trace = next((Path(__file__).parents[1] / "data" / "systems").rglob("*.rec*"))
    out = run(capsys, "replay", trace, "--mmu", "ept", "--vendor", "amd", "--limit", "2000", "--quiet")
    assert "EPT" in out


def test_in_python(tmp_path: Path) -> None:
    memory = fastmmu.PhysicalMemory.from_array(bytearray(image(tmp_path).read_bytes()))
    space = fastmmu.AddressSpace(memory, fastmmu.GuestState(cr3=0x5000), fastmmu.Npt(0x1000))
    assert "ncr3=0x1000" in repr(space)
    assert space.read(0, 4) == bytes(4)
    with pytest.raises(fastmmu.NotMappedError):
        space.read(0x1000, 4)
    assert space.translate([0x123]).pa.tolist() == [0x20_9123]
    rows = fastmmu.ept_mappings(memory, fastmmu.Npt(0x1000))
    assert [(row.gpa, row.hpa, row["size"], row.user_executable) for row in rows] == [(0, 0x20_0000, 2 << 20, 0)]
    assert rows.skipped == {fastmmu.Fault.NESTED_PAGE_FAULT: 4}
    assert len(fastmmu.space.guest_memory(memory, fastmmu.Npt(0x1000)).ranges) == 1
