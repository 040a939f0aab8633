"""What a processor may cache of an address that nobody asked for. Header: paging/unasked.pxd.

A walk for a read by the supervisor, without SMAP and protection keys, so that no right of the guest's denies it; it
writes nothing. Its answer counts where the real walk would have written nothing either: all accessed flags are set,
of the guest's entries and, where the EPT has such flags, of the EPT's; and the dirty flags of the EPT's pages that
hold the guest's tables, whose reads count as writes there (ept.md §6). Software has to take such a translation for
cached (tlb.md R2, R7).
"""

from libc.stdint cimport uint64_t

from fastmmu.arch.bits cimport A, PS
from fastmmu.arch.types cimport (
    ACC_R, FAULT_NONE, MODE_NONE, MODE_PAE, STEP_EPT, STEP_GUEST, Ept, Mem, Paging, Step, Steps, Walk,
)
from fastmmu.cache.hierarchy cimport CAUSE_BACKGROUND, caches_use
from fastmmu.paging.walk cimport walk_steps
from fastmmu.tlb.extension cimport Queried
from fastmmu.tlb.lookup cimport tlb_value_of_walk


cdef inline bint wrote(const Paging *g, const Ept *e, const Step *s) noexcept nogil:
    # whether a walk would have written a flag of the entry of this step
    if s.kind == STEP_GUEST:
        return not s.entry & A and not (g.mode == MODE_PAE and s.level == 3)
    if s.kind != STEP_EPT or e == NULL or not e.ad:
        return False
    if not s.entry & e.accessed:
        return True
    return s.guest_level and (s.level == 1 or s.entry & PS) and not s.entry & e.dirty


cdef void walk_unasked(Mem *m, const Paging *g, const Ept *e, bint mbec, uint64_t la, Queried *out,
                       Caches *caches) noexcept nogil:
    cdef Paging hw
    cdef Ept ept
    cdef Steps steps
    cdef Walk w
    cdef int i
    if g.mode == MODE_NONE:
        return
    hw = g[0]
    hw.write_ad = hw.user = hw.implicit = hw.smap = 0
    hw.pkr_user = hw.pkr_super = 0
    if e != NULL:
        ept = e[0]
        ept.write_ad = 0
        e = &ept
    steps.n = 0
    if walk_steps(m, &hw, e, la, ACC_R, &w, &steps) == FAULT_NONE:
        for i in range(steps.n):
            if wrote(&hw, e, &steps.step[i]):
                break
        else:
            out.value = tlb_value_of_walk(&w, mbec)
            out.gpa = w.gpa
    out.guest_refs = w.guest_refs
    out.ept_refs = w.ept_refs
    if caches != NULL:
        for i in range(steps.n):
            if steps.step[i].kind == STEP_GUEST or steps.step[i].kind == STEP_EPT:
                caches_use(caches, steps.step[i].hpa, ACC_R, CAUSE_BACKGROUND)
