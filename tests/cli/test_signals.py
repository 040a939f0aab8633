"""SIGINT, SIGTERM and SIGHUP at moments of chance: each command prints and writes what it has finished, and ends.

FASTMMU_SIGNALS=240 pytest -s tests/cli/test_signals.py        so many signals in all that end a command, and how soon
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fastmmu import Config, simulate
from fastmmu.cli.commands import commands
from fastmmu.report import save
from fastmmu.trace import read_trace
from tests.support.signalled import Ended, run

DATA = Path(__file__).parents[1] / "data"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ALL = int(os.environ.get("FASTMMU_SIGNALS", "0"))
EVENTS = 400_000 if ALL else 60_000
LATEST = 20.0  # seconds: on a machine with a lot to do. By itself it takes less than half of one.
FILES = "--json {out}/r.json --csv {out}/r.csv"


class Command(NamedTuple):
    """A command line; how many steps are in its files, of the rows of the CSV; and whether there is a last partial one.

    `rows` None: it writes no files.
    """

    argv: str
    steps_in: Callable[[list[dict[str, str]]], int] | None = None
    signals: int = 1


def each(rows: list[dict[str, str]]) -> int:
    return len(rows)


def distinct(*names: str) -> Callable[[list[dict[str, str]]], int]:
    return lambda rows: len({tuple(row[name] for name in names) for row in rows})


COMMANDS = {
    "compare": Command(f"compare {{a}} {{b}} {FILES}", each, 3),
    "run": Command(f"run {{a}} {{b}} --mmu shadow {FILES}", each),
    "run --contiguity": Command("run {a} {b} --contiguity --csv {out}/r.csv"),
    "run --exits": Command(
        f"run {{a}} {{b}} --mmu shadow {FILES} --exits {{out}}/r.exits.csv --plot {{out}}/r.svg", each
    ),
    "host": Command(f"host {{a}} {{b}} --cpus 2 --quantum 5k {FILES}", each),
    "tlb-curve": Command(f"tlb-curve {{a}} {{b}} {{c}} --most 4096 {FILES}", distinct("trace"), 2),
    "vpid": Command(f"vpid {{s}} --rates 0.1,1,10 {FILES}", each, 2),
    "shootdown": Command(f"shootdown {{s}} --vcpus 2,4 --methods native,apicv,pv {FILES}", each, 2),
    "tpr": Command(f"tpr {{a}} {{b}} {FILES}", each, 2),
    "migrate": Command(f"migrate {{s}} --memory 256M --rounds 4 {FILES}", distinct("trace", "method"), 2),
    "overcommit": Command(f"overcommit {{s}} --memory 256M --host-memory 50% {FILES}", each, 2),
    "boot": Command(f"boot {FILES}", distinct("scheme")),
    "replay": Command("replay {system} {system}"),
    "replay --schemes": Command("replay {system} --schemes --memory 2G"),
    "replay --report": Command("replay {system} --schemes --memory 2G --report {out}/r.html"),
    "replay --omit": Command("replay {system} --omit cr3,stores,invlpg"),
    "diff": Command("diff {first} {second}"),
    "sweep": Command("sweep {study} --executor threads:2 --results {out}/r.results"),
    "sweep --executor": Command("sweep {study} --executor processes:2 --results {out}/r.results"),
    "study": Command(f"study tpr two-dimensional-walk {FILES}", distinct("study"), 2),
    "report": Command("report {results} -o {out}/r.html"),
    "walk": Command("walk --json {out}/r.json"),
    "maps": Command("maps {image} --cr3 1000"),
    "maps --csv": Command("maps {image} --cr3 1000 --csv {out}/r.csv"),
    "maps --json": Command("maps {image} --cr3 1000 --json {out}/r.json"),
    "roots": Command("roots {image}"),
    "record": Command("record --quiet -o {out}/r.arrow -- ls"),
    "kvm-log": Command("kvm-log {log} --csv {out}/r.csv"),
    "trace info": Command("trace info {a} {b} {c}"),
    "trace convert": Command("trace convert {a} {out}/r.npy.xz"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Traces and an image with many pages."""
    place = tmp_path_factory.mktemp("signals")
    at_random = np.random.default_rng(1)
    for name in "abc":
        np.save(place / f"{name}.npy", at_random.integers(0, 1 << 24, EVENTS, dtype=np.uint64))
    np.save(place / "s.npy", at_random.integers(0, 1 << 21, EVENTS // 4, dtype=np.uint64))
    image = np.zeros((4 + 64, 512), np.uint64)  # PML4, PDPT, PD at 1000, 2000, 3000, and 64 page tables
    image[1, 0], image[2, 0] = 0x2007, 0x3007
    image[3, :64] = 0x4007 + 0x1000 * np.arange(64, dtype=np.uint64)
    image[4:, :] = (at_random.integers(0, 1 << 30, (64, 512), dtype=np.uint64) << np.uint64(12)) | np.uint64(7)
    image.tofile(place / "image.raw")
    for name in ("first", "second"):
        lines = (f"{name},{i},{i % 7 if name == 'first' else i % 11}" for i in range(EVENTS // 4))
        (place / f"{name}.csv").write_text("\n".join(["trace,n,accesses", *lines]))
    log = place / "log.txt"
    log.write_text("".join((DATA / "kvm_logs" / "perf.txt").read_text() for _ in range(EVENTS // 2000)))
    (place / "study.toml").write_text('[traces]\na = "a.npy"\n[grid]\nmmu = ["native", "ept"]\nvpid = [false, true]\n')
    made = {"study": place / "study.toml", "results": place / "results.json"}
    save([simulate(np.arange(1000), Config())], made["results"])
    traces = {path.stem: path for path in place.glob("*.npy")}
    files = {name: place / f"{name}.csv" for name in ("first", "second")}
    return {
        **traces,
        **files,
        **made,
        "image": place / "image.raw",
        "system": DATA / "systems" / "mm.rec.xz",
        "log": log,
    }


def test_every_command_stands_here() -> None:
    assert {name.split()[0] for name in COMMANDS} == {command.name for command in commands()}


def data(out: Path) -> list[dict[str, str]] | None:
    """The rows of the files, which are whole and agree; None where there are none."""
    rows = None
    if (out / "r.csv").exists():
        rows = list(csv.DictReader((out / "r.csv").open()))
        assert all(None not in row and None not in row.values() for row in rows)
    if (out / "r.json").exists():
        found = json.loads((out / "r.json").read_text())
        many = next((value for value in found.values() if isinstance(value, list)), [])
        assert rows is None or len(many) == len(rows)
        rows = many if rows is None else rows
    if (out / "r.exits.csv").exists():  # of all runs, also of the part that was simulated
        exits = list(csv.DictReader((out / "r.exits.csv").open()))
        assert all(None not in row and None not in row.values() for row in exits)
        assert len(exits) == sum(int(row["vm_exits"]) for row in csv.DictReader((out / "r.csv").open()))
    if (out / "r.npy.xz").exists():
        assert sum(len(batch) for batch in read_trace(out / "r.npy.xz").batches()) == EVENTS
    return rows


def check(command: Command, out: Path, ended: Ended, number: int | None, printed: str = "") -> None:
    """What holds whenever the signal came; `printed`: where none came."""
    assert ended.code in (
        0,
        *((1,) if re.search("--omit|diff", command.argv) else ()),
        *(() if number is None else (128 + number,)),
    )
    assert ended.err in ("", "fastmmu: interrupted\n")
    assert {path.name for path in out.iterdir()} <= set(re.findall(r"r\.[a-z.]+", command.argv))
    rows = data(out)
    if command.steps_in is not None:
        assert rows is not None or ended.steps == 0
        if "host" not in command.argv:  # whose one step is all of them
            assert command.steps_in(rows or []) == ended.steps
        if rows and ended.code == 0:
            assert all(row.get("complete", "True") == "True" for row in rows)
    elif "maps" in command.argv and ended.code == 0:
        assert rows is None or len(rows) == 64 * 512
    if ended.code > 128 and not ended.steps:
        assert ended.out in ("", printed) or "interrupted" in ended.out


def scrubbed(rows: list[dict[str, str]]) -> list[tuple[tuple[str, str], ...]]:
    """Rows without what another run has otherwise."""
    other = {"seconds", "accesses_per_second", "command"}
    return [tuple((key, str(value)) for key, value in row.items() if key not in other) for row in rows]


@pytest.mark.parametrize("name", COMMANDS)
def test_signals_at_any_moment(name: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    command = COMMANDS[name]
    chance = random.Random(f"{name} {ALL}")
    out = tmp_path / "whole"
    out.mkdir()
    whole = run(command.argv.format(out=out, **inputs).split(), None, 0)
    check(command, out, whole, None)
    wanted = scrubbed(data(out) or []) if command.steps_in else []
    wanted_hits = -(-ALL // len(COMMANDS)) if ALL else command.signals
    times, tries, lasts = [], 0, whole.seconds
    while len(times) < wanted_hits and tries < (4 * wanted_hits if ALL else wanted_hits):
        number, delay = SIGNALS[tries % len(SIGNALS)], chance.uniform(0, lasts)
        tries += 1
        out = tmp_path / str(tries)
        out.mkdir()
        ended = run(command.argv.format(out=out, **inputs).split(), number, delay)
        check(command, out, ended, number, whole.out)
        assert ended.seconds < LATEST
        finished = [row for row in (data(out) or []) if command.steps_in and row.get("complete", "True") == "True"]
        if name not in ("tpr", "compare", "run", "run --exits", "boot"):  # a cell says what the other rows make of it
            rest = iter(wanted)  # of those side by side a later one may have ended before an earlier one
            assert all(row in rest for row in scrubbed(finished))
        if ended.code > 128:
            times.append(ended.seconds)
        else:  # it came too late
            lasts = min(lasts, delay)
    assert times or not ALL
    if ALL:
        times.sort()
        print(f"{name:17} {len(times):3} signals, {tries - len(times)} more too late; end after "
              f"{statistics.median(times):.3f} s, 90 % {times[len(times) * 9 // 10]:.3f} s, at most "
              f"{times[-1]:.3f} s")  # fmt: skip
