"""Roots of agile paging. Header: kvm/agile_roots.pxd."""

from libc.stdint cimport uint64_t

from fastmmu.cpu.vcpu cimport ABORT_TABLES, Vcpu, vcpu_abort
from fastmmu.kvm.kvm cimport Kvm, KvmVcpu
from fastmmu.mmu.agile cimport AgileMmu, agile_forget, agile_leave_root, agile_root
from fastmmu.mmu.pages cimport mmu_hpa, mmu_zap_all
from fastmmu.mmu.roots cimport mmu_set_role, mmu_set_root
from fastmmu.paging.agile cimport ROOT_SHADOW, ROOT_SWITCHED
from fastmmu.paging.guest cimport root_address


cdef bint agile_nested_root(KvmVcpu *vcpu, uint64_t cr3, int role) noexcept nogil:
    # whether the root of this CR3 is walked nested, which then is in force; else the caller makes its shadow
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef int levels = vcpu.guest.levels
    cdef uint64_t root = root_address(&vcpu.guest, cr3)
    v.agile.root = ROOT_SHADOW
    if levels < 4:
        agile_forget(kvm.agile, &kvm.mmu)
        return False
    if not agile_root(kvm.agile, &kvm.mmu, root >> 12, levels):
        return False
    mmu_set_role(&kvm.mmu, role, levels)
    agile_leave_root(&kvm.mmu)
    vcpu.guest.cr3 = cr3
    vcpu.guest.root = root
    kvm.mmu.vcpu.root_pcid = v.hw.pcid = cr3 & 0xFFF if v.hw.pcid_on else 0
    v.hw.root = mmu_hpa(&kvm.mmu, root)
    v.hw.cr3 = v.hw.root | v.hw.pcid
    v.agile.root = ROOT_SWITCHED
    v.agile.root_hpa = v.hw.root
    return True


cdef int kvm_agile_zap(KvmVcpu *vcpu) noexcept nogil:
    cdef Kvm *kvm = vcpu.kvm
    cdef Vcpu *v = &vcpu.cpu
    cdef AgileMmu *a = kvm.agile
    mmu_zap_all(&a.ept)
    if mmu_set_root(&a.ept, 0, True):
        return vcpu_abort(v, ABORT_TABLES, a.ept.pool_end)
    v.ept.root = a.ept.sp[a.ept.vcpu.root].hpa
    v.vmcs.eptp = (v.vmcs.eptp & 0xFFF) | v.ept.root
    return 0
