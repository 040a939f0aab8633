"""What data caches came to, in files of results and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastmmu import Config, simulate
from fastmmu.cache import caches
from fastmmu.cli import main
from fastmmu.report import load, rows, save
from fastmmu.trace import bundled, read_trace

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_loads_back(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet: fastmmu[arrow]")
    trace = read_trace(bundled()["sqlite"]).head(20_000)
    description = caches("zen2 l2=1m/16")
    configs = [Config(), Config(caches="skylake"), Config(mmu="ept", caches="skylake l3=none"),
               Config(mmu="shadow", caches=description)]  # fmt: skip
    results = [simulate(trace, config) for config in configs]
    save(results, tmp_path / f"found.{kind}")
    again = load(tmp_path / f"found.{kind}")
    assert [result.caches for result in again] == [result.caches for result in results]
    assert [result.cycles_by for result in again] == [pytest.approx(result.cycles_by) for result in results]
    assert [result.config.cache_description is None for result in again] == [True, False, False, False]
    assert [str(result.config.cache_description) for result in again] == [str(c.cache_description) for c in configs]
    assert again[0].caches is None
    assert again[1].caches is not None


def test_columns() -> None:
    trace = read_trace(bundled()["sqlite"]).head(20_000)
    plain, cached = rows([simulate(trace, Config(mmu="ept")), simulate(trace, Config(mmu="ept", caches="skylake"))])
    assert cached["cache_read_l1"] > 1000
    assert plain["cache_read_l1"] == 0
    assert cached["caches"] == "skylake"
    assert plain["caches"] is None
    assert plain.keys() == cached.keys()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = str(DATA / "true.lackey")
    assert main(["run", trace, "--mmu", "ept", "--caches", "zen2 l3=8m/16", "--json", str(tmp_path / "a.json")]) == 0
    (found,) = json.loads((tmp_path / "a.json").read_text())["results"]
    assert found["config"]["caches"] == "zen2 l3=8m/16"
    assert sum(sum(row) for row in found["caches"]["references"].values()) > 1000
    assert main(["compare", trace, "--caches", "skylake", "--csv", str(tmp_path / "a.csv")]) == 0
    assert all(result.caches is not None for result in load(tmp_path / "a.csv"))
    assert main(["replay", str(DATA / "systems/mm.rec.xz"), "--limit", "2000", "--caches", "skylake"]) == 0
    capsys.readouterr()
    assert main(["run", trace, "--caches", "skylark"]) == 2
    assert "did you mean skylake" in capsys.readouterr().err
    assert main(["host", trace, "--memory", "128M", "--caches", "skylake"]) == 2
    assert "data caches count by physical CPU" in capsys.readouterr().err
