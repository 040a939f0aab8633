"""Experiments of the literature: each is run, what its checks say stands in docs/experiments.md; a check can fail."""

from __future__ import annotations

import csv
import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fastmmu import ConfigError, CostModel
from fastmmu.cli.main import main
from fastmmu.ops import Op
from fastmmu.study import experiments, named_study
from fastmmu.study.named.description import read_experiment, titles
from fastmmu.study.named.expression import Expression
from fastmmu.study.named.run import Findings
from fastmmu.study.named.table import cells_of, named_plot, named_rows
from fastmmu.study.named.walks import Walks, walked
from fastmmu.study.named.workloads import Churn, File, Sequential, Uniform, trace_of
from fastmmu.trace import Trace, tpr_profile, with_tpr

DOCS = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
NAMES = list(experiments())


@cache
def found(name: str) -> Findings:
    return named_study(name)


# ---- those of the package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_comes_out_and_the_page_says_what_is_measured(name: str) -> None:
    """In one test, so that one process makes its runs, once."""
    assert [(finding.check.what, finding.ours) for finding in found(name).failed] == []
    assert sum(finding.holds is True for finding in found(name).findings) >= 3
    section = DOCS[DOCS.index(f"\n## `{name}`") + 1 :].partition("\n## `")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[2:] == cells_of(found(name))


def test_each_is_named_and_has_a_source() -> None:
    assert len(NAMES) >= 7
    assert [name for name, _, _ in titles()] == NAMES
    assert re.findall(r"^## `([\w-]+)`", DOCS, re.MULTILINE) == NAMES
    for name in NAMES:
        said = read_experiment(name)
        assert said.claim
        assert re.search(r"(19|20)\d\d|[0-9a-f]{8}", f"{said.source.where} {said.source.year}"), name


def test_what_is_not_asserted_says_why() -> None:
    for name in NAMES:
        for check in read_experiment(name).checks:
            assert (check.holds is None) == bool(check.why), check.what


# ---- walks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("ept", [0, 4, 5])
@pytest.mark.parametrize("pages", ["4k", "2m"])
@pytest.mark.parametrize("host_pages", ["4k", "2m"])
def test_references_are_those_of_the_formula(levels: int, ept: int, pages: str, host_pages: str) -> None:
    """(g+1)(e+1)-1 (ept.md §5), with a level less in each dimension for a large page."""
    said = Walks(levels=levels, ept=ept, pages=pages, host_pages=host_pages, addresses=20)  # type: ignore[arg-type]
    g, e = levels - (pages == "2m"), ept - (host_pages == "2m") if ept else 0
    counted = walked(said)
    assert counted["least"] == counted["most"] == counted["refs"] == (g + 1) * (e + 1) - 1
    assert (counted["guest"], counted["ept"], counted["walks"]) == (g, (g + 1) * e, 20)


@pytest.mark.parametrize("levels", [4, 5])
def test_each_nested_level_of_a_switched_walk_takes_a_walk_of_the_ept(levels: int) -> None:
    refs = [walked(Walks(levels=levels, ept=4, switch=k, addresses=9))["refs"] for k in range(levels + 1)]
    assert refs == [levels + 4 * k for k in range(levels + 1)]


# ---- workloads ---------------------------------------------------------------------------------------------------


def test_what_is_touched_first_is_not_counted(tmp_path: Path) -> None:
    text = OWN.replace("writes = 0.5,", "writes = 0.5, touched = true,")
    text = text.replace("{}.ept.pages_touched", "{}.ept.accesses").replace("published = 40", "published = 2000")
    text = text.replace("few.ept.vm_exits / long.refs", "few.ept.vm_exits + few.ept.first").replace(
        "[0.5, 0.6]", "[40, 40]"
    )
    assert named_study(own(tmp_path, text)).holds
    if find_spec("pyarrow"):
        assert named_study(own(tmp_path, text), results=tmp_path / "kept").holds


def test_a_trace_again_has_the_same_events() -> None:
    once, twice = (trace_of(File("sqlite", limit=5000, repeat=n)) for n in (1, 2))
    (ops, addr), both = (
        [np.concatenate(column) for column in zip(*((b.op, b.addr) for b in trace.batches(999)), strict=True)]
        for trace in (once, twice)
    )
    assert (both[0] == np.tile(ops, 2)).all()
    assert (both[1] == np.tile(addr, 2)).all()


def test_churn_takes_turns_and_unmaps_what_it_mapped() -> None:
    (batch,) = trace_of(Churn(rounds=6, pages=3, touches=2, processes=2)).batches()
    assert batch.addr[batch.op == Op.SWITCH].tolist() == [0, 1] * 3
    assert np.count_nonzero(batch.op == Op.WRITE) == 6 * 3 * 2
    unmapped = batch.addr[batch.op == Op.UNMAP]
    assert len(unmapped) == 6 * 3
    assert set(unmapped.tolist()) == set(batch.addr[batch.op == Op.WRITE].tolist())


def test_pages_in_order_begin_again_behind_the_last() -> None:
    said = Sequential(pages=5, accesses=12, writes=1.0, touched=True)
    (batch,) = trace_of(said).batches()
    assert said.warm_up == 5
    assert ((batch.addr >> np.uint64(12)) - np.uint64(0x10000)).tolist() == [*range(5), *range(5), *range(5), 0, 1]
    assert (batch.addr % 64 == 0).all()
    assert len(set((batch.addr & np.uint64(0xFFF)).tolist())) > 5
    assert (batch.op == Op.WRITE).all()
    (again,) = trace_of(said).batches()
    assert (again.addr == batch.addr).all()
    (drawn,) = trace_of(Uniform(pages=5, accesses=12, touched=True)).batches()
    assert (drawn.addr % 4096 == 0).all()


# ---- TPR traffic by CR8 ------------------------------------------------------------------------------------------


def test_traffic_by_cr8_is_that_of_the_page() -> None:
    accesses = Trace.from_arrays(np.zeros(50_000, np.uint64))

    def events(register: str) -> tuple[list[int], list[int]]:
        profile = tpr_profile("winxp", changes=3_000, reads=2.5, register=register)
        batches = list(with_tpr(accesses, profile).batches())
        return [int(op) for b in batches for op in b.op], [int(addr) for b in batches for addr in b.addr]

    for op, addr, by, value in zip(*events("page"), *events("cr8"), strict=True):
        if op in (Op.APIC_READ, Op.APIC_WRITE) and addr >> 32 & 0xFFFF == 0x80:
            assert by == {Op.APIC_READ: Op.CR8_READ, Op.APIC_WRITE: Op.CR8_WRITE}[Op(op)]
            assert value == (addr >> 4 & 0xF if op == Op.APIC_WRITE else 0)
        else:
            assert (by, value) == (op, addr)


# ---- a file of one's own -----------------------------------------------------------------------------------------

OWN = """
title = "Exits"
claim = "none natively"
[source]
paper = "None"
where = "here"
[traces]
few = { generator = "uniform", pages = 40, accesses = 2_000, writes = 0.5, seed = 3 }
[config]
memory = "64M"
[configs]
native = {}
ept = { mmu = "ept", tlb = { preset = "skylake", psc = "none" } }
[walks]
long = { ept = 4, addresses = 5 }
[[checks]]
what = "{}: pages"
each = ["few"]
ours = "{}.ept.pages_touched"
published = 40
holds = "ours == low"
[[checks]]
what = "exits"
ours = "few.ept.vm_exits / long.refs"
published = [0.5, 0.6]
unit = "times"
holds = "low <= ours <= high and few.native.vm_exits == 0"
"""


def own(folder: Path, text: str = OWN) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def test_a_check_can_fail_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", own(tmp_path), "--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]) == 1
    out = " ".join(capsys.readouterr().out.split())
    rows = json.loads((tmp_path / "r.json").read_text())["checks"]
    assert [row["holds"] for row in rows] == [True, False]
    assert rows[1]["place"] == "above"
    assert f"It does not hold, 1 of 2 checks: exits: {rows[1]['ours']:.2f}×, asserted is low <= ours" in out
    assert [row["holds"] for row in csv.DictReader((tmp_path / "r.csv").open())] == ["True", "False"]
    assert main(["study", own(tmp_path, OWN.replace("[0.5, 0.6]", "[1, 9]"))]) == 0
    assert "It holds: 2 of 2 checks." in capsys.readouterr().out


def test_cycles_are_at_the_prices_asked_for(tmp_path: Path) -> None:
    text = OWN.replace("few.ept.vm_exits / long.refs", "few.ept.cycles_per_access")
    now, then = (
        named_study(own(tmp_path, text), costs=CostModel.load(generation=name)).findings[1].ours
        for name in ("icelake", "prescott")
    )
    assert now is not None
    assert then is not None
    assert then > now


def test_runs_are_kept_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="results of studies are Parquet: fastmmu[arrow]")
    path, folder = own(tmp_path), tmp_path / "kept"
    plain, first = named_study(path), named_study(path, results=folder)
    files = sorted(each.name for each in (folder / "runs").iterdir())
    assert len(files) == 2
    same = [name for name in plain.figures if "seconds" not in name and not name.endswith((".key", ".host", ".fastmmu",
            ".study", ".cost_model", ".seed", ".trace"))]  # fmt: skip
    assert [first.figures[name] for name in same] == [plain.figures[name] for name in same]
    stamps = {each.name: each.stat().st_mtime_ns for each in (folder / "runs").iterdir()}
    assert named_study(path, results=folder).figures["few.ept.vm_exits"] == plain.figures["few.ept.vm_exits"]
    assert stamps == {each.name: each.stat().st_mtime_ns for each in (folder / "runs").iterdir()}


def test_it_is_drawn_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="skipped: pictures need fastmmu[plot]")
    named_plot([found("agile-paging"), named_study(own(tmp_path))], tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert all(name in text for name in ("agile-paging", "mine", "three levels nested", ">20<"))
    assert main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in NAMES)


def test_findings_show_themselves(tmp_path: Path) -> None:
    made = named_study(own(tmp_path))
    assert repr(made).startswith("<Findings of mine: It does not hold, 1 of 2 checks: exits: ")
    assert made._repr_html_().count("<tr>") == 3
    assert "low &lt;= ours" in made._repr_html_()


def test_rows_have_the_source(tmp_path: Path) -> None:
    (row, *_) = named_rows(found("nested-walk-caches"))
    assert row["year"] == 2008
    assert row["published"] == "+15 to +38 %"
    assert "Bhargava" in row["paper"]


BAD = {
    "title =": ("titel =", "unknown field `titel`"),
    '"uniform"': ('"uniformly"', r"traces.few.generator = 'uniformly': choose from uniform, sequential, churn"),
    "pages = 40,": ("pages = 0,", r"traces.few: pages: Expected `int` >= 1"),
    "seed = 3": ("sed = 3", r"traces.few: Object contains unknown field `sed`"),
    "native = {}": ('native = { mmu = "none" }', r"configs.native.mmu = 'none': choose from 'native'"),
    'mmu = "ept", tlb': ('mmo = "ept", tlb', r"configs.ept.mmo: no such field"),
    'psc = "none"': ('pcs = "none"', r"configs.ept.tlb: .*'pcs'"),
    "ept = 4": ("ept = 3", r"walks.long: ept: Invalid enum value 3"),
    "addresses = 5": ("addresses = 5, switch = 5", r"walks.long: switch = 5 of 4 levels"),
    "few.native.vm_exits": ("few.naive.vm_exits", "few.naive.vm_exits: no configuration 'naive'; there are native"),
    "{}.ept.pages_touched": ("{}.ept.pages_touch", "few.ept.pages_touch: there is no 'pages_touch'"),
    "/ long.refs": ("/ long.steps", "long.steps: there is no 'steps' in it; there are walks, refs"),
    "/ long.refs\"": ("/ loong.refs\"", "loong.refs: no figure"),
    "low <= ours": ("low ** ours", "is not taken"),
    "holds = \"ours == low\"": ("", r"checks\[0\]: asserts nothing"),
    "published = 40": ("", r"checks\[0\]: what was published"),
    "long = {": ("few = {", "'few' is the name of two things"),
    "native = {}\n": ("native = {}\nlow = {}\n", "'low' names no figure"),
}  # fmt: skip


@pytest.mark.parametrize("old", BAD)
def test_what_is_wrong_is_told_with_file_and_key(tmp_path: Path, old: str) -> None:
    new, said = BAD[old]
    assert OWN.count(old) >= 1
    with pytest.raises(ConfigError, match=rf"mine.toml: .*{said}"):
        read_experiment(own(tmp_path, OWN.replace(old, new, 1)))


def test_an_unknown_name_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["study", "agile"]) == 2
    assert re.search(r"no experiment 'agile'; there are agile-paging, .*; or name a file", capsys.readouterr().err)
    assert main(["study", str(tmp_path / "none.toml")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_what_did_not_happen_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine: exits: .* divides by 0"):
        named_study(own(tmp_path, OWN.replace("/ long.refs", "/ few.native.vm_exits")))


# ---- expressions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("-a.b / 2", -5),
        ("max(a.b, 11, abs(-12)) - min(1, 2)", 11),
        ("1 < 2 <= 2 and not 3 == 4", True),
        ("1 < 2 > 3 or False", False),
        ("a.b != 10", False),
    ],
)
def test_expressions(text: str, value: float) -> None:
    assert Expression(text).value({"a.b": 10}) == value


@pytest.mark.parametrize(
    "text", ["", "1 +", "a[0]", "open('x')", "a.b()", "2 ** 3", "'a'", "lambda: 1", "[1]", "f().a", "max()",
             "x if y else z", "min(*a)", "max(a, key=b)", "1 " * 999, "(" * 300 + ")" * 300, "a is b", "1j"]
)  # fmt: skip
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ConfigError):
        Expression(text)
