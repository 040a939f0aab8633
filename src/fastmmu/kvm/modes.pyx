"""How KVM runs a guest in each paging mode: from the guest's registers to those of the hardware and the controls.

    guest                 without unrestricted guest                        with it, and AMD's
    real mode             virtual-8086 task over the identity table         as it is
    protected, no paging  32-bit paging over the identity table             as it is
    paging                as it is                                          as it is

The identity table maps each linear address below 4 GB to the same guest-physical address; it and the state of the
virtual-8086 task lie in guest-physical memory, in slots of their own. While it is in use CR3 is the VMM's, so moves to
and from it exit (kvm_policy.md §3.4).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.registers cimport (
    CR0_CD, CR0_MP, CR0_NE, CR0_NW, CR0_PE, CR0_PG, CR0_TS, CR0_WP, CR4_CET, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_PKE,
    CR4_PKS, CR4_PSE, CR4_SMAP, CR4_SMEP, CR4_VME, CR4_VMXE, EFER_LME, EFER_NXE, RFLAGS_FIXED, RFLAGS_IOPL, RFLAGS_VM,
    RULE_CR4_KVM, RULE_CR4_NOT_OFFERED, RULE_CR4_RESERVED, RULE_NONE, Registers, long_mode, pae_paging, pages,
)
from fastmmu.arch.types cimport Mem
from fastmmu.arch.vmx cimport (
    ENTRY_LOAD_EFER, ENTRY_LONG_MODE, PRIMARY_CR3_LOAD, PRIMARY_CR3_STORE, SECONDARY_UNRESTRICTED, VECTOR_PF,
)
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport KvmVcpu, Modes
from fastmmu.paging.memory cimport mem_write32

cdef enum:
    IDENTITY_ENTRY = 0xE7       # P, R/W, U/S, A, D, PS
    IO_BITMAP_AT = 0x66         # of the task state: offset of the I/O bitmap
    IO_BITMAP = 0x68 + 32       # behind the fields and the interrupt redirection bitmap

# Bits that the guest owns: a write that changes no other does not exit. Those of Linux 6.1.
cdef uint64_t CR0_GUEST = CR0_TS | CR0_WP
cdef uint64_t CR0_GUEST_SHADOW = CR0_TS
cdef uint64_t CR0_GUEST_AMD = CR0_TS | CR0_MP
cdef uint64_t CR4_GUEST_SHADOW = 0x1070E        # PVI, TSD, DE, PCE, OSFXSR, OSXMMEXCPT, FSGSBASE
cdef uint64_t CR4_GUEST = CR4_GUEST_SHADOW | CR4_PGE


cdef void modes_tables(Mem *mem, uint64_t identity, uint64_t task) noexcept nogil:
    # host-physical addresses of the page of the identity table, and of the three of the task state
    cdef uint64_t i
    for i in range(1024):
        mem_write32(mem, identity + 4 * i, <uint32_t> (i << 22 | IDENTITY_ENTRY))
    memset(mem.base + task, 0, 3 * 4096)        # no interrupt is redirected, no port exits by the task's bitmap
    mem_write32(mem, task + IO_BITMAP_AT - 2, <uint32_t> IO_BITMAP << 16)
    mem.base[task + IO_BITMAP + 8192] = 0xFF


cdef int modes_load(KvmVcpu *vcpu) noexcept nogil:
    # Guest state and controls of the VMCS for vcpu.arch; the next VM entry loads them. -1: the guest does not page, and
    # there is no identity table.
    cdef const Modes *m = &vcpu.kvm.modes
    cdef Vcpu *v = &vcpu.cpu
    cdef const Registers *a = &vcpu.arch
    cdef bint restricted = m.ept and not m.unrestricted and not m.amd
    cdef uint64_t cr0 = (a.cr0 & ~<uint64_t> (CR0_CD | CR0_NW)) | CR0_NE, cr3 = a.cr3, cr4 = a.cr4 | CR4_VMXE
    cdef uint64_t rflags = RFLAGS_FIXED
    cdef uint32_t page_fault = <uint32_t> 1 << VECTOR_PF
    cdef Registers shadow
    if restricted and not pages(a):
        if not m.identity:
            return -1
        cr3 = m.identity
        cr4 = (cr4 & ~<uint64_t> (CR4_PAE | CR4_SMEP | CR4_SMAP | CR4_PKE)) | CR4_PSE
    if not m.ept:
        modes_shadow(m, a, &shadow)
        cr0 = shadow.cr0 | CR0_NE
        cr3 = v.vmcs.guest_cr3
        cr4 = shadow.cr4 | CR4_VMXE
    if restricted or not m.ept:
        cr0 |= CR0_PG | CR0_PE
        v.vmcs.exception_bitmap = 0 if m.ept else page_fault
        if not a.cr0 & CR0_PE:
            cr4 |= CR4_VME
            rflags |= RFLAGS_VM | RFLAGS_IOPL
            v.vmcs.exception_bitmap = ~page_fault if m.ept else ~<uint32_t> 0
    if restricted:
        v.vmcs.primary &= ~(PRIMARY_CR3_LOAD | PRIMARY_CR3_STORE)
        if not pages(a):
            v.vmcs.primary |= PRIMARY_CR3_LOAD | PRIMARY_CR3_STORE
    v.vmcs.cr0_mask = ~(CR0_GUEST_AMD if m.amd else CR0_GUEST if m.ept else CR0_GUEST_SHADOW)
    v.vmcs.cr4_mask = ~(0 if m.amd else CR4_GUEST if m.ept else CR4_GUEST_SHADOW)
    v.vmcs.cr0_shadow = a.cr0
    v.vmcs.cr4_shadow = a.cr4
    v.vmcs.guest_cr0 = cr0
    v.vmcs.guest_cr3 = cr3
    v.vmcs.guest_cr4 = cr4
    v.vmcs.guest_efer = a.efer if long_mode(a) else a.efer & ~<uint64_t> EFER_LME
    v.vmcs.guest_rflags = rflags
    memcpy(v.vmcs.guest_pdpte, a.pdpte, sizeof(a.pdpte))
    v.vmcs.vm_entry = ENTRY_LOAD_EFER | (ENTRY_LONG_MODE if long_mode(a) else 0)
    v.vmcs.secondary &= ~SECONDARY_UNRESTRICTED
    if m.ept and not restricted:
        v.vmcs.secondary |= SECONDARY_UNRESTRICTED
    if m.ept:
        v.fresh = True
        return 0
    v.r = shadow                # the walker's registers come with the shadow root
    v.r.cr0 = cr0
    v.r.cr4 = cr4
    v.vm86 = not a.cr0 & CR0_PE
    return 0


cdef void modes_save(KvmVcpu *vcpu) noexcept nogil:
    # at a VM exit: what the guest wrote of its registers without one
    cdef Vcpu *v = &vcpu.cpu
    cdef Registers *a = &vcpu.arch
    a.pkru = v.r.pkru
    a.cr0 = (a.cr0 & v.vmcs.cr0_mask) | (v.vmcs.guest_cr0 & ~v.vmcs.cr0_mask)
    a.cr4 = (a.cr4 & v.vmcs.cr4_mask) | (v.vmcs.guest_cr4 & ~v.vmcs.cr4_mask)
    if modes_own_cr3(vcpu):
        a.cr3 = v.vmcs.guest_cr3
        if pae_paging(a):
            memcpy(a.pdpte, v.vmcs.guest_pdpte, sizeof(a.pdpte))


cdef int modes_cr4(const Modes *m, uint64_t cr4) noexcept nogil:
    # the rule by which KVM refuses a CR4 that the processor would take (kvm_is_valid_cr4): no VMM in the guest, no CET,
    # no keys that nobody virtualizes
    if cr4 & CR4_VMXE:
        return RULE_CR4_RESERVED
    if cr4 & CR4_CET or (cr4 & CR4_PKS and not m.keys):
        return RULE_CR4_KVM
    if cr4 & CR4_PKE and not m.ept and not m.keys:
        return RULE_CR4_NOT_OFFERED
    return RULE_NONE


cdef void modes_shadow(const Modes *m, const Registers *guest, Registers *hardware) noexcept nogil:
    # The registers under which the processor walks shadow tables: CR0.WP, NXE on and PGE off, whatever the guest has
    # (kvm_policy.md §2); PCIDE and keys off where they are not virtualized. For a guest of 32-bit addresses they are
    # PAE tables; where it does not page, SMEP and SMAP mean nothing to it. CR3 and PDPTE registers come with the root.
    hardware[0] = guest[0]
    hardware.cr0 |= CR0_WP | CR0_PE | CR0_PG
    hardware.efer |= EFER_NXE
    hardware.cr3 = 0
    memset(hardware.pdpte, 0, sizeof(hardware.pdpte))
    if long_mode(guest):
        hardware.cr4 &= ~<uint64_t> (CR4_PGE | (0 if m.pcid else CR4_PCIDE) | (0 if m.keys else CR4_PKE | CR4_PKS))
        return
    hardware.efer = EFER_NXE
    hardware.cr4 = CR4_PAE | (guest.cr4 & (CR4_SMEP | CR4_SMAP) if pages(guest) else 0) | guest.cr4 & CR4_GUEST_SHADOW
