"""A machine with agile paging, made from its configuration. Header: machine/agile_setup.pxd."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.types cimport Ept, hpa_t
from fastmmu.arch.vmx cimport PRIMARY_INVLPG, SECONDARY_EPT
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm
from fastmmu.machine.layout cimport VMM_TABLES
from fastmmu.mmu.agile cimport BACK_ALL, BACK_NEVER, BACK_WRITTEN, AgileMmu, agile_free, agile_init
from fastmmu.mmu.memslots cimport Memslot, slots_add
from fastmmu.paging.state cimport Eptp

from fastmmu.errors import OutOfMemoryError


cdef hpa_t shadow_end(config, hpa_t origin, hpa_t guest_base) except 0:
    # of the memory for the VMM's tables; the EPT of agile paging has the second half
    if config.mmu != "agile":
        return guest_base
    return origin + VMM_TABLES + ((guest_base - origin - VMM_TABLES) >> 13 << 12)


cdef Ept agile_build(Kvm *kvm, Vcpu *v, config, hpa_t origin, hpa_t guest_base) except *:
    # the machine's shadow tables and slots stand; what the processor has of the EPT
    cdef AgileMmu *a = <AgileMmu *> calloc(1, sizeof(AgileMmu))
    cdef Memslot *slot
    cdef Eptp tables
    cdef uint64_t root
    cdef int i, n
    policy = config.agile_policy
    kvm.agile = a
    if a == NULL or agile_init(a, &kvm.mmu, True, shadow_end(config, origin, guest_base), guest_base):
        raise OutOfMemoryError(f"no memory for the VMM; make memory={config.memory!r} smaller")
    a.writes, a.interval = policy.writes, policy.interval
    a.back = {"written": BACK_WRITTEN, "all": BACK_ALL, "never": BACK_NEVER}[policy.back]
    a.begin_nested = policy.begin == "nested"
    a.ept.policy = kvm.mmu.policy
    a.ept.policy.tdp = config.tdp_mmu
    a.ept.policy.fast = config.rules.fast_faults
    a.ept.policy.mmio_caching = config.rules.mmio_caching and config.mmio_caching
    kvm.mmu.policy.unsync = kvm.mmu.policy.flooding = False
    for i in range(kvm.mmu.slots.n):
        slot = &kvm.mmu.slots.slot[i]
        n = slots_add(&a.ept.slots, slot.base_gfn, slot.npages, slot.hpa)
        a.ept.slots.slot[n].readonly = slot.readonly
        a.ept.slots.slot[n].private = slot.private
        a.ept.slots.slot[n].emulated = slot.emulated
        a.ept.slots.slot[n].device = slot.device
        a.ept.slots.slot[n].huge = slot.huge
    root = a.ept.sp[a.ept.vcpu.root].hpa
    tables = Eptp(root | 0x5E, maxphyaddr=46, guest_ad_checked=config.guest_ad_checked)
    v.vmcs.secondary |= SECONDARY_EPT
    if kvm.modes.pcid:                          # shadow tables are in sync, the hardware's PCID is the guest's
        v.vmcs.primary &= ~PRIMARY_INVLPG
    v.vmcs.eptp = root | 0x5E
    v.agile = &a.cpu
    v.agile.due = ONES
    v.tlb.quick_on = False                      # no walk is plain
    if v.detector != NULL:
        v.detector.agile = v.agile
    tables.ept.write_ad = 1
    return tables.ept


cdef void agile_gone(Kvm *kvm) noexcept nogil:
    if kvm.agile != NULL:
        agile_free(kvm.agile, &kvm.mmu)
        kvm.agile = NULL
