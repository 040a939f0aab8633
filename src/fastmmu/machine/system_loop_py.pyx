"""`SystemReplay`: a bare guest that does what a system trace says, for Python."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu._arguments cimport aligned, bytes_in, choice, many, word, words_in
from fastmmu.cpu.vcpu cimport DONE_GP, DONE_OK, Vcpu, vcpu_set_pkru
from fastmmu.machine.board cimport Board
from fastmmu.machine.machine cimport Machine
from fastmmu.machine.records cimport REC_CR0, REC_CR4, REC_EFER, REC_TABLE, Record
from fastmmu.machine.system_loop cimport (
    EXAMPLES, OMIT_CR3, OMIT_STORES, STOP_ABORT, STOP_ADDRESS, STOP_DATA, STOP_NONE, STOP_REGISTER, STOP_TABLE, Replay,
    replay_records, replay_register,
)
from fastmmu.paging.state cimport GuestState
from fastmmu.threads.turns cimport Pace, Turn, pace_begin

from fastmmu.arch.registers import RULES
from fastmmu.errors import ConfigError, FastmmuError, StateError, TraceError

KINDS = ("address", "faulted", "no fault", "fault")
"""Kinds of mismatch: another physical address; a #PF where the trace has none; none where it has one; another error
code or CR2."""

_OMISSIONS = {"cr3": OMIT_CR3, "stores": OMIT_STORES}


cdef class SystemReplay:
    """A bare guest that does what a system trace says.

    :param machine: :class:`Machine` with ``guest_kernel=False`` and this `state`. :param state: registers at the start.
    :param omit: what to leave out: "cr3" (writes to CR3), "stores" (stores to page tables).

    Threads: one runs it at a time, a second one is refused (PolicyError); counters and examples can be read meanwhile.
    """

    cdef Replay p
    cdef readonly Machine machine
    cdef Board board
    cdef readonly uint64_t records      # carried out
    cdef readonly GuestState state
    cdef readonly list tables           # address of each page table, in the order of the TABLE records

    def __cinit__(self, Machine machine not None, GuestState state not None, *, omit=()):
        machine.board.made()
        if machine.board.loop.kernel != NULL:
            raise ConfigError("a system trace brings its own kernel; make the Machine with guest_kernel=False")
        if state.paging.levels != 4:
            raise ConfigError(f"a system trace of a guest in mode {state.mode.name}: only 4-level paging is replayed")
        for name in many("omit", omit):
            self.p.omit |= <uint32_t> choice("what to leave out", name, _OMISSIONS, ConfigError)
        self.machine = machine
        self.board = machine.board
        self.tables = []
        self.p.v = machine.board.v
        self.p.guest = machine.board.guest_mem
        self.p.guest_base = machine.board.loop.guest_base
        self.p.pkru = state.pkru
        self._adopt(state)

    cdef _adopt(self, GuestState state):
        self.state = state
        self.p.keys = state.paging.lma and state.cr4 >> 22 & 1

    def run(self, rows, data, pages, first=0):
        """Carry out records.

        :param rows: their bytes, 24 each. :param data: a value for each with flag 1. :param pages: 4096 bytes for each
            TABLE record. :param first: number of the first record, for messages.
        :raises TraceError: a malformed record, naming its number.
        """
        cdef const uint8_t[::1] read = bytes_in("rows", rows, TraceError), held = bytes_in("pages", pages, TraceError)
        cdef const uint64_t[::1] stored = words_in("data", data, TraceError)
        cdef uint64_t n = read.shape[0] // sizeof(Record), at = 0, n_data = stored.shape[0]
        cdef uint64_t n_pages = held.shape[0] // 4096, i, number = word("first", first)
        cdef const Record *r = NULL
        cdef const uint64_t *values = NULL
        cdef const uint8_t *content = NULL
        cdef int stop = STOP_NONE
        cdef Pace pace
        if read.shape[0] % sizeof(Record):
            raise TraceError(f"{read.shape[0]} bytes are no whole number of records of {sizeof(Record)}")
        self.board.turns.begin("the replay of a system trace")
        try:
            self.board._on_cpu()
            self.board._ready()
            self.p.v = self.board.v             # the vCPU that it has loaded
            if n == 0:
                return
            aligned("rows", &read[0], TraceError)
            r = <const Record *> &read[0]
            if n_data:
                values = &stored[0]
            if n_pages:
                content = &held[0]
            self.p.data_at = self.p.page_at = 0
            while at < n:
                with nogil:
                    pace_begin(&pace)
                    while True:
                        at += replay_records(&self.p, number + at, r + at, min(n - at, pace.chunk), values, n_data,
                                             content, n_pages, &stop)
                        if stop != STOP_NONE or at == n or self.board.turns.between(&pace):
                            break
                self.board.turns.signals()
                if stop == STOP_NONE:
                    break
                if stop != STOP_REGISTER:
                    raise self._error(stop, number + at, &r[at])
                self._write(&r[at], number + at)
                at += 1
        finally:
            self.records += at
            for i in range(at):
                if r[i].op == REC_TABLE:
                    self.tables.append(r[i].val)
            self.board.turns.end()

    cdef _write(self, const Record *r, uint64_t number):
        # CR0, CR4, EFER: legal, as it was done
        cdef Vcpu *v = self.p.v
        cdef GuestState old = self.state, new
        cdef int outcome
        name = {REC_CR0: "cr0", REC_CR4: "cr4", REC_EFER: "efer"}[r.op]
        try:
            new = old.replace(**{name: r.val, "cr3": 0, "pkru": self.p.pkru})
        except StateError as error:
            raise TraceError(str(error), where=f"record {number}") from error
        if new.paging.levels != 4:
            raise TraceError(f"the guest turns to mode {new.mode.name}; the machine runs 4-level paging",
                             where=f"record {number}")
        outcome = replay_register(v, r)
        if outcome == DONE_GP:
            raise TraceError(f"{name}={r.val:#x} is #GP(0): {RULES[v.rule]}", where=f"record {number}")
        if outcome != DONE_OK:
            self.board._raise(number)
        self._adopt(new)
        vcpu_set_pkru(v, self.p.pkru if self.p.keys else 0)

    cdef _error(self, int stop, uint64_t number, const Record *r):
        where = f"record {number}"
        if stop == STOP_ABORT:
            try:
                self.board._raise(number)
            except FastmmuError as error:
                return error
        if stop == STOP_ADDRESS:
            return TraceError(f"linear address {r.lin:#x} is not canonical", where=where)
        if stop == STOP_TABLE:
            return TraceError(f"the page table at {r.val:#x} lies outside guest memory of {self.p.guest.nbytes:#x} "
                              "bytes; raise Config(memory=)", where=where)
        if stop == STOP_DATA:
            return TraceError("its value or its page is not there", where=where)
        return TraceError("the record is malformed", where=where)

    def counters(self):
        """dict: records of #PF compared, stores to page tables, page tables, mismatches in all and by kind."""
        cdef Turn _turn = self.board.turns.take()
        cdef Replay *p = &self.p
        return {"page_faults": p.faults, "table_stores": p.stores, "tables": p.tables, "mismatches": p.found,
                **{kind: p.differences[i] for i, kind in enumerate(KINDS)}}

    def examples(self):
        """The first mismatches: list of (record, kind, expected, got); addresses, or error codes of a #PF."""
        cdef Turn _turn = self.board.turns.take()
        cdef Replay *p = &self.p
        cdef uint64_t i
        return [(p.example[i].record, KINDS[p.example[i].kind], p.example[i].expected, p.example[i].got)
                for i in range(min(p.found, <uint64_t> EXAMPLES))]
