"""Accesses that the TLB holds, with data caches under them: what machine/events.pyx does without, in a loop of its own,
so that a run without caches does nothing for them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.ops cimport LAST_ACCESS
from fastmmu.arch.types cimport ACC_R, ACC_X
from fastmmu.cache.frame_map cimport FrameMap, frame_map_apply
from fastmmu.cache.hierarchy cimport (
    FOUND_L1, Caches, Hot, caches_access, caches_find, caches_lines, hot_begin, hot_holds,
)
from fastmmu.cpu.quick_cached cimport vcpu_quick_cached
from fastmmu.cpu.vcpu cimport BY_USER, Vcpu, cause_of
from fastmmu.machine.op_counts cimport count_ops
from fastmmu.paging.quick_walk cimport Quick, quick_begin
from fastmmu.tlb.held cimport MISSED, Held, held_begin, held_first, held_second
from fastmmu.tlb.lookup cimport tlb_pa


cdef void access_cached(Vcpu *v, uint64_t hpa, uint64_t la, uint32_t nbytes, int acc) noexcept nogil:
    cdef uint32_t left = 0x1000 - <uint32_t> (la & 0xFFF)
    caches_access(v.caches, hpa, max(min(nbytes, left), 1), acc, cause_of(acc))


cdef uint64_t run_held_cached(Vcpu *v, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t i,
                              uint64_t end, uint64_t *out, uint64_t guest_base, uint64_t *found) noexcept nogil:
    # as run_held()
    #
    # same: line << 2 | kind of the last access of a port of the TLB. Nothing has come between that took it from the
    # front of its sets, in the TLB and in L1: once more it changes nothing.
    cdef Held h[LAST_ACCESS + 1]
    cdef Hot hot[LAST_ACCESS + 1]
    cdef Quick q
    cdef uint64_t need[LAST_ACCESS + 1]
    cdef uint64_t n[LAST_ACCESS + 1]        # accesses: all count as found in L1, others are taken off before
    cdef uint64_t same[2]
    cdef uint64_t page[2]                   # its page, as `out` has it
    cdef uint64_t la, value, hpa, line, first = i
    cdef Caches *c = v.caches
    cdef const FrameMap *map = &c.map if c.map.nbytes else NULL
    cdef uint8_t fetches = v.tlb.port[<int> ACC_X].l1 != v.tlb.port[<int> ACC_R].l1
    cdef int o, port
    found[0] = 0
    same[0] = same[1] = ONES
    for o in range(LAST_ACCESS + 1):
        held_begin(&h[o], v.tlb, o, True)
        hot_begin(&hot[o], c, o)
        need[o] = v.need[<int> BY_USER][o]
    quick_begin(&q, v.mem, &v.hw, &v.ept if v.ept_on else NULL, v.tlb)
    while i < end:
        o = op[i]
        la = addr[i]
        port = fetches & <int> (o == ACC_X)
        line = la >> 6 << 2 | <uint64_t> o
        if line == same[port] and o <= LAST_ACCESS and (la & 63) + size[i] <= 64:
            if out != NULL:
                out[i] = page[port] + (la & 0xFFF)
            i += 1
            continue
        if o > LAST_ACCESS or la >> 47 or (la & 0xFFF) + size[i] > 0x1000:
            break
        value = held_first(&h[o], la)
        if not value:
            same[0] = same[1] = ONES
            value = held_second(v.tlb, &h[o], la)
        if need[o] & ~value:            # some of it where the value is 0 or MISSED
            if value == MISSED and q.on:
                value = vcpu_quick_cached(v, &q, la, o)
            if value == MISSED or need[o] & ~value:
                found[0] = value & MISSED
                break
        hpa = tlb_pa(value, la)
        same[port] = line
        page[port] = (hpa & ~<uint64_t> 0xFFF) - guest_base
        if (la & 63) + size[i] > 64:
            c.c.found[cause_of(o)][0] -= 1
            caches_lines(c, hpa, size[i], o, cause_of(o))
            same[0] = same[1] = ONES
        elif not hot_holds(&hot[o], frame_map_apply(map, hpa) if map != NULL else hpa):
            c.c.found[cause_of(o)][0] -= 1
            if caches_find(c, hpa, o, cause_of(o)) != FOUND_L1:
                same[0] = same[1] = ONES
        if out != NULL:
            out[i] = hpa - guest_base
        i += 1
    count_ops(op + first, i - first, n)
    for o in range(LAST_ACCESS + 1):
        c.c.found[cause_of(o)][0] += n[o]
    return i
