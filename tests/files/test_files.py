"""The command `python -m tests.files` itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.files import __main__ as command


def test_it_counts_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    assert command.main([str(tmp_path)]) == 2, "no answers"
    assert "FASTMMU_FILES" in capsys.readouterr().err
    (tmp_path / "images" / "expected.json").write_text('{"registers": {}, "ram": [], "qemu_info_tlb": []}')
    (tmp_path / "images" / "notes.txt").write_text("words")
    (tmp_path / "images" / "guest.save").write_bytes(b"LibvirtQemudSave".ljust(4096, b"\0"))
    (tmp_path / "images" / "cut.lime").write_bytes(b"EMiL\1")
    assert command.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "right  guest.save: refused: " in out
    assert "a saved guest of libvirt" in out
    assert "WRONG  cut.lime: refused: " in out
    assert out.endswith("1 of 2 files right\n")
