"""Logs of KVM's trace points: ftrace text, `trace-cmd report` and `perf script`, each also compressed.

    kvmx-95      [000] d..1.     8.434978: kvm_exit: vcpu 0 reason npf rip 0x10000 info1 0x... info2 0x...     ftrace
    kvmx-103   [000]    13.785897: kvm_exit:             vcpu 0 reason npf rip 0x10000 info1 ...            trace-cmd
    kvmx   109 [000]    27.884630:  kvm:kvm_exit: vcpu 0 reason npf rip 0x10000 info1 0x... info2 0x...          perf

Every event is counted by its name; of kvm_exit and kvm_page_fault the fields are read, in the forms of Linux 4 to 6
(with and without vcpu and rip, `info A B`, intr_info and error_code; `[FAILED TO PARSE] name=value` of trace-cmd).
kvm_entry and kvm_mmio say which vCPU a thread is, and which pages are no memory.

What the code of a kvm_page_fault means is told by the exit before it: behind EPT_VIOLATION it is the exit
qualification (ept.md §4.1), behind npf the error code of AMD's exit_info_1 (APM vol. 2, "Nested Page Faults"), and
behind an exception it is of a #PF under shadow paging, whose address is linear. Where a log has exits alone, those by
npf are its faults: exit_info_2 is the guest-physical address.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import TraceError
from fastmmu.exits import FaultClass
from fastmmu.ops import Op
from fastmmu.trace.foreign import foreign
from fastmmu.trace.kvm_log import KVM_EXIT_DTYPE, KVM_FAULT_DTYPE, KvmLog, whys
from fastmmu.trace.kvm_names import reason_name
from fastmmu.trace.source import ByteSource

__all__ = ["read_kvm_log"]

_EVENT = re.compile(r"\[(\d+)\]\s+(?:\S+\s+)?(\d{1,12})\.(\d{1,9}):\s+(?:\d{1,20}\s+)?(?:\w+:)?(\w+):(?:\s+(.*))?$")
_THREAD = re.compile(r"(?:^|[-\s])(\d{1,10})(?:/(\d{1,10}))?\s*(?:\(\s*[-\d]{1,10}\)\s*)?$")
_EXIT = re.compile(r"(?:vcpu (\d{1,9}),? )?reason (.{1,80}?) rip (?:0x)?([0-9a-f]{1,16}) (.*)$")
_INFO = re.compile(
    r"info1 0x([0-9a-f]{1,16}) info2 0x([0-9a-f]{1,16})(?: .*)?$|info ([0-9a-f]{1,16}) ([0-9a-f]{1,16})$"
)
_FAULT = re.compile(
    r"(?:vcpu (\d{1,9}) )?(?:rip 0x[0-9a-f]{1,16} )?address (?:0x)?([0-9a-f]{1,16}) error_code (?:0x)?([0-9a-f]{1,16})$"
)
_VALUES = re.compile(r"(\w+)=(0x[0-9a-fA-F]{1,16}|\d{1,20})")
_ENTRY = re.compile(r"vcpu (\d{1,9})")
_MMIO = re.compile(r"gpa 0x([0-9a-f]{1,16})")
_MARK = re.compile(r"(\w+):")
_LOST = re.compile(
    r"\[LOST (\d{1,15}) EVENTS\]|\[(\d{1,15}) EVENTS DROPPED\]|\bLOST (\d{1,15}) events|\blost (\d{1,15})$"
)
_WRITTEN = re.compile(r"entries-in-buffer/entries-written: (\d{1,15})/(\d{1,15})")
_HEADER = re.compile(r"#|cpus=\d+$|version = |CPU \d+ is empty|CPU:\d+ |trace-cmd: |$")
_LINE = 1 << 16  # bytes, at most
_LINES = 1 << 18
_ROWS = 1 << 16
_NONE = (-1, -1)
_PATIENCE = 200  # lines that are none, before the first event

_TEXT_OF = {
    "a perf.data file": "`perf script -i FILE >FILE.txt` writes it as text",
    "a trace-cmd file": "`trace-cmd report FILE >FILE.txt` writes it as text",
    "a table of `perf kvm stat`": "It holds sums alone; record events: perf record -e 'kvm:*', and `perf script`",
}


@checked
def read_kvm_log(path: str | os.PathLike[str], *, progress: Callable[[float, int], None] | None = None) -> KvmLog:
    """Read a log of KVM's trace points (:mod:`fastmmu.trace.kvm_log_read`).

    :param progress: called now and then with the part of the file that was read, and the number of events.
    :raises TraceError: the file is unreadable, empty, cut short, or no such log; an event whose fields are not known.
    """
    name = os.fspath(path)
    parser = _Parser(name)
    for number, line in enumerate(_lines(name, parser, progress), 1):
        parser.line(line, number)
    return parser.log()


def _lines(name: str, parser: _Parser, progress: Callable[[float, int], None] | None) -> Iterator[str]:
    rest = b""
    with ByteSource(name) as source:
        begin = True
        while data := source.read(_LINES):
            if begin:
                _check(name, data)
                begin = False
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if len(rest) > _LINE or any(len(line) > _LINE for line in lines):
                raise TraceError(f"a line has more than {_LINE} bytes: this is no log of KVM's trace points", path=name)
            if progress is not None:
                progress(source.fraction, parser.total)
            for line in lines:
                yield line.decode("utf-8", "backslashreplace").rstrip("\r")
    if rest:
        raise TraceError(
            "the last line is cut short, it has no newline; the log may not be whole. If the line is, add one",
            path=name,
            where=f"line {parser.lines + 1}",
        )


def _check(name: str, head: bytes) -> None:
    """Refuse files that are known to be others."""
    other = foreign(head)
    if other is not None and other.said != "a log of KVM's trace points":
        raise TraceError(f"this is {other.said}. {_TEXT_OF.get(other.said, other.remedy)}", path=name)


class _Rows:
    """Rows of a structured array, as they come."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._parts: list[npt.NDArray[np.void]] = []
        self._rows: list[tuple[Any, ...]] = []
        self.count = 0

    def add(self, *row: Any) -> int:
        """One more; its number."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == _ROWS:
            self._parts.append(np.array(self._rows, self._dtype))
            self._rows = []
        return self.count - 1

    def array(self) -> npt.NDArray[np.void]:
        """All of them."""
        return np.concatenate([*self._parts, np.array(self._rows, self._dtype)])


class _Thread:
    """A thread of the host that runs a vCPU; the number and the page of its last faults, since it entered the guest."""

    __slots__ = ("exit", "fault", "npf", "vcpu")

    def __init__(self) -> None:
        self.vcpu = 0
        self.exit = ""
        self.fault = self.npf = _NONE


class _Parser:
    def __init__(self, path: str) -> None:
        self.path = path
        self.lines = self.total = 0
        self._events: Counter[str] = Counter()
        self._reasons: dict[str, int] = {}
        self._exits = _Rows(KVM_EXIT_DTYPE)
        self._faults, self._npfs = _Rows(KVM_FAULT_DTYPE), _Rows(KVM_FAULT_DTYPE)
        self._mmio: set[int] = set()
        self._mmio_npf: set[int] = set()
        self._threads: dict[int, _Thread] = {}
        self._lost = self._other = 0

    def line(self, line: str, number: int) -> None:
        self.lines = number
        found = _EVENT.search(line)
        if found is None:
            self._no_event(line)
            return
        _, seconds, parts, event, rest = found.groups()
        if event == "print" and (marked := _MARK.match(rest or "")) is not None:
            event = marked[1]  # as trace-cmd prints what user space wrote
        self._events[event] += 1
        self.total += 1
        if event not in ("kvm_exit", "kvm_page_fault", "kvm_entry", "kvm_mmio"):
            return
        who = _THREAD.search(line, 0, found.start())
        if who is None:
            raise self._bad("there is no thread before the CPU", line)
        thread = int(who[2] or who[1])
        if thread >= 1 << 32:
            raise self._bad("the number of the thread is none", line)
        time = int(seconds) * 1_000_000_000 + int(parts.ljust(9, "0"))
        state = self._threads.get(thread)
        if state is None:
            state = self._threads[thread] = _Thread()
        rest = (rest or "").rstrip()
        if event == "kvm_exit":
            self._exit(time, thread, state, rest, line)
        elif event == "kvm_page_fault":
            self._fault(time, thread, state, rest, line)
        elif event == "kvm_entry":
            if (entered := _ENTRY.search(rest)) is not None:
                state.vcpu = int(entered[1])
            state.fault = state.npf = _NONE
        elif (place := _MMIO.search(rest)) is not None:
            self._emulated(state, int(place[1], 16))

    def _no_event(self, line: str) -> None:
        if (lost := _LOST.search(line)) is not None:
            self._lost += int(next(n for n in lost.groups() if n is not None))
            self._threads.clear()
        elif (written := _WRITTEN.search(line)) is not None:
            self._lost += max(0, int(written[2]) - int(written[1]))
        elif _HEADER.match(line.strip()) is None:
            self._other += 1
            if not self.total and self._other > _PATIENCE:
                raise self._none()

    def _exit(self, time: int, thread: int, state: _Thread, rest: str, line: str) -> None:
        found = _EXIT.match(rest)
        info = _INFO.match(found[4]) if found is not None else None
        if found is not None and info is not None:
            name = found[2].strip()
            if found[1] is not None:
                state.vcpu = int(found[1])
            rip = int(found[3], 16)
            info1, info2 = int(info[1] or info[3], 16), int(info[2] or info[4], 16)
        else:
            values = self._values(rest, line, "exit_reason", "guest_rip", "info1", "info2")
            name = reason_name(values["exit_reason"], values.get("isa", 1))
            state.vcpu = values.get("vcpu_id", state.vcpu)
            rip, info1, info2 = values["guest_rip"], values["info1"], values["info2"]
        reason = self._reasons.setdefault(name, len(self._reasons))
        if reason >= 1 << 16 or state.vcpu >= 1 << 32:
            raise self._bad("reason and vCPU are none", line)
        self._exits.add(time, rip, info1, info2, thread, state.vcpu, reason)
        state.exit = name
        state.fault = state.npf = _NONE
        if name == "npf":
            number = self._npfs.add(time, info2, info1, thread, state.vcpu, *_of_amd(info1), False, 0)
            state.npf = number, info2 >> 12

    def _fault(self, time: int, thread: int, state: _Thread, rest: str, line: str) -> None:
        found = _FAULT.match(rest)
        if found is not None:
            if found[1] is not None:
                state.vcpu = int(found[1])
            address, code = int(found[2], 16), int(found[3], 16)
        else:
            values = self._values(rest, line, "fault_address", "error_code")
            state.vcpu = values.get("vcpu_id", state.vcpu)
            address, code = values["fault_address"], values["error_code"]
        if state.vcpu >= 1 << 32:
            raise self._bad("the vCPU is none", line)
        linear = state.exit == "EXCEPTION_NMI" or state.exit.endswith(" excp")
        intel = state.exit.startswith("EPT_") or (not state.exit and not code >> 32 and code & 0x180 != 0)
        kind = _of_intel(code) if intel else _of_amd(code)
        state.fault = self._faults.add(time, address, code, thread, state.vcpu, *kind, linear, 0), address >> 12

    def _emulated(self, state: _Thread, address: int) -> None:
        """The access that faulted was to no memory."""
        for (number, page), marked in ((state.fault, self._mmio), (state.npf, self._mmio_npf)):
            if page == address >> 12:
                marked.add(number)

    def _values(self, rest: str, line: str, *needed: str) -> dict[str, int]:
        """The fields of an event that trace-cmd could not print as text."""
        values = {name: int(value, 16 if value.startswith("0x") else 10) for name, value in _VALUES.findall(rest)}
        if not all(name in values for name in needed) or max(values.values()) >= 1 << 64:
            raise self._bad("the fields of this event are not known", line)
        return values

    def _bad(self, what: str, line: str) -> TraceError:
        remedy = "a log is what ftrace, trace-cmd report or perf script print; leave fields as they are"
        return TraceError(f"{what}: {line.strip()[:120]!r}; {remedy}", path=self.path, where=f"line {self.lines}")

    def _none(self) -> TraceError:
        return TraceError(
            "this is no log of KVM's trace points: text of ftrace, trace-cmd report or perf script with events such as "
            "kvm_exit; record one: trace-cmd record -e kvm, then trace-cmd report",
            path=self.path,
        )

    def log(self) -> KvmLog:
        """What was read."""
        if not any(event.startswith("kvm_") for event in self._events):
            raise self._none()
        told = self._events["kvm_page_fault"] > 0
        rows, mmio = (self._faults, self._mmio) if told else (self._npfs, self._mmio_npf)
        faults, exits = rows.array(), self._exits.array()
        faults["class"][[*mmio]] = FaultClass.MMIO
        faults = faults[np.argsort(faults["time"], kind="stable")]
        exits = exits[np.argsort(exits["time"], kind="stable")]
        faults["again"] = whys(faults, exits)
        return KvmLog(
            name=os.path.basename(self.path),
            path=self.path,
            events=dict(self._events.most_common()),
            exits=exits,
            reasons=tuple(self._reasons),
            faults=faults,
            faults_from="kvm_page_fault" if told else "kvm_exit",
            lost=self._lost,
            other_lines=self._other,
        )


def _of_amd(code: int) -> tuple[int, int]:
    """Operation and class of an error code as #PF's: P 0, W 1, RSVD 3, fetch 4."""
    op = Op.WRITE if code & 2 else Op.FETCH if code & 16 else Op.READ
    return int(op), int(FaultClass.MMIO if code & 8 else FaultClass.PROTECTED if code & 1 else FaultClass.BUILD)


def _of_intel(code: int) -> tuple[int, int]:
    """Of an exit qualification: read 0, write 1, fetch 2; the entry's rights 5:3."""
    op = Op.WRITE if code & 2 else Op.FETCH if code & 4 else Op.READ
    return int(op), int(FaultClass.PROTECTED if code & 0x38 else FaultClass.BUILD)
