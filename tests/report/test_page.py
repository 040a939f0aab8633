"""The page of results: what stands in it, and how it looks and works in a browser."""

from __future__ import annotations

import base64
import csv
import html.parser
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Result, compare, simulate
from fastmmu.cli.main import main
from fastmmu.machine.side_by_side import each
from fastmmu.report import load, over_time, save
from fastmmu.report.page import page, run_names, table_html
from fastmmu.report.rows import gathered
from fastmmu.trace import Trace
from tests.support.chromium import CHROMIUM, Browser

pytest.importorskip("jinja2", reason="skipped: pages need fastmmu[report]")
pytest.importorskip("matplotlib", reason="skipped: pages need fastmmu[report]")


def results() -> list[Result]:
    addresses = np.random.default_rng(3).integers(0, 3_000, 20_000, np.uint64) << 12
    named = Trace.from_arrays(addresses, name="first <b>&amp;</b>")
    found = []
    for stlb in ("64/4", "256/4", "1024/8"):
        found += compare(named, schemes=("native", "shadow", "ept", "ept+vpid"), stlb=stlb, memory="1G")
    configs = [Config(memory="1G", mmu=mmu, exit_every=700) for mmu in ("native", "shadow", "ept")]
    return found + list(each(Trace.from_arrays(addresses[:5000], name="second"), configs, interval=40))


@pytest.fixture(scope="module")
def found() -> list[Result]:
    return results()


@pytest.fixture(scope="module")
def text(found: list[Result]) -> str:
    return page(found, title="A <title>", made={"command": ["fastmmu compare <x>"]})


class Tags(html.parser.HTMLParser):
    """That tags are closed in order; ids; what is linked."""

    EMPTY = ("meta", "link", "input", "br", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if named.get("id"):
            self.ids.append(str(named["id"]))
        self.links += [str(value) for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_a_page_is_whole_and_needs_no_network(text: str) -> None:
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    assert {link[1:] for link in tags.links if link.startswith("#")} <= set(tags.ids)
    assert "A &lt;title&gt;" in text
    assert "first &lt;b&gt;&amp;amp;&lt;/b&gt;" in text
    assert len(text) < 1_500_000


def test_the_data_can_be_downloaded(text: str, found: list[Result]) -> None:
    links = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', text)
    files = {name: list(csv.DictReader(base64.b64decode(data).decode().splitlines())) for name, data in links}
    assert [float(row["cycles"]) for row in files["results.csv"]] == [result.cycles for result in found]
    cycles = [row for name, rows in files.items() if name.endswith("-cycles.csv") for row in rows]
    assert [float(row["sum"]) for row in cycles] == pytest.approx([result.cycles_per_access for result in found])
    sizes = files["t0-size.csv"]
    assert {row["entries"] for row in sizes} == {"64", "256", "1024"}
    assert len(sizes) == 12


def test_names_tell_runs_apart(found: list[Result]) -> None:
    names = run_names(found[:12])
    assert names[:2] == ["native 64/4", "shadow 64/4"]
    assert len(set(names)) == 12


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
def test_results_are_read_back(tmp_path: Path, found: list[Result], suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="skipped: Parquet needs fastmmu[arrow]")
    save(found, path := tmp_path / f"r.{suffix}")
    again = load(path)
    assert len(again) == len(found)
    for ours, theirs in zip(again, found, strict=True):
        assert ours.config.name == theirs.config.name
        assert ours.config.geometry == theirs.config.geometry
        assert ours.config.memory_bytes == theirs.config.memory_bytes
        assert ours.counters["exits_by_reason"] == theirs.counters["exits_by_reason"]
        assert {k: v for k, v in ours.counters.items() if v} == {k: v for k, v in theirs.counters.items() if v}
        assert ours.cycles_by == pytest.approx(theirs.cycles_by)
        assert (ours.cycles, ours.content, ours.trace) == (theirs.cycles, theirs.content, theirs.trace)


def test_what_is_no_result_is_told(tmp_path: Path) -> None:
    for name, text in {"a.json": "{}", "b.json": "[", "c.csv": "a,b\n1,2\n", "d.csv": ""}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=rf"{name}: .*(--json|no JSON)"):
            load(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="there is no result in it"):
        load(tmp_path / "folder")


def test_the_command(tmp_path: Path, found: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    save(found, tmp_path / "r.json", command="fastmmu compare x")
    assert main(["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.html")]) == 0
    assert "15 runs in" in capsys.readouterr().out
    assert "fastmmu compare x" in (tmp_path / "r.html").read_text()
    assert main(["report", str(tmp_path / "r.html")]) == 2


def test_a_result_shows_itself_in_notebooks(found: list[Result]) -> None:
    made = found[1]._repr_html_()
    assert made.startswith("<table><caption>first &lt;b&gt;&amp;amp;&lt;/b&gt;, shadow</caption>")
    assert f"<td>{found[1].counters['vm_exits']:,}</td>" in made


def test_a_table_for_notebooks(found: list[Result]) -> None:
    made = table_html(found)
    assert made.count("<table>") == 2
    assert made.count("<tr>") == len(found) + 2
    assert "<b>" not in made


# ---- over time ---------------------------------------------------------------------------------------------------


def charts_of(text: str) -> dict[str, list[dict[str, str]]]:
    links = re.findall(r'download="([^"]+).csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', text)
    return {name: list(csv.DictReader(base64.b64decode(data).decode().splitlines())) for name, data in links}


def test_exits_and_cycles_over_time_are_those_of_the_runs(text: str, found: list[Result]) -> None:
    files = charts_of(text)
    runs = found[12:]
    exits, cycles = files["t1-exits-time"], files["t1-cycles-time"]
    assert "t0-exits-time" not in files
    assert "over time, of the first" not in text
    for run, name in zip(runs, run_names(runs), strict=True):
        mine = [row for row in exits if row["run"] == name]
        summed = sum(int(value) for row in mine for key, value in row.items() if key not in ("run", "from access"))
        assert summed == run.counters["vm_exits"]
        starts = [int(row["from access"]) for row in cycles if row["run"] == name]
        assert starts == list(range(0, 5000, 80))[: len(starts)]
        assert len(starts) in (62, 63)
        lengths = np.diff([*starts, 5000])
        each_bin = [float(row["cycles an access"]) for row in cycles if row["run"] == name]
        assert float(lengths @ each_bin) == pytest.approx(run.cycles)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_runs_are_gathered_from_their_parts(tmp_path: Path, found: list[Result], suffix: str) -> None:
    runs = found[11:]
    parts = over_time(runs)
    assert len(parts) == 1 + 3 * 125
    save(parts, path := tmp_path / f"r.{suffix}")
    again = gathered(load(path))
    assert [len(of) for _, of in again] == [1, 125, 125, 125]
    for (whole, _), run in zip(again, runs, strict=True):
        assert {name: n for name, n in whole.counters.items() if n} == {
            name: n for name, n in run.counters.items() if n
        }
        assert (whole.first, whole.config.name, whole.complete) == (0, run.config.name, True)
        assert whole.cycles == pytest.approx(run.cycles)
        assert whole.cycles_by == pytest.approx(
            {cause: n for cause, n in run.cycles_by.items() if n or suffix == "json"}
        )
    assert table_html(parts).count("<tr>") == len(runs) + 2
    assert [whole for whole, _ in gathered(runs)] == runs


def test_runs_that_only_follow_one_another_stay_apart(found: list[Result]) -> None:
    parts = over_time(found[13:14])
    assert len(gathered([*parts[:3], *parts[:3]])) == 2
    assert len(gathered([*parts[:3], *parts[4:]])) == 2
    other = simulate(Trace.from_arrays(np.zeros(40, np.uint64)), Config(memory="1G"))
    assert len(gathered([parts[0], other, *parts[1:]])) == 3


def test_names_of_runs_can_be_given(found: list[Result]) -> None:
    text = page(found[13:], names=["one & two", "three"])
    assert "one &amp; two" in text
    assert "shadow" not in re.findall(r'<th scope="row">([^<]*)</th>', text)
    with pytest.raises(ConfigError, match="names of 1 runs, and there are 2"):
        page(found[13:], names=["one"])


def test_where_walks_begin_is_told_of_each(text: str, found: list[Result]) -> None:
    rows = charts_of(text)["t0-begin"]
    assert [float(row["sum"]) for row in rows] == pytest.approx(
        [1000 * run.counters["walks"] / run.counters["accesses"] for run in found[:12]]
    )
    nested = charts_of(text)["t0-nested"]
    assert [row["run"] for row in nested] == [name for name in run_names(found[:12]) if name.startswith("EPT")]


# ---- in a browser ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="skipped: there is no Chromium; apt install chromium")
@pytest.mark.parametrize("width", [360, 1600])
def test_in_a_browser(tmp_path: Path, text: str, found: list[Result], width: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(text)
    with Browser(path, width, tmp_path / "profile") as browser:
        assert browser.run("document.documentElement.scrollWidth") <= width, "the page is wider than the window"
        marks = browser.run(
            "[...document.querySelectorAll('[data-marks]')].map("
            "each => [+each.dataset.marks, each.querySelectorAll('[id^=mark-]').length])"
        )
        assert len(marks) == 7 + 8  # of the second alone over time
        assert all(said == drawn > 0 for said, drawn in marks), marks
        rows = "[...document.querySelectorAll('#t0-table tbody tr')]"
        names = browser.run(f"{rows}.map(row => row.cells[0].textContent)")
        assert names == run_names(found[:12])
        heads: list[str] = browser.run("[...document.querySelectorAll('#t0-table thead th')].map(h => h.textContent)")
        at = heads.index("TLB misses")
        misses = sorted(result.counters["tlb_misses"] for result in found[:12])
        for click, order in ((1, misses), (2, misses[::-1])):
            browser.run(f"document.querySelectorAll('#t0-table thead th button')[{at}].click()")
            assert browser.run(f"{rows}.map(row => +row.cells[{at}].dataset.key)") == order, click
        browser.run(
            "{const i = document.querySelector('input'); i.value = 'ept 64'; i.dispatchEvent(new Event('input'))}"
        )
        shown: list[Any] = browser.run(f"{rows}.filter(row => !row.hidden).map(row => row.cells[0].textContent)")
        assert sorted(shown) == ["EPT 64/4", "EPT+VPID 64/4"]
        assert browser.run("document.querySelector('[role=status]').textContent") == "2 of 12"
        assert browser.said == []
