"""`fastmmu compare` and `fastmmu run`: what they simulate, print and write."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import fastmmu
from fastmmu.cli import main
from fastmmu.cli import options as shared
from fastmmu.machine.side_by_side import each
from fastmmu.ops import Op
from fastmmu.study.compare.run import configurations
from fastmmu.trace import Batch, Trace, write_trace

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line that succeeds, and gives its output."""

    def go(*argv: object, code: int = 0) -> str:
        assert main([str(word) for word in argv]) == code
        out, err = capsys.readouterr()
        assert err == ""  # no progress where standard error is no terminal
        return out

    return go


def program(seed: int, accesses: int = 3000, pages: int = 40) -> Trace:
    """Accesses of all kinds to some pages, most of them to few."""
    random = np.random.default_rng(seed)
    page = (random.pareto(1, accesses) * 2).astype(np.uint64) % pages
    op = random.choice([Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH], accesses, p=[0.4, 0.2, 0.1, 0.3]).astype(np.uint8)
    return Trace.from_arrays(0x4000_0000 + page * 4096 + random.integers(0, 4000, accesses, dtype=np.uint64), op)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_trace(program(1), tmp_path / "one.npy")
    return tmp_path / "one.npy"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    write_trace(program(2), tmp_path / "two.npy")
    return tmp_path / "two.npy"


def table(text: str) -> dict[str, list[str]]:
    """Rows of the first table of a text, by scheme."""
    lines = text.split("─\n", 1)[1].split("\n\n")[0].splitlines()
    return {line.split()[0]: line.split() for line in lines}


def test_the_table_is_what_simulate_gives(run: Run, trace: Path) -> None:
    found = table(run("compare", trace))
    assert list(found) == ["native", "shadow", "shadow+VPID", "EPT", "EPT+VPID"]
    source = fastmmu.read_trace(trace)
    for mmu, vpid, name in (("native", False, "native"), ("shadow", True, "shadow+VPID"), ("ept", False, "EPT")):
        counters = fastmmu.simulate(source, fastmmu.Config(mmu=mmu, vpid=vpid)).counters
        names = ("accesses", "tlb_misses", "walks", "guest_walk_refs", "ept_walk_refs", "guest_faults", "vm_exits")
        wanted = [str(counters[key]) for key in names]
        assert [found[name][i] for i in (1, 3, 4, 5, 6, 7, 8)] == wanted


def test_rows_and_pages_are_chosen(run: Run, trace: Path) -> None:
    out = run("compare", trace, "--schemes", "ept+vpid,NATIVE", "--pages", "2m,4k")
    labels = re.findall(r"^(native|EPT\+VPID) +(4k|2m)  .*×", out, re.M)
    assert labels == [("EPT+VPID", "2m"), ("native", "2m"), ("EPT+VPID", "4k"), ("native", "4k")]


def test_traces_are_tables_of_their_own_or_processes_of_one(run: Run, trace: Path, other: Path) -> None:
    apart = run("compare", trace, other, "--schemes", "native,shadow")
    assert apart.count("3,000 accesses") == 2
    together = run("compare", trace, other, "--schemes", "native,shadow", "--switch-every", 500)
    assert together.count("6,000 accesses") == 1
    assert "CR3" in together
    assert "CR3" not in apart


def test_the_trace_is_cut_as_told(run: Run, trace: Path) -> None:
    fetches = sum(int((batch.op == Op.FETCH).sum()) for batch in program(1).batches())
    assert f"{3000 - fetches:,} accesses" in run("compare", trace, "--data-only", "--schemes", "native")
    assert "1,000 accesses" in run("compare", trace, "--limit", "1k", "--schemes", "native")


def test_options_reach_the_configuration(run: Run, trace: Path, tmp_path: Path) -> None:
    costs = tmp_path / "costs.toml"
    costs.write_text("[access]\ntrace = 50\n")
    given = ["--tlb", "haswell", "--l1d", "32/4", "--l1i", "64/8", "--stlb", "512/8", "--replacement", "plru", "--pcid",
             "--memory", "1g", "--exit-every", "100", "--host-pages", "2m", "--thp-threshold", "9"]  # fmt: skip
    out = run("run", trace, "--mmu", "ept", "--vpid", "--pages", "thp", *given, "--costs", costs, "--json", "-")
    (found,) = json.loads(out)["results"]
    config = fastmmu.Config(mmu="ept", vpid=True, pages="thp", tlb="haswell", l1d="32/4", l1i="64/8", stlb="512/8",
                            replacement="plru", pcid=True, memory="1g", exit_every=100, host_pages="2m",
                            thp_threshold=9)  # fmt: skip
    assert found["config"] == msgspec.to_builtins(config)
    assert found["cycles_by"]["accesses"] == 3000 * 50
    assert found["counters"]["exits_by_reason"]["cpuid"] == 30


def test_premapped_has_no_faults_and_no_kernel(run: Run, trace: Path) -> None:
    out = run("run", trace, "--premapped", "--json", "-")
    counters = json.loads(out)["results"][0]["counters"]
    assert (counters["guest_faults"], counters["kernel_accesses"]) == (0, 0)


def test_the_generation_changes_the_cost_of_exits_only(run: Run, trace: Path) -> None:
    def cycles(*more: str) -> dict[str, float]:
        out = run("run", trace, "--mmu", "ept", "--exit-every", "100", "--json", "-", *more)
        found: dict[str, float] = json.loads(out)["results"][0]["cycles_by"]
        return found

    new, old = cycles(), cycles("--generation", "prescott")
    assert old["exit:cpuid"] == 30 * 5474
    assert {cause for cause in new if new[cause] != old[cause]} == {"exit:cpuid", "exit:ept_build"}


def test_results_go_to_files(run: Run, trace: Path, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"r.{name}" for name in ("json", "csv")}
    out = run("compare", trace, "--json", paths["json"], "--csv", paths["csv"])
    results = json.loads(paths["json"].read_text())["results"]
    rows = list(csv.DictReader(paths["csv"].open()))
    schemes = ["native", "shadow", "shadow+VPID", "EPT", "EPT+VPID"]
    assert [r["scheme"] for r in results] == [row["scheme"] for row in rows] == list(table(out)) == schemes
    assert [float(row["cycles"]) for row in rows] == [r["cycles"] for r in results]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npy", "r.csv", "r.json"]


def test_data_on_standard_output_stands_alone(run: Run, trace: Path) -> None:
    assert len(json.loads(run("compare", trace, "--json", "-"))["results"]) == 5
    assert len(list(csv.DictReader(run("compare", trace, "--csv", "-").splitlines()))) == 5


def test_run_shows_every_counter(run: Run, trace: Path) -> None:
    out = run("run", trace, "--mmu", "shadow")
    counters = fastmmu.simulate(fastmmu.read_trace(trace), fastmmu.Config(mmu="shadow")).counters
    for name, n in counters.items():
        if not isinstance(n, dict):
            assert re.search(rf"^  {name} +{n:,}$", out, re.M)


def test_a_bundled_trace_by_its_name(run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmmu.trace.bundled", lambda: {"demo": trace})
    wanted = table(run("compare", trace, "--schemes", "native"))["native"][:-1]
    assert table(run("compare", "demo", "--schemes", "native"))["native"][:-1] == wanted
    assert table(run("compare", "--schemes", "native"))["native"][:-1] == wanted


# ---- Ctrl-C -------------------------------------------------------------------------------------------------------


class Interrupted(Trace):
    """A trace at which Ctrl-C is pressed, in the pass with the given number, after so many batches."""

    name, format = "program", "test"

    def __init__(self, run: int, *, batches: int) -> None:
        self.left = run
        self.batches_before = batches

    def batches(self, chunk: int = 1000) -> Iterator[Batch]:
        self.left -= 1
        for i, batch in enumerate(program(1).batches(1000)):
            if self.left == 0 and i == self.batches_before:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_ctrl_c_leaves_what_there_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """It comes in the one pass over the trace that feeds all schemes: each has its part of it."""
    monkeypatch.setattr(shared, "traces", lambda options, **more: [Interrupted(1, batches=2), program(1)])
    out = run("compare", "--csv", tmp_path / "r.csv", "--jobs", str(jobs), code=130)
    assert re.search(r"^shadow\+VPID \* +2000", out, re.M)
    assert "* interrupted" in out
    assert "Not run" not in out
    assert "5 runs in" in out  # and the second trace was not begun
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [(row["scheme"], row["complete"], row["accesses"]) for row in rows] == [
        (name, "False", "2000") for name in ("native", "shadow", "shadow+VPID", "EPT", "EPT+VPID")
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_between_two_schemes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """Those that are finished are whole, those that had begun are there in part, and the others are named."""
    large = Trace.from_arrays(np.random.default_rng(1).integers(0, 1 << 28, 1_000_000, dtype=np.uint64), name="large")
    monkeypatch.setattr(shared, "traces", lambda options, **more: [large, program(1)])

    def one(trace: Trace, configs: Sequence[fastmmu.Config], **how: Any) -> Iterator[fastmmu.Result]:
        def progress(config: fastmmu.Config, events: int) -> None:
            if config is configs[1]:
                raise KeyboardInterrupt

        return each(trace, configs, **{**how, "progress": progress})

    monkeypatch.setattr("fastmmu.cli.simulation.each", one)
    out = run("compare", "--csv", tmp_path / "r.csv", "--jobs", str(jobs), code=130)
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    schemes = {config.name: config for config in configurations()}
    assert [row["scheme"] for row in rows[:2]] == ["native", "shadow"]
    assert rows[0]["complete"] == "True"
    assert rows[0]["accesses"] == "1000000"
    # one thread takes one scheme after the other; how far it came until the exception reached it depends on its speed
    flags = [row["complete"] for row in rows]
    assert jobs > 1 or flags in (["True"] * len(rows), ["True"] * (len(rows) - 1) + ["False"])
    for row in rows:
        assert 0 < int(row["accesses"]) <= 1_000_000
        # Ctrl-C may come after the last block and before the end of the trace is known
        assert row["complete"] == "False" or row["accesses"] == "1000000"
        alone = fastmmu.simulate(large.head(int(row["accesses"])), schemes[row["scheme"]])
        assert [int(row[name]) for name in ("tlb_misses", "walks", "vm_exits")] == [
            alone.counters[name] for name in ("tlb_misses", "walks", "vm_exits")
        ]
    assert f"{len(rows)} runs in" in out
    assert len(rows) == 5 or "Not run: " in out


def test_ctrl_c_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> Iterator[fastmmu.Result]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(shared, "traces", lambda options, **more: [program(1)])
    monkeypatch.setattr("fastmmu.cli.simulation.each", press)
    out = run("compare", "--json", tmp_path / "r.json", code=130)
    assert "not run: native, shadow, shadow+VPID, EPT, EPT+VPID" in out
    assert json.loads((tmp_path / "r.json").read_text())["results"] == []


def test_ctrl_c_in_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "traces", lambda options, **more: [Interrupted(1, batches=1)])
    out = run("run", code=130)
    assert "interrupted: figures of the part that was simulated" in out
    assert re.search(r"^  accesses +1,000$", out, re.M)


# ---- as a function ------------------------------------------------------------------------------------------------


def test_compare_as_a_function(trace: Path) -> None:
    seen: list[tuple[str, int]] = []
    results = fastmmu.compare(
        trace, ("native", "ept+vpid"), ("4k", "2m"), tlb="haswell", progress=lambda c, n: seen.append((c.name, n))
    )
    assert [(r.config.name, r.config.pages) for r in results] == [
        ("native", "4k"), ("EPT+VPID", "4k"), ("native", "2m"), ("EPT+VPID", "2m"),
    ]  # fmt: skip
    assert {r.config.tlb for r in results} == {"haswell"}
    assert seen == [(r.config.name, 3000) for r in results]


def test_compare_refuses_what_it_cannot_do(trace: Path) -> None:
    with pytest.raises(fastmmu.ConfigError, match="no scheme 'xen'; there are native, shadow"):
        fastmmu.compare(trace, ("xen",))
    with pytest.raises(fastmmu.ConfigError, match="vpid is what a comparison varies"):
        fastmmu.compare(trace, vpid=True)
    with pytest.raises(fastmmu.ConfigError, match="colour"):
        fastmmu.compare(trace, colour="red")
    with pytest.raises(fastmmu.ConfigError, match="3k"):
        fastmmu.compare(trace, pages=("3k",))
