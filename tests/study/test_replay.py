"""A whole Linux in every scheme."""

from __future__ import annotations

import base64
import csv
import re
from pathlib import Path

import pytest

from fastmmu import Result, read_trace
from fastmmu.cli.main import main
from fastmmu.report import over_time
from fastmmu.study.replay import SCHEMES, replay_schemes
from fastmmu.trace.system import SystemTrace
from tests.conformance import systems


@pytest.mark.parametrize("path", systems.traces(systems.sample_directory()), ids=lambda path: path.name)
def test_a_linux_in_every_scheme(path: Path) -> None:
    """No scheme changes an address, a fault or a page-table entry."""
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    ran = {r.scheme: r for r in replay_schemes(trace, memory="2G")}
    assert set(ran) == set(SCHEMES)
    for name, r in ran.items():
        assert r.found is not None, (name, r.why)
        assert r.found.accesses > 0
        assert r.found.wrong == 0, (name, r.found.line(), r.found.examples)
    lazy, synced = (ran[name].counters["vm_exits"] for name in ("shadow, Linux 6.1", "shadow, always in sync"))
    assert lazy < synced
    assert ran["EPT, logged"].logged == ran["EPT, logged by PML"].logged


@pytest.mark.parametrize("path", systems.traces(systems.sample_directory()), ids=lambda path: path.name)
def test_a_linux_on_amd(path: Path) -> None:
    """Over nested page tables as over an EPT, which exits as often where it has A and D flags; but CR4 exits."""
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    intel = {r.scheme: r for r in replay_schemes(trace, memory="2G")}
    for r in replay_schemes(trace, memory="2G", vendor="amd"):
        if r.scheme == "EPT, logged by PML":
            assert r.found is None
            continue
        if r.scheme.startswith("agile"):
            assert "does not go with vendor='amd'" in r.why
            continue
        assert r.found is not None
        assert r.found.wrong == 0, (r.scheme, r.found.line(), r.found.examples)
        exits = r.counters.get("exits_by_reason", {})
        if r.scheme.startswith("EPT"):
            assert not {"ept_violation", "ept_misconfig"} & set(exits)
            like = "EPT" if r.scheme == "EPT, no A/D flags" else r.scheme
            theirs = intel[like].counters["exits_by_reason"]
            assert exits["npf"] == theirs.get("ept_violation", 0) + theirs.get("ept_misconfig", 0)


def test_results_are_those_of_the_replay_also_over_time(tmp_path: Path) -> None:
    trace = read_trace(systems.traces(systems.sample_directory())[0])
    assert isinstance(trace, SystemTrace)
    told: dict[str, Result] = {}
    schemes = ("native", "EPT", "EPT, logged")
    for ran in replay_schemes(trace, schemes, memory="2G", told=told.__setitem__):
        result = told[ran.scheme]
        assert result.counters == ran.counters
        assert ran.found is not None
        assert result.notes == (ran.found.line(),)
        parts = over_time([result])
        assert sum(part.counters["accesses"] for part in parts) == ran.found.accesses
        assert sum(part.counters["vm_exits"] for part in parts) == ran.counters["vm_exits"]
        assert sum(part.cycles for part in parts) == pytest.approx(result.cycles)
    assert set(told) == set(schemes)


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ("--schemes --memory 2G", list(SCHEMES)),
        ("--mmu ept --vpid --omit cr3,invlpg", ["EPT+VPID without cr3", "EPT+VPID without invlpg"]),
        ("--mmu ept --limit 1000", ["EPT"]),
    ],
)
def test_a_page_of_replays(tmp_path: Path, argv: str, names: list[str]) -> None:
    pytest.importorskip("jinja2", reason="skipped: pages need fastmmu[report]")
    pytest.importorskip("matplotlib", reason="skipped: pages need fastmmu[report]")
    path = systems.traces(systems.sample_directory())[0]
    assert main(["replay", str(path), *argv.split(), "--report", str(tmp_path / "r.html")]) in (0, 1)
    text = (tmp_path / "r.html").read_text()
    links = dict(re.findall(r'download="([^"]+).csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', text))
    rows = list(csv.DictReader(base64.b64decode(links["t0-cycles"]).decode().splitlines()))
    assert [row["run"] for row in rows] == names
    assert "physical addresses" in text


def test_a_page_and_ipis_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = systems.traces(systems.sample_directory())[0]
    assert main(["replay", str(path), "--ipis", "--report", str(tmp_path / "r.html")]) == 2
    assert "--ipis replays no memory" in capsys.readouterr().err
