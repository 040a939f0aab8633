"""`SystemReplay`: a bare guest that does what a system trace says, for Python."""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu._arguments cimport aligned, bytes_in, choice, instance, many, word, words_in
from fastmmu.cpu.may_hold cimport (
    MayHold, may_hold_cr0, may_hold_cr4, may_hold_free, may_hold_new, may_hold_registers, tables_free, tables_new,
)
from fastmmu.cpu.stale cimport Detector
from fastmmu.cpu.vcpu cimport DONE_GP, DONE_OK, Vcpu, vcpu_set_pkru
from fastmmu.machine.board cimport Board
from fastmmu.machine.machine cimport Machine
from fastmmu.machine.records cimport REC_CR0, REC_CR4, REC_EFER, REC_TABLE, REC_X, Record
from fastmmu.machine.system_cpus cimport SystemCpus
from fastmmu.machine.system_judged cimport judged_records
from fastmmu.machine.system_loop cimport (
    EXAMPLES, OMIT_CR3, OMIT_STORES, STOP_ABORT, STOP_ADDRESS, STOP_CPU, STOP_DATA, STOP_NONE, STOP_REGISTER,
    STOP_TABLE, Replay, replay_records, replay_register,
)
from fastmmu.paging.memory cimport mem_holds
from fastmmu.paging.state cimport GuestState
from fastmmu.threads.turns cimport Pace, Turn, pace_begin

from fastmmu.arch.registers import RULES
from fastmmu.errors import CheckpointError, ConfigError, FastmmuError, OutOfMemoryError, StateError, TraceError

KINDS = ("address", "faulted", "no fault", "fault", "flags")
"""Kinds of mismatch: another physical address; a #PF where the trace has none; none where it has one; another error
code or CR2; of several CPUs, accessed or dirty flags that a walk did not set."""

HELD = ("both held", "trace held", "faulted here", "held here", "no fault here")
"""Of several CPUs, where what a CPU may still hold differs from a walk now: the trace and the machine went by what may
be held; the trace did, the machine by a walk; the trace did, the machine had the #PF that a walk now gives; the machine
did, the trace by a walk; the machine did, the trace has a #PF."""

_OMISSIONS = {"cr3": OMIT_CR3, "stores": OMIT_STORES}


cdef inline bint keys_of(GuestState state) noexcept:
    return state.paging.lma and state.regs.cr4 >> 22 & 1


cdef class _Cpu:
    """What a replay keeps of a CPU while others run."""

    cdef MayHold *h
    cdef Board board
    cdef GuestState state
    cdef bint keys
    cdef uint32_t pkru, omit

    def __dealloc__(self):
        may_hold_free(self.h)


cdef class SystemReplay:
    """A bare guest that does what a system trace says.

    :param machine: :class:`Machine` with ``guest_kernel=False`` and this `state`, or :class:`SystemCpus`, which has its
        own. :param state: registers at the start.
    :param omit: what to leave out: "cr3" (writes to CR3), "stores" (stores to page tables); "cr3@1": by CPU 1 alone.

    Threads: one runs it at a time, a second one is refused (PolicyError); counters and examples can be read meanwhile.
    """

    cdef Replay p
    cdef readonly object machine
    cdef Board board                    # of the CPU that runs
    cdef SystemCpus cpus                # None: one machine, made by the caller
    cdef list cpu                       # _Cpu of each
    cdef _Cpu now
    cdef uint64_t credit                # records since others had their turn
    cdef readonly uint64_t records      # carried out
    cdef readonly uint64_t instructions     # begun by them: X records count those until the next
    cdef readonly list tables           # address of each page table, in the order of the TABLE records
    cdef readonly object written        # bytes, one a page of guest memory that was stored to; None: not asked for

    def __cinit__(self, machine not None, GuestState state=None, *, omit=()):
        cdef Machine first
        if isinstance(machine, SystemCpus):
            self.cpus = machine
            machines, states = self.cpus.machines, self.cpus.states
        else:
            machines, states = (instance("machine", machine, Machine),), (instance("state", state, GuestState),)
        self.machine = machines[0]
        self.cpu, self.tables = [], []
        for each, registers in zip(machines, states):
            self._add(each, registers, len(machines) > 1)
        for name in many("omit", omit):
            self._omit(name)
        first = machines[0]
        self.p.guest = first.board.guest_mem
        tables_new(&self.p.t, &self.p.guest)
        self.p.guest_base = first.board.loop.guest_base
        self._detectors(machines)
        self._run_on(0)

    def __dealloc__(self):
        free(self.p.detectors)
        tables_free(&self.p.t)

    cdef _add(self, Machine machine, GuestState state, bint several):
        cdef _Cpu cpu = _Cpu()
        machine.board.made()
        if machine.board.loop.kernel != NULL:
            raise ConfigError("a system trace brings its own kernel; make the Machine with guest_kernel=False")
        if state.paging.levels != 4:
            raise ConfigError(f"a system trace of a guest in mode {state.mode.name}: only 4-level paging is replayed")
        cpu.board, cpu.state, cpu.pkru = machine.board, state, state.pkru
        cpu.keys = keys_of(state)
        if several:
            cpu.h = may_hold_new(&self.p.t)
            if cpu.h == NULL:
                raise OutOfMemoryError("no memory for what a CPU may still hold")
            may_hold_registers(cpu.h, &state.paging)
        self.cpu.append(cpu)

    cdef _omit(self, name):
        cdef _Cpu cpu
        what, _, number = name.partition("@")
        bit = choice("what to leave out", what, _OMISSIONS, ConfigError)
        for cpu in self.cpu if not number else [self.cpu[int(number)]]:
            cpu.omit |= <uint32_t> bit

    cdef _detectors(self, machines):
        cdef Machine each
        boards = {id(each.board): each for each in machines if each.board.missing_flushes is not None}
        self.p.detectors = <Detector **> calloc(max(1, len(boards)), sizeof(Detector *))
        if self.p.detectors == NULL:
            raise OutOfMemoryError("no memory for a replay")
        for each in boards.values():
            self.p.detectors[self.p.n_detectors] = each.board.missing_flushes.w
            self.p.n_detectors += 1

    cdef _run_on(self, uint32_t number):
        # this CPU runs from now on
        cdef _Cpu cpu = self.cpu[number]
        if self.now is not None:
            self.now.pkru = self.p.pkru
        self.now = cpu
        self.board = cpu.board if self.cpus is None else self.cpus.turn_to(number)
        self.p.v = self.board.v
        self.p.h, self.p.keys, self.p.pkru, self.p.omit = cpu.h, cpu.keys, cpu.pkru, cpu.omit

    @property
    def state(self):
        """Registers of the CPU that runs, but CR3 and PKRU as of the start: :class:`GuestState`."""
        return self.now.state

    def note_stores(self):
        """From now on :attr:`written` has a byte for each page of guest memory, 1 where a store was carried out; the
        caller may clear it. Of several CPUs only."""
        cdef uint8_t[::1] pages
        cdef Turn _turn = self.board.turns.take()
        if self.written is None:
            self.written = np.zeros(self.p.guest.nbytes >> 12, np.uint8)
            pages = self.written
            self.p.written = &pages[0]
            self.p.n_written = pages.shape[0]

    def kept(self):
        """What a checkpoint has of it beside its machine: (dict in forms of JSON, addresses of page tables).

        :raises CheckpointError: of several CPUs, each of which has what it may still hold.
        """
        cdef Turn _turn = self.board.turns.take()
        cdef Replay *p = &self.p
        cdef int i
        if len(self.cpu) > 1:
            raise CheckpointError(f"a replay of {len(self.cpu)} CPUs is not saved; replay without a checkpoint")
        registers = {**self.now.state.registers, "pkru": p.pkru}
        mismatches = [[p.example[i].record, p.example[i].kind, p.example[i].expected, p.example[i].got]
                      for i in range(min(p.found, <uint64_t> EXAMPLES))]
        return {
            "state": registers, "records": self.records, "instructions": self.instructions, "stores": p.stores,
            "faults": p.faults, "found": p.found, "flags": p.flags, "walks": p.walks, "ipis": p.ipis,
            "differences": p.differences, "standing": p.standing, "held": p.held, "examples": mismatches,
        }, np.array(self.tables, np.uint64)

    def _resume(self, kept, tables):
        # go on from there, a replay that has not begun
        cdef Turn _turn = self.board.turns.take()
        cdef Replay *p = &self.p
        cdef Py_ssize_t i
        cdef const uint64_t[::1] at = words_in("tables", tables, StateError)
        self.now.state = GuestState(**kept["state"])
        p.pkru = self.now.pkru = self.now.state.pkru
        p.keys = self.now.keys = keys_of(self.now.state)
        self.records, self.instructions = kept["records"], kept["instructions"]
        p.stores, p.faults, p.found = kept["stores"], kept["faults"], kept["found"]
        p.flags, p.walks, p.ipis = kept["flags"], kept["walks"], kept["ipis"]
        for i in range(5):
            p.differences[i], p.held[i] = kept["differences"][i], kept["held"][i]
        for i in range(3):
            p.standing[i] = kept["standing"][i]
        if len(kept["examples"]) != min(p.found, <uint64_t> EXAMPLES):
            raise ValueError("mismatches without examples")
        for i, (record, kind, expected, got) in enumerate(kept["examples"]):
            if not 0 <= kind < len(KINDS):
                raise ValueError(f"a mismatch of kind {kind}")
            p.example[i].record, p.example[i].kind = record, kind
            p.example[i].expected, p.example[i].got = expected, got
        p.tables = at.shape[0]
        for i in range(at.shape[0]):
            if at[i] & 0xFFF or not mem_holds(&p.guest, at[i], 4096):
                raise ValueError(f"a page table at {at[i]:#x}")
        self.tables = tables.tolist()

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
                        if self.p.h == NULL:
                            at += replay_records(&self.p, number + at, r + at, min(n - at, pace.chunk), values, n_data,
                                                 content, n_pages, &stop)
                        else:
                            at += judged_records(&self.p, number + at, r + at, min(n - at, pace.chunk), values, n_data,
                                                 content, n_pages, &stop)
                        if stop != STOP_NONE or at == n or self.board.turns.between(&pace):
                            break
                if stop == STOP_CPU and r[at].aux < <uint64_t> len(self.cpu):
                    self._run_on(r[at].aux)
                    at += 1
                    continue
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
                if r[i].op == REC_X:
                    self.instructions += r[i].aux
                elif r[i].op == REC_TABLE:
                    self.tables.append(r[i].val)
            self.board.turns.end()

    cdef _write(self, const Record *r, uint64_t number):
        # CR0, CR4, EFER: legal, as it was done
        cdef Vcpu *v = self.p.v
        cdef GuestState old = self.now.state, new
        cdef MayHold *h = self.p.h
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
        self.now.state = new
        self.p.keys = self.now.keys = keys_of(new)
        vcpu_set_pkru(v, self.p.pkru if self.p.keys else 0)
        if h != NULL:
            new = new.replace(cr3=h.g.cr3)
            if r.op == REC_CR4:
                may_hold_cr4(h, old.regs.cr4, &new.paging, r.val)
            else:
                may_hold_cr0(h, old.regs.cr0, &new.paging, new.regs.cr0)

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
        if stop == STOP_CPU:
            return TraceError(f"CPU {r.aux}: the replay is of {len(self.cpu)}", where=where)
        return TraceError("the record is malformed", where=where)

    def counters(self):
        """dict: records of #PF compared, stores to page tables, page tables, mismatches in all and by kind. Of several
        CPUs also walks (records) and ipis, accesses, walks and #PFs by what they are equal to: a walk ("now"), what
        the CPU may still hold ("held", and of which kind of HELD), "neither"."""
        cdef Turn _turn = self.board.turns.take()
        cdef Replay *p = &self.p
        found = {"page_faults": p.faults, "table_stores": p.stores, "tables": p.tables, "mismatches": p.found,
                 **{kind: p.differences[i] for i, kind in enumerate(KINDS)}}
        found |= {"walk_records": p.walks, "ipis": p.ipis, "flags_set": p.flags}
        found |= {name: p.standing[i] for i, name in enumerate(("now", "held", "neither"))}
        return found | {kind: p.held[i] for i, kind in enumerate(HELD)}

    def examples(self):
        """The first mismatches: list of (record, kind, expected, got); addresses, or error codes of a #PF."""
        cdef Turn _turn = self.board.turns.take()
        cdef Replay *p = &self.p
        cdef uint64_t i
        return [(p.example[i].record, KINDS[p.example[i].kind], p.example[i].expected, p.example[i].got)
                for i in range(min(p.found, <uint64_t> EXAMPLES))]
