"""`--vmm`: kernels, Python, a class of one's own."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from fastmmu.cli import main

DATA = Path(__file__).parents[1] / "data"
TRUE = str(DATA / "true.lackey")
MINE = """\
import fastmmu


class Never(fastmmu.Kvm):
    def tpr_threshold(self, vcpu, tpr, irr):
        return 0


class Other:
    pass


number = 3
"""

COUNTS = """\
import fastmmu

exits = 0


class Counts(fastmmu.Kvm):
    def handle(self, vcpu):
        global exits
        exits += 1
        return super().handle(vcpu)
"""


def counters(tmp_path: Path, *more: str) -> dict[str, object]:
    out = tmp_path / "out.json"
    assert main(["run", TRUE, "--memory", "128M", "--quiet", "--json", str(out), *more]) == 0
    (result,) = json.loads(out.read_text())["results"]
    found: dict[str, object] = result["counters"] | {"vmm": result["config"]["vmm"]}
    return found


@pytest.mark.parametrize("scheme", ["--mmu shadow", "--mmu ept --vpid", "--mmu ept --tpr flexpriority"])
def test_both_count_the_same(tmp_path: Path, scheme: str) -> None:
    kernel = counters(tmp_path, *scheme.split())
    python = counters(tmp_path, *scheme.split(), "--vmm", "python")
    assert (kernel.pop("vmm"), python.pop("vmm")) == ("kernel", "python")
    assert python == kernel
    assert kernel["vm_exits"]


def test_a_class_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the current directory."""
    (tmp_path / "mine_of_cli.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    found = counters(tmp_path, "--mmu", "ept", "--tpr", "flexpriority", "--vmm", "mine_of_cli:Never")
    assert found["vmm"] == "Never"
    assert "tpr_below_threshold" not in found["exits_by_reason"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("c", "choose kernel, python or MODULE:CLASS"),
        ("a b:C", "choose kernel, python or MODULE:CLASS"),
        (":C", "choose kernel, python or MODULE:CLASS"),
        ("fastmmu:", "choose kernel, python or MODULE:CLASS"),
        ("no_such_module_at_all:C", "no_such_module_at_all cannot be imported: ModuleNotFoundError"),
        ("bad_of_cli:C", "bad_of_cli cannot be imported: SyntaxError"),
        ("fastmmu:NoSuch", "module fastmmu has no NoSuch"),
        ("mine_of_cli2:Other", "choose 'kernel', 'python' or a class that derives from fastmmu.Kvm"),
        ("mine_of_cli2:number", "choose 'kernel', 'python' or a class that derives from fastmmu.Kvm"),
    ],
)
def test_what_is_none(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_of_cli2.py").write_text(MINE)
    (tmp_path / "bad_of_cli.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    assert main(["run", TRUE, "--mmu", "ept", "--vmm", text, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.strip().splitlines()) == 1


def test_replay_takes_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for vmm in ("kernel", "python"):
        trace = str(DATA / "systems" / "mm.rec.xz")
        assert (
            main(["replay", trace, "--limit", "5000", "--mmu", "ept", "--memory", "1G", "--vmm", vmm, "--quiet"]) == 0
        )
        said.append([line for line in capsys.readouterr().out.splitlines() if "accesses a second" not in line])
    assert said[0] == said[1]


COMMANDS = {
    "tpr": "tpr zstd --limit 8000 --changes 20000 --interrupts 20000 --ipis 5000 --timer 2000",
    "tpr, shadow": "tpr zstd --limit 8000 --changes 20000 --interrupts 9000 --mmu shadow --ways trap,apicv",
    "vpid": "vpid zstd --limit 8000 --rates 1,30",
    "vpid, shadow": "vpid zstd --limit 8000 --rates 3 --mmu shadow",
    "boot": "boot --vpid",
    "boot, shadow": "boot --schemes shadow,shadow-6.1,ept-6.1",
    "migrate": "migrate zstd --limit 8000 --bandwidth 1e9 --downtime 1e-5 --memory 128M --rounds 5",
    "overcommit": "overcommit zstd --limit 8000 --host-memory 75%,40% --memory 128M",
}


def rows_of(
    command: str, vmm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[list[dict[str, str]], str]:
    """What a command writes, but for the command itself, and what it prints."""
    words, file = command.split(), tmp_path / "rows.csv"
    quiet = [] if words[0] == "boot" else ["--quiet"]
    assert main([*words, *quiet, "--csv", str(file), "--vmm", vmm]) == 0
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        assert f"--vmm {vmm}" in row.pop("command")
        row.pop("vmm", None)
    return rows, capsys.readouterr().out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_gives_the_same_of_both(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is carried out by the VMM that was asked for: one that counts its exits sees some."""
    (tmp_path / "counts_of_cli.py").write_text(COUNTS)
    monkeypatch.chdir(tmp_path)
    kernel = rows_of(COMMANDS[command], "kernel", tmp_path, capsys)
    assert rows_of(COMMANDS[command], "python", tmp_path, capsys) == kernel
    assert kernel[0]
    assert rows_of(COMMANDS[command], "counts_of_cli:Counts", tmp_path, capsys) == kernel
    counted = sys.modules["counts_of_cli"]
    assert counted.exits > 0
    counted.exits = 0  # type: ignore[attr-defined]
