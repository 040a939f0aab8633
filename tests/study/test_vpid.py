"""The VPID experiment: what it counts, how near the prediction is, and its files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from fastmmu import Config, ConfigError, simulate
from fastmmu.cli import main
from fastmmu.ops import Op
from fastmmu.study import VpidPoint, vpid_experiment
from fastmmu.study.vpid.run import _Exits, vpid_points
from fastmmu.trace import Trace, bundled


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("name", list(bundled()))
def test_the_prediction_on_real_programs(name: str, mmu: str) -> None:
    """Five rates: within 3 % of what is counted, and the counts are those of plain runs."""
    trace = fastmmu.read_trace(bundled()[name]).head(300_000)
    base = Config(mmu=mmu, premapped=True)
    for point in vpid_experiment(trace, base):
        every = round(1000 / point.rate)
        assert point.exits == point.accesses // every
        assert min(point.looks, 200) == min(point.exits, 200)
        for vpid, misses in ((True, point.on), (False, point.off)):
            counted = simulate(trace, base.replace(vpid=vpid, exit_every=every)).counters
            assert (counted["tlb_misses"], counted["vm_exits"]) == (misses, point.exits)
        assert point.on < point.off
        assert abs(point.predicted / point.off - 1) < 0.03, point
        assert 0 < point.refills <= point.off - point.on


def test_a_prediction_can_be_wrong() -> None:
    """Pages that are used once and never again: nothing of the resident set is worth keeping."""
    addr = (np.arange(40_000, dtype=np.uint64) // np.uint64(4)) << np.uint64(12)
    (point,) = vpid_experiment(Trace.from_arrays(addr), rates=[10])
    assert point.resident < 2
    assert point.off == pytest.approx(point.on, rel=0.02)
    assert point.exits * 1536 > 10 * point.off  # all that the TLB holds would not predict it


@pytest.mark.parametrize("chunk", [7, 100, 1000])
def test_the_parts_end_at_exits_whatever_the_batches(chunk: int) -> None:
    op = np.array([0, 1, Op.INVLPG, 3] * 300, np.uint8)

    seen, begun = 0, 0
    exits = _Exits(50)
    batches = Trace.from_arrays(np.arange(1200, dtype=np.uint64), op).batches(chunk)
    for part, first in (each for batch in batches for each in exits.between(batch)):
        assert first is (seen > 0 and seen % 50 == 0 and begun != seen)
        begun = seen if first else begun
        seen += int(np.count_nonzero(part.op <= Op.FETCH))
    assert seen == 900
    assert begun == 850


def test_what_cannot_be_is_refused() -> None:
    trace = Trace.from_arrays([0])
    for options, message in (
        ({"config": Config()}, "native"), ({"config": Config(mmu="ept", pages="thp")}, "thp"),
        ({"rates": [0]}, "0 exits"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            vpid_experiment(trace, **options)  # type: ignore[arg-type]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    names = {suffix: str(tmp_path / f"v.{suffix}") for suffix in ("csv", "svg")}
    line = ["vpid", "zstd", "--limit", "60000", "--rates", "0.5,2", "--csv", names["csv"], "--plot", names["svg"]]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "predicted" in out
    rows = list(csv.DictReader(Path(names["csv"]).read_text().splitlines()))
    assert [row["rate"] for row in rows] == ["0.5", "2.0"]
    for row in rows:
        predicted = int(row["misses_on"]) + int(row["exits"]) * float(row["resident"])
        assert float(row["predicted"]) == pytest.approx(predicted)
    assert Path(names["svg"]).read_text().startswith("<?xml")
    with pytest.raises(SystemExit, match="2"):
        main(["vpid", "zstd", "--rates", "0"])
    assert "exits per thousand accesses" in capsys.readouterr().err


def test_ctrl_c_leaves_the_traces_that_were_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def one(trace: Trace, *args: object, **more: object) -> Iterator[VpidPoint]:
        if trace.name == "sqlite":
            raise KeyboardInterrupt
        yield from points(trace, *args, **more)  # type: ignore[arg-type]

    points = vpid_points
    monkeypatch.setattr("fastmmu.study.vpid.run.vpid_points", one)
    line = ["vpid", "zstd", "sqlite", "--limit", "20000", "--rates", "1", "--csv", str(tmp_path / "v.csv")]
    assert main(line) == 130
    assert capsys.readouterr().out.startswith("zstd: 20,000 accesses")
    assert len((tmp_path / "v.csv").read_text().splitlines()) == 2
    assert main(["vpid", "sqlite"]) == 130
    assert capsys.readouterr() == ("", "fastmmu: interrupted\n")


def test_pages_of_the_host_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["run", "zstd", "--limit", "20000", "--mmu", "ept", "--vpid", "--exit-every", "1000", "--csv", "-"]
    assert main([*line, "--exit-pages", "16"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert int(row["host_accesses"]) == 16 * int(row["vm_exits"]) > 0
    with pytest.raises(SystemExit, match="2"):
        main([*line, "--host-pages", "4m!"])
    assert "'4m!' is none of 4k, 2m, untouched; pages of its own" in capsys.readouterr().err
