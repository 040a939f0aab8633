"""The log of VM exits in files: the rows are the records, the lines what tracers of Linux print of kvm:kvm_exit."""

from __future__ import annotations

import csv
import json
import lzma
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu import Config, ConfigError, MissingExtraError, StateError, simulate
from fastmmu.exits import N_REASONS, REASON_NAMES, FaultClass
from fastmmu.machine.exit_log import KINDS, ExitLog
from fastmmu.machine.result import Result
from fastmmu.ops import Op
from fastmmu.report.exit_plot import BINS, ExitHistory, plot_exits
from fastmmu.report.exits import COLUMNS, EXIT_FORMATS, ExitFile, check_exits, save_exits
from fastmmu.report.tracepoint import exit_lines
from tests.support.event_lists import program, with_events
from tests.support.flat_guest import PAGE, flat

KVM = Path(os.environ.get("FASTMMU_FILES", Path(__file__).parents[2] / ".." / "shared" / "files")) / "kvm"
TRACE = with_events(program(3000, 3), 50, (Op.EXIT, 10), (Op.SWITCH, 1), (Op.INTERRUPT, 32), (Op.SWITCH, 0))
SHADOW, EPT = Config(mmu="shadow", memory="256M"), Config(mmu="ept", memory="256M")
LINE = re.compile(
    r"^ *(?P<comm>\S.*?)[- ] *(?P<pid>\d+) +\[(?P<cpu>\d+)\] (?:\S{5} )? *(?P<time>\d+\.\d{6}): +(?:kvm:)?kvm_exit: +"
    r"vcpu (?P<vcpu>\d+) reason (?P<reason>\S+(?: excp)?) rip 0x(?P<rip>[0-9a-f]+) info1 0x(?P<info1>[0-9a-f]{16}) "
    r"info2 0x(?P<info2>[0-9a-f]{16}) intr_info 0x(?P<intr_info>[0-9a-f]{8}) error_code 0x(?P<error_code>[0-9a-f]{8})$"
)
"""A line of the event, as ftrace, `trace-cmd report` and `perf script` print it."""
RECORDED = """\
            kvmx-95      [000] .....     8.434978: kvm_exit: vcpu 0 reason npf rip 0x10000 info1 0x0000000200000006 info2 0x0000000000001000 intr_info 0x00000000 error_code 0x00000000
            kvmx-103   [000]    13.787015: kvm_exit:             vcpu 0 reason io rip 0x10037 info1 0x0000000000e00040 info2 0x0000000000010039 intr_info 0x00000000 error_code 0x00000000
            kvmx   109 [000]    27.880670:  kvm:kvm_exit: vcpu 0 reason interrupt rip 0x10000 info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000
"""  # noqa: E501 - a line each as ftrace, trace-cmd and perf printed it


def logged(config: Config = SHADOW) -> tuple[Result, npt.NDArray[np.void]]:
    parts: list[npt.NDArray[np.void]] = []
    result = simulate(TRACE, config, exits=parts.append)
    return result, np.concatenate(parts)


def written(path: Path, records: npt.NDArray[np.void], **more: Any) -> None:
    """In parts of all lengths, the first of them twice; two runs."""
    with ExitFile(path, **more) as file:
        first = 0
        for length in (0, 1, 7, 300, len(records)):
            part = records[first : first + length]
            for _ in range(1 + (length == 1)):
                file.write(part, "one")
            first += length
        file.write(records[:5], "two")


def rows(records: npt.NDArray[np.void]) -> Iterator[dict[str, Any]]:
    """What a row of a file says of each record."""
    names = {"reason": REASON_NAMES, "class": [each.name.lower() for each in FaultClass], "kind": KINDS}
    for trace, some in (("one", records), ("two", records[:5])):
        for record in some:
            row = {name: record[name].item() for name in COLUMNS[1:]}
            yield {"trace": trace, **row, **{name: of[row[name]] for name, of in names.items()}}


# ---- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["arrow", "feather", "parquet"])
def test_columns(suffix: str, tmp_path: Path) -> None:
    feather, parquet = pytest.importorskip("pyarrow.feather"), pytest.importorskip("pyarrow.parquet")
    _, records = logged()
    path = tmp_path / f"exits.{suffix}"
    written(path, records, command="fastmmu run --exits")
    table = (parquet if suffix == "parquet" else feather).read_table(path)
    assert table.to_pylist() == list(rows(records))
    assert table.schema.metadata[b"command"] == b"fastmmu run --exits"
    assert {name: str(table.schema.field(name).type) for name in ("time", "gpa", "cycles", "vcpu")} == {
        "time": "uint64", "gpa": "uint64", "cycles": "double", "vcpu": "uint32"
    }  # fmt: skip


def test_csv(tmp_path: Path) -> None:
    _, records = logged(EPT)
    written(tmp_path / "exits.csv", records)
    with (tmp_path / "exits.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    hexadecimal = ("qualification", "gpa", "gla", "rip", "intr_info", "error_code")
    want = [{name: f"{v:#x}" if name in hexadecimal else str(v) for name, v in row.items()} for row in rows(records)]
    assert found == want
    assert len(found) > 200


def test_a_log_of_the_last_ones(tmp_path: Path) -> None:
    result = simulate(TRACE, EPT.replace(exit_log=20))
    assert result.exit_log is not None
    for suffix in EXIT_FORMATS:
        save_exits(result.exit_log, tmp_path / f"last.{suffix}", trace="a\udcff b")  # a name that is no text
        assert (tmp_path / f"last.{suffix}").stat().st_size > 1000
    assert len((tmp_path / "last.csv").read_bytes().splitlines()) == 21
    with pytest.raises(ConfigError, match="one of arrow, feather"):
        save_exits(result.exit_log, tmp_path / "last.json")


def test_many_more_than_are_written_at_once(tmp_path: Path) -> None:
    _, records = logged()
    many = np.tile(records, 80)
    save_exits(ExitLog(many), tmp_path / "many.csv")
    assert len((tmp_path / "many.csv").read_bytes().splitlines()) == len(many) + 1 > 70_000


# ---- whole, or not there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", EXIT_FORMATS)
def test_a_block_that_fails_leaves_what_was_there(suffix: str, tmp_path: Path) -> None:
    _, records = logged()
    path = tmp_path / f"exits.{suffix}"
    path.write_bytes(b"before")

    def fail(error: type[BaseException]) -> None:
        with ExitFile(path) as file:
            file.write(records)
            file.write(np.tile(records, 80))
            raise error

    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error):
            fail(error)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [(path.name, b"before")]


@pytest.mark.parametrize("suffix", EXIT_FORMATS)
def test_what_was_kept_stays(suffix: str, tmp_path: Path) -> None:
    _, records = logged()
    path = tmp_path / f"exits.{suffix}"

    def fail() -> None:
        with ExitFile(path) as file:
            file.write(records)
            file.keep()
            with pytest.raises(StateError, match="not open"):
                file.write(records)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    save_exits(ExitLog(records), tmp_path / f"same.{suffix}")
    if suffix not in ("arrow", "feather", "parquet"):
        assert path.read_bytes() == (tmp_path / f"same.{suffix}").read_bytes()
    assert path.stat().st_size > 1000


def test_no_half_part_is_taken_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the middle of writing a part: the block may swallow it, and there is no file all the same."""
    _, records = logged()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def swallow() -> None:
        with ExitFile(tmp_path / "e.txt") as file:
            monkeypatch.setattr("fastmmu.report.exits.exit_lines", interrupted)
            with pytest.raises(KeyboardInterrupt):
                file.write(np.tile(records, 80))
            monkeypatch.undo()

    with pytest.raises(StateError, match="interrupted while it was written"):
        swallow()
    assert list(tmp_path.iterdir()) == []


def test_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_exits(tmp_path / "e.ARROW") == "arrow"
    for path, error in ((tmp_path / "e", ConfigError), (tmp_path / "e.json", ConfigError), (tmp_path, ConfigError),
                        (tmp_path / "no" / "e.csv", FileNotFoundError)):  # fmt: skip
        with pytest.raises(error):
            ExitFile(path)
    file = ExitFile(tmp_path / "e.csv")
    with pytest.raises(StateError, match="not open"):
        file.write(logged()[1])
    with file, pytest.raises(StateError, match="EXIT_DTYPE"):
        file.write(np.zeros(3))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.ipc", None)
    with pytest.raises(MissingExtraError, match=r"fastmmu\[arrow\]"):
        check_exits(tmp_path / "e.parquet")


# ---- lines ----------------------------------------------------------------------------------------------------------


def parsed(text: str) -> list[dict[str, str]]:
    """Each line of the event; every line that has its name is one."""
    lines = [line for line in text.splitlines() if "kvm_exit:" in line]
    found = [LINE.match(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match][:3]
    return [match.groupdict() for match in found if match]


def test_the_expression_reads_recorded_lines() -> None:
    assert [line["reason"] for line in parsed(RECORDED)] == ["npf", "io", "interrupt"]
    assert [line["pid"] for line in parsed(RECORDED)] == ["95", "103", "109"]


@pytest.mark.skipif(not KVM.is_dir(), reason="skipped: FASTMMU_FILES has no recorded traces of KVM")
@pytest.mark.parametrize("name", ["ftrace", "trace-cmd-report", "perf-script"])
def test_the_expression_reads_recorded_traces(name: str) -> None:
    file = f"{name}_kvm_amd_6.1.txt.xz"
    expected = json.loads((KVM / "expected.json").read_text())[file]["exits"]
    found = parsed(lzma.decompress((KVM / file).read_bytes()).decode())
    assert Counter(line["reason"] for line in found) == expected


@pytest.mark.parametrize("suffix", ["txt", "perf"])
@pytest.mark.parametrize("config", [SHADOW, EPT], ids=["shadow", "ept"])
def test_lines_say_what_the_records_do(config: Config, suffix: str, tmp_path: Path) -> None:
    """By the expression that reads the recorded ones."""
    result, records = logged(config)
    save_exits(ExitLog(records), tmp_path / f"exits.{suffix}", trace="two words")
    found = parsed((tmp_path / f"exits.{suffix}").read_text())
    counted = {name.upper(): n for name, n in result.counters["exits_by_reason"].items()}
    assert Counter(line["reason"] for line in found) == counted
    for name, field in (("info1", "qualification"), ("rip", "rip"), ("intr_info", "intr_info"),
                        ("error_code", "error_code")):  # fmt: skip
        assert [int(line[name], 16) for line in found] == records[field].tolist()
    assert [round(float(line["time"]) * 1e6) for line in found] == records["time"].tolist()
    assert {line["comm"] for line in found} == {"two-words"}


def test_columns_stand_where_the_tracers_have_them() -> None:
    """Blanks, digits and all, but for what is the tracer's own."""
    _, records = logged()
    ours = exit_lines(records[:1], "kvmx", form="trace-cmd", vendor="intel")[0]
    theirs = RECORDED.splitlines()[1]
    assert ours.index("[000]") == theirs.index("[000]") == 23
    for word in ("kvm_exit:", "vcpu 0"):
        assert ours.index(word) == theirs.index(word)
    ours = exit_lines(records[:1], "kvmx", form="perf", vendor="intel")[0]
    theirs = RECORDED.splitlines()[2]
    for word in ("[000]", "kvm:kvm_exit:", "vcpu 0"):
        assert ours.index(word) == theirs.index(word)


def names_of(format: str, isa: int) -> dict[int, str]:
    """The table of names of a processor's exits in the event's format."""
    tables = re.findall(r"__print_symbolic\((.*?)\)", format, re.DOTALL)
    number = r"\{ (0x[0-9a-f]+(?: \+ \d+)?|-?\d+), \"([^\"]+)\" \}"
    return {eval(text): name for text, name in re.findall(number, tables[isa])}


def test_names_of_reasons_are_linux_own() -> None:
    if not (KVM / "kvm_exit.format").exists():
        pytest.skip("skipped: FASTMMU_FILES has no kvm_exit.format")
    format = (KVM / "kvm_exit.format").read_text()
    intel, amd = names_of(format, 0), names_of(format, 1)
    assert len(intel) > 60
    assert len(amd) > 100
    records = np.zeros(N_REASONS, logged()[1].dtype)
    records["reason"] = np.arange(N_REASONS)
    for vendor in ("intel", "amd"):
        lines = parsed("\n".join(exit_lines(records, "", form="trace-cmd", vendor=vendor)))
        for reason, line in enumerate(lines):
            if vendor == "intel":
                assert line["reason"] == intel.get(reason, f"{reason:#x}")
            else:  # of what AMD's processors have
                assert line["reason"] in {*amd.values(), "0 excp", intel.get(reason, f"{reason:#x}")}
    shown = {line["reason"] for line in lines}
    assert {"npf", "cpuid", "io", "msr", "interrupt", "invlpg", "vintr"} <= shown


def test_a_guest_on_amd_reads_as_recorded() -> None:
    """As recorded: its tables fault first, written for their flags, then the page."""
    machine = flat(EPT.replace(vendor="amd", exit_log=10))
    machine.access(PAGE, "w")
    lines = parsed("\n".join(exit_lines(machine.exit_log().records, "kvmx", form="trace-cmd", vendor="amd")))
    assert {line["reason"] for line in lines} == {"npf"}
    codes = [(int(line["info1"], 16), int(line["info2"], 16)) for line in lines]
    recorded = parsed(RECORDED)[0]
    assert codes[0] == (int(recorded["info1"], 16), int(recorded["info2"], 16)) == (0x2_0000_0006, 0x1000)
    assert codes[-1] == (0x1_0000_0006, PAGE)


@pytest.mark.parametrize(("q", "name"), [(0, "write_cr0"), (0x13, "read_cr3"), (4, "write_cr4"), (0x18, "read_cr8"),
                                         (0x20, "write_cr0"), (0x30, "write_cr0")])  # fmt: skip
def test_control_registers_on_amd(q: int, name: str) -> None:
    records = np.zeros(1, logged()[1].dtype)
    records["reason"], records["qualification"] = 28, q
    assert parsed(exit_lines(records, "", form="perf", vendor="amd")[0])[0]["reason"] == name


# ---- over time ------------------------------------------------------------------------------------------------------


def test_a_history_is_what_was_counted() -> None:
    result, records = logged()
    whole, parts = ExitHistory("whole"), ExitHistory("parts")
    whole.add(records)
    for first in range(0, len(records), 37):
        part = records[first : first + 37]
        parts.add(part)
        parts.add(part)  # the same array counts once
    for history in (whole, parts):
        history.until(result.counters["accesses"])
        counted = {name: int(counts.sum()) for name, counts in history.by_reason().items()}
        assert counted == result.counters["exits_by_reason"]
        assert history.width * BINS // 2 < result.counters["accesses"] <= history.width * BINS
        for name, counts in history.by_reason().items():
            times = records["time"][records["reason"] == REASON_NAMES.index(name)].astype(np.int64) - 1
            assert counts.tolist() == np.bincount(times // history.width, minlength=len(counts)).tolist()


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_pictures(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result, records = logged()
    one, none = ExitHistory("a program"), ExitHistory("nothing")
    one.add(records)
    path = tmp_path / f"exits.{suffix}"
    plot_exits([one, none], path)
    data = path.read_bytes()
    assert data.startswith({"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[suffix])
    if suffix == "svg":
        text = data.decode()
        assert f"#PF  {result.counters['exits_by_reason']['exception_nmi']}" in text
        for words in ("a program", "no VM exits", "exits per 1000 accesses", "CR access"):
            assert f">{words}" in text
    with pytest.raises(ConfigError, match="png, svg, pdf"):
        plot_exits([one], tmp_path / "exits.gif")


def test_a_picture_of_many_reasons_and_of_none(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    records = np.zeros(40, logged()[1].dtype)
    records["reason"], records["time"] = np.arange(40), 1 + 1000 * np.arange(40)
    history = ExitHistory()
    history.add(records)
    plot_exits([history], tmp_path / "many.svg")
    assert ">other  31" in (tmp_path / "many.svg").read_text()
    plot_exits([], tmp_path / "none.svg")
    with pytest.raises(StateError, match="EXIT_DTYPE"):
        history.add(np.zeros(4))
