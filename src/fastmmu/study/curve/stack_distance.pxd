# Positions in the order of last use, for every size of a TLB at once: stack distances (Mattson 1970).
#
# The most recent w of a set are what a TLB of w ways holds, whatever w is, so the position of an access in that order
# (its distance) decides for all w at once. Two forms of the order: a List per set, cut off at some depth, and a Tree
# for one set of any size, whose positions are counted in O(log m).
#
# An invalidated entry leaves a hole in the order. A TLB that reaches it has an empty way there and fills that first:
# the next access that comes from below the hole, or from nowhere, takes the hole's place, and leaves one where it was.

#
# A part of a trace that is counted by itself begins with nothing in the orders. What it uses lies on top of what was
# there before, and what happens on top depends on nothing below: an access of a page that is there has its distance.
# Of all others, and of invalidations of pages that it has not had, it keeps records; `*_follow` applies these to the
# order that was there before, in which they find how deep the page was: below as many as the part had on top by then,
# which stand there as ANYBODY.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #define FM_ANYBODY (~0ULL - 2)
    """
    const uint64_t ANYBODY "FM_ANYBODY"

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
# distance - 1; depth: it is not there; depth + 1: nor is it, and took the place of a hole; depth + 2: nor is it, in a
# full set, so that it may be farther
cdef uint32_t list_access(List *l, uint64_t key) noexcept nogil
cdef void list_invalidate(List *l, uint64_t key) noexcept nogil
cdef void list_flush(List *l) noexcept nogil
# distance - 1 of an access that a part did not find; depth: farther, or never before. dead: it was invalidated there;
# filled: it took the place of a hole there
cdef uint32_t list_follow(List *l, uint64_t key, bint dead, bint filled) noexcept nogil

cdef enum TreeOutcome:
    TREE_FOUND = 0              # or it is not sampled
    TREE_NEW = 1
    TREE_FILLED = 2             # new, in the place of a hole

cdef bint tree_new(Tree *t, uint64_t limit, uint64_t threshold) noexcept nogil
cdef void tree_free(Tree *t) noexcept nogil
cdef int tree_access(Tree *t, uint64_t key) noexcept nogil
cdef void tree_invalidate(Tree *t, uint64_t key) noexcept nogil
cdef void tree_flush(Tree *t) noexcept nogil
# as list_follow; repeat: it is of the page of the access before, which is not counted
cdef void tree_follow(Tree *t, uint64_t key, bint dead, bint filled, bint repeat) noexcept nogil
cdef uint64_t tree_size(const Tree *t) noexcept nogil                           # pages and holes in order
cdef void tree_order(const Tree *t, uint64_t *to) noexcept nogil                # these, the most recent first
cdef void tree_load(Tree *t, const uint64_t *order, uint64_t n) noexcept nogil  # in place of those that are there
cdef void tree_know(Tree *t, uint64_t key) noexcept nogil                       # a page that went through it
