"""`--vmm`: kernels, Python, a class of one's own."""

from __future__ import annotations

import json
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
