"""System traces of several CPUs: in every scheme each use is equal to a walk now or to what its CPU may still hold, and
what is left out is found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Op, Policy, simulate
from fastmmu.cli.main import main
from fastmmu.errors import ConfigError, TraceError
from fastmmu.machine.replay import Replay, Replayed
from fastmmu.machine.system_loop_py import HELD
from fastmmu.study.replay import SCHEMES, ipi_costs, ipis_of, replay_schemes
from fastmmu.study.schemes import fields_of
from fastmmu.trace import read_trace
from fastmmu.trace.system import SystemTrace
from tests.conformance import systems
from tests.support.smp_traces import random_trace
from tests.support.system_traces import REGISTERS, Row, make, row

SAMPLES = systems.traces(systems.smp_sample_directory())
FULL = systems.traces(systems.smp_directory())
NATIVE = Config(memory="64M")
EPT = Config(mmu="ept", vpid=True, memory="64M")
SHADOW = Config(mmu="shadow", vpid=True, shadow_keys=True, kvm="6.1", memory="64M")
EACH = pytest.mark.parametrize("config", [NATIVE, EPT, SHADOW], ids=lambda config: config.name)


def opened(path: Path) -> SystemTrace:
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    return trace


def replayed(path: Path, config: Config = NATIVE, **options: Any) -> Replayed:
    replay = Replay(opened(path), config, **options)
    for _ in replay.steps():
        pass
    return replay.result()


# ---- random traces, every scheme ----------------------------------------------------------------------------------


def test_random_traces_in_every_scheme(tmp_path: Path) -> None:
    """Nothing is neither; at the end page tables differ in accessed and dirty flags alone, if at all: of walks here
    where the trace went by what was held."""
    kinds: Counter[str] = Counter()
    stale = flags = 0
    for seed in range(12):
        made = random_trace(seed)
        path = made.write(tmp_path)
        stale += made.stale
        for ran in replay_schemes(opened(path), memory="64M", tlb="strict" if seed % 2 else "skylake"):
            found = ran.found
            if "agile" in ran.scheme and "one CPU" in ran.why:
                continue
            assert found is not None, ran.why
            assert (found.neither, found.mismatches) == (0, 0), (seed, ran.scheme, found.examples)
            assert found.different == found.flags_alone, (seed, ran.scheme, found.examples)
            assert found.now + found.held == found.accesses + found.walks + found.page_faults
            assert found.held == sum(found.held_by_kind.values())
            assert ran.missed in (None, 0), (seed, ran.scheme)
            assert (ran.missed is None) == ("logged" not in ran.scheme)
            kinds.update(found.held_by_kind)
            flags += found.flags_set
    assert stale > 200
    assert set(kinds) == set(HELD)
    assert min(kinds.values()) > 100, kinds
    assert flags > 0


@pytest.mark.parametrize("cpus", [2, 9])
def test_any_number_of_cpus(tmp_path: Path, cpus: int) -> None:
    path = random_trace(77, cpus=cpus, steps=400).write(tmp_path)
    for config in (NATIVE, EPT, SHADOW):
        found = replayed(path, config)
        assert (found.cpus, found.neither) == (cpus, 0)


def test_a_vmm_in_python_runs_them_too(tmp_path: Path) -> None:
    """Counter for counter."""
    path = random_trace(5, steps=500).write(tmp_path)
    for config in (EPT, SHADOW):
        ran = []
        for vmm in ("kernel", "python"):
            replay = Replay(opened(path), config.replace(vmm=vmm))
            for _ in replay.steps():
                pass
            assert replay.result().neither == 0
            ran.append(replay.counters())
        assert ran[0] == ran[1]


# ---- a real Linux ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sample(scheme: str) -> None:
    (path,) = SAMPLES
    (ran,) = replay_schemes(opened(path), [scheme], memory="1G")
    found = ran.found
    if "agile" in scheme:
        assert found is None
        assert "one CPU" in ran.why
        return
    assert found is not None, ran.why
    assert (found.cpus, found.wrong, found.neither, found.ipis > 5) == (2, 0, 0, True), found.examples
    assert found.held_by_kind["both held"] + found.held_by_kind["faulted here"] == 5  # the trace's own
    assert ran.missed in (None, 0)


@pytest.mark.skipif(not FULL, reason="skipped: no traces of several CPUs; set FASTMMU_TRACES_SMP")
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.name)
def test_full_trace(path: Path) -> None:
    """The uses that the trace's maker calls stale are those that are held here, at each point of it."""
    listed = path.with_name(path.name.partition(".rec")[0] + ".stale.txt")
    stale = np.array([int(line.split()[0]) for line in listed.read_text().splitlines()]) if listed.exists() else None
    replay = Replay(opened(path), Config(memory="1G"))
    for chunk in replay.steps():
        found = replay.result(tables=False)
        if stale is not None:
            own = sum(found.held_by_kind[kind] for kind in ("both held", "trace held", "faulted here"))
            assert own == int((stale < chunk.first + len(chunk)).sum())
    found = replay.result()
    assert (found.neither, found.mismatches, found.different) == (0, 0, 0), found.examples


@pytest.mark.skipif(not FULL, reason="skipped: no traces of several CPUs; set FASTMMU_TRACES_SMP")
@pytest.mark.parametrize("path", FULL[:1], ids=lambda path: path.name)
def test_flushes_of_one_cpu_left_out(path: Path) -> None:
    trace = opened(path).head(3_000_000)
    for what in ("invlpg@1", "cr3_flush@1", "invlpg@0"):
        replay = Replay(trace, Config(memory="1G", tlb="strict"), omit=[what])
        for _ in replay.steps():
            pass
        assert replay.result(tables=False).neither > 5, what


@pytest.mark.parametrize("pml", [False, True])
def test_dirty_logs_need_the_flush_of_the_other_vcpus(pml: bool) -> None:
    """Read often, a log lacks nothing; without the remote flush the other vCPU goes on writing by what it holds."""
    (path,) = SAMPLES
    missed = []
    for omit in ([], ["remote"]):
        replay = Replay(opened(path), Config(mmu="ept", vpid=True, kvm="6.1", pml=pml, memory="1G", tlb="strict"))
        replay.machine.vmm.omit = omit
        replay.machine.vmm.start_dirty_log(0)
        stored, found = replay.note_stores(), 0
        for chunk in opened(path).records(20_000):
            replay.feed(chunk)
            found += int((stored.view(bool) & ~replay.machine.vmm.dirty_log(0)).sum())
            stored[:] = 0
        assert replay.result(tables=False).neither == 0
        missed.append(found)
    assert missed[0] == 0
    assert missed[1] > 10


# ---- one thing at a time --------------------------------------------------------------------------------------------

ROOT, PDPT, PD, PT = 0x1000, 0x2000, 0x3000, 0x4000
TABLES = [row(op=32, aux=i, val=at) for i, at in enumerate((ROOT, PDPT, PD, PT))]
ICR = row(op=1, size=4, lin=0x8300, val=0xFEE0_0300)


def page(entries: dict[int, int]) -> bytes:
    table = np.zeros(512, "<u8")
    for index, entry in entries.items():
        table[index] = entry
    return table.tobytes()


PAGES = [
    page({0: PDPT | 0x67}),
    page({0: PD | 0x67}),
    page({0: PT | 0x67}),
    page({0: 0x10067, 1: 0x11067, 7: PT | 0x63, 8: 0xFEE0_0063}),
]
START = [row(op=op, flags=16, val=value) for op, value in REGISTERS.items()]


def on(cpu: int) -> Row:
    return row(op=33, aux=cpu)


def read(la: int, pa: int) -> Row:
    return row(op=0, size=8, cpl=3, lin=la, val=pa)


def store(index: int) -> Row:
    return row(op=1, size=8, flags=1, lin=0x7000 + 8 * index, val=PT + 8 * index)


def two_cpus(where: Path, rows: list[Row], data: tuple[int, ...] = ()) -> Path:
    return make(where, [on(1), *START, on(0), *TABLES, *rows], pages=PAGES, data=data)


MOVED = [on(1), read(0x10, 0x10010), on(0), store(0)]
"""CPU 1 holds page 0, which CPU 0 moves to 20000H."""


@EACH
def test_until_its_own_flush_a_cpu_may_use_either(tmp_path: Path, config: Config) -> None:
    rows = [*MOVED, on(1), read(0x18, 0x10018), read(0x18, 0x20018), row(op=20, lin=0), read(0x18, 0x20018)]
    found = replayed(two_cpus(tmp_path, rows, (0x20067,)), config)
    assert (found.neither, found.held >= 1) == (0, True), found.examples


@EACH
@pytest.mark.parametrize("rows", [[on(1), row(op=20, lin=0)], []], ids=["flushed", "never held"])
def test_what_it_may_not_hold_is_neither(tmp_path: Path, config: Config, rows: list[Row]) -> None:
    cpu = 1 if rows else 0
    found = replayed(two_cpus(tmp_path, [*MOVED, *rows, on(cpu), read(0x18, 0x10018)], (0x20067,)), config)
    assert found.neither == found.by_kind["address"] == 1


@EACH
def test_the_flush_of_one_cpu_left_out_is_found(tmp_path: Path, config: Config) -> None:
    """Where the guest's INVLPG is the processor's; a VMM with shadow tables has its own flushes."""
    rows = [*MOVED, row(op=20, lin=0), on(1), row(op=20, lin=0), read(0x18, 0x20018)]
    path = two_cpus(tmp_path, rows, (0x20067,))
    strict = config.replace(tlb="strict")
    expected = 0 if config.mmu == "shadow" else 1
    assert replayed(path, strict, omit=["invlpg@1"]).neither == expected
    assert replayed(path, strict, omit=["invlpg@0"]).neither == 0
    watched = strict.replace(find_missing_flushes=True)
    assert replayed(path, watched, omit=["invlpg@1"]).stale_uses == expected
    assert replayed(path, watched).stale_uses == 0


def test_legal_stale_uses_are_no_missing_flushes(tmp_path: Path) -> None:
    path = two_cpus(tmp_path, [*MOVED, on(1), read(0x18, 0x10018)], (0x20067,))
    found = replayed(path, NATIVE.replace(tlb="strict", find_missing_flushes=True))
    assert (found.held, found.stale_uses, found.stale) == (1, 0, [])


def test_stores_and_cr3_of_one_cpu_left_out(tmp_path: Path) -> None:
    rows = [*MOVED, row(op=20, lin=0), read(0x10, 0x20010), on(1), row(op=17, val=ROOT | 1), read(0x10, 0x20010)]
    path = two_cpus(tmp_path, rows, (0x20067,))
    assert replayed(path).neither == 0
    assert replayed(path, omit=["stores@1"]).neither == 0
    assert replayed(path, omit=["stores@0"]).neither == 2
    assert replayed(path, NATIVE.replace(tlb="strict"), omit=["cr3@1"]).neither == 1
    assert replayed(path, NATIVE.replace(tlb="strict"), omit=["cr3@0"]).neither == 0


@EACH
def test_registers_are_a_cpus_own(tmp_path: Path, config: Config) -> None:
    """CR0.WP, PKRU, PCIDs: what one writes the other does not have."""
    rows = [
        row(op=16, val=0x8004_0033),
        row(op=25, val=1 << 2),
        on(1),
        row(op=22, size=14, aux=0x3, lin=0x9000, flags=2),
        on(0),
        row(op=1, size=8, lin=0x9000, val=0x12000, flags=2),
    ]
    pages = [*PAGES[:3], page({0: 0x10067, 9: 0x12065})]
    path = make(tmp_path, [on(1), *START, on(0), *TABLES, *rows], pages=pages)
    found = replayed(path, config)
    assert found.neither == 0, found.examples


def test_a_walk_sets_flags_and_is_no_access(tmp_path: Path) -> None:
    pages = [*PAGES[:3], page({0: 0x10007})]
    final = [*PAGES[:3], page({0: 0x10067})]
    rows = [on(1), *START, on(0), *TABLES, row(op=35, size=1, cpl=3, lin=0x8, val=0x10008)]
    found = replayed(make(tmp_path, rows, pages=pages, final=final))
    assert (found.wrong, found.walks, found.accesses, found.entries) == (0, 1, 0, 4 * 512)


def test_other_readers_of_the_trace(tmp_path: Path) -> None:
    """As events it is one processor that is both CPUs in turn; as a simulation its counters are those of all CPUs."""
    other = [*START[:1], row(op=17, flags=16, val=0x9001), *START[2:]]
    rows = [on(1), *other, on(0), *TABLES, read(0x10, 0x10010), on(1), on(0), read(0x18, 0x10018)]
    trace = opened(make(tmp_path, rows, pages=PAGES))
    (batch,) = trace.batches()
    assert batch.op.tolist() == [Op.SWITCH, Op.SWITCH, Op.READ, Op.SWITCH, Op.SWITCH, Op.READ]
    assert batch.addr.tolist() == [1, 0, 0x10, 1, 0, 0x18]
    (tmp_path / "same").mkdir()
    path = two_cpus(tmp_path / "same", [read(0x10, 0x10010), on(1), read(0x18, 0x10018)])
    (batch,) = opened(path).batches()
    assert batch.op.tolist() == [Op.READ, Op.READ]  # one address space
    result = simulate(opened(path), EPT, policy=Policy())
    assert result.counters["accesses"] == 2
    assert "2 equal to a walk now" in result.notes[0]


# ---- IPIs -----------------------------------------------------------------------------------------------------------


def test_ipis_by_way_of_the_tpr(tmp_path: Path) -> None:
    def ipi(icr: int) -> list[Row]:
        return [ICR, row(op=34, val=icr, aux=icr >> 56)]

    rows = [
        *ipi(1 << 57 | 0x8FB), on(1), row(op=23, size=0xFB), on(0), *ipi(3 << 18 | 0xFD), on(1),
        row(op=23, size=0xFD), *ipi(0x40), on(0),
    ]  # fmt: skip
    path = two_cpus(tmp_path, rows)
    assert replayed(path).ipis == 3
    ipis = ipis_of(opened(path))
    assert (ipis.cpus, ipis.sent, ipis.taken) == (2, {0xFB: 1, 0xFD: 1, 0x40: 1}, {0xFB: 1, 0xFD: 1, 0x40: 0})
    assert [(cpu, icr is None) for cpu, icr in ipis.order] == [(0, False), (1, True), (0, False), (1, True), (1, False),
                                                                (0, True)]  # fmt: skip
    trap, posted = ipi_costs(ipis, ("trap", "apicv"))
    assert (trap.kicks, trap.notifications, trap.delivered) == (3, 0, 3)
    assert (posted.kicks, posted.notifications, posted.delivered) == (0, 3, 3)
    assert trap.exits["external_interrupt"] == 3
    assert posted.exits == {"apic_write": 3}
    assert sum(trap.exits.values()) > 3 * 3  # ICR low and high, EOI


# ---- what is refused ------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[Row], str, str]] = {
    "a CPU that is not there": ([on(2)], "record 16", "CPU 2: at the start there are CPUs 0 to 1"),
    "a register of the start": ([row(op=17, flags=16, val=ROOT)], "record 16", "behind the start, which ends"),
    "an IPI alone": ([row(op=34, val=0xFB)], "record 16", "no write to 0xfee00300 stands right before"),
    "an IPI behind another's write": ([ICR, on(1), row(op=34, val=0xFB)], "record 18", "records are missing"),
    "an IPI of two destinations": ([ICR, row(op=34, val=0xFB, aux=1)], "record 17", "another destination"),
    "a walk for nothing": ([row(op=35, size=4)], "record 16", "a walk is for an access of 0 to 3"),
    "marks": ([row(op=30, val=9), row(op=30, val=8)], "record 17", "not in their order"),
}


@pytest.mark.parametrize("name", BAD)
def test_records_out_of_order(tmp_path: Path, name: str) -> None:
    rows, where, says = BAD[name]
    with pytest.raises(TraceError, match=says) as error:
        replayed(two_cpus(tmp_path, rows))
    assert where in str(error.value)


STARTS: dict[str, tuple[list[Row], str]] = {
    "twice": ([on(1), *START, on(1), *START], "CPU 1 has its registers already"),
    "left out": ([on(2), *START], "CPU 1 of 3 has no registers at the start"),
    "cut": ([on(1), *START[:3]], "CPU 1 needs cr0, cr3, cr4, efer, pkru"),
    "nobody runs": ([on(1), *START, *TABLES], "a CPU record for the one that runs"),
    "no numbers": ([on(0), *START], "CPU 0 has its registers already"),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts_that_are_none(tmp_path: Path, name: str) -> None:
    rows, says = STARTS[name]
    with pytest.raises(TraceError, match=says):
        replayed(make(tmp_path, rows))


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    path = two_cpus(tmp_path, [read(0x10, 0x10010)])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TraceError, match="the file ends within the record"):
        replayed(path)
    one = make(tmp_path, [*TABLES, on(1)], pages=PAGES)
    with pytest.raises(TraceError, match="at the start there is CPU 0 alone"):
        replayed(one)


@pytest.mark.parametrize("name", ["invlpg@2", "invlpg@", "invlpg@x", "cr3@-1"])
def test_an_omission_of_no_cpu(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="the number of a CPU of the trace, 0 to 1"):
        replayed(two_cpus(tmp_path, []), omit=[name])


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*MOVED, on(1), read(0x18, 0x10018), row(op=20, lin=0), read(0x18, 0x20018), ICR,
            row(op=34, val=1 << 56 | 0x8FB, aux=1), on(0)]  # fmt: skip
    path = str(two_cpus(tmp_path, rows, (0x20067,)))
    assert main(["replay", path, "--memory", "64M"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 equal to a walk now, 1 to what its CPU may still hold, 0 to neither" in out
    assert "2 CPUs, 1 IPIs, 0 walks alone; held: 1 both held" in out
    assert main(["replay", path, "--memory", "64M", "--omit", "INVLPG@1"]) == 1
    assert "without invlpg@1" in capsys.readouterr().out
    assert main(["replay", path, "--memory", "64M", "--schemes"]) == 0
    out = capsys.readouterr().out
    assert "2 CPUs, 1 IPIs" in out
    assert "neither" in out
    assert main(["replay", path, "--ipis"]) == 0
    assert "0xfb: 1 (0)" in capsys.readouterr().out
    assert main(["replay", path, "--ipis", "--schemes"]) == 2
    assert "leave out --schemes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["replay", path, "--omit", "nothing@1"])


def test_the_fields_of_the_schemes_are_those_of_a_config() -> None:
    found = {Config(memory="64M", **fields_of(name, SCHEMES)).mmu for name in SCHEMES}
    assert found == {"native", "shadow", "ept", "agile"}
