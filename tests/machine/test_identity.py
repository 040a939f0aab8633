"""The content of traces: equal for equal events, however they come; and what it costs."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from fastmmu import (
    Config,
    CostModel,
    Machine,
    Simulation,
    Trace,
    TraceError,
    compare,
    interleave,
    read_trace,
    simulate,
    tpr_study,
    write_trace,
)
from fastmmu.machine.identity import Content
from fastmmu.report import slowdowns
from fastmmu.study.consolidate.run import consolidate
from fastmmu.study.curve.run import tlb_curve
from fastmmu.study.migrate.run import migrate
from fastmmu.study.overcommit.run import overcommit
from fastmmu.study.vpid.run import vpid_experiment
from fastmmu.trace import identity
from fastmmu.trace.identity import identified
from tests.support.event_lists import program


def content(op: np.ndarray, size: np.ndarray, addr: np.ndarray, cuts: list[int]) -> str:
    found = Content()
    for start, stop in zip([0, *cuts], [*cuts, len(addr)], strict=True):
        found.update(op[start:stop], size[start:stop], addr[start:stop])
    return found.digest()


def columns(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    return (chance.integers(0, 4, n, np.uint8), chance.integers(1, 9, n, np.uint8),
            chance.integers(0, 1 << 47, n, np.uint64))  # fmt: skip


def test_batches_do_not_matter() -> None:
    chance = random.Random(1)
    for n in (0, 1, 7, 8, 9, 1000, 32768, 100_003):
        op, size, addr = columns(n)
        whole = content(op, size, addr, [])
        for _ in range(20):
            cuts = sorted(chance.randrange(n + 1) for _ in range(chance.randrange(9)))
            assert content(op, size, addr, cuts) == whole, (n, cuts)


def test_any_change_of_one_event_is_seen() -> None:
    op, size, addr = columns(50_000)
    seen = {content(op, size, addr, [])}
    tried = 1
    for at in (0, 1, 31, 32767, 32768, 49_999):
        for bit in range(64):
            addr[at] ^= np.uint64(1 << bit)
            seen.add(content(op, size, addr, []))
            addr[at] ^= np.uint64(1 << bit)
        for column in (op, size):
            for bit in range(8):
                column[at] ^= np.uint8(1 << bit)
                seen.add(content(op, size, addr, []))
                column[at] ^= np.uint8(1 << bit)
        tried += 64 + 16
    assert len(seen) == tried


def test_order_length_and_high_bits_count() -> None:
    """Swapped events, zeros at the end, and the highest bits of two addresses at once."""
    op, size, addr = columns(1000)
    found = {content(op, size, addr, [])}
    for i in range(0, 998, 7):
        swapped = addr.copy()
        swapped[[i, i + 1]] = swapped[[i + 1, i]]
        found.add(content(op, size, swapped, []))
        high = addr.copy()
        high[[i, i + 1]] ^= np.uint64(0xFFFF_8000_0000_0000)
        found.add(content(op, size, high, []))
    zeros = np.zeros(64, np.uint64)
    found |= {content(zeros.astype(np.uint8)[:n], zeros.astype(np.uint8)[:n], zeros[:n], []) for n in range(65)}
    assert len(found) == 1 + 2 * 143 + 65


def test_it_is_the_same_for_ever() -> None:
    """Files are compared by it, those of earlier versions, too."""
    op, size, addr = np.zeros(40_000, np.uint8), np.ones(40_000, np.uint8), np.arange(40_000, dtype=np.uint64)
    assert content(op, size, addr, []) == "870f46f2db80bc5d19b63020"


def test_results_know_their_trace(tmp_path: Path) -> None:
    trace = program(3000)
    for name in ("a.npy", "b.npy.gz", "b.arrow"):
        if name.endswith("arrow"):
            pytest.importorskip("pyarrow")
        write_trace(trace, tmp_path / name)
    of = {name: simulate(read_trace(tmp_path / name)) for name in ("a.npy", "b.npy.gz")}
    memory = simulate(trace)
    assert {result.content for result in of.values()} == {memory.content}
    assert [result.path for result in of.values()] == [str(tmp_path / name) for name in of]
    assert simulate(read_trace(tmp_path / "a.npy").head(2999)).content != memory.content
    assert simulate(np.arange(9) * 4096).content == simulate(Trace.from_arrays(np.arange(9) * 4096)).content
    assert memory.geometry == str(Config().geometry)
    assert memory.costs == CostModel.load().identity


def test_a_file_is_hashed_once_and_anew_where_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(1000, dtype=np.uint64) * 4096)
    trace = identified(read_trace(path))
    assert trace.content == ""
    first = simulate(trace)
    assert first.content == trace.content == simulate(read_trace(path)).content
    iterator = trace.batches(10)
    next(iterator)
    assert trace.content == first.content  # known, whatever is read of it
    np.save(path, np.arange(1000, dtype=np.uint64) * 8192)
    second = simulate(trace)
    assert second.content == simulate(read_trace(path)).content != first.content


def test_a_file_is_decoded_once_where_its_events_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npy.xz"
    write_trace(program(5000), path)
    trace = identified(read_trace(path))
    passes = []
    batches = trace.inner.batches
    monkeypatch.setattr(trace.inner, "batches", lambda chunk: passes.append(chunk) or batches(chunk))

    def events(chunk: int) -> list[tuple[int, int, int]]:
        return [row for b in trace.batches(chunk) for row in zip(b.op, b.size, b.addr, strict=True)]

    wanted = events(1000)
    assert len(wanted) == 5000 == trace.total
    assert events(1000) == wanted
    assert passes == [1000]
    assert events(999) == wanted  # in other batches
    assert passes == [1000, 999]
    assert trace.__getstate__()["_kept"] == []  # a copy decodes anew
    write_trace(program(6000), path)
    assert len(events(1000)) == 6000
    assert len(events(1000)) == 6000
    assert passes == [1000, 999, 1000]
    monkeypatch.setattr(identity, "KEPT", 6000 * 14 - 1)
    write_trace(program(6001), path)
    wanted = events(1000)
    assert events(1000) == wanted
    assert passes == [1000, 999, 1000, 1000, 1000]
    iterator = trace.batches(1000)
    next(iterator)  # half a pass keeps nothing
    assert events(1000) == wanted


def test_system_traces_and_several_at_once(tmp_path: Path) -> None:
    system = read_trace(Path(__file__).parents[1] / "data" / "systems" / "mm.rec.xz")
    config = Config(memory="2G")
    whole = simulate(system, config)
    assert whole.content == simulate(system, config).content
    assert whole.content != simulate(system.head(5000), config).content
    assert whole.path == system.path
    for name in "ab":
        write_trace(program(500), tmp_path / f"{name}.npy")
    both = interleave([read_trace(tmp_path / "a.npy"), read_trace(tmp_path / "b.npy")], 100)
    found = simulate(both)
    assert found.path == f"{tmp_path}/a.npy + {tmp_path}/b.npy"
    assert found.content == simulate(identified(both)).content


def test_studies_take_traces_paths_and_arrays(tmp_path: Path) -> None:
    addresses = 0x10_0000_0000 + np.arange(3000, dtype=np.uint64) * 64
    np.save(tmp_path / "t.npy", addresses)
    of = {}
    for trace in (
        addresses,
        addresses.tolist(),
        tmp_path / "t.npy",
        str(tmp_path / "t.npy"),
        read_trace(tmp_path / "t.npy"),
    ):
        found = [
            compare(trace, ("ept",))[0].content,
            tlb_curve(trace).origin.content,
            vpid_experiment(trace, rates=[5])[0].origin.content,
            next(overcommit(trace, ["ept"], [1.0])).origin.content,
            migrate(trace).origin.content,
            consolidate([trace], Config(mmu="ept")).results[0].content,
        ]
        of[str(trace)[:40]] = found
        assert tpr_study(trace, ways=["native"])[0].content not in found  # it holds the traffic, too
    assert {content for found in of.values() for content in found} == {simulate(addresses).content}
    for bad in (None, 1.5, [[1]]):
        with pytest.raises(TraceError):
            compare(bad)  # type: ignore[arg-type]


def test_a_simulation_that_is_fed_knows_its_events() -> None:
    trace, other = program(1000), program(1000, seed=1)
    native, ept, fed = Config(), Config(mmu="ept"), []
    for events, config in ((trace, native), (other, native), (trace, ept), (other, ept)):
        run = Simulation(config)
        for batch in events.batches(77):
            run.feed(batch)
        fed.append(run.result())
    assert [result.content for result in fed] == [simulate(events).content for events in (trace, other, trace, other)]
    alone = [slowdowns([simulate(events), simulate(events, ept)])[1] for events in (trace, other)]
    assert slowdowns(fed) == [1, 1, *alone]


def test_costs_are_known_by_their_values(tmp_path: Path) -> None:
    default = CostModel.load()
    (tmp_path / "same.toml").write_text("[access]\ntrace = 1\n")
    (tmp_path / "other.toml").write_text("[access]\ntrace = 2\n")
    (tmp_path / "unused.toml").write_text("[generation.mine]\nround_trip = 1\nvmread = 1\nvmwrite = 1\n")
    assert default.identity == CostModel.load(tmp_path / "same.toml").identity
    assert default.identity == CostModel.load(tmp_path / "unused.toml").identity
    others = [CostModel.load(tmp_path / "other.toml"), CostModel.load(generation="icelake")]
    assert len({default.identity, *(other.identity for other in others)}) == 3


def test_it_takes_a_fraction_of_the_simulation() -> None:
    op, size, addr = columns(1 << 18)
    addr &= np.uint64((1 << 22) - 1)
    machine, hashed = Machine(Config()), Content()
    machine.run(op, size, addr)
    run, own = [], []
    for _ in range(7):
        start = time.perf_counter()
        hashed.update(op, size, addr)
        middle = time.perf_counter()
        machine.run(op, size, addr)
        run.append(time.perf_counter() - middle)
        own.append(middle - start)
    assert min(own) < min(run) / 2  # a tenth as a rule
