"""The programs in examples/ run, and say what they claim."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def output(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *argv])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("compare.py", capsys, monkeypatch)
    assert "VM exits without VPID cost 2" in out  # two hundred odd refills each: the pages between two exits


def test_compare_of_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("compare.py", capsys, monkeypatch, str(EXAMPLES.parent / "tests/data/true.lackey"))
    assert out.startswith("true: ")


def test_vmx(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len((EXAMPLES / "vmx.py").read_text().splitlines()) <= 40
    lines = output("vmx.py", capsys, monkeypatch).splitlines()
    exits, ends = [line for line in lines if line.startswith("<Exit EPT_VIOLATION")], [*lines[2::3]]
    assert len(exits) == 4  # one for each page, with either VPID
    assert ends == ["0x3008 holds 996; VPID 0: 502 TLB misses", "0x3008 holds 996; VPID 1: 4 TLB misses"]


def test_policies(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and figures of docs/policy.md are those of the example."""
    out = output("policies.py", capsys, monkeypatch)
    page = (EXAMPLES.parent / "docs" / "policy.md").read_text()
    rows = [line for line in out.splitlines() if line.startswith("    ")]
    assert len(rows) == 16
    assert [row for row in rows if row not in page.splitlines()] == [], (
        "put what the example prints into docs/policy.md"
    )
    source = (EXAMPLES / "policies.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    assert [block for block in blocks if block not in source] == []


def test_checkpoint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second time the checkpoint is that of the end."""
    for _ in range(2):
        size, counted, same = output("checkpoint.py", capsys, monkeypatch, str(tmp_path)).splitlines()
        assert re.fullmatch(r"checkpoint of \d{2,3} KB", size)
        assert re.fullmatch(r"[\d,]+ TLB misses, \d\.\d\d cycles an access", counted)
        assert same == "the same"


def test_caches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of docs/caches-in-runs.md are those of the example."""
    page = (EXAMPLES.parent / "docs" / "caches-in-runs.md").read_text()
    rows = output("caches.py", capsys, monkeypatch).splitlines()
    assert len(rows) == 12
    assert [row for row in rows if row not in page.splitlines()] == [], (
        "put what the example prints into docs/caches-in-runs.md"
    )


def test_walk_latency(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows of the table of docs/experiments.md are those of the example; others take minutes."""
    page = (EXAMPLES.parent / "docs" / "experiments.md").read_text()
    rows = output("walk_latency.py", capsys, monkeypatch, "16").splitlines()
    assert len(rows) == 2
    assert [row for row in rows if row not in page.splitlines()] == [], (
        "put what the example prints into docs/experiments.md"
    )


def test_sweep(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code and figures of docs/studies.md are those of the example; the second time nothing is run."""
    pytest.importorskip("pyarrow", reason="results of studies are Parquet: fastmmu[arrow]")
    first, *rows = output("sweep.py", capsys, monkeypatch, str(tmp_path)).splitlines()
    page = (EXAMPLES.parent / "docs" / "studies.md").read_text()
    assert first == "8 runs made, 0 missing"
    assert len(rows) == 8
    assert [row for row in rows if row not in page.splitlines()] == [], (
        "put what the example prints into docs/studies.md"
    )
    source = (EXAMPLES / "sweep.py").read_text()
    assert source[source.index("CONFIGS = [") : source.index("def main")].strip() in page
    assert output("sweep.py", capsys, monkeypatch, str(tmp_path)).splitlines() == ["0 runs made, 0 missing", *rows]


def test_extensions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of docs/tlb-extensions.md is the example's, its code that of the example that is compiled."""
    page = (EXAMPLES.parent / "docs" / "tlb-extensions.md").read_text()
    assert output("extensions.py", capsys, monkeypatch) in page
    source = (EXAMPLES / "cython" / "last_pages.pyx").read_text()
    assert source[source.index("cdef uint64_t find") : source.index("def attach")].strip() in page


def test_kvm_versions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules and figures of docs/kvm-versions.md are those of the example."""
    rows = [line for line in output("kvm_versions.py", capsys, monkeypatch).splitlines() if line]
    page = (EXAMPLES.parent / "docs" / "kvm-versions.md").read_text().splitlines()
    assert len(rows) > 20
    assert [row for row in rows if row not in page] == [], "put what the example prints into docs/kvm-versions.md"


def test_migrate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and figures of docs/mmu.md are those of the example."""
    out = output("migrate.py", capsys, monkeypatch)
    page = (EXAMPLES.parent / "docs" / "mmu.md").read_text()
    assert len(out.splitlines()) == 6
    assert out in page
    source = (EXAMPLES / "migrate.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    assert [block for block in blocks if block not in source] == []


def test_walk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("walk.py", capsys, monkeypatch)
    assert "0x8040201abc -> 0x9abc in 4 references" in out
    assert "w -> #PF, error code 0007" in out


def test_spaces(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and output of docs/address-spaces.md are those of the example."""
    out = output("spaces.py", capsys, monkeypatch)
    page = (EXAMPLES.parent / "docs" / "address-spaces.md").read_text()
    assert len(out.splitlines()) == 8
    assert "".join(f"    {line}\n" for line in out.splitlines()) in page, "put what the example prints into the page"
    source = (EXAMPLES / "spaces.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    assert [block for block in blocks if block not in source] == []


def test_spaces_of_an_image(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = np.zeros(2048, np.uint64)
    words[[0x200, 0x400, 0x600]] = 0x2003, 0x3003, 0x83  # 2 MB from 0 on, executable
    (tmp_path / "memory.raw").write_bytes(words.tobytes())
    assert output("spaces.py", capsys, monkeypatch, str(tmp_path / "memory.raw")) == "raw, CR3 1000: 1 pages\n"


def test_replacement(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of docs/replacement.md, and what it shows: tree-PLRU is near LRU, SRRIP never above it."""
    out = output("replacement.py", capsys, monkeypatch)
    assert out in (EXAMPLES.parent / "docs" / "replacement.md").read_text(), "put what the example prints into the page"
    for row in out.splitlines()[1:]:
        lru, plru, random, srrip, chirp = map(int, row.split()[2:])
        assert abs(plru - lru) < 0.02 * lru
        assert srrip < lru
        assert abs(random - lru) < 0.06 * lru
        assert abs(chirp - lru) < 0.06 * lru
