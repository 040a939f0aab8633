"""Miss-ratio curves: against one TLB at a time, by the specification and by the machine; sampling; files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from fastmmu import Config, ConfigError, TraceError, geometry
from fastmmu.cli import main
from fastmmu.ops import Op
from fastmmu.reference.tlb import lru
from fastmmu.study import Curves, tlb_curve
from fastmmu.study.curve.table import curve_plot
from fastmmu.trace import Trace, bundled, interleave
from tests.support.curve_events import events, stream, trace_of

SIZES = (1, 2, 3, 7, 16, 40, 63, 64, 65, 66, 80, 128, 200, 255, 300, 400)


@pytest.mark.parametrize("pcid", [False, True])
@pytest.mark.parametrize(
    ("pages", "invalidations", "switches"), [(250, 0, 0), (250, 0.2, 0), (100, 0.02, 0.004), (300, 0.5, 0.0002)]
)
def test_every_size_against_the_specification(pages: int, invalidations: float, switches: float, pcid: bool) -> None:
    found = events(pages, 12_000, pages, invalidations, switches)
    curves = tlb_curve(trace_of(found), "skylake", pcid=pcid, l1_sets=(2, 16, 32, 64))
    data, code = (Op.READ, Op.WRITE, Op.MODIFY), (Op.FETCH,)
    for unit, ops in (("l1d", data), ("l1i", code)):
        mine = list(stream(found, ops, pcid))
        for size in SIZES:
            assert curves.curve(unit).at(size) == (lru.misses(mine, 1, size), 0)
        for array in ("4/2", "64/4", "32/1", "128/8", "64/32", "512/8"):
            entries, ways = map(int, array.split("/"))
            assert curves.misses(unit, array) == (lru.misses(mine, entries // ways, ways), 0)


def test_the_second_level_sees_the_misses_of_the_first() -> None:
    """Only data, so that the order of the misses is that of one stream."""
    found = [event for event in events(5, 12_000, 300, 0.05, 0.0005) if event[0] != Op.FETCH]
    for first in ("64/4", "8/fa"):
        curves = tlb_curve(trace_of(found), geometry("skylake", l1d=first))
        sets, ways = (16, 4) if first == "64/4" else (1, 8)
        below = list(lru.missing(stream(found, (Op.READ, Op.WRITE, Op.MODIFY), False), sets, ways))
        assert curves.curve("l2").lookups == sum(kind == "access" for kind, _ in below)
        for size in SIZES:
            assert curves.curve("l2").at(size)[0] == lru.misses(below, 1, size)
        assert curves.misses("l2", "128/4")[0] == lru.misses(below, 32, 4)


TWELVE = (
    ("64/4", "1536/12"), ("64/4", "512/4"), ("64/4", "1024/8"), ("64/4", "2048/16"), ("64/4", "64/fa"),
    ("64/4", "300/fa"), ("64/4", "1500/fa"), ("16/fa", "1536/12"), ("72/fa", "3072/24"), ("32/4", "512/8"),
    ("256/8", "128/2"), ("100/fa", "6144/12"),
)  # fmt: skip


@pytest.mark.parametrize("pcid", [False, True])
def test_twelve_sizes_against_the_machine(pcid: bool) -> None:
    """Equal, to the last miss: two programs that switch, with interrupts and INVLPG between their accesses."""
    a, b = (fastmmu.read_trace(path).head(60_000) for path in list(bundled().values())[:2])
    both = list(interleave([a, b], 7000).batches())
    op, size, addr = (np.concatenate([getattr(batch, name) for batch in both]) for name in ("op", "size", "addr"))
    at = np.arange(500, len(op), 500)
    op, size = np.insert(op, at, Op.INVLPG), np.insert(size, at, 0)
    addr = np.insert(addr, at, addr[at - 400])
    trace = Trace.from_arrays(addr, op, size)
    one = tlb_curve(trace, pcid=pcid)
    assert one.flushes == (0 if pcid else np.count_nonzero(op == Op.SWITCH) > 10 and one.flushes)
    for l1d, stlb in TWELVE:
        config = Config(premapped=True, l1d=l1d, stlb=stlb, pcid=pcid)
        counted = fastmmu.simulate(trace, config).counters
        found = one if l1d == "64/4" else tlb_curve(trace, geometry("skylake", l1d=l1d), pcid=pcid)
        assert counted["page_crossings"] + counted["accesses"] == found.accesses
        assert found.misses("l1d", l1d) == (counted["l1d_misses"], 0)
        assert found.misses("l1i", "128/8") == (counted["l1i_misses"], 0)
        assert found.misses("l2", stlb) == (counted["tlb_misses"], 0)


@pytest.mark.parametrize("preset", ["icelake", "zen2", "core2", "nehalem"])
@pytest.mark.parametrize("pages", ["4k", "2m"])
def test_units_of_other_presets_against_the_machine(preset: str, pages: str) -> None:
    """Stores with a first level of their own, fetches with a second of theirs or none, large pages."""
    trace = fastmmu.read_trace(bundled()["zstd"]).head(50_000)
    found = tlb_curve(trace, preset, pages=pages)
    counted = fastmmu.simulate(trace, Config(premapped=True, tlb=preset, pages=pages)).counters
    g = geometry(preset)
    held = {u: next((a for a in getattr(g, u) if pages in a.sizes), None) for u in ("l1d", "l1s", "l1i", "l2", "l2i")}
    misses = {unit: found.misses(unit, array)[0] for unit, array in held.items() if array}
    assert misses["l1d"] + misses.get("l1s", 0) == counted["l1d_misses"]
    assert misses["l1i"] == counted["l1i_misses"]
    last = misses["l1i"] if (not held["l2i"] and not g.l2_fetches) or not held["l2"] else misses.get("l2i", 0)
    data = misses["l2"] if held["l2"] else counted["l1d_misses"]
    assert data + last == counted["tlb_misses"]


# ---- sampling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_sampled_curves_are_as_near_as_they_say(share: float) -> None:
    """At 16 to 4096 entries, of two programs: within three standard errors, and the set-associative ones exact."""
    for path in bundled().values():
        trace = fastmmu.read_trace(path).head(400_000)
        exact, sampled = tlb_curve(trace), tlb_curve(trace, sample=share)
        for unit in ("l1d", "l2"):
            assert sampled.curve(unit).pages < 2 * share * exact.curve(unit).pages
            for size in (1 << n for n in range(4, 13)):
                misses, error = sampled.curve(unit).at(size)
                assert abs(misses - exact.curve(unit).at(size)[0]) <= 3 * error
                assert error < misses or size < 10 / share
            for mine, same in zip(exact.curves, sampled.curves, strict=True):
                assert mine.sets == 1 or np.array_equal(mine.misses, same.misses)


def test_the_batches_do_not_matter() -> None:
    found = events(3, 5000, 200, 0.1, 0.01)
    whole = tlb_curve(trace_of(found))

    class Chopped(Trace):
        name, format = "made", "chopped"

        def batches(self, chunk: int = 0) -> Iterator[fastmmu.Batch]:
            yield from trace_of(found).batches(17)

    for mine, other in zip(whole.curves, tlb_curve(Chopped()).curves, strict=True):
        assert np.array_equal(mine.entries, other.entries)
        assert np.array_equal(mine.misses, other.misses)


def test_curves_never_rise_and_end_at_the_first_uses() -> None:
    curves = tlb_curve(trace_of(events(9, 4000, 90, 0, 0)))
    for curve in curves.curves:
        assert np.all(np.diff(curve.misses) <= 0)
    assert curves.curve("l1d").misses[-1] == curves.curve("l1d").pages


# ---- errors and files ------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused() -> None:
    trace = trace_of([(Op.READ, 1, 0)])
    for options, message in (
        ({"pages": "1g"}, "1g"), ({"sample": 0.0}, "sample=0"), ({"limit": 0}, "limit=0"), ({"ways": 0}, "ways=0"),
        ({"tlb": geometry(replacement="plru")}, "plru"), ({"l1_sets": (3,)}, "3 sets"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            tlb_curve(trace, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no curve of l2 with 2 sets"):
        tlb_curve(trace).curve("l2", 2)
    with pytest.raises(ConfigError, match="curve begins at 16"):
        tlb_curve(trace).curve("l1d", 16).at(15)
    for bad, message in (((Op.READ, 1, 1 << 57), "event 1: 0x200000000000000"), ((Op.SWITCH, 0, 1 << 18), "262144")):
        with pytest.raises(TraceError, match=message):
            tlb_curve(trace_of([(Op.READ, 1, 0), bad]))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.npy"
    found = events(1, 3000, 150, 0, 0)
    fastmmu.write_trace(trace_of(found), path)
    files = {name: str(tmp_path / f"c.{name}") for name in ("csv", "json", "svg")}
    line = ["tlb-curve", str(path), "--csv", files["csv"], "--json", files["json"], "--plot", files["svg"]]
    words = [*line, "--stlb", "512/4", "--l2-sets", "64,128"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "STLB, fully associative" in out
    assert "STLB, 128 sets" in out
    rows = list(csv.DictReader(Path(files["csv"]).read_text().splitlines()))
    nested = json.loads(Path(files["json"]).read_text())["curves"]
    made = {name: rows[0].pop(name) for name in ("fastmmu", "command")}
    assert made == {"fastmmu": fastmmu.__version__, "command": "fastmmu " + " ".join(words)}
    assert [{key: str(value) for key, value in row.items()} for row in nested] == [
        {key: value for key, value in row.items() if key not in made} for row in rows
    ]
    exact: Curves = tlb_curve(trace_of(found))
    for row in rows:
        if row["unit"] == "l1d":
            misses = exact.curve("l1d", int(row["sets"])).at(int(row["entries"]))[0]
            assert float(row["misses"]) == misses
            assert float(row["miss_ratio"]) == misses / int(row["lookups"])
    assert Path(files["svg"]).read_text().startswith("<?xml")
    assert main(["tlb-curve", str(path), "--plot", str(tmp_path / "c.bmp")]) == 2
    assert "png, svg, pdf" in capsys.readouterr().err


def test_an_array_that_nothing_looked_up_has_no_line_in_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "c.svg"
    curve_plot([tlb_curve(trace_of([(Op.READ, 1, page << 12) for page in range(40)]))], path)
    assert "L1D, fully associative" in path.read_text()
    assert "L1I" not in path.read_text()
