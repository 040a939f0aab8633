"""Live migration: rounds by method of dirty logging, and the command."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from fastmmu import read_trace
from fastmmu.cli import main
from fastmmu.study.migrate import METHODS, Migration, Plan, migrate, run
from fastmmu.trace import Trace
from fastmmu.trace.bundle import bundled


@pytest.fixture(scope="module")
def trace() -> Trace:
    return read_trace(bundled()["sqlite"]).head(400_000)


def test_migration(trace: Trace) -> None:
    found = {
        method: migrate(trace, method, Plan(bandwidth=1e9, downtime=2e-4, rounds=12, ghz=0.3)) for method in METHODS
    }
    for m in found.values():
        assert m.rounds[0].pages > 100
        assert all(before.dirtied == after.pages for before, after in zip(m.rounds, m.rounds[1:], strict=False))
        assert m.last == m.rounds[-1].dirtied
        assert m.converged == (m.downtime <= 2e-4)
        assert m.cycles > 0
    assert found["pml"].exits == found["pml"].base_exits
    assert found["write-protect"].exits > found["write-protect"].base_exits
    assert found["pml"].slowdown < found["write-protect"].slowdown
    # a link too slow to keep up: it stops after the rounds allowed
    slow = migrate(trace, "pml", Plan(bandwidth=2e8, downtime=1e-6, rounds=2, ghz=0.3))
    assert len(slow.rounds) == 2
    assert not slow.converged


def test_migrate_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "rounds.csv"
    name = str(Path(__file__).parents[1] / "data" / "true.lackey")
    assert main(["migrate", name, "--methods", "pml,shadow", "--csv", str(target), "--memory", "128M"]) == 0
    out = capsys.readouterr().out
    assert "live migration at 1.25 GB/s" in out
    assert [line.split()[0] for line in out.splitlines()[5:7]] == ["pml", "shadow"]
    head = "trace,path,content,method,round,pages,round_seconds,events,exits,dirtied,converged,slowdown"
    assert target.read_text().startswith(f"{head},bandwidth,ghz,costs,geometry,fastmmu,command\n")


def test_ctrl_c_leaves_what_was_finished(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                         tmp_path: Path) -> None:  # fmt: skip
    """It comes in the second method; or in the first, where there is nothing to show."""
    name = str(Path(__file__).parents[1] / "data" / "true.lackey")
    target = tmp_path / "rounds.csv"

    def one(trace: Trace, kept: object, method: str, *args: Any) -> Generator[int, None, Migration]:
        if method == "ring":
            raise KeyboardInterrupt
        return (yield from migration(trace, kept, method, *args))  # type: ignore[arg-type]

    migration = run._migration
    monkeypatch.setattr(run, "_migration", one)
    assert main(["migrate", name, "--methods", "pml,ring,shadow", "--jobs", "1", "--csv", str(target)]) == 130
    assert "\npml " in capsys.readouterr().out
    finished = {line.split(",")[3] for line in target.read_text().splitlines()}
    assert finished == {"method", "pml"}
    target.unlink()
    assert main(["migrate", name, "--methods", "ring", "--csv", str(target)]) == 130
    assert capsys.readouterr() == ("", "fastmmu: interrupted\n")
    assert not target.exists()
