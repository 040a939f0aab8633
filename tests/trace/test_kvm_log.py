"""Logs of KVM's trace points: every form that tracers print, and what a page that faults again was missing."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import numpy as np
import pytest

from fastmmu import Config, FastmmuError, KvmLog, StateError, TraceError, read_kvm_log, simulate
from fastmmu.exits import ExitReason
from fastmmu.machine.exit_log import ExitLog
from fastmmu.ops import Op
from fastmmu.report import save_exits
from fastmmu.trace.kvm_log import AGAIN
from fastmmu.trace.kvm_names import reason_name
from tests.files import folder
from tests.files.kvm import results
from tests.support.event_lists import program, with_events
from tests.support.flat_guest import PAGE, flat

DATA = Path(__file__).parents[1] / "data" / "kvm_logs"
TRACE = with_events(program(3000, 3), 50, (Op.EXIT, 10), (Op.SWITCH, 1), (Op.INTERRUPT, 32), (Op.SWITCH, 0))


def line(event: str, time: float, rest: str, thread: int = 95, cpu: int = 0) -> str:
    return f"            kvmx-{thread:<7} [{cpu:03}] d..1. {time:12.6f}: {event}: {rest}\n"


def intel_fault(time: float, gpa: int, code: int, thread: int = 95, *, entry: bool = True) -> str:
    """An EPT violation as Linux 6 prints it."""
    vcpu = thread - 95
    text = line("kvm_exit", time, f"vcpu {vcpu} reason EPT_VIOLATION rip 0x10 info1 {code:#018x} info2 {0:#018x} "
                                  "intr_info 0x00000000 error_code 0x00000000", thread)  # fmt: skip
    text += line(
        "kvm_page_fault", time + 1e-6, f"vcpu {vcpu} rip 0x10 address {gpa:#018x} error_code {code:#x}", thread
    )
    return text + (line("kvm_entry", time + 2e-6, f"vcpu {vcpu}, rip 0x10", thread) if entry else "")


def read(tmp_path: Path, text: str) -> KvmLog:
    (tmp_path / "kvm.txt").write_text(text)
    return read_kvm_log(tmp_path / "kvm.txt")


@pytest.mark.skipif(not (folder() / "kvm").is_dir(), reason=f"skipped: no logs of KVM in {folder()}; FASTMMU_FILES")
def test_the_samples() -> None:
    found = list(results(folder() / "kvm"))
    assert len(found) > 3
    assert [result for result in found if not result.right] == []


@pytest.mark.parametrize("name", ["ftrace", "trace-cmd", "perf"])
def test_a_log_of_each_tracer(name: str, tmp_path: Path) -> None:
    """Counted by hand, that is by words."""
    text = (DATA / f"{name}.txt").read_text()
    log = read_kvm_log(DATA / f"{name}.txt")
    assert log.events["kvm_exit"] == len(log.exits) == len(re.findall(r"kvm_exit: +vcpu", text)) > 10
    assert log.by_reason()["npf"] == len(re.findall("reason npf ", text))
    assert log.vendor == "amd"
    assert log.notes() == []
    assert log.seconds > 0
    assert (log.exits["time"][1:] >= log.exits["time"][:-1]).all()
    first = re.search(r"kvm_exit: .*?rip (\S+) info1 (\S+) info2 (\S+)", text)
    assert first is not None
    assert [int(word, 16) for word in first.groups()] == [int(log.exits[0][name]) for name in ("rip", "info1", "info2")]
    (tmp_path / "log.xz").write_bytes(lzma.compress(text.encode()))
    assert read_kvm_log(tmp_path / "log.xz").events == log.events


def test_pages_that_are_no_memory() -> None:
    log = read_kvm_log(DATA / "perf.txt")
    assert log.faults_from == "kvm_exit"
    text = (DATA / "perf.txt").read_text()
    assert sum(n for (_, kind), n in log.by_access().items() if kind == "mmio") == len(
        re.findall(r"mmio (?:unsatisfied-read|write) ", text)
    )
    assert log.by_access()["write", "protected"] > 10


def test_what_we_write_is_read(tmp_path: Path) -> None:
    for config, vendor in ((Config(mmu="shadow", memory="256M"), "intel"), (Config(mmu="ept", memory="256M"), "amd")):
        parts: list[np.ndarray] = []
        result = simulate(TRACE, config.replace(vendor=vendor), exits=parts.append)
        records = np.concatenate(parts)
        for suffix in ("txt", "perf"):
            save_exits(ExitLog(records), tmp_path / f"exits.{suffix}", vendor=vendor)
            log = read_kvm_log(tmp_path / f"exits.{suffix}")
            assert log.vendor == vendor
            assert len(log.exits) == result.counters["vm_exits"]
            assert sorted(log.by_reason().values()) == sorted(result.counters["exits_by_reason"].values())
            assert (log.exits["time"] == records["time"] * 1000).all()
            assert (log.exits["rip"] == records["rip"]).all()
            if vendor == "amd":
                violations = records[records["reason"] == ExitReason.NPF]
                assert (log.faults["address"] == violations["gpa"]).all()
                assert ((log.faults["op"] == Op.WRITE) == (violations["qualification"] & 2 > 0)).all()


def test_forms_of_older_and_newer_versions(tmp_path: Path) -> None:
    text = line("kvm_exit", 1, "reason EPT_VIOLATION rip 0xffffffff81000000 info 181 0")  # 4.x
    text += line("kvm_page_fault", 1.1, "address 1234567000 error_code 181")
    text += line("kvm_exit", 2, "vcpu 3 reason EPT_VIOLATION rip 0x1 info1 0x0000000000000182 info2 0x0000000000000000 "
                                "intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000")  # fmt: skip
    text += line("kvm_page_fault", 2.1, "vcpu 3 rip 0x1 address 0x0000000000005000 error_code 0x182")
    text += line("kvm_exit", 3, "[FAILED TO PARSE] exit_reason=0x30 guest_rip=0x10 isa=1 info1=388 info2=0 vcpu_id=2")
    text += line(
        "kvm_page_fault", 3.1, "[FAILED TO PARSE] vcpu_id=2 guest_rip=0x10 fault_address=0x7000 error_code=0x184"
    )
    text += line("kvm_exit", 4, "vcpu 0 reason INVALID_STATE FAILED_VMENTRY rip 0x10 info1 0x0000000000000000 "
                                "info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000")  # fmt: skip
    log = read(tmp_path, text)
    assert log.by_reason() == {"EPT_VIOLATION": 3, "INVALID_STATE FAILED_VMENTRY": 1}
    assert log.faults["address"].tolist() == [0x1234567000, 0x5000, 0x7000]
    assert log.faults["op"].tolist() == [Op.READ, Op.WRITE, Op.FETCH]
    assert log.exits["vcpu"].tolist() == [0, 3, 2, 0]
    assert log.exits["info1"].tolist() == [0x181, 0x182, 388, 0]


def test_names_for_numbers_are_linux_own() -> None:
    if not (folder() / "kvm" / "kvm_exit.format").exists():
        pytest.skip("skipped: FASTMMU_FILES has no kvm_exit.format")
    format = (folder() / "kvm" / "kvm_exit.format").read_text()
    for isa, table in enumerate(re.findall(r"__print_symbolic\((.*?)\)", format, re.DOTALL), 1):
        named = {eval(text): name for text, name in re.findall(r"\{ (0x\w+(?: \+ \d+)?|-?\d+), \"([^\"]+)\" \}", table)}
        ours = {number: reason_name(number, isa) for number in range(1 << 11)}
        assert {n: name for n, name in ours.items() if not name.startswith("0x")}.items() <= named.items()
        assert len([name for name in ours.values() if not name.startswith("0x")]) > 60


def test_heads_of_lines(tmp_path: Path) -> None:
    rest = "kvm_entry: vcpu 1, rip 0x10"
    for head in (
        " qemu-system-x86-1234  (   1200) [001] d..1. 12345.678901: ",
        "CPU 0/KVM-31337 [127] 99.000001: ",
        "          a [b] c 77 [003]   9.1: kvm:",
        " CPU 1/KVM 77/78 [003] 27.123456789:  1 kvm:",
        "kvm 12 [000] ....1 1.5: ",
    ):
        assert read(tmp_path, head + rest + "\n").events == {"kvm_entry": 1}


def test_why_pages_fault_again(tmp_path: Path) -> None:
    text = "".join(
        intel_fault(*each)
        for each in (
            (1.0, 0x1000, 0x181),  # first, read
            (1.1, 0x1000, 0x18A),  # written: entry readable
            (1.2, 0x1000, 0x18A),  # and again: written before
            (1.3, 0x1000, 0x18C),  # fetched
            (1.4, 0x2000, 0x181),
            (1.5, 0x1000, 0x181),  # gone
            (1.6, 0x3000, 0x181),
            (1.7, 0x3000, 0x181),  # at once the same: in vain
        )
    )
    first = intel_fault(2.0, 0x9000, 0x181, 95, entry=False)
    other = intel_fault(2.0000005, 0x9000, 0x181, 96)  # while the first was served
    lines = sorted((first + other).splitlines(True), key=lambda text: float(re.search(r"(\d+\.\d+):", text)[1]))
    log = read(tmp_path, text + "".join(lines))
    assert [AGAIN[n] for n in log.faults["again"]] == [
        "first", "write", "rewrite", "fetch", "first", "gone", "first", "retry", "first", "race"
    ]  # fmt: skip
    assert log.by_again() == {"race": 1, "retry": 1, "write": 1, "rewrite": 1, "fetch": 1, "gone": 1}
    assert log.vendor == "intel"


def test_a_machine_of_ours_faults_again_for_the_reasons_it_says(tmp_path: Path) -> None:
    """A dirty log makes a page fault for its right to be written; a page taken away is gone."""
    machine = flat(Config(mmu="ept", kvm="6.1", vendor="amd", exit_log=100, memory="1G"))
    machine.access(PAGE, "w")
    machine.vmm.start_dirty_log(0)
    machine.access(PAGE, "w")
    machine.vmm.dirty_log(0)
    machine.access(PAGE, "w")
    machine.vmm.invalidate_range_start(0, PAGE >> 12, 1)
    machine.vmm.invalidate_range_end(0)
    machine.access(PAGE, "r")
    save_exits(machine.exit_log(), tmp_path / "exits.perf", vendor="amd")
    log = read_kvm_log(tmp_path / "exits.perf")
    ours = log.faults[log.faults["address"] >> np.uint64(12) == PAGE >> 12]
    assert [AGAIN[n] for n in ours["again"]] == ["first", "rewrite", "rewrite", "gone"]


def test_shadow_paging_has_linear_addresses(tmp_path: Path) -> None:
    text = line("kvm_exit", 1, "vcpu 0 reason EXCEPTION_NMI rip 0x1 info1 0x0000000000401000 info2 0x0000000000000000 "
                               "intr_info 0x80000b0e error_code 0x00000002")  # fmt: skip
    text += line("kvm_page_fault", 1.1, "vcpu 0 rip 0x1 address 0x0000000000401000 error_code 0x2")
    log = read(tmp_path, text)
    assert log.by_access() == {("write", "shadow"): 1}
    assert log.pages == 0


def test_lost_events_and_other_lines_are_told(tmp_path: Path) -> None:
    text = "# entries-in-buffer/entries-written: 10/12   #P:1\n" + intel_fault(1, 0x1000, 0x181)
    text += "CPU:1 [LOST 17 EVENTS]\nCPU:2 [3 EVENTS DROPPED]\n kvm 7 [001] 1.5: PERF_RECORD_LOST lost 100\n"
    text += "\tffffffff81234567 vmx_handle_exit+0x17 ([kernel.kallsyms])\n"
    text += intel_fault(3, 0x1000, 0x181, 96).replace("vcpu 1", "vcpu 0")
    log = read(tmp_path, text)
    assert log.lost == 2 + 17 + 3 + 100
    assert log.other_lines == 1
    assert [note.split()[0] for note in log.notes()] == ["122", "1", "several"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("words\n" * 500, "no log of KVM's trace points"),
        ("a\n", "no log of KVM's trace points"),
        (line("sched_switch", 1, "a b"), "no log of KVM's trace points"),
        (line("kvm_entry", 1, "vcpu 0, rip 0x1")[:-1], "line 1: the last line is cut short"),
        (line("kvm_exit", 1, "vcpu 0 reason npf rip 0x10"), "line 1: the fields of this event are not known"),
        (line("kvm_page_fault", 1, "vcpu 0 rip 0x1 address 0x1000 error_code"), "the fields of this event"),
        (line("kvm_exit", 1, "exit_reason=1 guest_rip=99999999999999999999 info1=0 info2=0"), "the fields of this"),
        (" [000] 1.0: kvm_entry: vcpu 0, rip 0x1\n", "there is no thread"),
        ("x" * 70_000 + "\n", "a line has more than"),
        (" L 1000,4\n" * 300, "no log of KVM's trace points"),
        ("\n\nAnalyze events for all VMs, all VCPUs:\n", "a table of `perf kvm stat`.*perf script"),
        ("PERFILE2" + "\0" * 100, "a perf.data file.*perf script -i"),
        ("\x17\x08Dtracing", "a trace-cmd file.*trace-cmd report"),
        ("", "the file is empty"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=said):
        read(tmp_path, text)


def test_logs_of_ones_own_are_checked() -> None:
    log = read_kvm_log(DATA / "perf.txt")
    with pytest.raises(StateError, match="reason"):
        KvmLog("a", "a", {}, log.exits, (), log.faults, "kvm_exit")
    with pytest.raises(StateError, match="exits of dtype"):
        KvmLog("a", "a", {}, log.faults, log.reasons, log.faults, "kvm_exit")
    with pytest.raises(FastmmuError):
        read_kvm_log(DATA)
