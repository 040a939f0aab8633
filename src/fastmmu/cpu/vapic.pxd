# APIC virtualization by the processor: TPR shadow, APIC-access page, virtual-interrupt delivery, x2APIC MSRs, posted
# interrupts (apic.md §3, §4, §6, §7).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.vmx cimport Vmcs

cdef enum VapicOutcome:
    VAPIC_DONE = 0              # data: what it read
    VAPIC_TRAP = 1              # VM exit after the operation, which has taken effect: reason, qualification
    VAPIC_EXIT = 2              # VM exit in place of the operation
    VAPIC_GP = 3                # #GP(0)
    VAPIC_PASS = 4              # not virtualized: memory, the physical APIC or its MSRs

cdef enum ApicAccessKind:       # bits 15:12 of the qualification of exit 44
    LINEAR_READ = 0
    LINEAR_WRITE = 1
    LINEAR_FETCH = 2
    LINEAR_EVENT = 3
    PHYSICAL_EVENT = 10
    PHYSICAL_OTHER = 15

cdef struct Vapic:
    uint8_t *page               # the virtual-APIC page, 4096 bytes
    bint tpr_shadow, accesses, x2apic, registers, delivery      # controls in force
    bint window_exiting, cr8_load_exiting, cr8_store_exiting
    uint8_t threshold           # bits 3:0
    uint8_t rvi, svi, vppr
    bint pending                # a virtual interrupt is recognized
    uint64_t eoi_exit[4]
    uint32_t reason             # of VAPIC_TRAP, VAPIC_EXIT
    uint64_t qualification
    uint64_t data

cdef void vapic_controls(Vapic *a, const Vmcs *v) noexcept nogil
cdef bint vapic_entered(Vapic *a) noexcept nogil
cdef int vapic_deliver(Vapic *a) noexcept nogil
cdef void vapic_posted(Vapic *a, uint64_t *descriptor) noexcept nogil
cdef void vapic_evaluate(Vapic *a) noexcept nogil
cdef int vapic_read_cr8(Vapic *a, int reg) noexcept nogil
cdef int vapic_write_cr8(Vapic *a, uint64_t value, int reg) noexcept nogil
cdef int vapic_read(Vapic *a, uint32_t offset, uint32_t size, bint event) noexcept nogil
cdef int vapic_write(Vapic *a, uint32_t offset, uint32_t size, uint64_t value, bint event) noexcept nogil
cdef int vapic_modify(Vapic *a, uint32_t offset, uint32_t size, uint64_t value) noexcept nogil
cdef int vapic_other(Vapic *a, uint32_t offset, int kind) noexcept nogil
cdef int vapic_rdmsr(Vapic *a, uint32_t msr) noexcept nogil
cdef int vapic_wrmsr(Vapic *a, uint32_t msr, uint64_t value) noexcept nogil
