"""Every option of every command with hostile values: a result, or one line that says why not; never a traceback."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastmmu import Config, simulate
from fastmmu.cli import main
from fastmmu.cli.commands import commands
from fastmmu.cli.main import parser
from fastmmu.report import save

DATA = Path(__file__).parents[1] / "data"
TRUE = DATA / "true.lackey"
LINES = {
    "compare": f"compare {TRUE} --schemes shadow,ept+vpid",
    "record": "record --quiet -- /bin/true",
    "run": f"run {TRUE} --mmu ept --memory 128M",
    "host": f"host {TRUE} --memory 128M",
    "tlb-curve": f"tlb-curve {TRUE}",
    "vpid": f"vpid {TRUE} --rates 10",
    "shootdown": f"shootdown {TRUE} --vcpus 2 --methods apicv",
    "tpr": f"tpr {TRUE} --ways trap --memory 128M",
    "migrate": f"migrate {TRUE} --methods pml --memory 128M --most-cycles 1e8",
    "overcommit": f"overcommit {TRUE} --schemes ept --memory 128M --host-memory 50%",
    "boot": "boot --schemes ept",
    "replay": f"replay {DATA / 'systems/mm.rec.xz'} --limit 2000",
    "walk": "walk",
    "roots": f"roots {DATA / 'guests/pae_user'} --kinds pae",
    "maps": f"maps {DATA / 'guests/pae_user'} --limit 100",
    "trace info": f"trace info {TRUE}",
    "trace convert": f"trace convert {TRUE} {{out}}/t.npy",
    "kvm-log": f"kvm-log {DATA / 'kvm_logs/perf.txt'} --policies 4k,2m-log",
    "diff": "diff {out}/a.csv {out}/a.csv",
    "sweep": "sweep {out}/study.toml --executor threads:1",
    "study": "study two-dimensional-walk",
    "report": "report {out}/a.json -o {out}/r.html",
}
VALUES = ["", " ", "0", "1", "-1", "2", "3", "64", "4095", "65536", "1e9", "nan", "inf", "-inf", "1e-300", "1e308",
          "0.5", "50%", "9" * 30, "9" * 5000, "0x10", "fffffffffffffff8", "none", "None", "4K", "2M", "1g", "1T",
          "64/4", "64/0", "0/0", "1/1/1", "1,2,3,4", ",", "a,b", "1.5", "\u0661", "\u00bd", "\udcff", "\n", "\x1b[2J",
          "--", "../..", "/", "/dev/null", "{empty}", "{binary}", "{out}", "{out}/no/such"]  # fmt: skip
LEFT_OUT = {"--help", "--version", "--memory"}  # of which 1T takes address space alone, but the machine may refuse it


def options_of(line: str) -> Iterator[argparse.Action]:
    """The options of a command that take a value."""
    found: argparse.ArgumentParser = parser()
    for word in line.split():
        inner = next((each for each in found._actions if isinstance(each, argparse._SubParsersAction)), None)
        if inner is None or word not in inner.choices:
            break
        found = inner.choices[word]
    for action in found._actions:
        if action.nargs != 0 and action.option_strings and not LEFT_OUT & set(action.option_strings):
            yield action


def test_every_command_stands_here() -> None:
    assert {name.split()[0] for name in LINES} == {command.name for command in commands()}


@pytest.mark.parametrize("name", LINES)
def test_hostile_values(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 16)
    (tmp_path / "a.csv").write_text("trace,accesses\nt,1\n")
    save([simulate(np.arange(9), Config())], tmp_path / "a.json")
    (tmp_path / "study.toml").write_text(f'[traces]\na = "{TRUE}"\n')
    places = {"out": str(tmp_path), "empty": str(tmp_path / "empty"), "binary": str(tmp_path / "binary")}
    done = 0
    every = int(os.environ.get("FASTMMU_EXHAUSTIVE", "0")) or 3
    options = list(options_of(name))
    for i, action in enumerate(options):
        for j, value in enumerate(VALUES):
            if every != 1 and (i + j) % every:
                continue
            if action.option_strings[0] in ("--json", "--csv", "--parquet", "--plot") and value in ("/", "/dev/null"):
                continue
            if action.option_strings[0] == "--cpus" and value in ("4095", "4K"):  # as many TLBs
                continue
            words = LINES[name].format(**places).split()
            end = words.index("--") if "--" in words else len(words)
            words.insert(end, f"{max(action.option_strings, key=len)}={value.format(**places)}")
            try:
                code = main(words)
            except SystemExit as stop:
                code = int(stop.code or 0)
            except Exception as error:
                raise AssertionError(words) from error
            out, err = capsys.readouterr()
            assert code in (0, 1, 2), words
            if code == 2:
                assert err.startswith("fastmmu: error: "), words
                assert err.count("\n") == 1, words
            else:
                empty = "has no present entry" in err and err.count("\n") == 1  # a root table, which is told
                assert err == "" or empty, words
                assert out or code == 0, words
            done += 1
    assert done > len(options) * len(VALUES) // every * 0.9 - 10
