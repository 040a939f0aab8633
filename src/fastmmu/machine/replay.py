"""A system trace through a machine: the guest's own tables, every physical address compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmmu.cpu.missing_flushes import StaleUse
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config, as_config
from fastmmu.machine.machine import Machine
from fastmmu.machine.policy import Policy
from fastmmu.machine.system_cpus import SystemCpus
from fastmmu.machine.system_loop_py import HELD, KINDS, SystemReplay
from fastmmu.paging.state import GuestState

__all__ = ["OMISSIONS", "Replay", "Replayed", "SystemSource"]

MAXPHYADDR = 40  # of the processors that the traces' emulator models
EXAMPLES = 16
FLAGS = 0x60  # A, D
RECORDS = ("cr3", "stores")
INVALIDATIONS = {
    "cr3_flush": ("cr3",),
    "invlpg": ("invlpg",),
    "invpcid": ("invpcid_0", "invpcid_1", "invpcid_2", "invpcid_3"),
    "page_fault": ("page_fault",),
}
OMISSIONS = (*RECORDS, *INVALIDATIONS)
"""What a replay can leave out: writes to CR3, stores to page tables; and invalidations, by what they come with."""


class Rows(Protocol):
    """Consecutive records, see :class:`fastmmu.trace.system.Records`."""

    @property
    def first(self) -> int: ...
    @property
    def rows(self) -> npt.NDArray[Any]: ...
    @property
    def data(self) -> npt.NDArray[np.uint64]: ...
    @property
    def pages(self) -> npt.NDArray[np.uint8]: ...


class SystemSource(Protocol):
    """What gives the records of a whole machine, see :class:`fastmmu.trace.system.SystemTrace`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    def cpus(self) -> tuple[dict[str, int], ...]: ...
    def records(self) -> Iterator[Rows]: ...
    def final_pages(self, n: int) -> Iterator[npt.NDArray[np.uint64]] | None: ...


@dataclass(frozen=True)
class Replayed:
    """What a replay came to.

    ``records``; ``accesses`` and ``page_faults`` compared; ``mismatches`` in all, ``by_kind`` kind -> number (another
    physical ``address``, ``faulted`` where the trace did not, ``no fault`` where it did, another ``fault``);
    ``tables``: page tables; ``entries`` of them compared at the end, and ``different`` ones among these, both None
    where the trace does not say; ``examples`` of what differs, in words; ``seconds`` of the replay itself.
    Of several CPUs (``cpus``) a use is right that is equal to a walk now, or to what its CPU may still hold: used by it
    since its own last invalidation of the page. ``now``, ``held`` and ``neither``: accesses, walks alone (``walks``)
    and page faults by that, in the trace and here; ``held_by_kind`` of them the second (of
    :data:`fastmmu.machine.system_loop_py.HELD`). Mismatches are those that are neither. ``ipis``: IPIs sent.
    ``flags_set``: walks of the trace that set A or D where a translation held here served the access; the replay set
    them. ``flags_alone``: of the ``different`` entries those in which accessed and dirty flags alone differ.
    With ``Config(find_missing_flushes=True)``: ``uses_compared`` with memory, ``stale_uses`` among them, the first of
    these in ``stale``.

    Threads: immutable; share it.
    """

    records: int
    accesses: int
    page_faults: int
    table_stores: int
    mismatches: int
    by_kind: dict[str, int]
    entries: int | None
    different: int | None
    tables: int
    seconds: float
    examples: list[str] = field(default_factory=list)
    uses_compared: int = 0
    stale_uses: int = 0
    stale: list[StaleUse] = field(default_factory=list)
    cpus: int = 1
    now: int = 0
    held: int = 0
    neither: int = 0
    held_by_kind: dict[str, int] = field(default_factory=dict)
    walks: int = 0
    ipis: int = 0
    flags_set: int = 0
    flags_alone: int | None = None

    @property
    def wrong(self) -> int:
        """Mismatches and different entries."""
        return self.mismatches + (self.different or 0)

    def line(self) -> str:
        """All of it in a line; of several CPUs with what uses are equal to."""
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.by_kind.items() if number)
        tables = (
            "the page tables at the end are not compared"
            if self.entries is None
            else f"{self.different:,} of {self.entries:,} page-table entries at the end differ"
        )
        stands = (
            f"; {self.now:,} equal to a walk now, {self.held:,} to what its CPU may still hold, {self.neither:,} to "
            "neither"
            if self.cpus > 1
            else ""
        )
        return (
            f"{self.accesses:,} physical addresses and {self.page_faults:,} page faults compared: "
            f"{self.mismatches:,} mismatches{f' ({kinds})' if kinds else ''}{stands}; {tables}"
        )


class Replay:
    """One replay, fed chunk by chunk.

    :param source: the trace. :param config: scheme and TLB; its guest kernel steps aside.
    :param omit: what to leave out, to see what goes wrong: "cr3" (writes to CR3), "stores" (stores to page tables), or
        the invalidations of "cr3_flush" (CR3 writes), "invlpg", "invpcid", "page_fault".
    :param policy: overrides handlers of VM exits. :param maxphyaddr: physical-address width of the processor.
    :raises ConfigError: a configuration that a system trace cannot run under. :raises TraceError: a bad trace.

    Threads: as of its machine: one feeds it at a time.
    """

    def __init__(
        self,
        source: SystemSource,
        config: Config | None = None,
        *,
        omit: Sequence[str] = (),
        policy: Policy | None = None,
        maxphyaddr: int = MAXPHYADDR,
    ) -> None:
        config = as_config(config)
        if config.premapped:
            raise ConfigError("premapped=True maps what the guest kernel would; a system trace brings its own tables")
        states = [GuestState(**_registers(found), maxphyaddr=maxphyaddr, upper_a="lazy") for found in source.cpus()]
        left_out = [omission(name, len(states)) for name in omit]
        self.source = source
        self.cpus = SystemCpus(config, states, policy=policy)
        self.machine = self.cpus.machines[0]
        self.seconds = 0.0
        for number, tlb in enumerate(self.cpus.tlbs):
            tlb.omit = {
                cause for name, cpu in left_out if cpu is None or cpu == number for cause in INVALIDATIONS.get(name, ())
            }
        self._omit = [whole for whole, (name, _) in zip(omit, left_out, strict=True) if name in RECORDS]
        self._replay = SystemReplay(self.cpus, omit=self._omit)

    @property
    def records(self) -> int:
        """Records carried out."""
        return self._replay.records

    def note_stores(self) -> npt.NDArray[np.uint8]:
        """From now on a byte for each page of guest memory is 1 where a store was carried out; the caller may clear
        it. Of several CPUs only: with one it stays 0."""
        self._replay.note_stores()
        assert self._replay.written is not None
        return self._replay.written

    def counters(self) -> dict[str, Any]:
        """Counters of all CPUs together, as of :meth:`Machine.counters`, and ``instructions``."""
        counters: dict[str, Any] = self.cpus.totals()
        return {**counters, "instructions": self._replay.instructions}

    def kept(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a checkpoint has of it beside its machine.

        :raises CheckpointError: of several CPUs.
        """
        more, tables = self._replay.kept()
        return {**more, "seconds": self.seconds}, {"tables": tables}

    def resume(self, machine: Machine, more: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Go on with a machine that was saved, and with what :meth:`kept` gave."""
        self.cpus.resume(machine)
        self.machine, self.seconds = machine, float(more["seconds"])
        self._replay = SystemReplay(self.cpus, omit=self._omit)
        self._replay._resume(more, arrays["tables"])

    def feed(self, chunk: Rows) -> None:
        """Carry out the records of a chunk.

        :raises TraceError: a record that is none.
        """
        started = time.perf_counter()
        try:
            self._replay.run(chunk.rows.view(np.uint8), chunk.data, chunk.pages.reshape(-1), chunk.first)
        finally:
            self.seconds += time.perf_counter() - started

    def steps(self) -> Iterator[Rows]:
        """All records of the trace; gives each chunk after it was carried out."""
        for chunk in self.source.records():
            self.feed(chunk)
            yield chunk

    def result(self, *, tables: bool = True) -> Replayed:
        """What was compared until now.

        :param tables: the trace is at its end, and the page tables are compared with what it says of them.
        """
        counted = self._replay.counters()
        missing = [
            found for found in {machine.missing_flushes: None for machine in self.cpus.machines} if found is not None
        ]
        examples = [_words(*example) for example in self._replay.examples()]
        entries, different, flags_alone = self._final(examples) if tables else (None, None, None)
        return Replayed(
            records=self.records,
            accesses=self.counters()["accesses"],
            page_faults=counted["page_faults"],
            table_stores=counted["table_stores"],
            mismatches=counted["mismatches"],
            by_kind={kind: counted[kind] for kind in KINDS},
            entries=entries,
            different=different,
            tables=counted["tables"],
            seconds=self.seconds,
            examples=examples,
            uses_compared=sum(found.uses for found in missing),
            stale_uses=sum(found.found for found in missing),
            stale=[example for found in missing for example in found.examples()],
            cpus=len(self.cpus.machines),
            now=counted["now"],
            held=counted["held"],
            neither=counted["neither"],
            held_by_kind={kind: counted[kind] for kind in HELD},
            walks=counted["walk_records"],
            ipis=counted["ipis"],
            flags_set=counted["flags_set"],
            flags_alone=flags_alone,
        )

    def _final(self, examples: list[str]) -> tuple[int | None, int | None, int | None]:
        """Page tables of simulated memory against those of the trace's end: (entries, those that differ, those of
        them that differ in A and D alone)."""
        tables = self._replay.tables
        pages = self.source.final_pages(len(tables))
        if pages is None:
            return None, None, None
        memory = self.machine.guest_memory.u64
        different = flags_alone = at = 0
        for some in pages:
            for expected in some:
                first = tables[at] >> 3
                found = memory[first : first + len(expected)]
                wrong = np.flatnonzero(found != expected)
                different += len(wrong)
                flags_alone += int(((found[wrong] ^ expected[wrong]) & ~np.uint64(FLAGS) == 0).sum())
                at += 1
                for i in wrong[: max(0, EXAMPLES - len(examples))].tolist():
                    address = (first + i) << 3
                    examples.append(f"entry at {address:#x}: {int(expected[i]):#x}, here {int(found[i]):#x}")
        return at * 512, different, flags_alone


def omission(name: str, cpus: int) -> tuple[str, int | None]:
    """What an omission leaves out, and of which CPU, None: of all. "invlpg@1": those of CPU 1.

    :raises ConfigError: there is no such thing, or no such CPU.
    """
    what, at, number = name.partition("@")
    if what not in OMISSIONS:
        raise ConfigError(f"{name!r} cannot be left out; choose from {', '.join(OMISSIONS)}")
    if not at:
        return what, None
    if not (number.isascii() and number.isdigit() and int(number) < cpus):
        raise ConfigError(f"{name!r}: behind @ stands the number of a CPU of the trace, 0 to {cpus - 1}")
    return what, int(number)


def _registers(found: dict[str, int]) -> dict[str, Any]:
    return dict(found)


def _words(record: int, kind: str, expected: int, got: int) -> str:
    return (
        f"record {record}: "
        + {
            "address": f"physical {expected:#x}, here {got:#x}",
            "faulted": f"physical {expected:#x}, here a #PF with error code {got:#x}",
            "no fault": f"a #PF with error code {expected:#x}, here none",
            "fault": f"a #PF with error code {expected:#x}, here {got:#x}",
            "flags": f"the walk to {expected:#x} set accessed or dirty flags, which were not set here",
        }[kind]
    )
