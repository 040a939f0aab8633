"""Accesses that the TLB holds, with data caches under them: what machine/events.pyx does without, in a loop of its own,
so that a run without caches does nothing for them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.ops cimport LAST_ACCESS
from fastmmu.cache.hierarchy cimport Caches, caches_access
from fastmmu.cpu.quick_cached cimport vcpu_quick_cached
from fastmmu.cpu.vcpu cimport BY_USER, Vcpu, cause_of
from fastmmu.paging.quick_walk cimport Quick, quick_begin
from fastmmu.tlb.held cimport MISSED, Held, held_begin, held_first, held_second
from fastmmu.tlb.lookup cimport tlb_pa


cdef void access_cached(Vcpu *v, uint64_t hpa, uint64_t la, uint32_t nbytes, int acc) noexcept nogil:
    cdef uint32_t left = 0x1000 - <uint32_t> (la & 0xFFF)
    caches_access(v.caches, hpa, max(min(nbytes, left), 1), acc, cause_of(acc))


cdef uint64_t run_held_cached(Vcpu *v, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t i,
                              uint64_t end, uint64_t *out, uint64_t guest_base, uint64_t *found) noexcept nogil:
    # as run_held()
    cdef Held h[LAST_ACCESS + 1]
    cdef Quick q
    cdef uint64_t need[LAST_ACCESS + 1]
    cdef uint64_t la, value
    cdef Caches *c = v.caches
    cdef int o
    found[0] = 0
    for o in range(LAST_ACCESS + 1):
        held_begin(&h[o], v.tlb, o, True)
        need[o] = v.need[<int> BY_USER][o]
    quick_begin(&q, v.mem, &v.hw, &v.ept if v.ept_on else NULL, v.tlb)
    while i < end:
        o = op[i]
        la = addr[i]
        if o > LAST_ACCESS or la >> 47 or (la & 0xFFF) + size[i] > 0x1000:
            break
        value = held_first(&h[o], la)
        if not value:
            value = held_second(v.tlb, &h[o], la)
        if need[o] & ~value:            # some of it where the value is 0 or MISSED
            if value == MISSED and q.on:
                value = vcpu_quick_cached(v, &q, la, o)
            if value == MISSED or need[o] & ~value:
                found[0] = value & MISSED
                break
        caches_access(c, tlb_pa(value, la), max(size[i], 1), o, cause_of(o))
        if out != NULL:
            out[i] = tlb_pa(value, la) - guest_base
        i += 1
    return i
