"""`fastmmu overcommit`: hosts with less memory than the guest takes, by scheme and policy."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmmu import Config, ConfigError, Machine, TraceError, interleave, read_trace
from fastmmu.cli import main
from fastmmu.machine.costs import CostModel
from fastmmu.study.overcommit import RECLAIM, SCHEMES, Overcommit, overcommit
from fastmmu.study.overcommit.table import overcommit_plot, overcommit_rows, overcommit_table
from fastmmu.trace import Trace
from fastmmu.trace.bundle import bundled

TRUE = str(Path(__file__).parents[1] / "data" / "true.lackey")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return read_trace(bundled()["sqlite"]).head(300_000)


def test_the_guest_sees_nothing_of_it(trace: Trace) -> None:
    """In every scheme and under every policy: one checksum; and what moves adds up."""
    found = list(overcommit(trace, shares=(1.0, 0.5, 0.1), memory="256M"))
    assert len(found) == len(SCHEMES) * (1 + 2 * len(RECLAIM))
    assert {r.checksum for r in found} == {found[0].checksum}
    assert all(r.equal for r in found)
    costs = CostModel.load()
    for r in found:
        c = r.counters
        if r.reclaim is None:
            assert (c["swap_outs"], c["aged_old"], r.slowdown) == (0, 0, 1.0)
            whole = r
            continue
        # what a guest takes beyond the host's memory must go; what came back went before
        assert c["swap_outs"] - c["swap_ins"] == whole.pages - r.pages
        assert 0 < c["swap_writes"] <= c["swap_outs"]
        assert c["pf_retry"] >= c["swap_outs"]  # each is made by a fault, which begins anew
        assert c["vm_exits"] >= whole.counters["vm_exits"] + c["swap_outs"]
        assert (c["pf_fast"] > 0) is (r.scheme == "ept-tracked")
        assert r.by_cause["swap_ins"] if c["swap_ins"] else "swap_ins" not in r.by_cause
        assert r.by_cause["ageing"] == costs.host.ask * (c["aged_young"] + c["aged_old"])
        assert r.slowdown > 1
    rows = overcommit_rows(found)
    assert [row["swap_ins"] for row in rows] == [r.counters["swap_ins"] for r in found]
    assert overcommit_table(found).count("equal") == len(found)


def test_several_address_spaces(trace: Trace) -> None:
    """Pages of the program that waits go while the other runs; equal results all the same."""
    both = interleave([trace.head(60_000), read_trace(bundled()["zstd"]).head(60_000)], 4000)
    found = list(overcommit(both, shares=(1.0, 0.3), memory="256M"))
    assert len(found) == len(SCHEMES) * 3
    assert {r.checksum for r in found} == {found[0].checksum}
    assert found[0].counters["cr3_switches"] > 20
    assert all(r.counters["swap_ins"] for r in found if r.reclaim)


def test_a_difference_would_show(trace: Trace) -> None:
    """The checksum is of the addresses: another order of first touches gives another."""
    some = trace.head(30_000)
    one, *_ = overcommit(some, ["ept"], [1.0], memory="256M")
    other, *_ = overcommit(some.data_only(), ["ept"], [1.0], memory="256M")
    assert one.checksum != other.checksum


def test_what_is_refused() -> None:
    trace = read_trace(TRUE)
    for call, message in (
        (lambda: overcommit(trace, ["xen"]), "'xen'"), (lambda: overcommit(trace, reclaim=["fifo"]), "'fifo'"),
        (lambda: overcommit(trace, shares=[0.0]), "share of 0.0"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            next(call())
    with pytest.raises(TraceError, match="no accesses"):
        next(overcommit(trace.head(0), ["ept"]))
    with pytest.raises(ConfigError, match="picture"):
        overcommit_plot([], "a.gif")


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target, picture = tmp_path / "runs.csv", tmp_path / "runs.svg"
    argv = ["overcommit", TRUE, "--memory", "128M", "--host-memory", "100%,40%", "--schemes", "ept,shadow"]
    assert main([*argv, "--csv", str(target), "--plot", str(picture), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("equal")] == ["ept"] * 3 + ["shadow"] * 3
    rows = list(csv.DictReader(target.open()))
    assert [(row["scheme"], row["reclaim"], row["share"]) for row in rows[:3]] == [
        ("ept", "", "1.0"), ("ept", "clock", "0.4"), ("ept", "lru", "0.4"),
    ]  # fmt: skip
    assert picture.read_bytes().startswith(b"<?xml")
    for wrong in (["--reclaim", "fifo"], ["--host-memory", "0%"]):
        with pytest.raises(SystemExit):
            main([*argv, *wrong])


def test_ctrl_c_leaves_what_was_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def two(*args: Any, **more: Any) -> Iterator[Overcommit]:
        yield from itertools.islice(overcommit(*args, **more), 2)
        raise KeyboardInterrupt

    target = tmp_path / "runs.csv"
    monkeypatch.setattr("fastmmu.study.overcommit.run.overcommit", two)
    assert main(["overcommit", TRUE, "--memory", "128M", "--csv", str(target)]) == 130
    assert capsys.readouterr().out.count("equal") == 2
    assert len(target.read_text().splitlines()) == 3


def test_counters_of_the_table_pages() -> None:
    counters = Machine(Config(mmu="ept", memory="64M")).counters()
    assert counters["vmm_table_bytes"] == 4096 * counters["vmm_tables"] > 0
