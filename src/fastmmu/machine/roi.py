"""The part of a run between two marks of its trace: MARK records of a system trace, each the begin of a phase."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastmmu.errors import ConfigError
from fastmmu.machine.cache_result import caches_between
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.cuts import difference, last_exits
from fastmmu.machine.result import Result
from fastmmu.machine.running import Counted, Running
from fastmmu.ops import RecordOp

__all__ = ["BetweenMarks", "Marks", "marks_of"]

_NOTHING = Counted({"accesses": 0}, {}, 0.0)


class Marks(NamedTuple):
    """From the mark of number `begin` on, None: from the start; up to that of number `end`, None: to the end of the
    trace, "next": to whichever comes next."""

    begin: int | None
    end: int | str | None


def marks_of(text: str) -> Marks:
    """ "3": from mark 3 to the next one; "3:5": to mark 5; "3:" to the end; ":5" from the start.

    :raises ConfigError: it is none of these.
    """
    found = re.fullmatch(r"\s*([0-9]{1,9})?\s*(:)?\s*([0-9]{1,9})?\s*", text, re.ASCII)
    if found is None or not (found[1] or found[3]) or (found[3] and not found[2]):
        raise ConfigError(f"roi={text!r}: give the number of a mark, 3, to count up to the next one; or 3:5, 3:, :5")
    begin = None if found[1] is None else int(found[1])
    return Marks(begin, "next" if found[2] is None else None if found[3] is None else int(found[3]))


class BetweenMarks:
    """A run that is counted between two marks; it goes on behind the second."""

    def __init__(self, run: Running, marks: Marks, costs: CostModel, gate: Any) -> None:
        self.run, self.marks, self.costs, self.gate = run, marks, costs, gate
        self.before = _NOTHING if marks.begin is None else None
        self.after: Counted | None = None
        self.seen: list[int] = []
        self._let(self.before is not None)

    @property
    def events(self) -> int:
        return self.run.events

    def parts(self, block: Any) -> Iterator[Any]:
        return self.run.parts(block)

    def cut(self, block: Any, part: slice) -> Any:
        return self.run.cut(block, part)

    def take(self, block: Any) -> None:
        done = 0
        for at in np.flatnonzero(block.rows["op"] == RecordOp.MARK).tolist():
            number = int(block.rows["aux"][at])
            self.seen.append(number)
            begins = self.before is None and number == self.marks.begin
            ends = self.before is not None and self.after is None and self.marks.end in (number, "next")
            if begins or ends:
                if at > done:
                    self.run.take(self.run.cut(block, slice(done, at)))
                done = at
                self.run.give()
                self._let(begins)
                if begins:
                    self.before = self.run.counted()
                else:
                    self.after = self.run.counted()
        self.run.take(self.run.cut(block, slice(done, None)) if done else block)

    def _let(self, through: bool) -> None:
        if self.gate is not None:
            self.gate.open = through

    def give(self) -> None:
        self.run.give()

    def counters(self) -> dict[str, Any]:
        return self.run.counters()

    def counted(self) -> Counted:
        return self.run.counted()

    def result(self, *, complete: bool) -> Result:
        """What the part came to until now.

        :raises ConfigError: the trace has no such mark.
        """
        whole = self.run.result(complete=complete)
        missing = self.marks.begin if self.before is None else self.marks.end
        if complete and (self.before is None or (self.after is None and isinstance(missing, int))):
            there = ", ".join(map(str, self.seen[:20])) or "none"
            raise ConfigError(f"{whole.trace} has no mark {missing} where roi= asks for one; its marks are {there}")
        after = self.after or self.run.counted()
        before = self.before or after
        counters = difference(after.counters, before.counters)
        caches = caches_between(after.caches, before.caches)
        by_cause = cycles(counters, whole.config, self.costs, caches)
        behind = whole.counters["vm_exits"] - after.counters["vm_exits"]
        return replace(
            whole,
            counters=counters,
            tlb=difference(after.tlb, before.tlb),
            cycles=float(sum(by_cause.values())),
            cycles_by=by_cause,
            seconds=after.seconds - before.seconds,
            first=before.counters["accesses"],
            exit_log=last_exits(whole.exit_log, counters["vm_exits"], behind),
            caches=caches,
        )
