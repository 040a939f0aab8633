"""The study of TLB shootdowns: who is told how, what it counts, its table, picture and files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu import ConfigError, CostModel
from fastmmu.cli import main
from fastmmu.ops import Op
from fastmmu.study import ShootdownPoint, shootdown_study
from fastmmu.study.shootdown import METHODS
from fastmmu.study.shootdown import command as line
from fastmmu.study.shootdown.table import shootdown_rows, shootdown_table
from fastmmu.trace import Trace, bundled

TRACE = fastmmu.read_trace(bundled()["sqlite"]).head(20_000)


def points(*args: Any, **options: Any) -> dict[tuple[str, int, bool], ShootdownPoint]:
    found = shootdown_study(*args, **{"every": 500, "quantum": 100, **options})
    return {(point.method, point.vcpus, point.lazy): point for point in found}


def test_the_command_names_what_there_is() -> None:
    assert tuple(METHODS) == line.METHODS


@pytest.mark.parametrize(("method", "apic", "kick"), [("trap", 3, 1), ("flexpriority", 3, 1), ("apicv", 1, 0)])
def test_exits_of_an_interrupt(method: str, apic: int, kick: int) -> None:
    """Two writes of the ICR and one of EOI, and the exit of who is interrupted; with APICv one of the ICR."""
    (point,) = points(TRACE, (4,), (method,), (True,), idle=0).values()
    assert point.ipis == 3 * point.shootdowns > 0
    assert (point.apic_exits, point.kicks) == (apic * point.ipis, kick * point.ipis)
    assert point.preempted == point.marked == point.lazy_skipped == 0


def test_who_is_told_does_not_depend_on_the_method() -> None:
    """Each vCPU that has the process: as many interrupts natively as in a guest; INVLPGB and PV send fewer."""
    found = points(TRACE, (1, 2, 8), lazy=(True,))
    for n in (1, 2, 8):
        told = {found[method, n, True].ipis for method in ("native", "trap", "flexpriority", "apicv", "pv")}
        assert len(told) == 1
        assert (told == {0}) == (n == 1)
        assert found["invlpgb", n, True].ipis == 0
        assert (found["invlpgb", n, True].invlpgbs > 0) == (n > 1)
    accesses = {point.accesses for point in found.values()}
    assert accesses == {20_000}
    for method in METHODS:
        each = [found[method, n, True].each for n in (2, 8)]
        assert (each[0] < each[1]) == (method != "invlpgb"), method
    order = ["native", "apicv", "flexpriority", "trap"]
    assert [found[method, 8, True].each for method in order] == sorted(found[method, 8, True].each for method in order)
    assert found["invlpgb", 8, True].each < found["native", 8, True].each


def test_pv_leaves_preempted_vcpus_to_the_vmm() -> None:
    found = points(TRACE, (6,), ("apicv", "pv"), (True,), overcommit=2, idle=0)
    plain, pv = found["apicv", 6, True], found["pv", 6, True]
    assert plain.cpus == pv.cpus == 3
    assert plain.preempted == pv.marked > 0
    assert (plain.marked, pv.preempted) == (0, 0)
    assert plain.ipis == pv.ipis + pv.marked
    assert pv.each < plain.each / 10  # nobody waits for who has no CPU


def test_lazy_mode_leaves_who_idles_alone() -> None:
    found = points(TRACE, (4,), ("apicv",), idle=0.5)
    on, off = found["apicv", 4, True], found["apicv", 4, False]
    assert on.lazy_skipped > 0
    assert on.late_flushes > 0
    assert off.lazy_skipped == 0
    assert on.shootdowns > 0


def test_every_counts_through_turns_and_batches() -> None:
    """20,000 accesses, a page unmapped after each 700: 28 of them, whatever the turns."""
    for quantum in (1, 333):
        for chunk in (17, 5000):
            trace = Trace.from_arrays(np.arange(20_000, dtype=np.uint64) % 300 * 4096 + 0x40_0000)

            class Chunked(Trace):
                name, format = "chunked", "test"

                def batches(self, n: int = chunk, of: Trace = trace) -> Iterator[Any]:
                    return of.batches(n)

            (point,) = points(Chunked(), (2,), ("native",), (True,), every=700, quantum=quantum, idle=0).values()
            assert point.shootdowns == 28
            assert point.accesses == 20_000


def test_processes_of_a_trace_go_from_vcpu_to_vcpu() -> None:
    """Who runs a turn has the process of the trace; the other one is told of its own alone."""
    op = np.zeros(4000, np.uint8)
    addr = np.arange(4000, dtype=np.uint64) % 40 * 4096 + 0x40_0000
    op[2000], addr[2000] = Op.SWITCH, 5
    (point,) = points(Trace.from_arrays(addr, op), (2,), ("native",), (True,), every=0, idle=0).values()
    assert point.shootdowns == 0
    op[[1000, 1500, 3000]] = Op.UNMAP
    (point,) = points(Trace.from_arrays(addr, op), (2,), ("native",), (True,), every=0, idle=0).values()
    assert point.shootdowns == 3


def test_what_is_spent_is_part_of_all_cycles() -> None:
    costs = CostModel.load()
    for point in points(TRACE, (3,), idle=0.3).values():
        assert 0 < point.spent < point.cycles
        assert point.share == point.spent / point.cycles
    native = points(TRACE, (3,), ("native",), (True,), idle=0)["native", 3, True]
    guest = native.shootdowns * costs.guest.shootdown + native.ipis * costs.guest.shootdown_ipi
    assert native.spent == guest + native.interrupts * costs.guest.interrupt
    assert native.ipis - 2 <= native.interrupts <= native.ipis  # the last ones would be taken with the next event


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vcpus": (0,)}, "0 vCPUs"), ({"vcpus": (256,)}, "1..255"), ({"methods": ("rar",)}, "no method 'rar'"),
        ({"every": -1}, "every=-1"), ({"quantum": 0}, "quantum=0"), ({"idle": 1.0}, "idle=1.0"),
        ({"overcommit": 0}, "overcommit=0"), ({"tlb": "none"}, "TLB preset"), ({"nothing": 1}, "nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shootdown_study(TRACE, **options)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    names = {suffix: str(tmp_path / f"s.{suffix}") for suffix in ("csv", "json", "svg")}
    files = ["--csv", names["csv"], "--json", names["json"], "--plot", names["svg"]]
    words = ["shootdown", "sqlite", "zstd", "--limit", "20000", "--vcpus", "1,4", "--methods", "apicv,invlpgb"]
    assert main([*words, "--every", "500", "--quiet", *files]) == 0
    out = capsys.readouterr().out
    assert out.startswith("sqlite: 20,000 accesses")
    assert "zstd: 20,000 accesses" in out
    rows = list(csv.DictReader(Path(names["csv"]).read_text().splitlines()))
    assert len(rows) == 2 * 2 * 2 * 2
    assert len(json.loads(Path(names["json"]).read_text())["points"]) == len(rows)
    for row in rows:
        if int(row["shootdowns"]):
            assert float(row["cycles_each"]) == pytest.approx(float(row["spent"]) / int(row["shootdowns"]))
    picture = Path(names["svg"]).read_text()
    assert all(word in picture for word in ("apicv", "invlpgb", "sqlite, lazy mode on", "zstd, lazy mode off"))
    for bad in (["--vcpus", "0"], ["--idle", "1"], ["--methods", "x"], ["--overcommit", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main(["shootdown", "sqlite", *bad])


def test_a_table_has_a_row_a_run() -> None:
    found = shootdown_study(TRACE.head(3000), (1, 2), ("native", "pv"), every=500)
    rows = shootdown_rows(found)
    assert len(rows) == 8
    assert {row["method"] for row in rows} == {"native", "pv"}
    text = shootdown_table(found, width=200)
    assert text.count("native") == text.count("pv") == 4
    assert shootdown_table([]) == "\n".join(shootdown_table([]).splitlines())
