"""`fastmmu maps`, and `fastmmu walk` on the same guests: what is printed and written is what `mappings` says."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu.cli import main
from fastmmu.image import read_guest
from fastmmu.report import mappings

GUESTS = Path(__file__).parents[1] / "data" / "guests"
EVERY = sorted(path.parent.name for path in GUESTS.glob("*/meta.json"))
LINE = re.compile(
    r"([0-9a-f_]+)\.\.([0-9a-f_]+) +[\d.]+ [KMGT]B +([\d,]+) x (\d+) ([KMG])B  ([r-][w-][x-][u-][g-])   (\w\w) "
    r"+(?:([0-9a-f_]+) +)?([0-9a-f_]+)( \+)?$"
)


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["maps", *map(str, argv)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def pages_of(out: str) -> list[tuple[Any, ...]]:
    """The pages that the printed ranges stand for: (va, size, rights, type, pa or None where it is not said)."""
    pages: list[tuple[Any, ...]] = []
    for text in out.splitlines():
        if found := LINE.match(text):
            first, last = (int(found[i].replace("_", ""), 16) for i in (1, 2))
            size = int(found[4]) << {"K": 10, "M": 20, "G": 30}[found[5]]
            count = int(found[3].replace(",", ""))
            assert last + 1 - first == count * size
            pa = int(found[9].replace("_", ""), 16)
            for i in range(count):
                known = i == 0 or not found[10]
                pages.append((first + i * size, size, found[6], found[7], pa + i * size if known else None))
    return pages


def expected(rows: Any) -> list[tuple[Any, ...]]:
    names = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}
    return [
        (
            int(row.va),
            int(row["size"]),
            "".join(
                letter if row[name] else "-"
                for name, letter in zip(
                    ("readable", "writable", "executable", "user", "global_page"), "rwxug", strict=True
                )
            ),
            names[int(row.memory_type)],
            int(row.pa),
        )
        for row in rows
    ]


def agree(out: str, rows: Any) -> None:
    printed, wanted = pages_of(out), expected(rows)
    assert [page[:4] for page in printed] == [page[:4] for page in wanted]
    assert all(a[4] in (None, b[4]) for a, b in zip(printed, wanted, strict=True))


# ---- for people ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_the_ranges_are_the_mappings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    guest = read_guest(GUESTS / name)
    rows = fastmmu.mappings(guest.memory, guest.state)
    out = run(capsys, GUESTS / name)
    if "more like it" not in out:
        agree(out, rows)
    found = re.search(r"^([\d,]+) pages in ([\d,]+) ranges$", out, re.M)
    assert found
    assert int(found[1].replace(",", "")) == len(rows)
    assert f"CR3 {guest.state.cr3:x}" in out


def test_ranges_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    guest = read_guest(GUESTS / "pae_user")
    rows = fastmmu.mappings(guest.memory, guest.state, start=0xC000_0000, stop=0xC020_0000)
    agree(run(capsys, GUESTS / "pae_user", "--start", "c000_0000", "--stop", "0xC0200000"), rows)
    out = run(capsys, GUESTS / "pae_user", "--limit", 5)
    agree(out, fastmmu.mappings(guest.memory, guest.state, limit=5))
    assert "there are more: --limit ended the list" in out
    assert "0 pages in 0 ranges" in run(capsys, GUESTS / "pae_user", "--limit", 0)


def table(tmp_path: Path, entries: dict[int, int]) -> Path:
    words = np.zeros(0x1_0000 // 8, np.uint64)
    for at, entry in entries.items():
        words[at // 8] = entry
    words.tofile(tmp_path / "memory.raw")
    return tmp_path / "memory.raw"


def test_many_alike_are_folded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upper = {0x1000: 0x2067, 0x2000: 0x3067, 0x3000: 0x4067}
    every_third = {0x4000 + 8 * i: (i + 100) << 12 | 0x63 for i in range(0, 21, 3)}
    out = run(capsys, table(tmp_path, upper | every_third), "--cr3", "1000")
    assert "\n  and 6 more like it, one every 12 KB, the last at 1_2000\n" in out
    assert "7 pages in 7 ranges" in out
    few = dict(list(every_third.items())[: mappings.SHOWN])
    assert "more like it" not in run(capsys, table(tmp_path, upper | few), "--cr3", "1000")
    uneven = every_third | {0x4000 + 8 * 10: 0x5063}
    out = run(capsys, table(tmp_path, upper | uneven), "--cr3", "1000")
    assert len(pages_of(out)) == 8  # of which one range is two pages, 9000 and a000
    assert "more like it" not in out


def test_ranges_under_an_ept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guest tables at 1000..4000 of both spaces; the guest's page 9000 lies at a000, and page b000 nowhere."""
    entries = {0x1000: 0x2067, 0x2000: 0x3067, 0x3000: 0x4067, 0x4000: 0x9067, 0x4008: 0xB067, 0x5000: 0x6007,
               0x6000: 0x7007, 0x7000: 0x8007, 0x8048: 0xA035,
               **{0x8000 + 8 * i: i << 12 | 0x37 for i in range(1, 5)}}  # fmt: skip
    path = table(tmp_path, entries)
    out = run(capsys, path, "--cr3", "1000", "--eptp", "501e", "--faults")
    assert re.search(r"^0\.\.fff +4 KB +1 x 4 KB  r-xu-   WB    9000 +a000$", out, re.M)
    assert "EPTP 501e (4 levels, no accessed and dirty flags)" in out
    assert "1 places that the EPT does not map" in out
    assert "1000, 4 KB: EPT_VIOLATION, EPT PTE 0 at 8058" in out


def test_entries_that_lead_nowhere_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path, {0x1000: 0x2067, 0x1008: 0x7FFF_F067, 0x2000: 1 << 40 | 0x3067})
    out = run(capsys, path, "--cr3", "1000", "--maxphyaddr", "36")
    assert "0 pages in 0 ranges\n1 entries with a reserved bit\n1 tables outside the memory given" in out
    listed = run(capsys, path, "--cr3", "1000", "--maxphyaddr", "36", "--faults")
    assert "  0, 1 GB: PAGE_FAULT, PDPTE 10000003067 at 2000" in listed
    assert "  80_0000_0000, 512 GB: BUS, PDPTE" in listed


def test_ranges_do_not_depend_on_the_arrays_they_come_in() -> None:
    guest = read_guest(GUESTS / "l5_idle")
    whole = list(mappings.ranges([fastmmu.mappings(guest.memory, guest.state)]))
    assert len(whole) > 10
    for chunk in (1, 2, 7, 100):
        assert list(mappings.ranges(fastmmu.iter_mappings(guest.memory, guest.state, chunk=chunk))) == whole
    assert list(mappings.ranges([])) == []


# ---- files ---------------------------------------------------------------------------------------------------------


def plain(rows: Any) -> list[dict[str, Any]]:
    names = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}
    found = [dict(zip(rows.dtype.names, row.tolist(), strict=True)) for row in rows]
    return [{**row, "memory_type": names[row["memory_type"]]} for row in found]


def hexadecimal(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, **{name: f"{row[name]:#x}" for name in ("va", "pa", "gpa", "leaf")}} for row in rows]


@pytest.mark.parametrize("name", EVERY)
def test_files_have_a_row_a_page(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guest = read_guest(GUESTS / name)
    wanted = plain(fastmmu.mappings(guest.memory, guest.state))
    run(capsys, GUESTS / name, "--csv", tmp_path / "m.csv", "--json", tmp_path / "m.json")
    as_text = [{key: str(value) for key, value in row.items()} for row in hexadecimal(wanted)]
    assert list(csv.DictReader((tmp_path / "m.csv").open())) == as_text
    found = json.loads((tmp_path / "m.json").read_text())
    assert found.pop("command").startswith(f"fastmmu maps {GUESTS / name} --csv ")
    assert found == {"fastmmu": fastmmu.__version__, "mappings": hexadecimal(wanted)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "m.json"]


def test_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    guest = read_guest(GUESTS / "pae_user")
    run(capsys, GUESTS / "pae_user", "--parquet", tmp_path / "m.parquet")
    found = parquet.read_table(tmp_path / "m.parquet")
    assert found.to_pylist() == plain(fastmmu.mappings(guest.memory, guest.state))
    assert str(found.schema.field("va").type) == "uint64"
    run(capsys, GUESTS / "pae_user", "--parquet", tmp_path / "none.parquet", "--limit", 0)
    assert parquet.read_table(tmp_path / "none.parquet").schema == found.schema


def test_standard_output_is_for_data() -> None:
    command = [sys.executable, "-m", "fastmmu", "maps", str(GUESTS / "l2_idle"), "--limit", "3"]
    text = subprocess.run([*command, "--csv", "-"], capture_output=True, check=True, text=True).stdout
    assert len(list(csv.DictReader(io.StringIO(text)))) == 3
    found = subprocess.run([*command, "--json", "-"], capture_output=True, check=True, text=True).stdout
    assert len(json.loads(found)["mappings"]) == 3


def test_a_reader_that_stops_is_no_error(tmp_path: Path) -> None:
    """Every table of 512 entries that points at itself: 2**36 pages, of which the first arrive at once."""
    path = table(tmp_path, {0x1000 + 8 * i: 0x1067 for i in range(512)})
    command = [sys.executable, "-m", "fastmmu", "maps", str(path), "--cr3", "1000", "--csv", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        first = list(itertools.islice(process.stdout, 40_000))
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
    assert first[-1].startswith(f"{39_998 << 12:#x},0x1000,")


def test_the_table_of_the_page_is_what_maps_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    shown = page.partition("fastmmu maps tests/data/guests/pae_user\n")[2].partition("\n\n`")[0]
    printed = run(capsys, GUESTS / "pae_user").splitlines()
    kept = [text.strip() for text in shown.splitlines() if text.strip() and text.strip() != "..."]
    assert len(kept) > 8
    assert [text for text in kept if text not in [text.strip() for text in printed]] == []


# ---- walk on a guest -----------------------------------------------------------------------------------------------


def test_walk_takes_a_recorded_guest(capsys: pytest.CaptureFixture[str]) -> None:
    for name in EVERY:
        guest = read_guest(GUESTS / name)
        row = fastmmu.mappings(guest.memory, guest.state)[-1]
        assert main(["walk", "--memory", str(GUESTS / name), "--va", f"{int(row.va):x}", "--steps"]) == 0
        out = capsys.readouterr().out
        assert f"host-physical {int(row.pa):_x}" in out
        assert f"CR3 {guest.state.cr3:x}" in out


def test_other_registers_than_the_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    guest = read_guest(GUESTS / "pae_user")
    cr3 = f"{guest.state.cr3 ^ 0x20:x}"
    assert main(["walk", "--memory", str(GUESTS / "pae_user"), "--va", "9b5000", "--cr3", cr3]) == 0
    assert f"CR3 {cr3}" in capsys.readouterr().out
    pdptes = ",".join(f"{value:x}" for value in guest.state.pdptes or ())
    again = ["--memory", str(GUESTS / "pae_user"), "--va", "9b5000", "--cr3", cr3, "--pdptes", pdptes, "--user"]
    assert main(["walk", *again]) == 0
    assert "host-physical 7e9_a000" in capsys.readouterr().out


def test_rows_of_an_ept_can_be_saved(tmp_path: Path) -> None:
    """NumPy's file format needs fields in the order of their places."""
    mem = fastmmu.PhysicalMemory(0x5000)
    for hpa, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4008, 0x7037)):
        mem.write64(hpa, entry)
    rows = fastmmu.ept_mappings(mem, 0x101E)
    np.save(tmp_path / "rows.npy", rows)
    assert np.load(tmp_path / "rows.npy")["hpa"].tolist() == rows.hpa.tolist() == [0x7000]


# ---- who maps a page, where tables begin ---------------------------------------------------------------------------


def test_where_lists_what_maps_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    guest = read_guest(GUESTS / "l4_user")
    space = fastmmu.AddressSpace(guest.memory, guest.state)
    pages = [int(pa) for pa in np.unique(space.index().pa)]
    for pa in (pages[3], pages[len(pages) // 2] + 0x123, pages[-1] + 5):
        want = space.where(pa)
        assert len(want) > 0
        assert pages_of(run(capsys, GUESTS / "l4_user", "--where", f"{pa:x}"))[0][:4] == expected(want)[0][:4]
        rows = list(csv.DictReader(io.StringIO(run(capsys, GUESTS / "l4_user", "--where", f"{pa:x}", "--csv", "-"))))
        assert [int(row["va"], 16) for row in rows] == want.va.tolist()
    assert "0 pages in 0 ranges" in run(capsys, GUESTS / "l4_user", "--where", "ffff00000000")


def test_roots(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roots", str(GUESTS / "l4_user")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^2a34000  4-level +1192 +1191 +559 ", out, re.MULTILINE)
    assert out.endswith("\n1 root\n")
    assert main(["roots", str(GUESTS / "l4_user"), "--kinds", "4-level,ept", "--json", "-"]) == 0
    (root,) = json.loads(capsys.readouterr().out)["roots"]
    assert (root["address"], root["kind"], root["pages"]) == ("0x2a34000", "4-level", 1192)
    assert main(["roots", str(GUESTS / "l4_user"), "--kinds", "pae"]) == 0
    assert "0 roots\nno table of memory leads to pages" in capsys.readouterr().out
