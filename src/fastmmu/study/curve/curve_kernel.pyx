"""Kernel of the miss-ratio curves; header: study/curve/curve_kernel.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.ops cimport LAST_ACCESS, OP_FORK, OP_INVLPG, OP_MUNMAP, OP_PROTECT, OP_SWITCH, OP_UNMAP
from fastmmu.study.curve.stack_distance cimport (
    list_access, list_flush, list_invalidate, tree_access, tree_flush, tree_invalidate,
)

cdef enum:
    PROCESS_SHIFT = 45          # of a key: page numbers have 45 bits


# ---- levels -----------------------------------------------------------------------------------------------------

cdef inline void level_access(Level *x, uint64_t key) noexcept nogil:
    cdef uint32_t i
    x.lookups += 1
    if key == x.last:
        x.repeats += 1
        return
    x.last = key
    for i in range(x.lists):
        list_access(&x.list[i], key)
    tree_access(&x.tree, key)


cdef inline void one_access(Curve *c, int op, uint64_t page) noexcept nogil:
    cdef Level *x = &c.level[c.first[op]]
    cdef uint64_t key = c.process << PROCESS_SHIFT | page
    cdef uint32_t i
    cdef bint miss = False
    c.accesses += 1
    x.lookups += 1
    if key == x.last:
        x.repeats += 1
        return
    x.last = key
    for i in range(x.lists):
        if list_access(&x.list[i], key) >= c.ways[op] and i == c.filter[op]:
            miss = True
    tree_access(&x.tree, key)
    if miss and c.second[op] != NO_LEVEL:
        level_access(&c.level[c.second[op]], key)


cdef void invalidate(Curve *c, uint64_t page) noexcept nogil:
    cdef uint64_t key = c.process << PROCESS_SHIFT | page
    cdef uint32_t i, j
    c.invalidations += 1
    for i in range(c.levels):
        if c.level[i].last == key:
            c.level[i].last = NO_KEY
        for j in range(c.level[i].lists):
            list_invalidate(&c.level[i].list[j], key)
        tree_invalidate(&c.level[i].tree, key)


cdef void flush(Curve *c) noexcept nogil:
    cdef uint32_t i, j
    c.flushes += 1
    for i in range(c.levels):
        c.level[i].last = NO_KEY
        for j in range(c.level[i].lists):
            list_flush(&c.level[i].list[j])
        tree_flush(&c.level[i].tree)


cdef int curve_run(Curve *c, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
                   uint64_t *done) noexcept nogil:
    cdef uint64_t i, la, page
    cdef uint32_t k, o
    for i in range(n):
        done[0] = i
        la = addr[i]
        o = op[i]
        if o <= LAST_ACCESS:
            if la >> 57:
                return CURVE_BAD_ADDRESS
            one_access(c, o, la >> c.shift)
            if (la & 0xFFF) + size[i] > 0x1000:
                la = (la | 0xFFF) + 1
                if la >> 57:
                    return CURVE_BAD_ADDRESS
                one_access(c, o, la >> c.shift)
        elif o == OP_SWITCH:
            if la >= (4095 if c.pcid else 1 << 18):
                return CURVE_BAD_PROCESS
            c.process = la
            if not c.pcid:
                flush(c)
        elif o == OP_INVLPG or o == OP_UNMAP:
            if not la >> 57:
                invalidate(c, la >> c.shift)
        elif o == OP_MUNMAP or o == OP_PROTECT:
            if not la >> 57:
                for page in range(la >> 12, (la >> 12) + (la & 0xFFF) + 1):
                    if not (page << 12 & (1ULL << c.shift) - 1) or page == la >> 12:
                        invalidate(c, page << 12 >> c.shift)
        elif o == OP_FORK:
            flush(c)
    done[0] = n
    for k in range(c.levels):
        if c.level[k].tree.failed:
            return CURVE_NO_MEMORY
    return CURVE_OK
