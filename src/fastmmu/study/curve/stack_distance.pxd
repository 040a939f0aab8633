# Positions in the order of last use, for every size of a TLB at once: stack distances (Mattson 1970).
#
# The most recent w of a set are what a TLB of w ways holds, whatever w is, so the position of an access in that order
# (its distance) decides for all w at once. Two forms of the order: a List per set, cut off at some depth, and a Tree
# for one set of any size, whose positions are counted in O(log m).
#
# An invalidated entry leaves a hole in the order. A TLB that reaches it has an empty way there and fills that first:
# the next access that comes from below the hole, or from nowhere, takes the hole's place, and leaves one where it was.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    FRONT = 64                  # of a tree: the most recent ones, kept in order outside it
    GROUPS = 8                  # of sampled pages, by hash: what their counts differ by is the error

cdef struct List:
    uint64_t *key               # [set][depth]
    uint32_t *n                 # [set]
    uint64_t *hist              # [distance - 1]; [depth]: farther, or never before
    uint32_t sets, depth

cdef struct Tree:               # slots in the order of use; a page that is used again moves to a new slot
    uint64_t front[64]
    uint32_t n_front
    uint32_t holes_in_front
    uint64_t *word              # bit per slot: used by a page or a hole
    uint32_t *fenwick           # over the words: number of bits
    uint64_t *slot              # [slot] key
    uint64_t cap                # slots, a multiple of 64
    uint64_t next, first        # slots are used from `first` on; what lies before was flushed
    uint64_t used               # bits at or above `first`
    uint64_t *page              # hash table: key + 1, 0 free
    uint32_t *at                # [as page] slot, 0: in the front, or nowhere
    uint64_t mask, pages
    uint32_t *hole              # heap of slots, the largest first
    uint64_t n_holes, max_holes
    uint64_t *hist              # [group][distance]; distance 0: farther than `limit`, or never before
    uint64_t limit
    uint64_t threshold          # a page is sampled if the upper half of its hash is below
    bint failed                 # no memory

cdef bint list_new(List *l, uint32_t sets, uint32_t depth) noexcept nogil       # False: no memory
cdef void list_free(List *l) noexcept nogil
cdef uint32_t list_access(List *l, uint64_t key) noexcept nogil     # distance - 1; depth: farther, or never before
cdef void list_invalidate(List *l, uint64_t key) noexcept nogil
cdef void list_flush(List *l) noexcept nogil
cdef bint tree_new(Tree *t, uint64_t limit, uint64_t threshold) noexcept nogil
cdef void tree_free(Tree *t) noexcept nogil
cdef void tree_access(Tree *t, uint64_t key) noexcept nogil
cdef void tree_invalidate(Tree *t, uint64_t key) noexcept nogil
cdef void tree_flush(Tree *t) noexcept nogil
