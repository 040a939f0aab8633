"""The VMM of agile paging. Header: kvm/agile.pxd; which tables are walked nested: mmu/agile.pyx.

A root in nested mode is the guest's own, by its address in host memory; no shadow root is in use then.
"""

from libc.stdint cimport uint64_t

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.types cimport gfn_t
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm, KvmVcpu
from fastmmu.kvm.roots cimport kvm_set_root
from fastmmu.mmu.agile cimport BACK_NEVER, AgileMmu, agile_interval, agile_refill
from fastmmu.mmu.mmu cimport NO_SP, MmuCounters, mmu_nested
from fastmmu.paging.agile cimport ROOT_SWITCHED


cdef int kvm_agile_exit(KvmVcpu *vcpu) noexcept nogil:
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef AgileMmu *a = kvm.agile
    cdef gfn_t root = vcpu.guest.root >> 12
    cdef uint64_t now = 1 + (v.c.walks // a.interval if a.interval else 0)
    cdef bint pages = vcpu.guest.levels >= 4, ended = now != a.now, nested
    if ended and pages:
        agile_interval(a, &kvm.mmu, &vcpu.guest, root, now)
    a.now = now
    nested = mmu_nested(&kvm.mmu, root) != 0
    # also where the table was moved, and went back at once: its shadow is gone
    if pages and not v.abort and (nested != (v.agile.root == ROOT_SWITCHED)
                                  or (not nested and kvm.mmu.vcpu.root == NO_SP)):
        if kvm_set_root(vcpu, vcpu.guest.cr3):
            return -1
        if ended and kvm.mmu.vcpu.root != NO_SP:
            agile_refill(&kvm.mmu, &vcpu.guest, kvm.mmu.vcpu.root)
    if a.ept.flush:
        kvm.mmu.flush = True
    v.agile.due = now * a.interval if a.n and a.interval and a.back != BACK_NEVER else ONES
    v.agile.guest = vcpu.guest
    v.agile.guest.pge = 0                       # nothing is cached as global, as of shadow tables
    v.agile.ept = v.ept
    return 0


cdef MmuCounters kvm_mmu_counters(Kvm *kvm) noexcept nogil:
    cdef MmuCounters found = kvm.mmu.counters
    cdef size_t i
    if kvm.agile != NULL:                       # members are words, all of them
        for i in range(sizeof(MmuCounters) // 8):
            (<uint64_t *> &found)[i] += (<uint64_t *> &kvm.agile.ept.counters)[i]
    return found
