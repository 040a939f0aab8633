"""What a log of KVM's trace points says: exits and page faults, and why pages fault again. Read by `kvm_log_read`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import check_fields
from fastmmu.errors import StateError
from fastmmu.exits import FaultClass
from fastmmu.ops import Op

__all__ = ["AGAIN", "KVM_EXIT_DTYPE", "KVM_FAULT_DTYPE", "KvmLog", "whys"]

KVM_EXIT_DTYPE = np.dtype(
    [("time", "<i8"), ("rip", "<u8"), ("info1", "<u8"), ("info2", "<u8"), ("thread", "<u4"), ("vcpu", "<u4"),
     ("reason", "<u2")]
)  # fmt: skip
"""A VM exit: time in nanoseconds, exit information, the thread of the host and the vCPU that it runs, and the reason, a
number of ``KvmLog.reasons``."""

KVM_FAULT_DTYPE = np.dtype(
    [("time", "<i8"), ("address", "<u8"), ("code", "<u8"), ("thread", "<u4"), ("vcpu", "<u4"), ("op", "u1"),
     ("class", "u1"), ("linear", "?"), ("again", "u1")]
)  # fmt: skip
"""A page fault: time in nanoseconds; address, guest-physical unless `linear`; its code as the log has it; op, of
:class:`fastmmu.Op`: READ, WRITE or FETCH; class, of ``fastmmu.exits.FaultClass``: BUILD where nothing mapped the page,
PROTECTED where something did, MMIO; again, a number of ``AGAIN``."""

AGAIN = ("first", "mmio", "race", "retry", "write", "rewrite", "fetch", "gone")
"""Why a page faults once more.

mmio: it is no memory, each access is emulated. race: another vCPU was being served for it. retry: the same instruction,
served in vain. write: written, and mapped without that right. rewrite: written before, and its right to be written was
taken away meanwhile, as by a dirty log. fetch: executed after it was mapped without that right. gone: nothing maps it
any more.
"""


@dataclass(frozen=True, eq=False, repr=False)
class KvmLog:
    """What a log of KVM's trace points holds.

    ``name``, ``path``: of the file. ``events``: how many of each name. ``exits``: VM exits, a structured array of
    ``KVM_EXIT_DTYPE`` in the order of time; ``reasons``: their reasons, as the log writes them. ``faults``: page
    faults, of ``KVM_FAULT_DTYPE``; ``faults_from``: the event that tells them, "kvm_page_fault" or, where there is
    none, "kvm_exit". ``lost``: events that the log itself says are missing; ``other_lines``: lines that are no event.

    Threads: nothing changes it; share it.
    """

    name: str
    path: str
    events: dict[str, int]
    exits: npt.NDArray[np.void]
    reasons: tuple[str, ...]
    faults: npt.NDArray[np.void]
    faults_from: str
    lost: int = 0
    other_lines: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for what, array, dtype in (
            ("exits", self.exits, KVM_EXIT_DTYPE), ("faults", self.faults, KVM_FAULT_DTYPE)
        ):  # fmt: skip
            if array.dtype != dtype or array.ndim != 1:
                raise StateError(f"{what} of dtype {array.dtype} are none; read_kvm_log() makes them")
        for what, column, limit in (
            ("reason", self.exits["reason"], len(self.reasons)), ("again", self.faults["again"], len(AGAIN)),
            ("op", self.faults["op"], int(Op.FETCH) + 1), ("class", self.faults["class"], len(FaultClass)),
        ):  # fmt: skip
            if len(column) and int(column.max()) >= limit:
                raise StateError(f"{what} {int(column.max())} is none; read_kvm_log() gives those below {limit}")

    def __repr__(self) -> str:
        return f"<KvmLog {self.name!r}: {len(self.exits)} exits, {len(self.faults)} page faults>"

    @property
    def seconds(self) -> float:
        """From the first exit or fault to the last."""
        times = [array["time"][[0, -1]] for array in (self.exits, self.faults) if len(array)]
        return float(np.ptp(np.concatenate(times))) / 1e9 if times else 0.0

    @property
    def vendor(self) -> str:
        """ "amd" where VM exits are named as SVM's are, else "intel"."""
        return "amd" if any(name.islower() or name.endswith(" excp") for name in self.reasons) else "intel"

    def by_reason(self) -> dict[str, int]:
        """How many exits by reason, the most frequent first."""
        found = np.bincount(self.exits["reason"], minlength=len(self.reasons)).tolist()
        return dict(sorted(zip(self.reasons, found, strict=True), key=lambda item: -item[1]))

    def by_access(self) -> dict[tuple[str, str], int]:
        """How many page faults by access ("read", "write", "fetch") and class ("build", "protected", "mmio", and for
        those of linear addresses, under shadow paging, "shadow")."""
        found: Counter[tuple[str, str]] = Counter()
        for op, kind, linear in zip(*(self.faults[field].tolist() for field in ("op", "class", "linear")), strict=True):
            found[Op(op).name.lower(), "shadow" if linear else FaultClass(kind).name.lower()] += 1
        return dict(found.most_common())

    def by_again(self) -> dict[str, int]:
        """How many faults of guest-physical pages that had one before, by why: a word of ``AGAIN``."""
        found = np.bincount(self.faults["again"][~self.faults["linear"]], minlength=len(AGAIN)).tolist()
        return {why: n for why, n in zip(AGAIN[1:], found[1:], strict=True) if n}

    @property
    def pages(self) -> int:
        """How many guest-physical pages of 4 KB have faulted."""
        return len(np.unique(self.faults["address"][~self.faults["linear"]] >> np.uint64(12)))

    def notes(self) -> list[str]:
        """What is to be known of the log, a sentence each."""
        said = []
        if self.lost:
            said.append(f"{self.lost:,} events are missing, says the log itself; record with larger buffers")
        if self.other_lines:
            said.append(f"{self.other_lines:,} line{'s' * (self.other_lines != 1)} that are no events were left out")
        pairs = np.unique(self.exits[["thread", "vcpu"]])["vcpu"]
        if len(pairs) != len(np.unique(pairs)):
            said.append("several threads are the same vCPU: these are several virtual machines, taken together here")
        return said


def whys(faults: npt.NDArray[np.void], exits: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    """Why each fault of a page that had one before came, a number of AGAIN."""
    found = np.zeros(len(faults), np.uint8)
    last: dict[int, tuple[int, int, int, bool]] = {}
    previous: dict[int, tuple[int, int, int]] = {}
    begun = _begun(faults, exits)
    fields = ("address", "thread", "op", "class", "linear", "code", "time")
    columns = (faults[name].tolist() for name in fields)
    for i, (address, thread, op, kind, linear, code, time) in enumerate(zip(*columns, strict=True)):
        if linear:
            continue
        page = address >> 12
        before = last.get(page)
        if before is not None:
            other, at, _, written = before
            if kind == FaultClass.MMIO:
                why = "mmio"
            elif other != thread and begun[i] <= at:
                why = "race"
            elif previous.get(thread) == (address, code, at):
                why = "retry" if kind == FaultClass.BUILD else _by_right(op, written)
            else:
                why = "gone" if kind == FaultClass.BUILD else _by_right(op, written)
            found[i] = AGAIN.index(why)
        wrote = op == Op.WRITE or (before is not None and before[3])
        last[page] = thread, time, op, wrote
        previous[thread] = address, code, time
    return found


def _by_right(op: int, written: bool) -> str:
    return "fetch" if op == Op.FETCH else "rewrite" if written else "write"


def _begun(faults: npt.NDArray[np.void], exits: npt.NDArray[np.void]) -> list[int]:
    """When the guest did the access of each fault: the exit of its thread before it."""
    times = faults["time"].copy()
    for thread in np.unique(faults["thread"]):
        mine, its = faults["thread"] == thread, exits["time"][exits["thread"] == thread]
        if len(its):
            at = np.searchsorted(its, times[mine], side="right") - 1
            times[mine] = np.where(at >= 0, its[np.maximum(at, 0)], times[mine])
    result: list[Any] = times.tolist()
    return result
