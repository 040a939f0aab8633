"""Compaction of guest memory for huge pages: when it makes a block, when it fails, what moves; contiguity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Machine, simulate
from fastmmu.cli import main
from fastmmu.errors import ConfigError, StateError
from fastmmu.machine.frames_py import buddyinfo, program_runs
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.report import load, save
from fastmmu.report.runs import SHARES
from tests.support.event_lists import real_trace, run

PAGE, AREA = 0x4000_0000, 1 << 21
CONFIG = Config(
    mmu="ept", vpid=True, kvm="6.1", memory="64M", tlb="strict", find_missing_flushes=True, pages="thp", thp="always",
    frames="buddy:1:3", defrag="always", unmovable=0.0,
)  # fmt: skip


EPT = Config(mmu="ept", vpid=True, kvm="6.1", memory="256M", pages="thp")


def ran(rows: list[tuple[int, int]], **fields: Any) -> tuple[list[int], Machine]:
    """Addresses of the accesses, the machine."""
    machine, out = Machine(CONFIG.replace(**fields)), np.zeros(len(rows), np.uint64)
    op, addr = np.array([op for op, _ in rows], np.uint8), np.array([addr for _, addr in rows], np.uint64)
    machine.run(op, np.ones(len(rows), np.uint8), addr, out)
    assert machine.counters()["stale_uses"] == 0
    return out[op <= LAST_ACCESS].tolist(), machine


def huge(n: int) -> list[tuple[int, int]]:
    return [(Op.WRITE, PAGE + AREA * i) for i in range(n)]


def test_where_it_cannot_be() -> None:
    for fields in ({"thp": None}, {"frames": "first-touch"}):
        with pytest.raises(ConfigError, match="defrag='always' needs thp="):
            CONFIG.replace(**fields)
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="unmovable"):
            CONFIG.replace(unmovable=share)


@pytest.mark.parametrize("mmu", ["native", "shadow", "ept"])
def test_it_makes_blocks_until_no_frames_are_left_behind_them(mmu: str) -> None:
    _, machine = ran(huge(20), mmu=mmu, vpid=mmu != "native")
    c = machine.counters()
    assert c["thp_fault_alloc"] + c["thp_fault_fallback"] == 20
    assert c["thp_fault_alloc"] == c["compact_success"] > 10  # half of 29 blocks is free
    assert c["pgmigrate_success"] == 256 * c["compact_success"]
    assert c["compact_stall"] == c["compact_success"] + c["compact_fail"]
    assert 0 < c["compact_fail"] < c["thp_fault_fallback"]  # and then some are put off
    chunks = buddyinfo(machine)
    assert chunks is not None
    assert chunks[9] == 0


def test_what_cannot_move_stands_in_the_way() -> None:
    allocs = []
    for share in (0.0, 0.3, 0.7, 1.0):
        c = ran(huge(20), unmovable=share)[1].counters()
        allocs.append(c["thp_fault_alloc"])
        assert c["pgmigrate_success"] == 256 * allocs[-1]
    assert allocs[0] >= allocs[1] > allocs[2] > allocs[3] == 0


def test_who_waits() -> None:
    advised = [(Op.MADVISE_HUGE, PAGE | 511)]
    no, yes = [(Op.MADVISE_NOHUGE, PAGE | 511)], [(Op.MADVISE_HUGE, PAGE | 511)]
    scan = [*no, (Op.WRITE, PAGE), *yes, *[(Op.READ, PAGE)] * 200]
    for defrag, rows, thp, success, made in (
        ("never", huge(1), "always", 0, 0), ("always", huge(1), "always", 1, 1), ("madvise", huge(1), "always", 0, 0),
        ("madvise", advised + huge(1), "always", 1, 1), ("defer", huge(1), "always", 0, 0),
        ("defer", huge(2), "always", 0, 1), ("never", scan, "madvise+khugepaged:512/50", 0, 0),
        ("madvise", scan, "madvise+khugepaged:512/50", 1, 1), ("defer", scan, "madvise+khugepaged:512/50", 1, 1),
        ("always", scan, "madvise+khugepaged:512/50", 1, 1),
    ):  # fmt: skip
        c = ran(rows, defrag=defrag, thp=thp)[1].counters()
        assert (c["compact_success"], c["thp_fault_alloc"] + c["collapses"]) == (success, made), (defrag, thp)


@pytest.mark.parametrize("mmu", ["native", "shadow", "ept"])
@pytest.mark.parametrize("pcid", [False, True])
def test_pages_of_programs_move_with_all_who_have_them(mmu: str, pcid: bool) -> None:
    """Processes that share a page have one frame for it before and after."""
    no = [(Op.MADVISE_NOHUGE, PAGE | 4095)]
    pages = [(Op.WRITE, PAGE + 4096 * i) for i in range(600)]
    reads = [(Op.READ, PAGE + 4096 * i) for i in range(600)]
    rows = [*no, *pages, (Op.FORK, 7), (Op.SWITCH, 7), *reads, *huge(40)[20:], *reads, (Op.SWITCH, 0), *reads]
    came, machine = ran(rows, mmu=mmu, vpid=mmu != "native", pcid=pcid, memory="128M")
    before, child, after, parent = came[:600], came[600:1200], came[1220:1820], came[1820:]
    assert before == child
    assert after == parent
    assert len(set(after)) == 600
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 100
    assert machine.counters()["pgmigrate_success"] > 100


def test_tables_and_huge_pages_stay() -> None:
    """Blocks that they stand in are passed over."""
    rows = [*huge(12), *[(Op.MUNMAP, PAGE + AREA * i | 511) for i in range(6)], *huge(12)]
    came, machine = ran(rows, frames="buddy:0.6:1")
    assert came[6:12] == came[18:24]
    assert machine.counters()["thp_fault_alloc"] == 18


@pytest.mark.parametrize("thp", ["never", "always"])
def test_how_contiguous_programs_are(thp: str) -> None:
    rows = [*[(Op.WRITE, PAGE + 4096 * i) for i in range(100)], (Op.SWITCH, 3), (Op.WRITE, PAGE)]
    _, machine = ran(rows, frames="first-touch", defrag="never", thp=thp)
    found = program_runs(machine)
    if thp == "always":
        assert (found.lengths.tolist(), found.runs.tolist()) == ([512], [2])
    else:
        assert (found.lengths.tolist(), found.runs.tolist()) == ([1, 100], [1, 1])
    with pytest.raises(StateError, match="guest kernel"):
        program_runs(Machine(Config(memory="64M"), guest_kernel=False))


def test_policies_by_contiguity_and_misses() -> None:
    """Of a real program: fragmentation takes huge pages away, compaction gives them back, a miss less for each."""
    share, misses = {}, {}
    for name, fields in {
        "never": {"thp": "never", "frames": "buddy:1"}, "whole": {"frames": "buddy:0"}, "broken": {"frames": "buddy:1"},
        "compacted": {"frames": "buddy:1", "defrag": "always", "unmovable": 0.5},
    }.items():  # fmt: skip
        machine = Machine(EPT.replace(**{"thp": "always"} | fields))
        run(machine, real_trace())
        share[name], misses[name] = program_runs(machine).share(SHARES[-1]), machine.counters()["tlb_misses"]
    assert share == {"never": 0, "whole": 1, "broken": 0, "compacted": 1}
    assert misses["whole"] < misses["compacted"] < misses["never"] == misses["broken"]


def test_the_command_that_shows_it(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.lackey"
    path.write_text("".join(f" S {PAGE + 4096 * i:x},8\n" for i in range(40)))
    assert main(["run", str(path), "--pages", "thp", "--thp", "always", "--contiguity", "--memory", "64M"]) == 0
    assert "512 pages of 4 KB in 1 runs" in capsys.readouterr().out
    line = ["run", str(path), "--frames", "buddy:0:1", "--contiguity", "--csv", str(tmp_path / "runs.csv")]
    assert main([*line, "--memory", "64M"]) == 0
    assert "32,63,1,40" in (tmp_path / "runs.csv").read_text()
    assert main([*line, "--warm-up", "3"]) != 0
    assert "--warm-up" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_the_share_comes_back_from_files(form: str, tmp_path: Any) -> None:
    result = simulate(np.arange(0, 1 << 20, 4096, dtype=np.uint64), CONFIG.replace(unmovable=0.375))
    path = tmp_path / f"r.{form}"
    save([result], path)
    found, config = load(path)[0].config, result.config
    assert (found.unmovable, found.defrag, found.thp) == (config.unmovable, config.defrag, config.thp)
