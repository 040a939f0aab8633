# What hangs from a table, if it is one: each table at each level is looked at once, whoever leads there.
#
# A table is plausible by what it says itself and by those that it leads to:
#
#   malformed   present entries with reserved bits, those that lead to address 0, outside memory, or to a table that is
#               not plausible
#   barren      entries that lead to a table without pages
#   stray       pages of 4 KB outside memory, which no neighbour in the table continues: devices are mapped in runs
#
# It is none where more than a quarter of the present entries are malformed; of a table of page tables, where more than
# three quarters are malformed or barren; of a page table, where more than half, and more than 8, are stray. Tables of
# upper levels without pages are common: Linux makes those of its vmalloc area beforehand.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.paging.hash_table cimport HashTable
from fastmmu.paging.segments cimport Placed

cdef struct Facts:              # pages are counted as often as they are mapped
    uint64_t key
    uint64_t tables             # it and those below
    uint64_t malformed          # entries, in all of them
    uint64_t pages
    uint64_t inside             # pages that lie in memory
    uint64_t user               # pages that user mode may reach
    uint64_t code               # that can be executed
    uint64_t kernel_code        # and not by user mode
    uint64_t typed              # EPT: of write-back type; else PCD is set
    uint64_t plausible

cdef struct Judge:
    const Mem *m
    Placed *placed
    uint64_t reserved           # address bits that no entry has
    HashTable known

# The table of a form (scan.pxd) and level at an address; False: it does not lie in memory.
cdef bint judge_table(Judge *s, int form, int level, uint64_t table, Facts *out) noexcept nogil
# The four PDPTEs at an address.
cdef bint judge_pdptes(Judge *s, uint64_t address, Facts *out) noexcept nogil
cdef void judge_free(Judge *s) noexcept nogil
