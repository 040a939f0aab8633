"""What a CPU may still hold, for Python: how the kernel judges the uses of a system trace of several CPUs."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastmmu._arguments cimport flag, instance, linear_address, within, word
from fastmmu.cpu.may_hold cimport (
    MayHold as Kernel, Tables, may_hold_allows, may_hold_could, may_hold_cr3, may_hold_cr4, may_hold_fault,
    may_hold_flags, may_hold_free, may_hold_invlpg, may_hold_invpcid, may_hold_new, may_hold_page_fault, may_hold_pkru,
    may_hold_registers, may_hold_used, tables_free, tables_new, tables_store,
)
from fastmmu.cpu.vcpu cimport BY_SUPERVISOR, BY_SYSTEM, BY_USER
from fastmmu.paging.memory cimport PhysicalMemory, mem_holds
from fastmmu.paging.state cimport GuestState, access_code

from fastmmu.errors import BusError, OutOfMemoryError, StateError

_STANDS = ("now", "held", "neither")


cdef class SharedTables:
    """Guest memory that several CPUs share, with what its entries were.

    :param memory: :class:`PhysicalMemory` in one piece, writable; entries are stored by :meth:`store` alone.

    Threads: one at a time, with all that hold it.
    """

    cdef Tables t
    cdef PhysicalMemory memory

    def __cinit__(self, memory):
        self.memory = instance("memory", memory, PhysicalMemory)
        if not self.memory.writable or self.memory.mem.segments != NULL:
            raise StateError("memory is read-only or has holes; give a PhysicalMemory(nbytes)")
        tables_new(&self.t, &self.memory.mem)

    def __dealloc__(self):
        tables_free(&self.t)

    def store(self, address, value, size=8):
        """A CPU stores `size` bytes, 1 to 8. :returns: whether anything changed. :raises BusError: outside memory."""
        cdef uint64_t at = word("address", address), stored = word("value", value)
        cdef int nbytes = within("size", size, 1, 8)
        cdef bint changed
        if not mem_holds(self.t.memory, at, nbytes):
            raise BusError(f"{at:#x} lies outside memory of {int(self.t.memory.nbytes):#x} bytes; give a larger one")
        changed = tables_store(&self.t, at, &stored, nbytes)
        memcpy(self.t.memory.base + at, &stored, nbytes)
        self.t.changes += changed
        return bool(changed)


cdef class MayHold:
    """One of the CPUs: what it may hold (tlb.md §1, §3).

    :param tables: :class:`SharedTables`. :param state: its registers, a :class:`GuestState` with 4-level paging.

    Threads: one at a time, with all that hold its tables.
    """

    cdef Kernel *h
    cdef SharedTables tables
    cdef GuestState state

    def __cinit__(self, tables, state):
        self.tables = instance("tables", tables, SharedTables)
        self.state = instance("state", state, GuestState)
        if self.state.paging.levels != 4:
            raise StateError(f"mode {self.state.mode.name}: give a state with 4-level paging")
        self.h = may_hold_new(&self.tables.t)
        if self.h == NULL:
            raise OutOfMemoryError("no memory for what a CPU may hold")
        may_hold_registers(self.h, &self.state.paging)

    def __dealloc__(self):
        may_hold_free(self.h)

    def used(self, la, access, pa, *, user=False, ac=False, implicit=False):
        """How an address stands that the CPU used: "now" (a walk leads there), "held" (a translation that it used
        and has not invalidated since), "neither"."""
        return _STANDS[may_hold_used(self.h, linear_address("la", la), access_code(access), by(user, implicit),
                                     flag("ac", ac), word("pa", pa))]

    def fault(self, la, access, code, *, user=False, ac=False, implicit=False):
        """How a #PF stands that it had, with this error code."""
        return _STANDS[may_hold_fault(self.h, linear_address("la", la), access_code(access), by(user, implicit),
                                      flag("ac", ac), within("code", code, 0, 0xFFFFFFFF))]

    def could(self, la, access, pa, *, user=False, ac=False, implicit=False):
        """How an address stands to which a simulated CPU came in its place: "held" is what the tables gave at any time
        since it last invalidated the page."""
        self.h.g.ac = flag("ac", ac)
        return _STANDS[may_hold_could(self.h, linear_address("la", la), access_code(access), by(user, implicit),
                                      word("pa", pa))]

    def allows(self, la, access, *, user=False, ac=False, implicit=False):
        """Whether the simulated CPU may hold a translation that serves the access."""
        return bool(may_hold_allows(self.h, linear_address("la", la), access_code(access), by(user, implicit),
                                    flag("ac", ac)))

    def flags(self, la, access, *, user=False, ac=False, implicit=False):
        """Accessed and dirty flags that a walk of the watched CPU set, which are set now: "now", the simulated CPU had
        set them; "held", it went by a translation that it may hold; "neither"."""
        return _STANDS[may_hold_flags(self.h, linear_address("la", la), access_code(access), by(user, implicit),
                                      flag("ac", ac))]

    def mov_cr3(self, value):
        """MOV to CR3; with PCIDs bit 63 keeps what is cached."""
        may_hold_cr3(self.h, word("value", value))

    def mov_cr4(self, value):
        """MOV to CR4. :raises StateError: a value that these registers cannot have."""
        cdef uint64_t was = self.state.regs.cr4
        cdef GuestState new = self.state.replace(cr4=word("value", value), cr3=int(self.h.g.cr3))
        may_hold_cr4(self.h, was, &new.paging, new.regs.cr4)
        self.state = new

    def wrpkru(self, value):
        """WRPKRU."""
        cdef GuestState new = self.state.replace(pkru=value)
        may_hold_pkru(self.h, new.paging.pkr_user)
        self.state = new

    def invlpg(self, la):
        """INVLPG."""
        may_hold_invlpg(self.h, linear_address("la", la))

    def invpcid(self, type, pcid=0, la=0):
        """INVPCID of a type, 0 to 3."""
        may_hold_invpcid(self.h, within("type", type, 0, 3), within("pcid", pcid, 0, 0xFFF), linear_address("la", la))

    def page_fault(self, la, *, here=True):
        """It had a #PF at this address; here: so had the simulated CPU."""
        may_hold_page_fault(self.h, linear_address("la", la), flag("here", here))


cdef int by(user, implicit) except -1:
    if flag("implicit", implicit):
        return BY_SYSTEM
    return BY_USER if flag("user", user) else BY_SUPERVISOR
