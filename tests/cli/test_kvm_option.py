"""--kvm: versions of KVM on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastmmu import Config, ConfigError, compare
from fastmmu.cli import options
from fastmmu.cli.main import main
from fastmmu.kvm_versions import KVM_VERSIONS
from fastmmu.study.compare.run import configurations
from fastmmu.study.schemes import REPLAY, fields_of


def test_the_names_are_those_of_the_table() -> None:
    assert tuple(KVM_VERSIONS) == options.KVM_VERSIONS


def test_a_comparison_sets_versions_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    args = ["compare", "sqlite", "--limit", "20k", "--schemes", "native,shadow", "--kvm", "slides,6.12", "--quiet"]
    assert main([*args, "--explain", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "shadow  6.12" in shown
    assert "shadow, KVM 6.12" in shown
    assert "TLB of shadow, KVM slides" in shown
    found = json.loads(out.read_text())
    rows = found["results"] if isinstance(found, dict) else found
    assert [row["config"]["kvm"] for row in rows] == ["slides", "slides", "6.12"]
    assert rows[1]["counters"]["vm_exits"] > rows[2]["counters"]["vm_exits"] > 0


def test_one_version_needs_no_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "sqlite", "--limit", "5k", "--schemes", "native,ept", "--kvm", "6.1", "--quiet"]) == 0
    assert "KVM" not in capsys.readouterr().out


def test_one_version_or_several_in_python() -> None:
    assert [c.kvm for c in configurations(("native", "ept"), kvm=("5.10", "6.1"))] == ["5.10", "5.10", "6.1"]
    (result,) = compare([4096, 8192], ("ept",), kvm="6.12")
    assert result.config == Config(mmu="ept", kvm="6.12")
    with pytest.raises(ConfigError, match="kvm='7'"):
        configurations(("ept",), kvm="7")


def test_the_schemes_of_a_study_follow_but_those_of_the_slides() -> None:
    kept = {name for name in REPLAY if fields_of(name, REPLAY, kvm="6.12") == dict(REPLAY[name])}
    assert kept == {"native", "shadow, always in sync"}


def test_another_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["compare"], ["run"], ["host"], ["vpid"], ["tpr"], ["boot"], ["migrate", "sqlite"], ["overcommit"]):
        with pytest.raises(SystemExit):
            main([*command, "--kvm", "2.6"])
        assert "6.12" in capsys.readouterr().err
