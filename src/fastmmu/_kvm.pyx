"""The default handlers of VM exits, in the kernel layer.

A handler fills, zaps or write-protects through the MMU, pays the invalidation that the change owes (tlb.md §7, column
that the configuration names) and says what the processor does next.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu._bits cimport FRAME, ONES, P
from fastmmu._dirty cimport dirty_collect, dirty_drain
from fastmmu._ept cimport QUAL_TRANSLATED
from fastmmu._guest cimport reachable, root_address
from fastmmu._invalidate cimport inv_invept, inv_invvpid, inv_transition
from fastmmu._kvm_apic cimport NOT_OF_APIC, kvm_apic_begin, kvm_apic_end, kvm_apic_exit
from fastmmu._map cimport (
    FILL_FAST, FILL_MAPPED, FILL_NO_SLOT, FILL_NO_TABLES, FILL_READ_ONLY, FILL_RETRY, FILL_UNCHANGED, Fault,
    find_entry, map_direct,
)
from fastmmu._memory cimport mem_holds, mem_read64
from fastmmu._mmu cimport (
    PAE_LEVELS, ROLE_4_BYTE, ROLE_KEYS, ROLE_NXE, ROLE_PAE, ROLE_PSE, ROLE_SMAP, ROLE_SMEP, ROLE_WP,
    mmu_forget_roots, mmu_hpa, mmu_zap_all,
)
from fastmmu._modes cimport modes_load, modes_save, modes_shadow
from fastmmu._registers cimport (
    CR0_CD, CR0_PG, CR0_TS, CR3_NO_FLUSH, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_PKE, CR4_PKS, CR4_SMEP, CR4_VMXE,
    RULE_CR4_NOT_OFFERED, RULE_CR4_RESERVED, RULE_NONE, Registers, pae_paging, paging_of, registers_cr0, registers_cr3,
    registers_cr4, registers_efer, registers_lmsw, registers_load_pdptes, registers_pdptes,
)
from fastmmu._roots cimport mmu_forget_previous, mmu_root_kept, mmu_set_pae_roots, mmu_set_role, mmu_set_root
from fastmmu._shadow cimport (
    SHADOW_BUS, SHADOW_FIXED, SHADOW_MMIO, SHADOW_NO_TABLES, SHADOW_REFLECT, SHADOW_RETRY,
    SHADOW_SPURIOUS, shadow_fault,
)
from fastmmu._reclaim cimport host_wrote
from fastmmu._siblings cimport Sibling
from fastmmu._slots cimport Slot, mark_dirty, slot_away, slot_of
from fastmmu._spte cimport MMIO_RESERVED, spte_is_mmio, spte_mmio_current
from fastmmu._sync cimport guest_wrote, shadow_drop, shadow_invlpg, sync_every_root, sync_roots
from fastmmu._types cimport (
    ACC_R, ACC_W, ACC_X, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_PF, MODE_32, MODE_NONE, MODE_PAE,
    Paging, Walk,
)
from fastmmu._vcpu cimport (
    ABORT_AWAY, ABORT_BUS, ABORT_IDENTITY, ABORT_MISCONFIG, ABORT_TABLES, ACT_ABORT, ACT_EMULATED, ACT_INJECT_GP,
    ACT_INJECT_PF, ACT_RETRY, INS_CLTS, INS_INVLPG, INS_LMSW, INS_MOV_FROM_CR, INS_MOV_TO_CR, INS_RDMSR, INS_WRMSR,
    Vcpu, vcpu_abort,
)
from fastmmu._vmx cimport (
    ENTRY_LONG_MODE, EXIT_CR_ACCESS, EXIT_EPT_MISCONFIG, EXIT_EPT_VIOLATION, EXIT_EXCEPTION, EXIT_INVLPG, EXIT_INVPCID,
    EXIT_PML_FULL, EXIT_RDMSR, EXIT_WRMSR, INTERRUPTION_GP, MSR_EFER, SECONDARY_PML, SECONDARY_VPID, secondary_control,
)

cdef uint64_t RESERVED = 8                      # bit of the error code


cdef int kvm_handle(Vcpu *v) noexcept nogil:
    cdef Kvm *kvm = <Kvm *> v.owner
    cdef int action
    if v.ept.pml_index != NULL:
        kvm_drain(kvm, v)
    modes_save(&kvm.modes, v)
    if kvm.irq != NULL:
        kvm_apic_begin(kvm.irq)
    if kvm.surfaced[v.vmcs.exit_reason]:
        action = kvm.surface(kvm.machine, v)
    else:
        action = kvm_default(kvm, v)
    if kvm.mmu.slots.ring.size and kvm.mmu.slots.ring.used >= kvm.mmu.slots.ring.room:
        kvm.mmu.counters.ring_full += 1         # an exit to user space, which reads the ring
        dirty_collect(&kvm.mmu)
        kvm_owed_flush(kvm, v)
    if kvm.irq != NULL:
        kvm_apic_end(kvm.irq, action)
    return action


cdef int kvm_default(Kvm *kvm, Vcpu *v) noexcept nogil:
    cdef uint64_t reason = v.vmcs.exit_reason
    cdef int action
    if v.event:
        return ACT_EMULATED
    if (reason == EXIT_WRMSR or reason == EXIT_RDMSR) and v.vmcs.operand == MSR_EFER:
        return emulate(kvm, v, INS_WRMSR if reason == EXIT_WRMSR else INS_RDMSR, 0, v.source)
    if kvm.irq != NULL:
        action = kvm_apic_exit(kvm.irq)
        if action != NOT_OF_APIC:
            return action
    if reason == EXIT_EXCEPTION:
        if v.vmcs.exit_interruption_info == INTERRUPTION_GP:
            return emulate(kvm, v, v.instruction, v.instruction_cr, v.source)
        return on_page_fault(kvm, v)
    if reason == EXIT_EPT_VIOLATION:
        return on_ept_violation(kvm, v)
    if reason == EXIT_CR_ACCESS:
        return on_cr_access(kvm, v)
    if reason == EXIT_INVLPG:
        return invalidate_page(kvm, v, v.vmcs.exit_qualification)
    if reason == EXIT_INVPCID:
        return on_invpcid(kvm, v)
    if reason == EXIT_EPT_MISCONFIG:
        return on_ept_misconfig(kvm, v)
    if reason == EXIT_PML_FULL:                 # the log was read at the exit, like at every other
        return ACT_RETRY
    return ACT_EMULATED                         # CPUID, external interrupt and the like: no state of ours changes


cdef void kvm_flush(Kvm *kvm, Vcpu *v) noexcept nogil:
    # tlb.md §7: of its context, or of all of them. Without VPID the transitions flush linear mappings; the one after
    # which user space was reached, and the VM entry to come.
    cdef int every = kvm.mmu.policy.modern
    if not kvm.shadow:
        v.c.invept += 1
        inv_invept(v.tlb, 1 + every, v.vmcs.eptp & FRAME)
    elif secondary_control(&v.vmcs, SECONDARY_VPID):
        v.c.invvpid += 1
        inv_invvpid(v.tlb, 1 + every, v.vmcs.vpid, 0)
    else:
        inv_transition(v.tlb, False)


cdef void kvm_moved(Kvm *kvm, Vcpu *v) noexcept nogil:
    # What it cached there before may be stale, and its VPID may have been another's.
    if kvm.less & LESS_MOVED:
        return
    if not kvm.mmu.policy.modern and not kvm.shadow and secondary_control(&v.vmcs, SECONDARY_VPID):
        v.c.invvpid += 1
        inv_invvpid(v.tlb, 1, v.vmcs.vpid, 0)
    kvm_flush(kvm, v)


cdef void flush_current(Vcpu *v) noexcept nogil:
    # Linear mappings are tagged by VPID alone, the hardware's PCID is 0 whatever the guest's: the old root's must go.
    if secondary_control(&v.vmcs, SECONDARY_VPID):
        v.c.invvpid += 1
        inv_invvpid(v.tlb, 1, v.vmcs.vpid, 0)


cdef void request_flushes(Kvm *kvm) noexcept nogil:
    # The other vCPUs flush before they enter the guest again; one that is in it is made to exit.
    cdef uint32_t i
    cdef Sibling *other
    kvm.remote_flushes += 1
    for i in range(kvm.n_siblings):
        other = &kvm.sibling[i]
        if i != kvm.running:
            kvm.flush_requests += 1
            other.request = True
            if other.in_guest and not other.kicked:
                other.kicked = True
                kvm.ipis += 1


cdef void kvm_owed_flush(Kvm *kvm, Vcpu *v) noexcept nogil:
    # the MMU took rights away: cached translations may be stale
    if not kvm.mmu.flush:
        return
    kvm.mmu.flush = False
    if not kvm.forgo & FORGO_TABLES:
        kvm_flush(kvm, v)
    if kvm.n_siblings > 1 and not kvm.less & LESS_REMOTE:
        request_flushes(kvm)


cdef void kvm_drain(Kvm *kvm, Vcpu *v) noexcept nogil:
    # the page-modification log into the dirty log
    if v.ept.pml_index == NULL or v.vmcs.pml_index == 511:
        return
    dirty_drain(&kvm.mmu, v.vmcs.pml_address, v.vmcs.pml_index)
    v.vmcs.pml_index = 511


cdef void kvm_arm(Kvm *kvm, Vcpu *v) noexcept nogil:
    # the processor logs while any slot is logged; each vCPU has its own index, and its log is read at every exit
    cdef int i
    cdef bint logged = False
    if not kvm.mmu.policy.pml:
        return
    for i in range(kvm.mmu.slots.n):
        logged = logged or kvm.mmu.slots.slot[i].dirty != NULL
    if logged and v.ept.pml_index == NULL:
        v.vmcs.pml_index = 511
    v.ept.pml_index = &v.vmcs.pml_index if logged else NULL
    v.ept.pml_base = v.vmcs.pml_address
    if logged:
        v.vmcs.secondary |= SECONDARY_PML
    else:
        v.vmcs.secondary &= ~SECONDARY_PML


cdef int kvm_reload(Kvm *kvm, Vcpu *v) noexcept nogil:
    # every table goes, the guest goes on with an empty root
    mmu_zap_all(&kvm.mmu)
    kvm_owed_flush(kvm, v)                      # while the old root is still in force
    if kvm.shadow:
        return kvm_load_root(kvm, v, kvm.guest.cr3)
    if mmu_set_root(&kvm.mmu, 0, True):
        return vcpu_abort(v, ABORT_TABLES, kvm.mmu.pool_end)
    v.ept.root = kvm.mmu.sp[kvm.mmu.root].hpa
    v.vmcs.eptp = (v.vmcs.eptp & 0xFFF) | v.ept.root
    return 0


cdef int out_of_tables(Kvm *kvm, Vcpu *v) noexcept nogil:
    # start over with empty tables; the access faults them in again
    return ACT_ABORT if kvm_reload(kvm, v) else ACT_RETRY


cdef int kvm_new_role(Kvm *kvm, Vcpu *v, const Paging *guest, const Paging *hardware) noexcept nogil:
    # registers of a shadowed guest other than CR3 are new: what they make of its tables has pages of its own
    cdef uint64_t cr3 = kvm.guest.cr3
    cdef uint8_t ac = v.hw.ac
    if (guest.smep != kvm.guest.smep or guest.smap != kvm.guest.smap or guest.wp != kvm.guest.wp
            or guest.nxe != kvm.guest.nxe):
        mmu_forget_roots(&kvm.mmu)              # Linux keeps none, whether or not the role is another
    kvm.guest = guest[0]
    v.hw = hardware[0]
    kvm.guest.ac = v.hw.ac = ac
    kvm.guest.write_ad = v.hw.write_ad = 1
    v.vmcs.vm_entry = v.vmcs.vm_entry & ~ENTRY_LONG_MODE | (ENTRY_LONG_MODE if v.hw.lma else 0)
    if kvm_load_root(kvm, v, cr3):
        return -1
    kvm.mmu.flush = True
    kvm_owed_flush(kvm, v)
    return 0


cdef int role_of(const Paging *guest, bint keys) noexcept nogil:
    # What the guest's registers make of its tables (kvm_policy.md §1). Linux leaves PSE and PAE out: a guest that turns
    # PSE off goes on with its 4 MB pages there.
    cdef int role
    if guest.mode == MODE_NONE:
        return 0
    role = (ROLE_NXE if guest.nxe else 0) | (ROLE_WP if guest.wp else 0)
    if keys and guest.lma:
        role |= ROLE_KEYS
    if guest.mode == MODE_32:
        role |= ROLE_4_BYTE | (ROLE_PSE if guest.large_ok[2] else 0)
    elif guest.mode == MODE_PAE:
        role |= ROLE_PAE
    if guest.wp:
        return role
    return role | (ROLE_SMEP if guest.smep else 0) | (ROLE_SMAP if guest.smap else 0)


cdef int shadow_root(Kvm *kvm, uint64_t cr3) noexcept nogil:
    # a guest whose addresses have 32 bits is shadowed by PAE tables: direct ones, four quadrants of its page directory,
    # or the page directories of its own PDPTEs
    cdef const Paging *guest = &kvm.guest
    cdef uint64_t gfn[4], i
    mmu_set_role(&kvm.mmu, role_of(guest, kvm.modes.keys), guest.levels if guest.levels >= 4 else PAE_LEVELS)
    if guest.levels >= 4:
        return mmu_set_root(&kvm.mmu, root_address(guest, cr3) >> 12, False)
    for i in range(4):
        if guest.mode == MODE_NONE:
            gfn[i] = i << 18
        elif guest.mode == MODE_32:
            gfn[i] = root_address(guest, cr3) >> 12
        else:
            gfn[i] = (guest.pdpte[i] & guest.frame) >> 12 if guest.pdpte[i] & P else ONES
    return mmu_set_pae_roots(&kvm.mmu, gfn, guest.mode == MODE_NONE)


cdef int kvm_load_root(Kvm *kvm, Vcpu *v, uint64_t cr3) noexcept nogil:
    # in sync with what the guest's tables say
    if set_root(kvm, v, cr3):
        return -1
    sync_roots(&kvm.mmu, &kvm.guest)
    return 0


cdef int set_root(Kvm *kvm, Vcpu *v, uint64_t cr3) noexcept nogil:
    # the shadow root of a guest CR3 and of its PDPTE registers, which the hardware uses in its place
    cdef int i
    if shadow_root(kvm, cr3):
        if not kvm.mmu.out_of_tables:
            return vcpu_abort(v, ABORT_BUS, cr3)
        mmu_zap_all(&kvm.mmu)
        if shadow_root(kvm, cr3):
            return vcpu_abort(v, ABORT_TABLES, kvm.mmu.pool_end)
    kvm.guest.cr3 = cr3
    kvm.guest.root = root_address(&kvm.guest, cr3)
    if kvm.mmu.root_level == PAE_LEVELS:
        v.hw.root = v.hw.cr3 = kvm.mmu.pdpt
        for i in range(4):
            v.hw.pdpte[i] = mem_read64(kvm.mmu.mem, kvm.mmu.pdpt + 8 * i)
    else:
        kvm.mmu.root_pcid = v.hw.pcid = cr3 & 0xFFF if v.hw.pcid_on else 0
        v.hw.root = kvm.mmu.sp[kvm.mmu.root].hpa
        v.hw.cr3 = v.hw.root | v.hw.pcid
    return 0


# ---- shadow paging ----------------------------------------------------------------------------------------

cdef inline int access_of(uint64_t error_code) noexcept nogil:
    return ACC_W if error_code & 2 else ACC_X if error_code & 16 else ACC_R


cdef int invalidate_page(Kvm *kvm, Vcpu *v, uint64_t la) noexcept nogil:
    # below every root that is kept, whichever PCID the guest has for it
    shadow_invlpg(&kvm.mmu, &kvm.guest, la)
    kvm_owed_flush(kvm, v)
    if (not kvm.forgo & FORGO_INVLPG and secondary_control(&v.vmcs, SECONDARY_VPID)
            and reachable(la, v.hw.la_bits)):
        v.c.invvpid += 1
        inv_invvpid(v.tlb, 0, v.vmcs.vpid, la)
    return ACT_EMULATED


cdef int on_invpcid(Kvm *kvm, Vcpu *v) noexcept nogil:
    # tlb.md §4: type 0 one page, 1 one PCID, 2 and 3 all of them
    cdef uint32_t type = v.instruction_cr
    if type == 0 and kvm.mmu.policy.modern:
        return invalidate_page(kvm, v, v.source)
    sync_roots(&kvm.mmu, &kvm.guest)
    mmu_forget_previous(&kvm.mmu, <int> v.invpcid_pcid if type == 1 else -1)
    kvm.mmu.flush = True
    kvm_owed_flush(kvm, v)
    return ACT_EMULATED


cdef int on_page_fault(Kvm *kvm, Vcpu *v) noexcept nogil:
    cdef Walk w
    cdef uint64_t code = v.vmcs.exit_interruption_error, la = v.vmcs.exit_qualification, known = ONES
    cdef int result, action
    kvm.guest.user = code >> 2 & 1
    kvm.guest.ac = v.hw.ac
    kvm.guest.implicit = v.hw.implicit
    kvm.guest.pkr_user = v.hw.pkr_user
    if code & RESERVED:                         # the VMM's own mark (kvm_policy.md §4.4)
        known = marked(kvm, la)
    result = shadow_fault(&kvm.mmu, &kvm.guest, la, access_of(code), code & 1, known, &w)
    if result == SHADOW_NO_TABLES:
        return out_of_tables(kvm, v)
    if result == SHADOW_REFLECT:
        v.c.pf_guest += 1
        v.cr2 = la
        v.error_code = w.error_code
        if w.error_code & 1 and not w.error_code & RESERVED:
            shadow_drop(&kvm.mmu, &kvm.guest, la)       # like the processor, which drops the translation that denied
            kvm_owed_flush(kvm, v)
        return ACT_INJECT_PF
    if result == SHADOW_BUS:
        vcpu_abort(v, ABORT_BUS, w.gpa)
        return ACT_ABORT
    action = retry(kvm, v, w.gpa) if result == SHADOW_RETRY else ACT_RETRY
    if result == SHADOW_FIXED:
        v.c.pf_fixed += 1
    elif result == SHADOW_SPURIOUS:
        v.c.pf_spurious += 1
    elif result != SHADOW_RETRY:
        action = ACT_EMULATED
        v.emulated = w.gpa
        if result == SHADOW_MMIO:
            v.c.mmio += 1
        else:
            v.c.pf_emulate += 1
            emulate_store(kvm, v, w.gpa)
    kvm_owed_flush(kvm, v)
    return action


cdef int retry(Kvm *kvm, Vcpu *v, uint64_t gpa) noexcept nogil:
    # the fault begins anew; where the host is not done yet only its end can let the guest go on
    cdef Slot *slot = slot_of(&kvm.mmu.slots, gpa >> 12)
    if slot == NULL or not slot_away(slot, gpa >> 12):
        return ACT_RETRY
    vcpu_abort(v, ABORT_AWAY, gpa)
    return ACT_ABORT


cdef uint64_t marked(Kvm *kvm, uint64_t address) noexcept nogil:
    # the gfn that the tables mark as one without memory; all ones: there is no such mark, or one of an older layout
    cdef uint32_t owner = 0
    cdef uint64_t index = 0, entry = find_entry(&kvm.mmu, address, &owner, &index)
    if not spte_is_mmio(kvm.mmu.format, entry) or not spte_mmio_current(entry, kvm.mmu.slots.generation):
        return ONES
    return (entry & FRAME & ~MMIO_RESERVED) >> 12


cdef void emulate_store(Kvm *kvm, Vcpu *v, uint64_t gpa) noexcept nogil:
    # the store into a shadowed table, and what it makes of the shadow entries
    cdef Slot *slot = slot_of(&kvm.mmu.slots, gpa >> 12)
    if slot != NULL:
        host_wrote(&kvm.mmu, slot, gpa >> 12)
        mark_dirty(slot, gpa >> 12)
    if 0 < v.store_bytes <= 16 and (gpa & 0xFFF) + v.store_bytes <= 4096:
        if mem_holds(&kvm.mmu.guest, gpa, v.store_bytes):
            memcpy(kvm.mmu.guest.base + gpa, &v.store_value, min(v.store_bytes, 8))
            if v.store_bytes > 8:
                memcpy(kvm.mmu.guest.base + gpa + 8, &v.store_high, v.store_bytes - 8)
        guest_wrote(&kvm.mmu, gpa, v.store_bytes)
    else:
        if v.store_bytes == 4096:
            memset(kvm.mmu.guest.base + (gpa & ~(<uint64_t> 0xFFF)), 0, 4096)
        guest_wrote(&kvm.mmu, gpa & ~(<uint64_t> 0xFFF), 4096)


cdef int load_cr3(Kvm *kvm, Vcpu *v, const Registers *new, bint no_flush) noexcept nogil:
    # MOV to CR3, which exits where CR3 is the VMM's: under shadow paging, and while a guest over EPT does not page.
    # Where the guest flushes nothing and the root is one of those kept, neither does the VMM: what may be stale then is
    # what may be stale without it.
    cdef bint flushes
    cdef bint kept = (no_flush and v.hw.pcid_on
                      and mmu_root_kept(&kvm.mmu, root_address(&kvm.guest, new.cr3) >> 12, new.cr3 & 0xFFF))
    v.arch = new[0]
    if not kvm.shadow:                          # the value counts when paging is on again
        return ACT_ABORT if kvm_registers(kvm, v) else ACT_EMULATED
    memcpy(kvm.guest.pdpte, new.pdpte, sizeof(new.pdpte))
    if set_root(kvm, v, new.cr3):
        return ACT_ABORT
    if not kept:
        sync_roots(&kvm.mmu, &kvm.guest)
    if v.hw.pcid_on and not no_flush:
        mmu_forget_previous(&kvm.mmu, v.hw.pcid)
    flushes = kvm.mmu.flush and not kvm.forgo & FORGO_TABLES
    if kvm.mmu.flush:                           # tables had to go, or were brought in sync
        kvm_owed_flush(kvm, v)
    if not flushes and not kept and not kvm.forgo & FORGO_REGISTERS:
        flush_current(v)
    return ACT_EMULATED


# ---- registers ----------------------------------------------------------------------------------------------

cdef int kvm_registers(Kvm *kvm, Vcpu *v) noexcept nogil:
    # the guest's registers, v.arch, are new: hardware state and controls, and under shadow paging the root
    cdef Registers registers
    cdef Paging guest, hardware
    if modes_load(&kvm.modes, v):
        return vcpu_abort(v, ABORT_IDENTITY, v.arch.cr0)
    if not kvm.shadow:
        return 0
    modes_shadow(&kvm.modes, &v.arch, &registers)
    paging_of(&v.arch, &guest)
    paging_of(&registers, &hardware)
    kvm.guest.cr3 = v.arch.cr3
    return kvm_new_role(kvm, v, &guest, &hardware)


cdef int adopt(Kvm *kvm, Vcpu *v, const Registers *new) noexcept nogil:
    # CR0, CR4 or EFER has changed. Under EPT: what the old registers made of linear addresses is cached (tlb.md §7).
    cdef Registers old = v.arch
    cdef uint64_t cr4 = old.cr4 ^ new.cr4
    if kvm.shadow and cr4 & (CR4_PGE | CR4_PCIDE):
        sync_every_root(&kvm.mmu, &kvm.guest)   # a new role has pages of its own
    v.arch = new[0]
    if kvm_registers(kvm, v):
        return ACT_ABORT
    if (old.cr0 ^ new.cr0) & CR0_CD:
        kvm.mmu.uncached = new.cr0 & CR0_CD != 0
        if kvm.mmu.noncoherent and not kvm.mmu.ignore_cd and kvm_reload(kvm, v):
            return ACT_ABORT
    if kvm.shadow:
        return ACT_EMULATED
    if (old.cr0 ^ new.cr0) & CR0_PG or cr4 & CR4_PAE or cr4 & new.cr4 & CR4_SMEP:
        v.c.invept += 1
        inv_invept(v.tlb, 1, v.vmcs.eptp & FRAME)
    elif cr4 & CR4_PGE or cr4 & old.cr4 & CR4_PCIDE:
        flush_current(v)
    return ACT_EMULATED


cdef int read_pdptes(Kvm *kvm, Vcpu *v, Registers *new) noexcept nogil:
    # RULE_NONE, a rule, or -1 where they lie outside memory
    cdef uint64_t loaded[4]
    cdef uint64_t at = mmu_hpa(&kvm.mmu, new.cr3 & 0xFFFFFFE0U)
    cdef int i
    if at == ONES or not mem_holds(v.mem, at, sizeof(loaded)):
        vcpu_abort(v, ABORT_BUS, new.cr3)
        return -1
    for i in range(4):
        loaded[i] = mem_read64(v.mem, at + 8 * i)
    return registers_pdptes(new, loaded)


cdef int emulate(Kvm *kvm, Vcpu *v, uint32_t instruction, uint32_t cr, uint64_t source) noexcept nogil:
    # an instruction on a control register or EFER, on the guest's own registers
    cdef Registers *a = &v.arch
    cdef Registers new = v.arch
    cdef int rule = RULE_NONE
    if instruction == INS_MOV_FROM_CR:
        v.result = a.cr0 if cr == 0 else a.cr3 if cr == 3 else a.cr4
        return ACT_EMULATED
    if instruction == INS_RDMSR:
        v.result = a.efer
        return ACT_EMULATED
    if instruction == INS_INVLPG:
        if secondary_control(&v.vmcs, SECONDARY_VPID):
            v.c.invvpid += 1
            inv_invvpid(v.tlb, 0, v.vmcs.vpid, source)
        return ACT_EMULATED
    if instruction == INS_WRMSR:
        rule = registers_efer(a, source, &new)
    elif instruction == INS_CLTS:
        rule = registers_cr0(a, a.cr0 & ~<uint64_t> CR0_TS, &new)
    elif instruction == INS_LMSW:
        rule = registers_cr0(a, registers_lmsw(a, source), &new)
    elif instruction != INS_MOV_TO_CR:
        return ACT_EMULATED
    elif cr == 0:
        rule = registers_cr0(a, source, &new)
    elif cr == 3:
        rule = registers_cr3(a, source, &new)
    elif cr == 4:
        rule = registers_cr4(a, source, &new)
        if source & CR4_VMXE:                   # no VMM in the guest
            rule = RULE_CR4_RESERVED
        elif not rule and kvm.shadow and not kvm.modes.keys and new.cr4 & (CR4_PKE | CR4_PKS):
            rule = RULE_CR4_NOT_OFFERED
    cr = cr if instruction == INS_MOV_TO_CR else 0
    if not rule and (pae_paging(&new) if cr == 3 else registers_load_pdptes(a, &new)):
        rule = read_pdptes(kvm, v, &new)
        if rule < 0:
            return ACT_ABORT
    if rule:
        v.rule = rule
        return ACT_INJECT_GP
    if cr == 3:
        return load_cr3(kvm, v, &new, a.cr4 & CR4_PCIDE != 0 and source & CR3_NO_FLUSH != 0)
    return adopt(kvm, v, &new)


cdef int on_cr_access(Kvm *kvm, Vcpu *v) noexcept nogil:
    # vmx.md §5.1: what the qualification says
    cdef uint64_t q = v.vmcs.exit_qualification
    cdef int type = q >> 4 & 3
    if type == 3:
        return emulate(kvm, v, INS_LMSW, 0, q >> 16 & 0xFFFF)
    return emulate(kvm, v, INS_CLTS if type == 2 else INS_MOV_FROM_CR if type == 1 else INS_MOV_TO_CR, q & 15,
                   v.vmcs.operand)


# ---- EPT --------------------------------------------------------------------------------------------------

cdef int on_ept_violation(Kvm *kvm, Vcpu *v) noexcept nogil:
    cdef Fault f
    cdef uint64_t dirty = kvm.mmu.counters.dirty_faults, code = v.vmcs.exit_qualification
    cdef int result
    f.la = f.gpa = v.vmcs.guest_physical_address
    f.write = code >> 1 & 1
    f.fetch = code >> 2 & 1
    f.present = code >> 3 & 7 != 0
    result = map_direct(&kvm.mmu, &f)
    if result == FILL_NO_TABLES:
        return out_of_tables(kvm, v)
    if result == FILL_NO_SLOT or result == FILL_READ_ONLY:
        if not code & QUAL_TRANSLATED:          # a paging structure of the guest, not its data
            vcpu_abort(v, ABORT_BUS, v.vmcs.guest_linear_address)
            return ACT_ABORT
        v.emulated = f.gpa
        v.c.mmio += 1
        kvm_owed_flush(kvm, v)
        return ACT_EMULATED
    if result == FILL_MAPPED:
        if kvm.mmu.counters.dirty_faults == dirty:
            v.c.ept_build += 1
    elif result != FILL_FAST and result != FILL_RETRY:
        v.c.ept_spurious += 1
    kvm_owed_flush(kvm, v)
    return retry(kvm, v, f.gpa) if result == FILL_RETRY else ACT_RETRY


cdef int on_ept_misconfig(Kvm *kvm, Vcpu *v) noexcept nogil:
    cdef Fault f
    cdef int action
    f.la = f.gpa = v.vmcs.guest_physical_address
    f.write = f.fetch = f.present = False
    if marked(kvm, f.gpa) != ONES:
        v.emulated = f.gpa
        v.c.mmio += 1
        return ACT_EMULATED
    action = map_direct(&kvm.mmu, &f) if kvm.mmu.policy.mmio_caching else FILL_UNCHANGED
    kvm_owed_flush(kvm, v)
    if action == FILL_NO_SLOT:                  # marked anew
        v.emulated = f.gpa
        v.c.mmio += 1
        return ACT_EMULATED
    if action == FILL_UNCHANGED:
        vcpu_abort(v, ABORT_MISCONFIG, f.gpa)   # nobody made this entry
        return ACT_ABORT
    return retry(kvm, v, f.gpa) if action == FILL_RETRY else ACT_RETRY  # memory by now


# ---- premapped runs ---------------------------------------------------------------------------------------

cdef int kvm_premap(Kvm *kvm, Vcpu *v, uint64_t la, const Walk *w) noexcept nogil:
    # the VMM's part of what a premapped run finds in place: ACT_INJECT_PF where the guest's own table lacks it,
    # ACT_EMULATED where there is nothing to map, so that the access exits as ever: MMIO
    cdef Walk guest
    cdef Fault f
    cdef int result
    if w.fault == FAULT_EPT_VIOLATION:
        f.la = f.gpa = w.gpa
        f.write = f.fetch = f.present = False
        result = map_direct(&kvm.mmu, &f)
        kvm.mmu.flush = False
        if result == FILL_NO_TABLES:
            return out_of_tables(kvm, v)
        if result == FILL_NO_SLOT and w.qual & QUAL_TRANSLATED:
            return ACT_EMULATED
        if result == FILL_NO_SLOT:
            vcpu_abort(v, ABORT_BUS, w.gpa)
            return ACT_ABORT
        return ACT_RETRY
    if w.fault == FAULT_EPT_MISCONFIG:
        return ACT_EMULATED
    if w.fault != FAULT_PF:
        vcpu_abort(v, ABORT_BUS, w.gpa)
        return ACT_ABORT
    if not kvm.shadow:
        return ACT_INJECT_PF
    if w.error_code & RESERVED:
        return ACT_EMULATED
    kvm.guest.user = w.error_code >> 2 & 1
    kvm.guest.ac = v.hw.ac
    result = shadow_fault(&kvm.mmu, &kvm.guest, la, access_of(w.error_code), w.error_code & 1, ONES,
                          &guest)
    kvm.mmu.flush = False
    if result == SHADOW_NO_TABLES:
        return out_of_tables(kvm, v)
    if result == SHADOW_REFLECT:
        return ACT_INJECT_PF
    if result == SHADOW_FIXED or result == SHADOW_SPURIOUS:
        return ACT_RETRY
    if result == SHADOW_MMIO:
        return ACT_EMULATED
    vcpu_abort(v, ABORT_BUS, guest.gpa)
    return ACT_ABORT
