"""The table of formats: what hangs on a row."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from fastmmu import TraceError, read_trace
from fastmmu.cli.main import parser
from fastmmu.trace import FORMATS
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.formats import WRITTEN, Format
from fastmmu.trace.names import format_of_name


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_a_row_says_what_its_module_has(format: Format) -> None:
    module = format._module()
    assert issubclass(module.READER, FileTrace)
    assert module.READER.format == format.name
    assert hasattr(module, "write") == format.written == (format.name in WRITTEN)
    assert not format.looks_like(b"")
    assert {format_of_name(f"t{suffix}{more}") for suffix in format.suffixes for more in ("", ".xz")} == {format.name}


def test_a_module_and_a_row_are_all_that_a_format_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader(FileTrace):
        format = "flat"

    flat = types.ModuleType("fastmmu.trace.flat")
    vars(flat).update(READER=Reader, looks_like=lambda head: head.startswith(b"FLAT"))
    monkeypatch.setitem(sys.modules, flat.__name__, flat)
    monkeypatch.setitem(FORMATS, "flat", Format("flat", "flat files", ()))
    (tmp_path / "unnamed").write_bytes(b"FLAT....")
    for trace in (read_trace(tmp_path / "unnamed"), read_trace(tmp_path / "unnamed", "flat")):
        assert (type(trace), trace.kind) == (Reader, "program")
    assert parser("run").parse_args(["run", "unnamed", "--format", "flat"]).format == "flat"
    with pytest.raises(TraceError, match=r"there are lackey, .*, system, flat"):
        read_trace(tmp_path / "unnamed", "round")


def test_only_a_whole_machine_is_of_another_kind() -> None:
    assert {name: format._module().READER.kind for name, format in FORMATS.items()} == {
        name: "system" if name == "system" else "program" for name in FORMATS
    }
