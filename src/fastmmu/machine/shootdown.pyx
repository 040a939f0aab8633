"""TLB shootdown: the guest kernel makes other vCPUs flush (arch/x86/mm/tlb.c, arch/x86/kernel/kvm.c of Linux 6.1).

    rights taken away ──► flush here ──► generation + 1 ──► vCPUs that have the address space loaded
                                                              │ lazy: nothing; it compares generations when it wakes
                                                              ├── IPI ──► owed, before its next instruction
                                                              ├── PV, preempted ──► the VMM flushes at its VM entry
                                                              └── INVLPGB ──► flushed, without being told

A vCPU has the bit of an address space (mm_cpumask) as long as its tables are loaded. One vCPU runs at a time: the
others carry out what they owe before their next instruction, which nobody can tell from at once; and the one that waits
for their answers goes on. Their own generations are what they would be by then.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.ops cimport OP_IPI
from fastmmu.cpu.apic cimport APIC_SVR, apic_put, apic_word
from fastmmu.cpu.apic_access cimport irq_event
from fastmmu.cpu.control cimport vcpu_invlpg, vcpu_mov_cr3
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.vcpu cimport DONE_ABORT, DONE_OK, Vcpu
from fastmmu.kvm.kvm cimport OUTSIDE_GUEST_MODE, REQ_STEAL_UPDATE, Kvm, KvmVcpu, to_kvm_vcpu
from fastmmu.kvm.requests cimport kvm_make_request
from fastmmu.machine.kernel_state cimport NO_PROCESS, PCIDS, SHOOT_INVLPGB, SHOOT_PV, GuestCpu, GuestKernel, OwedFlush
from fastmmu.tlb.invalidate cimport inv_invlpg, inv_mov_cr3

cdef enum:
    CALL_FUNCTION = 0xFC        # vectors of Linux: to several vCPUs, to one
    CALL_FUNCTION_SINGLE = 0xFB
    SVR_RESET = 0xFF
    INVLPGB_PAGES = 8           # by one INVLPGB; CPUID Fn8000_0008_EDX[15:0] + 1 of Zen 3 and later


cdef inline uint32_t pcid_of(const GuestKernel *k, uint64_t process) noexcept nogil:
    return process % 4095 + 1 if k.pcid else 0


# ---- vCPUs ------------------------------------------------------------------------------------------------

cdef int shoot_new_cpu(GuestKernel *k, uint32_t index) noexcept nogil:
    # one begins: none of its translations is cached anywhere
    cdef void *grown
    cdef GuestCpu *cpu
    if index >= k.n_cpus:
        grown = realloc(k.cpu, (index + 1) * sizeof(GuestCpu *))
        if grown == NULL:
            return -1
        k.cpu = <GuestCpu **> grown
        memset(&k.cpu[k.n_cpus], 0, (index + 1 - k.n_cpus) * sizeof(GuestCpu *))
        k.n_cpus = index + 1
    if k.cpu[index] == NULL:
        k.cpu[index] = <GuestCpu *> calloc(1, sizeof(GuestCpu))
        if k.cpu[index] == NULL:
            return -1
    cpu = k.cpu[index]
    cpu.online = cpu.lazy = cpu.overflow = False
    cpu.process = NO_PROCESS
    cpu.n = 0
    if k.pcid:
        zeroed_free(cpu.pcid_owner)
        zeroed_free(cpu.pcid_generation)
        cpu.pcid_owner = <uint32_t *> zeroed(PCIDS, sizeof(uint32_t))
        cpu.pcid_generation = <uint64_t *> zeroed(PCIDS, sizeof(uint64_t))
        if cpu.pcid_owner == NULL or cpu.pcid_generation == NULL:
            return -1
        memset(cpu.pcid_owner, 0xFF, PCIDS * sizeof(uint32_t))      # NO_PROCESS
    return 0


cdef void shoot_free(GuestKernel *k) noexcept nogil:
    cdef uint32_t i
    for i in range(k.n_cpus):
        if k.cpu[i] != NULL:
            zeroed_free(k.cpu[i].pcid_owner)
            zeroed_free(k.cpu[i].pcid_generation)
            free(k.cpu[i].owed)
            free(k.cpu[i])
    free(k.cpu)


cdef void shoot_leave(GuestKernel *k, GuestCpu *cpu) noexcept nogil:
    # the kernel's own tables are loaded there; what a PCID keeps is as old as it is
    if k.pcid and cpu.process != NO_PROCESS:
        cpu.pcid_generation[pcid_of(k, cpu.process)] = cpu.generation
    cpu.process = NO_PROCESS


cdef bint shoot_loaded(GuestKernel *k, uint64_t process) noexcept nogil:
    # switch_mm_irqs_off, choose_new_asid: what a PCID has kept is good if no flush was due since
    cdef GuestCpu *me = k.here
    cdef uint32_t pcid = pcid_of(k, process)
    cdef bint good = False
    shoot_leave(k, me)
    if k.pcid:
        if me.pcid_owner[pcid] == process:      # else it still tags translations of another process
            good = me.pcid_generation[pcid] == k.generation[process]
            k.c.late_flushes += not good
        me.pcid_owner[pcid] = process
    me.online = True
    me.lazy = False
    me.process = process
    me.generation = k.generation[process]
    return good


# ---- what a vCPU owes -------------------------------------------------------------------------------------

cdef void owe(GuestCpu *to, const OwedFlush *flush) noexcept nogil:
    cdef void *grown
    if to.n == to.room:
        grown = realloc(to.owed, (2 * to.room + 8) * sizeof(OwedFlush))
        if grown == NULL:
            to.overflow = True
            return
        to.owed = <OwedFlush *> grown
        to.room = 2 * to.room + 8
    to.owed[to.n] = flush[0]
    to.n += 1


cdef int shoot_flush(GuestKernel *k) noexcept nogil:
    # more pages than are worth an INVLPG each: CR3 is loaded again, with the flush
    k.c.cr3_flushes += 1
    k.v.c.cr3_switches -= 1                     # which it counts as one
    return vcpu_mov_cr3(k.v, k.root[k.current[0]] | pcid_of(k, k.current[0]))


cdef int flush_range(GuestKernel *k, uint64_t la, uint64_t pages, uint32_t shift) noexcept nogil:
    cdef uint64_t i
    if not pages:
        return shoot_flush(k)
    for i in range(pages):
        if vcpu_invlpg(k.v, la + (i << shift)):
            return DONE_ABORT
    return DONE_OK


cdef int shoot_serve(GuestKernel *k) noexcept nogil:
    # flush_tlb_func, once for each interrupt. Where interrupts are off it is done all the same: no program runs then
    cdef GuestCpu *me = k.here
    cdef uint32_t i, n = me.n
    cdef OwedFlush *flush
    me.n = 0
    k.c.shootdown_interrupts += n
    for i in range(n):
        flush = &me.owed[i]
        if not flush.leave and flush_range(k, flush.la, flush.pages, flush.shift):
            return DONE_ABORT
    if me.overflow:
        me.overflow = False
        return shoot_flush(k)
    return DONE_OK


# ---- the one that shoots ----------------------------------------------------------------------------------

cdef int shoot_down(GuestKernel *k, uint32_t process, uint64_t la, uint64_t pages, uint32_t shift,
                    bint freed_tables) noexcept nogil:
    # flush_tlb_mm_range; here where the process runs here, else its generation says so when it does
    cdef Kvm *kvm = to_kvm_vcpu(k.v).kvm
    if pages > k.flush_ceiling:
        pages = 0
    if process == k.current[0] and flush_range(k, la, pages, shift):
        return DONE_ABORT
    k.generation[process] += 1
    if process == k.current[0]:
        k.here.generation = k.generation[process]
    if kvm.n_vcpus == 1 or k.omit_shootdown:
        return DONE_OK
    if k.shootdown == SHOOT_INVLPGB:
        broadcast(k, kvm, process, la, pages, shift)
        return DONE_OK
    return interrupt_others(k, kvm, choose(k, kvm, process, la, pages, shift, freed_tables))


cdef uint32_t choose(GuestKernel *k, Kvm *kvm, uint32_t process, uint64_t la, uint64_t pages, uint32_t shift,
                     bint freed_tables) noexcept nogil:
    # number of vCPUs to interrupt (flush_tlb_multi; kvm_flush_tlb_multi)
    cdef uint32_t i, n = 0
    cdef uint64_t generation = k.generation[process]
    cdef KvmVcpu *vcpu
    cdef GuestCpu *to
    cdef OwedFlush flush
    cdef bint any = False
    for i in range(kvm.n_vcpus):
        vcpu = kvm.vcpu[i]
        to = k.cpu[vcpu.index]
        to.chosen = False
        if to == k.here or not to.online or to.process != process:
            continue
        if to.lazy and not freed_tables:
            k.c.shootdown_lazy += 1
            continue
        any = True
        if k.shootdown == SHOOT_PV and vcpu.mode == OUTSIDE_GUEST_MODE:
            # KVM_VCPU_FLUSH_TLB beside KVM_VCPU_PREEMPTED; its generation stays: the guest does not know when
            k.c.shootdown_marked += 1
            kvm_make_request(vcpu, REQ_STEAL_UPDATE)
            continue
        # its own flush is of the range where it has missed none before
        flush.la, flush.shift, flush.leave = la, shift, to.lazy
        flush.pages = pages if to.generation + 1 == generation else 0
        owe(to, &flush)
        if not to.lazy:
            to.generation = generation
        else:                                   # it flushes nothing, and has the tables no more
            shoot_leave(k, to)
        to.chosen = True
        k.c.shootdown_preempted += vcpu.mode == OUTSIDE_GUEST_MODE
        n += 1
    k.c.shootdowns += any
    k.c.shootdown_ipis += n
    return n


cdef int interrupt_others(GuestKernel *k, Kvm *kvm, uint32_t n) noexcept nogil:
    # each by its number, as where there are more than 8; without an APIC an IPI takes no VM exit
    cdef Interrupts *irq = to_kvm_vcpu(k.v).irq
    cdef Interrupts *other
    cdef uint64_t vector = CALL_FUNCTION_SINGLE if n == 1 else CALL_FUNCTION
    cdef uint32_t i
    cdef int outcome
    if irq == NULL or not n:
        return DONE_OK
    for i in range(kvm.n_vcpus):
        if not k.cpu[kvm.vcpu[i].index].chosen:
            continue
        other = kvm.vcpu[i].irq
        if apic_word(other.apic.page, APIC_SVR) == SVR_RESET:   # the boot has enabled it
            apic_put(other.apic.page, APIC_SVR, SVR_RESET | 0x100)
        outcome = irq_event(irq, OP_IPI, <uint64_t> other.patch.cpu << 32 | vector)
        if outcome:
            return outcome
    return DONE_OK


cdef void broadcast(GuestKernel *k, Kvm *kvm, uint32_t process, uint64_t la, uint64_t pages,
                    uint32_t shift) noexcept nogil:
    # INVLPGB and TLBSYNC (APM vol. 3): on every processor, lazy or preempted, for the PCID; of a guest as if KVM gave
    # all vCPUs of a VM one ASID
    cdef uint32_t pcid = pcid_of(k, process), asid, i
    cdef uint64_t generation = k.generation[process], page
    cdef GuestCpu *to
    cdef Vcpu *v
    cdef bint any = False
    for i in range(kvm.n_vcpus):
        v = &kvm.vcpu[i].cpu
        to = k.cpu[kvm.vcpu[i].index]
        if to == k.here or not to.online:
            continue
        asid = v.vmcs.vpid if v.guest else 0
        if not pages:
            inv_mov_cr3(v.tlb, asid, pcid)
        for page in range(pages):
            inv_invlpg(v.tlb, asid, pcid, la + (page << shift))
        if to.process == process:
            any = True
            to.generation = generation
        elif k.pcid and to.pcid_owner[pcid] == process and to.pcid_generation[pcid] + 1 == generation:
            any = True
            to.pcid_generation[pcid] = generation
    if any:
        k.c.shootdowns += 1
        k.c.invlpgbs += (pages + INVLPGB_PAGES - 1) // INVLPGB_PAGES if pages else 1
        k.c.tlbsyncs += 1
