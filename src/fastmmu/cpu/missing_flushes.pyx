"""The detector of missing flushes, for Python. Kernel: cpu/stale.pxd."""

from typing import NamedTuple

from libc.stdint cimport uint64_t

from fastmmu._arguments cimport flag
from fastmmu.arch.bits cimport ONES
from fastmmu.cpu.stale cimport Stale, stale_free, stale_new
from fastmmu.threads.turns cimport Turn, Turns
from fastmmu.errors import OutOfMemoryError

KINDS = ("address", "rights", "gone", "dirty")
"""What is stale of a use: it leads to another place; memory refuses the access; memory does not map the page; memory
has a dirty flag to set."""

OWED = ("unknown", "INVLPG", "MOV CR3", "INVVPID", "INVEPT", "TLB_CONTROL")
"""The invalidation that is missing. INVLPG stands for any that takes this address: INVPCID, a CR3 write. TLB_CONTROL:
of AMD, in the place of INVVPID and INVEPT."""

_TABLES = {True: "EPT", False: "guest"}


class StaleUse(NamedTuple):
    """A use of a cached translation that memory no longer backs.

    event: number of the trace's event, record or instruction. address: linear. access: 0 read, 1 write, 2
    read-modify-write, 3 fetch. kind: of KINDS. cached, backed: host-physical address by the cache, and by memory (None:
    it faults). cached_by: event whose walk read the entry that has changed since. table, level, entry, was, now: that
    entry, of the "guest", "shadow" or "EPT" tables, its address and values; entry None: no entry changed, another root
    is in force, or an upper entry has been read again since. changed_by: event of the store, None where the VMM made
    it. owed: of OWED. vpid, pcid: in force.
    """

    event: int
    address: int
    access: int
    kind: str
    cached: int
    backed: int | None
    cached_by: int | None
    table: str
    level: int
    entry: int | None
    was: int
    now: int
    changed_by: int | None
    owed: str
    vpid: int
    pcid: int

    def __str__(self):
        entry = "another root is in force" if self.entry is None else (
            f"{self.table} entry of level {self.level} at {self.entry:#x} was {self.was:#x}, is {self.now:#x}")
        since = "" if self.changed_by is None else f" since event {self.changed_by}"
        there = "nowhere" if self.backed is None else f"{self.backed:#x}"
        return (f"event {self.event}: {self.address:#x} used as {self.cached:#x}, memory says {there} ({self.kind}); "
                f"cached by event {self.cached_by}; {entry}{since}; {self.owed} owed")


def _known(value):
    return None if value == ONES else value


cdef class MissingFlushes:
    """Compares every use of a cached translation with memory. For a TLB that keeps all it may, preset "strict".

    Threads: all of it can be read while the machine runs in another one.
    """

    def __cinit__(self, *, shadow=False, amd=False):
        cdef bint of_shadow = flag("shadow", shadow), of_amd = flag("amd", amd)
        self.turns = Turns()
        self.w = stale_new()
        if self.w == NULL:
            raise OutOfMemoryError("no memory for the detector of missing flushes")
        self.w.shadow = of_shadow
        self.w.svm = of_amd

    def __dealloc__(self):
        stale_free(self.w)

    @property
    def uses(self):
        """Uses compared."""
        cdef Turn _turn = self.turns.take()
        return self.w.uses

    @property
    def found(self):
        """Uses that memory did not back."""
        cdef Turn _turn = self.turns.take()
        return self.w.found

    def counters(self):
        """dict: uses, stale, and stale by kind and by what is owed."""
        cdef Turn _turn = self.turns.take()
        return {"uses": self.w.uses, "stale": self.w.found,
                "by_kind": {name: self.w.by_kind[i] for i, name in enumerate(KINDS)},
                "by_owed": {name: self.w.by_owed[i] for i, name in enumerate(OWED)}}

    def examples(self):
        """The first stale uses: list of :class:`StaleUse`, at most 64."""
        cdef Turn _turn = self.turns.take()
        cdef Stale *x
        cdef uint64_t i
        found = []
        for i in range(self.w.examples):
            x = &self.w.example[i]
            table = "shadow" if self.w.shadow else _TABLES[bool(x.ept)]
            found.append(StaleUse(x.event, x.la, x.access, KINDS[x.kind], x.cached, _known(x.backed),
                                  _known(x.cached_by), table, x.level, _known(x.entry), x.was, x.now,
                                  _known(x.changed_by), OWED[x.owed], x.vpid, x.pcid))
        return found
