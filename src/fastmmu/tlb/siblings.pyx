"""Kernel of what hyperthreads share. Header: tlb/siblings.pxd."""

from libc.stdint cimport uint32_t

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.tlb.entries cimport CLASSES, EPSC, GPM, L1D, L1I, L1S, L2, L2I, PSC, TlbArray, TlbContext, UNITS, lost_new
from fastmmu.tlb.making cimport tlb_aim, tlb_free, tlb_note_fetches
from fastmmu.errors import OutOfMemoryError
from fastmmu.tlb.arrays import SHARES

_UNITS = {"l1": 1 << L1I | 1 << L1D | 1 << L1S, "l2": 1 << L2I | 1 << L2, "psc": 1 << PSC | 1 << EPSC, "gpm": 1 << GPM}
assert _UNITS.keys() == SHARES.keys()

cdef enum:
    LAST_ID = 65534             # of a context


cdef void point(Tlb *t, TlbArray *own, TlbArray *shared) noexcept nogil:
    # the array of the first in the place of its own
    cdef int u, size
    for u in range(UNITS):
        for size in range(CLASSES):
            if t.unit[u].by[size] == own:
                t.unit[u].by[size] = shared
    t.at[own.index] = shared
    zeroed_free(own.memory)
    own.memory = NULL


cdef int tlb_join(Tlb **t, uint32_t n, uint32_t units) noexcept nogil:
    # Makes of new TLBs of one geometry, none of which grows, those of a core: `units`, as bits, are those of the first.
    # -1: no memory.
    cdef uint32_t i, j, k, most = min(t[0].max_id, LAST_ID // n), room = 0
    cdef TlbArray *a
    cdef TlbContext *ctx = <TlbContext *> zeroed(n * most + 1, sizeof(TlbContext))
    if ctx == NULL:
        return -1
    for i in range(t[0].arrays):
        a = &t[0].array[i]
        if units >> a.unit & 1:
            a.shared = True
            if a.unit == L2 or a.unit == L2I:       # of what is lost there account is kept
                a.aside = True
                a.plain = a.plain_long = False
                room += a.sets * a.ways
    for i in range(n):
        zeroed_free(t[i].ctx)
        t[i].ctx = ctx
        t[i].next_id = i * most + 1
        t[i].max_id = (i + 1) * most
        t[i].peers = 0
        for j in range(n):
            if j != i:
                t[i].peer[t[i].peers] = t[j]
                t[i].peers += 1
        for k in range(t[0].arrays):
            if i and t[0].array[k].shared:
                point(t[i], &t[i].array[k], &t[0].array[k])
        tlb_aim(t[i])
        tlb_note_fetches(t[i])
        if room:
            t[i].lost = lost_new(room)
            if t[i].lost == NULL:
                return -1
    return 0


cdef class _Core:
    """The hyperthreads of a core: their memory lives as long as one of them."""

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(1, self.n):
            if self.t[i].ctx == self.t[0].ctx:
                self.t[i].ctx = NULL
        for i in range(self.n):
            tlb_free(self.t[i])

    cdef void add(self, Tlb *t) noexcept:
        # a new one, whose memory is the core's from now on
        self.t[self.n] = t
        self.n += 1

    cdef int join(self, tuple shared) except -1:
        cdef uint32_t units = 0
        for name in shared:
            units |= _UNITS[name]
        if tlb_join(self.t, self.n, units):
            raise OutOfMemoryError("no memory for the contexts of a core's TLBs; give fewer hyperthreads")
        return 0
