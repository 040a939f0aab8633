"""The extensions of a TLB, written and read. Header: extensions.pxd.

What each of them holds it describes itself, by blocks (tlb/extension.pxd), and says whether what was read is such.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.tlb.entries cimport K_GLOBAL, K_LOCAL, Tlb
from fastmmu.tlb.extension cimport SPACE_BITS, SPACES, Extension, Extensions, Space, extensions_of

from fastmmu.errors import CheckpointError


cdef int keep_extensions(_Archive a, Tlb *t) except -1:
    # Extensions of tlb/extension.pxd. Derived: known local everywhere vpid pcid eptrta. Of the new one: tlb first query
    # refer walker by_code watched. Of a call under way: prefetching whole op addr first_event end_event event known_to
    # was. Of calls from Python, without a machine: pages. Elsewhere: space
    cdef Extensions *x = extensions_of(t)
    cdef Extension *e = x.first
    cdef uint32_t n = 0
    a.under("tlb.extensions")
    a.u64("serial", &x.serial, ~<uint64_t> 0 >> SPACE_BITS)
    a.u32("next", &x.next, SPACES)
    a.u32("n_live", &x.n_live, SPACES)
    a.u32("n_free", &x.n_free, SPACES)
    a.u64("pc", &x.pc)
    a.u64("lookups", &x.lookups)
    a.u64("hits", &x.hits)
    a.u64("reference", &x.reference)
    if a.loading and x.n_live + x.n_free != x.next:
        a.refuse("tags of the TLB's extensions are more than were given out, or fewer")
    a.plain("live", x.live, 2 * x.n_live)
    a.plain("free", x.free, 2 * x.n_free)
    keep_spaces(a, x)
    x.known = False
    while e != NULL:
        keep_extension(a, e, x, n)
        n += 1
        e = e.next
    return 0


cdef int keep_spaces(_Archive a, Extensions *x) except -1:
    # Space of tlb/extension.pxd: its tags are kind, VPID, PCID and EPT root. Derived: place
    words, fields = np.zeros(2 * x.next, np.uint64), np.zeros(3 * x.next, np.uint32)
    if a.loading:
        words, fields = a.array("space.tag", np.uint64, 2 * x.next), a.array("space.tags", np.uint32, 3 * x.next)
        spaces_in(a, x, words, fields)
    else:
        spaces_out(x, words, fields)
        a.put("space.tag", words)
        a.put("space.tags", fields)
    return 0


cdef int spaces_out(const Extensions *x, uint64_t[::1] words, uint32_t[::1] fields) except -1:
    # those in use: what is left of others is nothing
    cdef const Space *s
    cdef uint32_t i
    for i in range(x.next):
        s = &x.space[i]
        if s.tag:
            words[2 * i], words[2 * i + 1] = s.tag, s.tags.eptrta
            fields[3 * i], fields[3 * i + 1], fields[3 * i + 2] = s.tags.kind, s.tags.vpid, s.tags.pcid
    return 0


cdef int spaces_in(_Archive a, Extensions *x, const uint64_t[::1] words, const uint32_t[::1] fields) except -1:
    cdef uint8_t[::1] seen = np.zeros(SPACES, np.uint8)
    cdef Space *s
    cdef uint32_t i, at
    memset(x.space, 0, sizeof(x.space))
    for i in range(x.n_live + x.n_free):
        at = x.live[i] if i < x.n_live else x.free[i - x.n_live]
        if at >= x.next or seen[at]:
            a.refuse("a list of tags of the TLB's extensions has one twice, or one that there is not")
        seen[at] = 1
        s = &x.space[at]
        s.tag = words[2 * at]
        if (s.tag != 0) != (i < x.n_live):
            a.refuse("a tag of the TLB's extensions is in use and free, or neither")
        if i >= x.n_live:
            continue
        if s.tag & (SPACES - 1) != at or not 1 <= s.tag >> SPACE_BITS <= x.serial:
            a.refuse("a tag of the TLB's extensions was never given out")
        if (fields[3 * at] != K_LOCAL and fields[3 * at] != K_GLOBAL or fields[3 * at + 1] > 0xFFFF
                or fields[3 * at + 2] > 0xFFF):
            a.refuse("a tag of the TLB's extensions is of no context")
        s.tags.kind, s.tags.vpid, s.tags.pcid = fields[3 * at], fields[3 * at + 1], fields[3 * at + 2]
        s.tags.eptrta = words[2 * at + 1]
        s.place = i
    return 0


cdef int keep_extension(_Archive a, Extension *e, const Extensions *x, uint32_t n) except -1:
    # Extension of tlb/extension.pxd. Of the new one: find filled evicted dropped end block sound next; self by blocks
    cdef uint64_t nbytes = 0
    cdef uint32_t i = 0
    cdef void *p
    name = (<bytes> e.name).decode("ascii")
    if e.block == NULL or e.sound == NULL:
        raise CheckpointError(f"its TLB has an extension {name!r}, whose contents are not written; leave it out")
    a.under(f"tlb.{name}{int(n)}")
    a.plain("c", &e.c, sizeof(e.c))
    p = e.block(e, i, &nbytes)
    while p != NULL:
        a.plain(f"block{int(i)}", p, nbytes)
        i += 1
        p = e.block(e, i, &nbytes)
    if a.loading and not e.sound(e, x):
        a.refuse(f"the extension {name!r} of the TLB holds what none can")
    return 0
