"""`fastmmu walk`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fastmmu.cli import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["walk", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def references(out: str) -> list[int]:
    return [int(n) for line in out.splitlines() if "─▸" in line for n in re.findall(r"▸ +(\d+) [0-9a-f]", line)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Raw memory in which 400000 is mapped, read-only for user mode, to 5000."""
    words = np.zeros(0x6000 // 8, np.uint64)
    words[0x1000 // 8] = 0x2067
    words[0x2000 // 8] = 0x3067
    words[0x3000 // 8 + 2] = 0x4067
    words[0x4000 // 8] = 0x5005  # A and D not set
    words.tofile(tmp_path / "guest.raw")
    return tmp_path / "guest.raw"


def test_the_demonstration_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys)
    assert out.endswith("executable, memory type WB\n")
    assert references(out) == list(range(1, 25))
    assert "linear address 80_4020_1abc, read by the kernel; 4-level paging" in out
    assert "host-physical 1_0000_9abc, guest-physical 9abc" in out
    assert "24 references: 4 to guest tables, 20 to the EPT" in out
    assert max(map(len, out.splitlines())) <= 120


def test_the_demonstration_takes_other_addresses_and_pointers(capsys: pytest.CaptureFixture[str]) -> None:
    assert "#PF, error code 0006" in run(capsys, "--va", "0x80_4020_2abc", "--access", "w", "--user")
    out = run(capsys, "--eptp", "20000005e", "--access", "w", "--set-ad")
    assert "→ 100009337" in out
    assert references(out) == list(range(1, 25))


def test_an_image_is_walked_and_never_written(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    before = image.read_bytes()
    image.chmod(0o400)
    at = ["--memory", str(image), "--cr3", "1000", "--va", "400123"]
    assert "host-physical 5123" in run(capsys, *at, "--user")
    assert "→ 5025" in run(capsys, *at, "--set-ad")  # accessed, in memory only
    assert "read-only (R/W=0 at some level)" in run(capsys, *at, "--user", "--access", "w")
    assert "host-physical 5123" in run(capsys, *at, "--access", "w", "--cr0", "80040033")  # WP off
    assert image.read_bytes() == before


def test_a_list_in_place_of_a_picture_that_is_too_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run(capsys, "--steps")
    monkeypatch.setenv("COLUMNS", "80")
    got = run(capsys)
    assert re.search(r"the picture needs \d+ columns; a line a reference instead", got)
    assert max(map(len, got.splitlines())) <= 96  # the registers' line
    assert [line for line in got.splitlines() if "gPDE" in line] == [
        line for line in asked.splitlines() if "gPDE" in line
    ]


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = json.loads(run(capsys, "--json", "-"))
    assert (found["pa"], len(found["steps"])) == ("0x100009abc", 25)
    run(capsys, "--json", str(tmp_path / "w.json"), "--va", "0")
    found = json.loads((tmp_path / "w.json").read_text())
    assert (found["pa"], found["fault"], found["error_code"]) == (None, "page_fault", 0)


def test_other_paging_modes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = np.zeros(0x3000 // 4, np.uint32)
    words[0x1000 // 4 + 1] = 0x2067
    words[0x2000 // 4 + 3] = 0xABC067
    words.tofile(tmp_path / "old.raw")
    at = ["--memory", str(tmp_path / "old.raw"), "--cr3", "1000", "--va", "403025"]
    out = run(capsys, *at, "--cr4", "0", "--efer", "0", "--access", "w", "--user")
    assert "32-bit paging" in out
    assert "indices: PDE 1, PTE 3; offset 25" in out
    assert "host-physical ab_c025" in out  # worked example A1
    pae = run(capsys, *at, "--cr4", "20", "--efer", "0", "--pdptes", "2001,0,0,0")
    assert "PAE paging" in pae
    assert "indices: PDPTE register 0, PDE 2, PTE 3; offset 25" in pae
    assert "paging off" in run(capsys, *at, "--cr0", "11", "--cr4", "0", "--efer", "0")


def test_no_ept_as_the_help_has_it(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    for none in ("none", "None"):
        assert "EPT" not in run(capsys, "--eptp", none)
        at = ["--memory", str(image), "--cr3", "1000", "--va", "400123"]
        assert run(capsys, *at, "--eptp", none) == run(capsys, *at)
        assert main(["maps", str(image), "--cr3", "1000", "--eptp", none]) == 0
        assert "1 pages in 1 ranges" in capsys.readouterr().out
