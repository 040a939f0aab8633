# What a VMM in Python finds of the MMU's tables.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.mmu.mmu cimport Mmu, Sp
from fastmmu.mmu.table_iter cimport TableIter
from fastmmu.threads.turns cimport this_thread


cdef class Tables:
    cdef object owner               # keeps alive what the pointers point into
    cdef Mmu *mmu
    cdef const uint64_t *active     # thread in which the VMM may work on it
    cdef list slots                 # Slot, by number
    cdef Slot slot_of(self, const Memslot *slot)
    cdef TableWalk walk_of(self, const TableIter *it)
    cdef int refuse(self) except -1

    cdef inline int inside(self) except -1:
        # first line of every call: the VMM may only work while the guest stands still for it
        return 0 if self.active[0] == this_thread() else self.refuse()


cdef class Slot:
    cdef Tables port
    cdef Memslot *slot
    cdef gfn_t held(self, gfn) except? 0xBAD


cdef class TableWalk:
    cdef Tables port
    cdef TableIter it
    cdef uint32_t born              # of the table page: which it was
    cdef Sp *sp(self) except NULL
    cdef int check(self, const Sp *sp, uint64_t new) except -1


cdef object word_of_tables()
cdef int refuse_outside() except -1
cdef gfn_t page_number(object gfn) except? 0xBAD
