"""Tables of results: layout, slowdowns, causes, rows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.result import Result
from fastmmu.report import comparison, rows, single, slowdowns
from fastmmu.report.table import Cell, Column, number, render
from fastmmu.report.why import why

COSTS = CostModel.load()
COUNTERS = {
    "accesses": 1_000_000, "l1d_misses": 2_000, "l1i_misses": 500, "stlb_hits": 1_500, "tlb_misses": 1_000,
    "walks": 1_000, "guest_walk_refs": 4_000, "ept_walk_refs": 0, "guest_faults": 300, "pages_touched": 300,
}  # fmt: skip


def run(
    mmu: str, *, vpid: bool = False, pages: str = "4k", complete: bool = True, trace: str = "t", **more: Any
) -> Result:
    config = Config(mmu=mmu, vpid=vpid, pages=pages)  # type: ignore[arg-type]
    counters = {**COUNTERS, "exits_by_reason": {}, **more}
    counters["vm_exits"] = sum(counters["exits_by_reason"].values())
    parts = cycles(counters, config, COSTS)
    return Result(config, counters, sum(parts.values()), parts, 0.5, trace, complete)


@pytest.fixture
def five() -> list[Result]:
    faults = {"exits_by_reason": {"exception_nmi": 900, "cr_access": 10}, "pf_fixed": 600, "pf_guest": 300}
    builds = {"exits_by_reason": {"ept_violation": 310}, "ept_build": 310, "ept_walk_refs": 20_000}
    return [
        run("native"),
        run("shadow", tlb_misses=9_000, walks=9_000, guest_walk_refs=36_000, **faults),
        run("shadow", vpid=True, **faults),
        run("ept", tlb_misses=4_100, walks=4_100, guest_walk_refs=16_400, **builds),
        run("ept", vpid=True, **builds),
    ]


def test_a_row_a_scheme_with_the_figures(five: list[Result]) -> None:
    text = comparison(five)
    lines = text.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[5:10]}
    assert list(rows) == ["native", "shadow", "shadow+VPID", "EPT", "EPT+VPID"]
    #                             accesses   L1      L2      walks   guest    EPT faults exits  #PF    EPT    CR3
    assert rows["shadow"][1:12] == ["1.00M", "2500", "9000", "9000", "36000", "0", "300", "910", "900", "0", "10"]
    assert rows["EPT"][1:12] == ["1.00M", "2500", "4100", "4100", "16400", "20000", "300", "310", "0", "310", "0"]
    assert rows["native"][12:] == [f"{five[0].cycles_per_access:.2f}", "1.00×", "2.0M/s"]
    assert rows["EPT"][13] == f"{five[3].cycles / five[0].cycles:.2f}×"
    assert "t: 1,000,000 accesses, 300 pages touched; TLB skylake, true LRU" in lines[0]


def test_no_line_is_wider_than_the_terminal(five: list[Result]) -> None:
    every = [*five, run("ept", pages="thp", exits_by_reason={"cpuid": 5, "hlt": 7, "external_interrupt": 11})]
    for width in (100, 110, 120, 160):
        assert max(map(len, comparison(every, width=width).splitlines())) <= width
    assert max(map(len, comparison(five, width=80).splitlines())) <= 80


def test_narrow_terminals_get_the_exits_in_a_table_of_their_own(five: list[Result]) -> None:
    assert comparison(five, width=120).count("native  ") == 2  # the row, and where its cycles go
    assert comparison(five, width=100).count("native  ") == 3


def test_slowdown_is_over_native_with_the_same_pages_and_trace() -> None:
    results = [run("native"), run("native", pages="2m", guest_faults=3), run("ept", pages="2m"), run("ept"),
               run("ept", trace="other"), run("ept", pages="thp")]  # fmt: skip
    found = slowdowns(results)
    assert found[:2] == [1.0, 1.0]
    assert found[2] == results[2].cycles / results[1].cycles
    assert found[3] == results[3].cycles / results[0].cycles
    assert found[4:] == [None, None]


def test_an_interrupted_run_is_marked_and_has_no_slowdown(five: list[Result]) -> None:
    five[1] = run("shadow", complete=False)
    text = comparison(five[:2], not_run=["EPT", "EPT+VPID"])
    assert "shadow *" in text
    assert "* interrupted: figures of the part that was simulated" in text
    assert "Not run: EPT, EPT+VPID" in text
    assert slowdowns(five[:2]) == [1.0, None]
    assert comparison([], not_run=["EPT"]) == "Interrupted before anything was finished; not run: EPT."


def test_causes_add_up_to_the_cycles(five: list[Result]) -> None:
    for line in " ".join(why(five, width=10_000)).split("  "):
        if " = " not in line:
            continue
        total, _, terms = line.partition(" = ")
        parts = terms.replace("native ", "+ ").replace("− ", "+ -").split("+ ")
        assert sum(float(part.split()[0]) for part in parts if part.strip()) == pytest.approx(float(total), abs=0.03)


def test_what_vpid_and_nesting_do_is_said(five: list[Result]) -> None:
    lines = why(five)
    assert "shadow+VPID: VPID saves 8000 TLB misses, 8.8 for each VM exit" in lines
    assert f"EPT: a walk takes {36_400 / 4_100:.1f} references, natively 4.0" in lines


def test_an_empty_trace_is_no_error() -> None:
    empty = dict.fromkeys(COUNTERS, 0)
    text = comparison([run("native", **empty), run("ept", **empty)])
    assert "0.00" in text


def test_colour_changes_no_character(five: list[Result]) -> None:
    import re

    coloured = comparison(five, colour=True)
    assert "\x1b[" in coloured
    bare = [line.rstrip() for line in re.sub(r"\x1b\[\d+m", "", coloured).splitlines()]
    assert bare == comparison(five).splitlines()


def test_single_shows_every_counter(five: list[Result]) -> None:
    text = single(five[1])
    for name, n in five[1].counters.items():
        if not isinstance(n, dict):
            assert any(line.split() == [name, f"{n:,}"] for line in text.splitlines())
    assert "exception_nmi (#PF)" in text
    assert "shadow fills" in text


@given(st.integers(0, 10**14))
def test_a_number_takes_five_characters_and_keeps_its_value(n: int) -> None:
    text = number(n)
    assert len(text) <= 5
    value = float(text.rstrip("kMGT")) * {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert value == pytest.approx(n, rel=0.006)


def test_headings_in_groups() -> None:
    columns = [
        Column("a", align="<"),
        Column("one", "both of them"),
        Column("two", "both of them"),
        Column("x", "tall"),
    ]
    assert render(columns, [[Cell("r"), Cell("1"), Cell("22"), Cell("3")], None]) == [
        "    both of them   tall",
        "a        one  two     x",
        "───────────────────────",
        "r          1   22     3",
        "",
    ]


def test_rows_have_the_same_keys(five: list[Result]) -> None:
    table = rows(five)
    assert len({tuple(row) for row in table}) == 1
    assert [row["scheme"] for row in table] == ["native", "shadow", "shadow+VPID", "EPT", "EPT+VPID"]
    assert [row["exits_ept_violation"] for row in table] == [0, 0, 0, 310, 310]
    assert table[0]["memory"] == 64 << 30
    for row, result in zip(table, five, strict=True):
        assert sum(v for k, v in row.items() if k.startswith("cycles_") and k != "cycles_per_access") == pytest.approx(
            result.cycles
        )
