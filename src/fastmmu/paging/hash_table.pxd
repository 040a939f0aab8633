# A hash table of structs of one type, whose first word is their key; 0 is no key. Open addressing, at most half full.

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef enum:
    FIRST_SLOTS = 1 << 6

cdef struct HashTable:          # all zero but for `size`: empty
    char *slots
    uint64_t n                  # a power of two, or 0
    uint64_t used
    uint64_t size               # bytes of a struct


cdef inline uint64_t *hash_slot(const HashTable *h, uint64_t key) noexcept nogil:
    # the key's, or the free one that it would take; n is not 0
    cdef uint64_t at = (key * <uint64_t> 0x9E3779B97F4A7C15) >> 20
    cdef uint64_t *slot = <uint64_t *> (h.slots + (at & (h.n - 1)) * h.size)
    while slot[0] and slot[0] != key:
        at += 1
        slot = <uint64_t *> (h.slots + (at & (h.n - 1)) * h.size)
    return slot


cdef inline void *hash_find(const HashTable *h, uint64_t key) noexcept nogil:
    # NULL: it has none
    cdef uint64_t *slot = hash_slot(h, key) if h.n else NULL
    return slot if slot != NULL and slot[0] else NULL


cdef inline void *hash_put(HashTable *h, uint64_t key) noexcept nogil:
    # the key's struct, all zero but for the key where it is new; NULL: no memory. Others may move.
    cdef HashTable larger = h[0]
    cdef uint64_t *slot
    cdef uint64_t i
    if 2 * h.used >= h.n:
        larger.n = 2 * h.n if h.n else FIRST_SLOTS
        larger.slots = <char *> calloc(larger.n, h.size)
        if larger.slots == NULL:
            return hash_find(h, key)
        for i in range(h.n):
            slot = <uint64_t *> (h.slots + i * h.size)
            if slot[0]:
                memcpy(hash_slot(&larger, slot[0]), slot, h.size)
        free(h.slots)
        h[0] = larger
    slot = hash_slot(h, key)
    h.used += slot[0] == 0
    slot[0] = key
    return slot


cdef inline void hash_free(HashTable *h) noexcept nogil:
    free(h.slots)
    h.slots = NULL
    h.n = h.used = 0
