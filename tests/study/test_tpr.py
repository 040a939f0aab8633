"""Workloads of TPR traffic, the study over them, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Trace, read_trace, simulate, write_trace
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.study import WAYS, tpr_study
from fastmmu.study.tpr.table import EXITS, tpr_plot, tpr_rows, tpr_table
from fastmmu.trace import tpr_profile, with_tpr
from fastmmu.trace.tpr import PROFILES

N = 100_000


def accesses(n: int = N) -> Trace:
    chance = np.random.default_rng(7)
    return Trace.from_arrays(0x40_0000 + chance.integers(0, 1 << 18, n) * 8, name="random")


def columns(trace: Trace, chunk: int = 1 << 18) -> tuple[list[int], list[int]]:
    batches = list(trace.batches(chunk))
    return [int(op) for b in batches for op in b.op], [int(addr) for b in batches for addr in b.addr]


@pytest.mark.parametrize("name", PROFILES)
def test_events_do_not_depend_on_batches_and_leave_the_accesses_alone(name: str) -> None:
    profile = tpr_profile(name, interrupts=500)
    whole = columns(with_tpr(accesses(20_000), profile))
    assert whole == columns(with_tpr(accesses(20_000), profile), 37)
    assert whole != columns(with_tpr(accesses(20_000), tpr_profile(name, interrupts=500, seed=2)))
    kept = [(op, addr) for op, addr in zip(*whole, strict=True) if op <= LAST_ACCESS]
    assert kept == list(zip(*columns(accesses(20_000)), strict=True))


def test_rates_are_those_asked_for() -> None:
    profile = tpr_profile("winxp", changes=5000, reads=1.5, held=100, interrupts=2000)
    op, addr = (np.array(column) for column in columns(with_tpr(accesses(), profile)))
    writes = op == Op.APIC_WRITE
    assert abs(np.count_nonzero(writes) / (2 * 5000 * N / 1e6) - 1) < 0.15
    assert abs(np.count_nonzero(op == Op.APIC_READ) / (1.5 * 5000 * N / 1e6) - 1) < 0.15
    assert abs(np.count_nonzero(op == Op.DEVICE_INTERRUPT) / (2000 * N / 1e6) - 1) < 0.2
    values = (addr[writes] & 0xFF)[1:]  # the first enables the APIC
    assert (values[1::2] == 0).all()  # each raise is lowered
    assert set(values[0::2].tolist()) <= set(profile.levels)
    assert set((addr[op == Op.DEVICE_INTERRUPT]).tolist()) <= set(profile.vectors)


@pytest.mark.parametrize("name", ["t.npy", "t.arrow", "t.npy.xz"])
def test_events_survive_trace_files(name: str, tmp_path: Path) -> None:
    if "arrow" in name:
        pytest.importorskip("pyarrow")
    trace = with_tpr(accesses(5000), tpr_profile("winxp", changes=3000, interrupts=900))
    write_trace(trace, tmp_path / name)
    assert columns(read_trace(tmp_path / name)) == columns(trace)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="no TPR traffic 'os2'"):
        tpr_profile("os2")
    for wrong in ({"changes": -1}, {"changes": 1e5, "held": 50}, {"levels": {256: 1}}, {"vectors": {}}, {"sites": 0}):
        with pytest.raises(ConfigError, match="TPR traffic"):
            tpr_profile("winxp", **wrong)
    with pytest.raises(ConfigError, match="unexpected keyword"):
        tpr_profile("winxp", irqls=3)
    with pytest.raises(ConfigError, match="no way to handle"):
        tpr_study(accesses(10), ways=("magic",))
    with pytest.raises(ConfigError, match="help"):
        tpr_study(accesses(10), colour="red")


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_the_claims_of_the_slides(mmu: str) -> None:
    """Trapping exits at every access, FlexPriority removes nearly all of them, APICv the rest."""
    profile = tpr_profile("winxp", changes=8000, held=60, interrupts=400)
    results = tpr_study(accesses(), profile, mmu=mmu)
    rows = {row["way"]: row for row in tpr_rows(results)}
    assert list(rows) == list(WAYS)
    same = {(row["interrupts"], row["latency"], row["tpr_writes"], row["tpr_reads"]) for row in rows.values()}
    assert len(same) == 1  # what the guest does and sees does not depend on the way
    trap, flexpriority = rows["trap"], rows["flexpriority"]
    assert trap["exits"] >= trap["tpr_writes"] + trap["tpr_reads"]
    assert flexpriority["exits"] < 0.1 * trap["exits"]
    assert flexpriority["exits_tpr_below_threshold"] > 0
    assert flexpriority["exits_tpr_below_threshold"] <= rows["flexpriority-slides"]["exits_tpr_below_threshold"]
    assert rows["patch"]["exits"] < 0.15 * trap["exits"]
    assert rows["patch"]["patched"] <= 2 * profile.sites
    assert rows["apicv"]["exits"] < 0.1 * flexpriority["exits"]
    assert rows["native"]["exits"] == 0
    for row in rows.values():
        assert row["exits"] == sum(n for key, n in row.items() if key.startswith("exits_"))
    order = [rows[way]["cycles_per_access"] for way in ("native", "apicv", "flexpriority", "patch", "trap")]
    assert order == sorted(order)


def test_linux_needs_none_of_it() -> None:
    rows = {row["way"]: row for row in tpr_rows(tpr_study(accesses(), tpr_profile("linux", interrupts=200)))}
    assert rows["trap"]["tpr_writes"] == 0
    assert rows["flexpriority"]["exits_tpr_below_threshold"] == 0
    assert rows["apicv"]["exits"] < rows["flexpriority"]["exits"]


def test_table_and_picture(tmp_path: Path) -> None:
    results = tpr_study(accesses(20_000), tpr_profile("winxp", changes=5000, interrupts=1000))
    text = tpr_table(results)
    assert "Exits of trapping that the others save: patch" in text
    assert all(way in text for way in WAYS)
    assert set(EXITS) & set(text.split("\n")[3].split("  ")) or "APIC access" in text
    with pytest.raises(ConfigError, match="picture"):
        tpr_plot(results, tmp_path / "x.txt")
    pytest.importorskip("matplotlib")
    tpr_plot(results, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().count("<svg") == 1


def test_a_study_is_the_runs_by_themselves() -> None:
    profile = tpr_profile("winxp", changes=4000, interrupts=300)
    (studied,) = tpr_study(accesses(), profile, ways=("flexpriority",))
    config = Config(mmu="ept", vpid=True, memory="2G", guest_handler="irql", tpr="flexpriority")
    assert simulate(with_tpr(accesses(), profile), config).counters == studied.counters


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "fastmmu", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_writes_rows(tmp_path: Path) -> None:
    trace = tmp_path / "t.npy"
    write_trace(accesses(20_000), trace)
    rows = json.loads(run("tpr", str(trace), "--changes", "9000", "--ways", "trap,apicv", "--json", "-", "--quiet"))
    rows = rows["ways"] if isinstance(rows, dict) else rows
    assert [row["way"] for row in rows] == ["trap", "apicv"]
    assert rows[0]["exits"] > rows[1]["exits"]
    shown = run("tpr", str(trace), "--workload", "linux", "--mmu", "shadow", "--quiet")
    assert "as linux: 20,000 accesses, 0 writes" in shown


def test_compare_has_the_columns(tmp_path: Path) -> None:
    trace = tmp_path / "t.npy"
    write_trace(with_tpr(accesses(30_000), tpr_profile("winxp", changes=9000, held=90, interrupts=3000)), trace)
    words = ["compare", str(trace), "--tpr", "flexpriority", "--traffic", "none", "--schemes", "shadow,ept", "--quiet"]
    shown = run(*words)
    assert "APIC" in shown
    assert "TPR" in shown


def test_ipis_and_deadlines_of_a_profile() -> None:
    """Rates, vectors and targets: to itself with one vCPU, else to each other one; the timer's LVT is set first."""
    profile = tpr_profile("linux", ipis=4000, timer=1000)
    for vcpu, vcpus in ((0, 1), (0, 3), (2, 3)):
        op, addr = (np.array(column) for column in columns(with_tpr(accesses(), profile, vcpu, vcpus)))
        icr, after = addr[op == Op.IPI], addr[op == Op.TSC_DEADLINE]
        assert abs(len(icr) / (4000 * N / 1e6) - 1) < 0.2
        assert (len(after), set(after.tolist())) == (1000 * N // 10**6 - 1, {500})
        assert set((icr & 0xFF).tolist()) <= set(profile.ipi_vectors)
        assert addr[op == Op.APIC_WRITE].tolist() == [0xF0 << 32 | 0x1FF, 0x320 << 32 | 2 << 17 | 0xEC]
        if vcpus == 1:
            assert set((icr >> 18 & 3).tolist()) == {1}
        else:
            assert set((icr >> 32).tolist()) == {0, 1, 2} - {vcpu}
    with pytest.raises(ConfigError, match="vCPU 3 of 3"):
        with_tpr(accesses(10), "linux", 3, 3)
    for wrong in ({"ipis": -1}, {"timer_vector": 3}, {"ipi_vectors": {}}):
        with pytest.raises(ConfigError, match="TPR traffic"):
            tpr_profile("linux", **wrong)


def test_ipis_by_way_and_threshold_exits_by_rule() -> None:
    profile = tpr_profile("winxp", changes=5000, interrupts=3000, ipis=2000, held=100)
    # handlers that take time with interrupts off, in which the TPR is lowered: there the rules differ
    results = tpr_study(accesses(50_000), profile, guest_handler="eoi", handler_length=300)
    rows = {row["way"]: row for row in tpr_rows(results)}
    assert len({row["ipis"] for row in rows.values()}) == 1
    assert {way for way, row in rows.items() if row["ipis_virtualized"]} == {"apicv"}
    assert rows["apicv"]["ipis_virtualized"] == rows["apicv"]["ipis"] > 50
    below = [rows[way]["exits_tpr_below_threshold"] for way in ("flexpriority-slides", "flexpriority")]
    assert rows["flexpriority"]["threshold_saved"] == below[0] - below[1] > 0
    assert rows["trap"]["threshold_saved"] is None
    assert f"rule saves: {below[0] - below[1]} of the slides' {below[0]}" in tpr_table(results)
