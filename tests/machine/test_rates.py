"""Rates per thousand instructions: exact however a run is cut, nothing where instructions are not counted."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu import Config, read_trace, simulate
from fastmmu.errors import ConfigError
from fastmmu.machine.checkpoint.runs import Checkpoint
from fastmmu.machine.costs import CostModel
from fastmmu.machine.rates import PKI, mpki_by, pki, structures, walk_share
from fastmmu.machine.result import Result
from fastmmu.machine.sampled import Sample
from fastmmu.machine.simulation import Simulation
from fastmmu.ops import RecordOp
from fastmmu.report.rows import over_time, rows
from fastmmu.report.stored import load
from fastmmu.tlb.geometry import geometry
from fastmmu.trace import write_trace
from fastmmu.trace.base import Trace
from fastmmu.trace.bundle import bundled
from tests.conformance import systems

SQLITE = bundled()["sqlite"]
EVENTS = 300_000
EPT = Config(mmu="ept", vpid=True, memory="2G")
SAMPLES = systems.traces(systems.sample_directory())
FULL = systems.traces(systems.data_directory())


@pytest.fixture(scope="module")
def fetches() -> list[int]:
    """Instructions before each event, by the lines of the text."""
    found = [0]
    with lzma.open(SQLITE, "rt") as lines:
        for line in lines:
            if line[0] in "I ":
                found.append(found[-1] + (line[0] == "I"))
            if len(found) > EVENTS:
                return found
    raise AssertionError("the trace is short")


def trace() -> Trace:
    return read_trace(SQLITE).head(EVENTS)


@pytest.fixture(scope="module")
def whole() -> Result:
    return simulate(trace(), EPT)


def test_all_instructions(fetches: list[int], whole: Result) -> None:
    n = fetches[EVENTS]
    assert (whole.instructions, whole.counters["instructions"]) == (n, n)
    assert whole.mpki == pytest.approx(1000 * whole.counters["tlb_misses"] / n)


@pytest.mark.parametrize("data", [False, True])
def test_a_part_of_a_run_has_its_own(fetches: list[int], data: bool, tmp_path: Path) -> None:
    some = trace().data_only() if data else trace()
    if data:  # instructions before each event that is kept, with that event's own
        kept = np.flatnonzero(np.concatenate([b.op for b in trace().batches()]) != 3)
        begun = [0, *(fetches[at] for at in kept)]
        begun[-1] = fetches[EVENTS]
    else:
        begun = fetches
    n = len(begun) - 1
    warm, interval = n // 3, n // 10
    cut = simulate(some, EPT, warm_up=warm, interval=interval)
    assert cut.instructions == begun[n] - begun[warm]
    parts = over_time([cut])
    assert [part.instructions for part in parts] == [
        begun[min(n, at + interval)] - begun[at] for at in range(warm, n, interval)
    ]
    skipped = simulate(some.skip(warm), EPT)
    assert skipped.instructions == begun[n] - begun[warm]
    first = simulate(some.head(warm), EPT)
    assert first.instructions == begun[warm]
    sampled = simulate(some, EPT, warm_up=100, interval=1000, sample_every=7, seed=3)
    assert sampled.sample is not None
    each = sampled.sample.counters["instructions"].tolist()
    at, wanted = 0, []
    for gap, _ in zip(Sample(1000, 7, 3, 100).gaps(), range(len(each)), strict=False):
        at += gap
        wanted.append(begun[min(n, at + 1000)] - begun[at])
        at += 1000
    assert each == wanted
    assert sampled.instructions == sum(wanted)
    exits: list[Any] = []
    told = simulate(some, EPT, exits=exits.append)
    assert told.instructions == begun[n]
    kept_at = Checkpoint(tmp_path / "run", every=n // 4)
    simulate(some.head(n // 2), EPT, checkpoint=kept_at)
    again = simulate(some, EPT, checkpoint=kept_at)
    assert (again.instructions, again.mpki_by, again.pki) == (begun[n], told.mpki_by, told.pki)


def test_exits_are_taken_from_parts_of_a_batch_with_a_column() -> None:
    n = 200_000
    batch = fastmmu.trace.Batch(
        np.zeros(n, np.uint8), np.ones(n, np.uint8), np.arange(n, dtype=np.uint64) << 4, np.full(n, 3, np.uint32)
    )
    run = Simulation(EPT, exits=lambda part: None)
    run.counted = "column"
    run.feed(batch)
    assert run.result().instructions == 3 * n


@pytest.mark.parametrize("name", ["t.arrow", "t.arrow.zst", "t.parquet", "t.lackey.xz"])
def test_files_keep_them(name: str, whole: Result, tmp_path: Path) -> None:
    write_trace(trace(), tmp_path / name)
    again = simulate(read_trace(tmp_path / name), EPT)
    assert (again.instructions, again.mpki_by, again.pki, again.walk_share) == (
        whole.instructions,
        whole.mpki_by,
        whole.pki,
        whole.walk_share,
    )


# ---- system traces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_system_trace_counts_them(path: Path, tmp_path: Path) -> None:
    n = sum(
        int(chunk.rows["aux"][chunk.rows["op"] == RecordOp.FETCH].sum(dtype=np.uint64))
        for chunk in read_trace(path).records()  # type: ignore[attr-defined]
    )
    source = read_trace(path)
    result = simulate(source, EPT)
    assert result.instructions == n
    assert result.mpki_by is not None
    assert result.mpki_by["stlb"] == 1000 * result.counters["tlb_misses"] / n
    assert sum(int(batch.instructions_column().sum()) for batch in source.batches()) == n
    checkpoint = Checkpoint(tmp_path / "run", every=20_000)
    simulate(source.head(50_000), EPT, checkpoint=checkpoint)
    assert simulate(source, EPT, checkpoint=checkpoint).instructions == n
    parts = over_time([simulate(source, EPT, interval=10_000)])
    assert sum(part.instructions or 0 for part in parts) == n


@pytest.mark.skipif(not FULL, reason=f"skipped: no traces in {systems.data_directory().name}; set FASTMMU_TRACES")
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.name)
def test_they_are_those_of_the_emulator(path: Path) -> None:
    # a MARK has the instructions since the start; of the X before it some may come behind the MARK, of the first
    # instructions there is none
    told, begun, compared = 0, 0, 0
    for chunk in read_trace(path).records():  # type: ignore[attr-defined]
        op = chunk.rows["op"]
        upto = begun + np.cumsum(np.where(op == RecordOp.FETCH, chunk.rows["aux"], 0), dtype=np.uint64)
        for at in np.flatnonzero(op == RecordOp.MARK):
            told = int(chunk.rows["val"][at])
            assert abs(int(upto[at]) - told) < 64
            compared += 1
        begun = int(upto[-1])
    assert compared
    assert begun > told


# ---- by structure ----------------------------------------------------------------------------------------------------


def test_each_structure_that_there_is(whole: Result) -> None:
    n, counters = whole.instructions, whole.counters
    assert n
    assert whole.mpki_by is not None
    assert whole.pki is not None
    assert set(whole.mpki_by) == {
        "l1i", "l1d", "stlb", "pde", "pdpte", "pml4e", "ept_pde", "ept_pdpte", "ept_pml4e", "gpm",
    }  # fmt: skip
    assert whole.mpki_by["l1i"] == 1000 * counters["l1i_misses"] / n
    assert whole.mpki_by["l1d"] == 1000 * counters["l1d_misses"] / n
    assert whole.mpki_by["gpm"] == 1000 * whole.tlb["gpm"]["misses"] / n
    for unit, prefix in (("psc", ""), ("epsc", "ept_")):  # the last level has the misses of the whole
        assert whole.mpki_by[f"{prefix}pml4e"] == 1000 * whole.tlb[unit]["misses"] / n
        deep, hits = whole.mpki_by[f"{prefix}pde"], whole.tlb[unit]["hits"]["pde"]
        assert deep == 1000 * (whole.tlb[unit]["lookups"] - hits) / n
        assert deep >= whole.mpki_by[f"{prefix}pdpte"] >= whole.mpki_by[f"{prefix}pml4e"]
    assert set(whole.mpki_by) <= set(structures())
    assert whole.pki == {
        "walks": 1000 * counters["walks"] / n,
        "walk_refs": 1000 * (counters["guest_walk_refs"] + counters["ept_walk_refs"]) / n,
        "walk_cycles": 1000 * (whole.cycles_by["guest_walk"] + whole.cycles_by["ept_walk"]) / n,
        "vm_exits": 1000 * counters["vm_exits"] / n,
    }
    assert tuple(whole.pki) == PKI


def test_levels_of_a_prefix_by_hand() -> None:
    # 40 pages, each 1 GB from the next, that come round: 40 PDEs and PDPTEs, one PML4E
    addr = np.tile(np.arange(40, dtype=np.uint64) << np.uint64(30), 2)
    some = Trace.from_arrays(np.repeat(addr, 2), np.tile(np.array([3, 0], np.uint8), 80))
    some.instructions = "fetches"
    config = Config(tlb=geometry(psc="4/8/16"), stlb="none", l1d="4/fa", l1i="4/fa", premapped=True)
    result = simulate(some, config)
    c = result.tlb["psc"]
    assert (result.instructions, c["lookups"]) == (80, result.counters["walks"])
    assert result.mpki_by is not None
    # 16 PDEs and 8 PDPTEs hold none of 40, but where a walk for data follows that of its fetch
    many = result.counters["walks"]
    assert result.mpki_by["pde"] == 1000 * (many - c["hits"]["pde"]) / 80
    assert result.mpki_by["pdpte"] == 1000 * (many - c["hits"]["pde"] - c["hits"]["pdpte"]) / 80
    assert c["hits"]["pdpte"] == 0
    assert result.mpki_by["pml4e"] == 1000 / 80  # the first walk alone, as all lie below one entry


def test_only_what_the_processor_has() -> None:
    some = trace().head(1000)
    native, bare = simulate(some), simulate(some, Config(walk_caches=False))
    assert set(native.mpki_by or ()) == {"l1i", "l1d", "stlb", "pde", "pdpte", "pml4e"}
    assert set(bare.mpki_by or ()) == {"l1i", "l1d", "stlb"}
    assert set(replace(native, tlb={}).mpki_by or ()) == {"l1i", "l1d", "stlb"}


# ---- share of the run time -------------------------------------------------------------------------------------------


def test_share_by_hand() -> None:
    counters = {"fetches": 600}
    # 1000 cycles, 400 of them walks, of which a quarter is hidden: 300 of 900
    assert walk_share(counters, 1000, 400, 600, overlap=0.25, fetch=1.0) == pytest.approx(300 / 900)
    # 700 instructions whose fetches are left out take 100 cycles more
    assert walk_share(counters, 1000, 400, 700, overlap=0.25, fetch=1.0) == pytest.approx(300 / 1000)
    assert walk_share(counters, 1000, 400, 600, overlap=0, fetch=1.0) == 0.4
    assert walk_share(counters, 1000, 400, 600, overlap=1, fetch=1.0) == 0
    assert walk_share(counters, 0, 0, 600, overlap=0.25, fetch=1.0) is None


def test_the_factor_can_be_replaced(whole: Result, tmp_path: Path) -> None:
    file = tmp_path / "costs.toml"
    file.write_text("[walk]\noverlap = 0.5\n")
    other = simulate(trace(), EPT, costs=CostModel.load(file))
    w, c = other.walk_cycles, other.cycles
    assert (w, c) == (whole.walk_cycles, whole.cycles)  # no cycles change
    assert (whole.overlap, other.overlap, other.fetch_cycles) == (0.25, 0.5, 1.0)
    assert whole.walk_share == pytest.approx(0.75 * w / (c - 0.25 * w))
    assert other.walk_share == pytest.approx(0.5 * w / (c - 0.5 * w))
    for value in ("-0.1", "1.5", "nan"):
        file.write_text(f"[walk]\noverlap = {value}\n")
        with pytest.raises(ConfigError, match=r"walk\.overlap"):
            CostModel.load(file)


# ---- without instructions, and in files ------------------------------------------------------------------------------


def test_nothing_where_they_are_not_counted(tmp_path: Path) -> None:
    result = simulate(np.arange(0, 1 << 20, 64))
    assert [getattr(result, name) for name in ("instructions", "mpki", "mpki_by", "pki", "walk_share")] == [None] * 5
    (row,) = rows([result])
    names = [f"mpki_{name}" for name in structures()] + [f"{name}_pki" for name in PKI] + ["mpki", "walk_share"]
    assert [row[name] for name in names] == [None] * len(names)
    assert result.to_dict()["mpki_by"] is result.to_dict()["walk_share"] is None


def test_an_empty_run_has_no_rate() -> None:
    some = Trace.from_arrays(np.arange(5))
    some.instructions = "fetches"
    result = simulate(some)
    assert result.instructions == 0
    assert result.mpki is result.mpki_by is result.pki is result.walk_share is None


def test_tables_have_an_empty_cell(whole: Result) -> None:
    other = replace(
        whole,
        config=whole.config.replace(pages="2m"),
        counters={name: n for name, n in whole.counters.items() if name != "instructions"},
    )
    table = fastmmu.report.comparison([whole, other], width=140)
    head, line, without = [text for text in table.splitlines() if text.startswith(("scheme", "EPT+VPID "))][:3]
    assert whole.pki is not None
    for title, value in (("MPKI", f"{whole.mpki:.2f}"), ("CPKI", f"{whole.pki['walk_cycles']:.0f}")):
        end = head.index(title) + len(title)
        assert line[:end].split()[-1].startswith(value[:3])
        assert without[end - 5 : end].strip() == ""
    text = fastmmu.report.single(whole)
    assert f"about {whole.walk_share:.1%}" in text
    assert "per thousand instructions" not in fastmmu.report.single(other)


@pytest.mark.parametrize("name", ["r.json", "r.csv", "r.parquet"])
def test_results_in_files_have_them(name: str, whole: Result, tmp_path: Path) -> None:
    fastmmu.report.save([whole], tmp_path / name)
    (again,) = load(tmp_path / name)
    assert (again.instructions, again.pki, again.mpki) == (whole.instructions, whole.pki, whole.mpki)
    assert again.walk_share == pytest.approx(whole.walk_share)
    if name == "r.json":
        assert again.mpki_by == whole.mpki_by
        (told,) = json.loads((tmp_path / name).read_text())["results"]
        assert told["mpki_by"] == whole.mpki_by


def test_rates_of_a_table_by_themselves() -> None:
    counters = {
        "l1i_misses": 5, "l1d_misses": 10, "tlb_misses": 4, "walks": 4, "guest_walk_refs": 6, "ept_walk_refs": 2,
        "vm_exits": 1,
    }  # fmt: skip
    assert mpki_by(counters, {}, Config(), 2000) == {"l1i": 2.5, "l1d": 5.0, "stlb": 2.0}
    assert pki(counters, 100.0, 2000) == {"walks": 2.0, "walk_refs": 4.0, "walk_cycles": 50.0, "vm_exits": 0.5}
