"""Huge pages of the host where tables lie dense and translations come through again and again."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.types cimport STEP_EPT, STEP_GUEST, STEP_SPP, Ept, Mem, Paging, Steps, Walk
from fastmmu.paging.huge_pages cimport DENSE, HUGE_PAGE, fm_huge_now
from fastmmu.paging.walk cimport walk_steps

cdef enum:
    SAMPLE = 1024               # walks by which it is seen where the tables are
    SLOTS = 1 << 12             # of a hash table: blocks of 2 MB, and how often they were read


cdef struct Block:
    uint64_t number             # + 1; 0: the slot is free
    uint32_t reads


cdef void count(Block *block, uint64_t number) noexcept nogil:
    # where many blocks fall together some are not counted, and stay as they are
    cdef uint32_t at = <uint32_t> (number * 0x9E3779B97F4A7C15ULL >> 52), _
    for _ in range(8):
        if block[at].number == number + 1 or not block[at].number:
            block[at].number = number + 1
            block[at].reads += 1
            return
        at = (at + 1) & (SLOTS - 1)


cdef uint32_t huge_where_walked(Mem *m, const Paging *g, const Ept *e, int acc, const uint64_t *va, uint64_t n,
                                uint32_t most) noexcept nogil:
    # Blocks of 2 MB, up to `most` and those first that are read most, that are huge pages now: tables that a sample of
    # the addresses is translated by. g, e: for a query.
    cdef Block block[SLOTS]
    cdef Steps steps
    cdef Walk w
    cdef uint64_t i, stride = n // SAMPLE + 1
    cdef uint32_t done = 0, floor = SAMPLE
    cdef int k
    memset(block, 0, sizeof(block))
    i = 0
    while i < n:
        steps.n = 0
        walk_steps(m, g, e, va[i], acc, &w, &steps)
        for k in range(steps.n):
            if steps.step[k].kind == STEP_GUEST or steps.step[k].kind == STEP_EPT or steps.step[k].kind == STEP_SPP:
                if steps.step[k].hpa < m.nbytes & ~(HUGE_PAGE - 1):
                    count(block, steps.step[k].hpa >> 21)
        i += stride
    while floor:
        for k in range(SLOTS):
            if block[k].reads >= floor and done < most:
                done += fm_huge_now(m.base + ((block[k].number - 1) << 21), DENSE)
                block[k].reads = 0
        floor >>= 2
    return done
