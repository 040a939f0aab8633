"""What a slowdown is over: the native run of the same events at the same costs, whatever the traces are called."""

from __future__ import annotations

import csv
import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from fastmmu import Config, CostModel, Result, Trace, compare, geometry, read_trace, simulate, write_trace
from fastmmu.cli import main
from fastmmu.report import comparison, rows, slowdowns
from fastmmu.report.why import why
from fastmmu.study.consolidate.run import consolidate
from fastmmu.study.tpr.run import tpr_study
from fastmmu.study.tpr.table import tpr_rows, tpr_table
from fastmmu.study.vpid.run import vpid_experiment
from fastmmu.study.vpid.table import vpid_rows, vpid_table
from tests.support.event_lists import program

SCHEMES = ("native", "ept", "ept+vpid")


def scattered(n: int) -> Trace:
    """Many pages, each touched once: faults dear natively and dearer under a VMM."""
    pages = np.random.default_rng(5).permutation(n).astype(np.uint64)
    return Trace.from_arrays(0x10_0000_0000 + pages * 4096, name="app")


def dense(n: int) -> Trace:
    return Trace.from_arrays(0x10_0000_0000 + np.arange(n, dtype=np.uint64) % 4096, name="app")


def own(result: Result, native: Result) -> float:
    return result.cycles_per_access / native.cycles_per_access


def test_results_of_several_traces_in_any_order() -> None:
    """Two traces of one name, at two costs, with two TLBs, 4 KB and 2 MB pages: each over its own native run."""
    costs = [CostModel.load(), CostModel.load(generation="prescott")]
    wanted: dict[int, float] = {}
    every: list[Result] = []
    for trace, cost, tlb in itertools.product((scattered(3000), dense(3000)), costs, ("skylake", "nehalem")):
        found = compare(trace, SCHEMES, ("4k", "2m"), costs=cost, tlb=tlb)
        for i, result in enumerate(found):
            wanted[id(result)] = own(result, found[i // 3 * 3])
        every += found
    assert max(wanted.values()) > 3 * min(value for value in wanted.values() if value != 1)
    for seed in range(20):
        random.Random(seed).shuffle(every)
        assert slowdowns(every) == [wanted[id(result)] for result in every]
        assert [row["slowdown"] for row in rows(every)] == slowdowns(every)


def test_arrays_are_told_apart() -> None:
    x, y = (trace._batch.addr for trace in (scattered(2000), dense(2000)))  # type: ignore[attr-defined]
    ran = {
        (of, mmu): simulate(array, Config(mmu=mmu)) for of, array in (("x", x), ("y", y)) for mmu in ("native", "ept")
    }
    found = slowdowns([ran["x", "native"], ran["y", "native"], ran["x", "ept"], ran["y", "ept"]])
    assert found == [1, 1, own(ran["x", "ept"], ran["x", "native"]), own(ran["y", "ept"], ran["y", "native"])]
    assert slowdowns([ran["x", "native"], ran["y", "ept"]]) == [1, None]
    both = [compare(array, ("native", "ept")) for array in (x, y)]
    assert slowdowns(both[0] + both[1]) == slowdowns(both[0]) + slowdowns(both[1]) == [1, found[2], 1, found[3]]
    assert comparison(both[0] + both[1]).count("array: 2,000 accesses") == 2


def test_the_same_trace_twice_and_the_same_content_at_two_paths(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        write_trace(scattered(2000), tmp_path / name)
    a, b = (compare(tmp_path / name, SCHEMES) for name in ("a.npy", "b.npy"))
    alone = slowdowns(a)
    assert slowdowns(a + a) == alone * 2
    assert slowdowns(a + b) == alone * 2
    assert slowdowns([a[0], *b[1:]]) == alone  # equal events: the native run of either serves both
    assert [row["path"] for row in rows(a + b)] == [
        str(tmp_path / name) for name in ("a.npy", "b.npy") for _ in SCHEMES
    ]
    assert len({row["content"] for row in rows(a + b)}) == 1
    cut = compare(read_trace(tmp_path / "a.npy").head(100), SCHEMES)
    assert slowdowns([*a[1:], *cut]) == [None, None, *slowdowns(cut)]


def test_a_tlb_goes_by_its_arrays() -> None:
    """Not by how they were named; and a scheme's own options do not part it from the native run."""
    trace = program(2000)
    native = simulate(trace, Config(tlb="skylake", l1d="64/4"))
    for config in (
        Config(mmu="ept", tlb="Skylake"),
        Config(mmu="ept", tlb=geometry("skylake", stlb="1536/12")),
        Config(mmu="ept", pml=True),
        Config(mmu="ept", kvm="6.1", vendor="amd", ept_ad=False),
        Config(mmu="shadow", kvm="6.1", host_pages="2m", unsync=False, exit_pages=2),
    ):
        result = simulate(trace, config)
        assert slowdowns([native, result]) == [1, own(result, native)], config
    other = simulate(trace, Config(mmu="ept", tlb=geometry("skylake", gpm="off")))
    assert slowdowns([native, other]) == [1, None]


def test_a_native_run_is_the_same_whatever_the_vmm_would_do() -> None:
    trace = program(3000)
    apic = simulate(trace, Config(tpr="trap", memory="2G", exit_every=100))
    plain = simulate(trace, Config(exit_every=100))
    for fields in (
        {"host_pages": "2m"}, {"kvm": "6.1"}, {"vendor": "amd"}, {"unsync": True}, {"ept_ad": False},
        {"tdp_mmu": False},
        {"eager_page_split": False}, {"nx_huge_pages": True}, {"mmio_caching": False}, {"shadow_keys": True},
        {"guest_ad_checked": False}, {"unrestricted_guest": True}, {"identity_map": 0x1000_0000}, {"host_memory": "1M"},
        {"host_reclaim": "lru"}, {"ageing": "old"}, {"noncoherent_dma": True}, {"cd_quirk": False}, {"table_pages": 16},
        {"exit_pages": 5},
    ):  # fmt: skip
        config = Config(exit_every=100, **fields)  # type: ignore[arg-type]
        result = simulate(trace, config)
        assert (result.counters, result.cycles) == (plain.counters, plain.cycles), fields
        assert config.native == plain.config
    for fields in ({"tpr": "patch"}, {"tpr": "flexpriority", "tpr_threshold": "slides"}, {"tpr": "apicv"},
                   {"tpr": "patch", "tpr_patch": "one-vcpu"}, {"tpr": "trap", "tpr_shadow": False}):  # fmt: skip
        config = Config(exit_every=100, memory="2G", **fields)  # type: ignore[arg-type]
        result = simulate(trace, config)
        assert (result.counters, result.cycles) == (apic.counters, apic.cycles), fields
        assert config.native == apic.config


def test_a_complete_native_run_goes_before_an_interrupted_one() -> None:
    trace = program(500)
    native, ept = simulate(trace), simulate(trace, Config(mmu="ept"))
    stopped = Result(**{**vars(native), "complete": False})
    assert slowdowns([stopped, ept, native]) == [None, own(ept, native), 1]
    assert slowdowns([stopped, ept]) == [None, None]


def test_tables_of_several_traces_are_several() -> None:
    a, b, dear = (
        compare(scattered(2000)),
        compare(dense(2000)),
        compare(dense(2000), costs=CostModel.load(generation="zen")),
    )
    text = comparison(a + b + dear)
    assert text.count("Where the cycles of an access go") == 3
    assert text.count("app: 2,000 accesses") == 3
    assert f"costs {dear[0].costs}" in text
    for results in (a, b, dear):
        lines = why(results)
        assert "\n".join(lines) in text
    points = vpid_experiment(scattered(2000), rates=[1]) + vpid_experiment(dense(2000), rates=[1])
    assert vpid_table(points) == "\n\n".join(vpid_table([point]) for point in points)
    assert len({row["content"] for row in vpid_rows(points)}) == 2


def test_the_ways_of_the_tpr_are_over_their_own_native_run() -> None:
    ways = ("native", "flexpriority", "flexpriority-slides")
    a, b = (tpr_study(trace, "winxp", ways) for trace in (program(3000), program(3000, seed=1, pages=2000)))
    assert tpr_rows(a + b) == tpr_rows(a) + tpr_rows(b)
    assert tpr_table(a + b).count("Threshold exits that KVM's rule saves") == 2
    assert [None, *slowdowns(a)[1:]] == [None, *(own(result, a[0]) for result in a[1:])]


def test_vcpus_of_a_host_know_their_traces() -> None:
    found = consolidate([program(2000), dense(2000)], Config(mmu="ept", vpid=True), cpus=1).results
    assert [r.content for r in found] == [simulate(trace).content for trace in (program(2000), dense(2000))]
    assert len({r.costs for r in found}) == 1


def test_two_files_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for folder, trace in (("a", scattered(2000)), ("b", dense(2000))):
        (tmp_path / folder).mkdir()
        write_trace(trace, tmp_path / folder / "app.npy")
        paths.append(str(tmp_path / folder / "app.npy"))
    target = tmp_path / "found.csv"
    words = ["compare", *paths, "--csv", str(target), "--quiet"]
    assert main(words) == 0
    out = capsys.readouterr().out
    found = list(csv.DictReader(target.read_text().splitlines()))
    assert [row["path"] for row in found] == [path for path in paths for _ in range(5)]
    assert [row["trace"] for row in found] == [f"{tmp_path}/{folder}/app" for folder in "ab" for _ in range(5)]
    alone = [slowdowns(compare(path)) for path in paths]
    assert [float(row["slowdown"]) for row in found] == alone[0] + alone[1]
    assert f"{tmp_path}/a/app: 2,000 accesses" in out
    assert {row["command"] for row in found} == {"fastmmu " + " ".join(words)}
    assert {row["costs"] for row in found} == {CostModel.load().identity}
    assert {row["geometry"] for row in found} == {str(Config().geometry)}


def test_runs_differ_in_seconds_alone(tmp_path: Path) -> None:
    write_trace(program(3000), tmp_path / "a.npy")
    found = [rows(compare(tmp_path / "a.npy")) for _ in range(2)]
    seconds = [[row.pop("seconds") for row in table] for table in found]
    assert all(second > 0 for table in seconds for second in table)
    assert found[0] == found[1]
