"""A system trace over its own page tables: what must agree agrees, and what does not is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Bus, Config, Machine, simulate
from fastmmu.cli.main import main
from fastmmu.errors import ConfigError, TraceError
from fastmmu.machine.replay import Replay, Replayed
from fastmmu.machine.system_loop_py import SystemReplay
from fastmmu.paging.state import GuestState
from fastmmu.trace import read_trace
from fastmmu.trace.system import SystemTrace
from tests.conformance import systems
from tests.support.device_guest import Recorder
from tests.support.system_traces import Row, make, row

SAMPLES = systems.traces(systems.sample_directory())
FULL = systems.traces(systems.data_directory())
NATIVE, EPT = Config(), Config(mmu="ept", vpid=True, memory="1G")
BOTH = pytest.mark.parametrize("config", [NATIVE, EPT], ids=lambda config: config.name)


def replayed(path: Path, config: Config = NATIVE, **options: Any) -> Replayed:
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    replay = Replay(trace, config, **options)
    for _ in replay.steps():
        pass
    return replay.result()


# ---- recorded traces ------------------------------------------------------------------------------------------


def check(path: Path, mode: str) -> None:
    made, _, _ = systems.reports(path, mode)
    for report in made:
        print(report.line())
        assert report.compared > 0
        assert report.mismatches == 0, "\n".join(made[0].examples)


def test_there_are_samples() -> None:
    assert len(SAMPLES) == 2


@pytest.mark.parametrize("mode", systems.MODES)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_sample(path: Path, mode: str) -> None:
    check(path, mode)


@pytest.mark.skipif(not FULL, reason=f"skipped: no traces in {systems.data_directory().name}; set FASTMMU_TRACES")
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.name)
def test_full_trace(path: Path) -> None:
    check(path, "hardware")


@pytest.mark.parametrize("omitted", ["cr3", "stores"])
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_what_is_left_out_is_missed(path: Path, omitted: str) -> None:
    found = replayed(path, omit=[omitted])
    assert found.mismatches > 500
    assert min(number for kind, number in found.by_kind.items() if kind != "flags") > 5
    assert omitted != "stores" or (found.different or 0) > 500


# ---- one difference at a time ---------------------------------------------------------------------------------

ROOT, PDPT, PD, PT, OTHER = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
KEY = 5 << 59
LEAVES = {0: 0x10063, 1: 0x11067, 2: 0x12065, 3: 0x13063 | 1 << 63, 4: 0x14067 | KEY, 5: 0x15007, 6: 0}
"""Of page 0 and up: supervisor; user; user, read-only; no fetches; key 5; neither A nor D; not present."""


def page(entries: dict[int, int]) -> bytes:
    table = np.zeros(512, "<u8")
    for index, entry in entries.items():
        table[index] = entry
    return table.tobytes()


PAGES = [page({0: PDPT | 0x67}), page({0: PD | 0x67}), page({0: PT | 0x67}), page(LEAVES), page({0: PDPT | 0x67})]
TABLES = [row(op=32, aux=i, val=val) for i, val in enumerate((ROOT, PDPT, PD, PT, OTHER))]
FINAL = [*PAGES[:3], page(LEAVES | {5: LEAVES[5] | 0x60}), PAGES[4]]


def read(la: int, pa: int, **more: int) -> Row:
    return row(op=0, size=8, lin=la, val=pa, **more)


def write(la: int, pa: int, **more: int) -> Row:
    return row(op=1, size=8, lin=la, val=pa, **more)


def fault(code: int, la: int, **more: int) -> Row:
    return row(op=22, size=14, aux=code, lin=la, **more)


GOOD: list[Row] = [
    read(0x10, 0x10010),
    write(0x18, 0x10018),
    row(op=3, lin=0x1040, val=0x11040, cpl=3),
    read(0x2010, 0x12010, cpl=3),
    fault(0x7, 0x2010, cpl=3),
    fault(0x3, 0x2010, flags=2),  # CR0.WP
    fault(0x11, 0x3000),
    fault(0x15, 0x0, cpl=3),
    fault(0x5, 0x8, cpl=3),
    fault(0x6, 0x6008, cpl=3),
    fault(0x1, 0x1000),  # SMAP
    read(0x1000, 0x11000, flags=2),
    fault(0x1, 0x1000, flags=2, cpl=3),  # implicit: AC does not help
    read(0x0, 0x10000, flags=4),
    row(op=2, size=4, lin=0x5004, val=0x15004, cpl=3),
    row(op=0, size=8, lin=0x1FF8, val=0x11FF8, cpl=3),
]


def trace_of(where: Path, rows: list[Row], **options: Any) -> Path:
    return make(where, [*TABLES, *rows], pages=PAGES, **options)


@BOTH
def test_rights_faults_and_flags(tmp_path: Path, config: Config) -> None:
    found = replayed(trace_of(tmp_path, GOOD, final=FINAL), config)
    assert found.wrong == 0, found.examples
    assert (found.accesses, found.page_faults, found.entries, found.records) == (8, 8, 5 * 512, 26)


WRONG = {
    "another address": (read(0x10, 0x10018), "address", "physical 0x10018, here 0x10010"),
    "a fault of ours": (write(0x2010, 0x12010, cpl=3), "faulted", "physical 0x12010, here a #PF with error code 0x7"),
    "a fetch of ours": (row(op=3, lin=0x3000, val=0x13000), "faulted", "error code 0x11"),
    "implicit": (read(0x1000, 0x11000, flags=6), "faulted", "error code 0x1"),
    "no fault of ours": (fault(0x4, 0x1000, cpl=3), "no fault", "error code 0x4, here none"),
    "another code": (fault(0x4, 0x0, cpl=3), "fault", "error code 0x4, here 0x5"),
}


@BOTH
@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_record_is_one_mismatch(tmp_path: Path, name: str, config: Config) -> None:
    bad, kind, says = WRONG[name]
    found = replayed(trace_of(tmp_path, [*GOOD, bad, *GOOD], final=FINAL), config)
    assert {k: n for k, n in found.by_kind.items() if n} == {kind: 1}
    assert len(found.examples) == 1
    assert found.examples[0].startswith("record 26: ")
    assert says in found.examples[0]


@pytest.mark.parametrize("flag", [0x20, 0x40, 1 << 63])
def test_one_wrong_entry_at_the_end(tmp_path: Path, flag: int) -> None:
    final = [*FINAL[:3], page(LEAVES | {5: (LEAVES[5] | 0x60) ^ flag}), FINAL[4]]
    found = replayed(trace_of(tmp_path, GOOD, final=final))
    assert (found.mismatches, found.different) == (0, 1)
    assert found.examples[0].startswith("entry at 0x4028: ")


def test_without_an_end(tmp_path: Path) -> None:
    found = replayed(trace_of(tmp_path, GOOD))
    assert (found.wrong, found.entries, found.different) == (0, None, None)
    assert "not compared" in found.line()


@BOTH
def test_stores_change_what_is_mapped(tmp_path: Path, config: Config) -> None:
    """Through a mapping of the page table itself; the address changes with INVLPG, and not before it."""
    pages = [*PAGES[:3], page(LEAVES | {7: PT | 0x63}), PAGES[4]]
    rows = [
        read(0x10, 0x10010),
        row(op=1, size=8, flags=1, lin=0x7000, val=PT),
        read(0x10, 0x10010),
        row(op=20, lin=0x0),
        read(0x10, 0x20010),
        row(op=1, size=1, flags=1, lin=0x7002, val=PT + 2),  # a byte of the frame
        row(op=21, size=0, aux=1, lin=0x10),
        read(0x10, 0x30010),
        row(op=1, size=2, flags=1, lin=0x7000, val=PT),
        row(op=21, size=1, aux=1),
        fault(0x0, 0x10),
    ]
    path = make(tmp_path, [*TABLES, *rows], pages=pages, data=[0x20063, 0x3, 0x0])
    found = replayed(path, config)
    assert found.wrong == 0, found.examples
    assert found.table_stores == 3
    for omitted in ("invlpg", "invpcid"):
        late = replayed(path, config.replace(tlb="strict"), omit=[omitted])
        assert late.by_kind["address"] + late.by_kind["no fault"] == {"invlpg": 1, "invpcid": 2}[omitted], late.examples
    without = replayed(path, config, omit=["stores"])
    assert without.by_kind == {"address": 2, "faulted": 0, "no fault": 1, "fault": 0, "flags": 0}


@BOTH
def test_cr3_with_and_without_flush(tmp_path: Path, config: Config) -> None:
    pages = [*PAGES[:3], page(LEAVES | {7: PT | 0x63}), PAGES[4]]
    keep = 1 << 63
    rows = [
        read(0x10, 0x10010),
        row(op=1, size=8, flags=1, lin=0x7000, val=PT),
        row(op=17, val=OTHER | 2 | keep),
        read(0x10, 0x20010),
        row(op=17, val=ROOT | 1 | keep),
        read(0x10, 0x10010),
        row(op=17, val=ROOT | 1),
        read(0x10, 0x20010),
    ]
    found = replayed(make(tmp_path, [*TABLES, *rows], pages=pages, data=[0x20063]), config)
    assert found.wrong == 0, found.examples


@BOTH
@pytest.mark.parametrize("bit", [7, 20])
def test_cr4_flushes(tmp_path: Path, config: Config, bit: int) -> None:
    """A change of PGE takes global translations too; setting SMEP those of the PCID."""
    entry = 0x10063 | (0x100 if bit == 7 else 0)
    pages = [*PAGES[:3], page(LEAVES | {0: entry, 7: PT | 0x63}), PAGES[4]]
    cr4 = 0x77_0EF0 & ~(1 << bit)
    rows = [
        row(op=18, val=cr4 if bit == 20 else 0x77_0EF0),
        read(0x10, 0x10010),
        row(op=1, size=8, flags=1, lin=0x7000, val=PT),
        row(op=18, val=cr4 ^ (1 << 21)),
        read(0x10, 0x10010),
        row(op=18, val=cr4 ^ (1 << 20 if bit == 20 else 0)),
        read(0x10, 0x20010),
        row(op=16, val=0x8004_0033),  # WP goes: nothing is flushed, the right to write changes
        write(0x2010, 0x12010, flags=2),
        row(op=19, val=0x501),  # NXE goes: XD is reserved
        fault(0x9, 0x3000),
    ]
    if bit == 7:
        rows[3:5] = []
    found = replayed(make(tmp_path, [*TABLES, *rows], pages=pages, data=[entry + 0x10000]), config)
    assert found.wrong == 0, found.examples


@BOTH
def test_protection_keys_count_at_each_access(tmp_path: Path, config: Config) -> None:
    """WRPKRU flushes nothing, and the rights of what is cached follow it."""
    deny, read_only = 1 << 10, 1 << 11
    store, load = write(0x4008, 0x14008, cpl=3), read(0x4008, 0x14008, cpl=3)
    rows = [
        store,
        row(op=25, val=read_only),
        load,
        fault(0x27, 0x4008, cpl=3),
        read(0x4008, 0x14008, flags=2),
        fault(0x23, 0x4008, flags=2),
        row(op=25, val=deny),
        fault(0x25, 0x4008, cpl=3),
        row(op=3, lin=0x4008, val=0x14008, cpl=3),
        read(0x1008, 0x11008, cpl=3),
        row(op=25, val=0),
        store,
        row(op=25, val=deny),
        row(op=18, val=0x77_0EF0 & ~(1 << 22)),
        load,
        row(op=25, val=deny),
        load,
        row(op=18, val=0x77_0EF0),
        fault(0x25, 0x4008, cpl=3),
    ]
    found = replayed(trace_of(tmp_path, rows), config)
    assert found.wrong == 0, found.examples


@BOTH
def test_pages_beyond_memory_are_devices(tmp_path: Path, config: Config) -> None:
    pages = [*PAGES[:3], page(LEAVES | {8: 0xFEE0_0063}), PAGES[4]]
    rows = [read(0x8010, 0xFEE0_0010), write(0x8010, 0xFEE0_0010)]
    trace = read_trace(make(tmp_path, [*TABLES, *rows], pages=pages))
    result = simulate(trace, config.replace(memory="1G"))
    assert result.counters["mmio"] == (2 if config.mmu == "ept" else 0)
    assert "2 physical addresses and 0 page faults compared: 0 mismatches" in result.notes[0]
    assert result.counters["accesses"] == 2


def test_devices_of_a_replay(tmp_path: Path) -> None:
    """They are asked as of a bare machine; what they return goes nowhere, a trace has no registers."""
    pages = [*PAGES[:3], page(LEAVES | {8: 0xFEE0_0063}), PAGES[4]]
    rows = [read(0x8010, 0xFEE0_0010), write(0x8018, 0xFEE0_0018), row(op=0, size=32, lin=0x8020, val=0xFEE0_0020)]
    device = Recorder()
    trace = read_trace(make(tmp_path, [*TABLES, *rows], pages=pages))
    simulate(trace, EPT.replace(memory="1G"), policy=Bus({0xFEE0_0000: device}))
    assert device.asked == [
        ("read", 0x10, 8), ("write", 0x18, 8, 0), *(("read", 0x20 + at, 8) for at in range(0, 32, 8)),
    ]  # fmt: skip


# ---- what cannot be replayed ------------------------------------------------------------------------------------

REFUSED = {
    "a table outside": (row(op=32, aux=5, val=1 << 40), "0x10000000000 lies outside guest memory"),
    "not canonical": (read(1 << 50, 0), "0x4000000000000 is not canonical"),
    "fault not canonical": (fault(0, 1 << 50), "not canonical"),
    "INVPCID not canonical": (row(op=21, size=0, aux=1, lin=1 << 50), "not canonical"),
    "32-bit": (row(op=16, val=0x11), "PCIDE"),
    "legacy": (row(op=19, val=0x1), "PCIDE"),
    "contradiction": (row(op=18, val=0), "long mode needs CR4.PAE"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    bad, says = REFUSED[name]
    path = make(tmp_path, [*TABLES, bad], pages=[*PAGES, bytes(4096)])
    with pytest.raises(TraceError, match=says) as error:
        replayed(path)
    assert "record 10" in str(error.value)


def test_configurations_that_cannot_be(tmp_path: Path) -> None:
    path = trace_of(tmp_path, GOOD)
    with pytest.raises(ConfigError, match="premapped"):
        replayed(path, Config(premapped=True))
    with pytest.raises(ConfigError, match="'nothing' cannot be left out"):
        replayed(path, omit=["nothing"])
    with pytest.raises(ConfigError, match="guest_kernel=False"):
        SystemReplay(Machine(), GuestState())
    with pytest.raises(ConfigError, match="4-level"):
        replayed(make(tmp_path, [], registers={18: 0xA0 | 1 << 12}))


def test_records_given_by_hand_are_checked() -> None:
    """The kernel looks at each record itself: what it reads of pages and values is there."""
    state = GuestState(cr3=0x1000)
    none = np.empty(0, np.uint64)
    for rows, says in (
        (np.zeros(25, np.uint8), "no whole number of records"),
        (np.frombuffer(bytes([7]) + bytes(23), np.uint8), "malformed"),
        (np.frombuffer(bytes([32]) + bytes(23), np.uint8), "not there"),
        (np.frombuffer(bytes([1, 8, 0, 1]) + bytes(20), np.uint8), "not there"),
    ):
        replay = SystemReplay(Machine(guest_kernel=False, state=state), state)
        with pytest.raises(TraceError, match=says):
            replay.run(rows, none, none.view(np.uint8))


# ---- the command --------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trace_of(tmp_path, GOOD, final=FINAL)
    assert main(["replay", str(path)]) == 0
    out = capsys.readouterr().out
    assert "t, native, TLB skylake: 26 records" in out
    assert "8 physical addresses and 8 page faults compared: 0 mismatches; 0 of 2,560 page-table entries" in out
    assert main(["replay", str(path), "--mmu", "ept", "--vpid", "--find-missing-flushes", "--limit", "24"]) == 0
    out = capsys.readouterr().out
    assert "EPT+VPID, TLB strict: 24 records" in out
    assert "page tables at the end are not compared" in out
    assert "uses of translations are stale" in out
    path = trace_of(tmp_path, [*GOOD, read(0x10, 0x18)])
    assert main(["replay", str(path), "--omit", "invlpg"]) == 1
    out = capsys.readouterr().out
    assert "TLB strict without invlpg" in out
    assert "1 mismatches (1 address)" in out
    assert "record 26: physical 0x18, here 0x10010" in out


def test_the_command_on_what_it_cannot_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    assert main(["replay", str(tmp_path / "a.npy")]) == 2
    assert "replay takes system traces; use `fastmmu run`" in capsys.readouterr().err
    path = trace_of(tmp_path, GOOD)
    assert main(["run", str(path), "--data-only"]) == 2
    assert "leave --data-only out" in capsys.readouterr().err
