# The interrupt side of a vCPU: how the guest reaches its local APIC, and how interrupts reach the guest.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu._apic cimport Apic
from fastmmu._patch cimport Patch
from fastmmu._vapic cimport Vapic
from fastmmu._vcpu cimport Vcpu

cdef enum TprWay:               # who handles the TPR, apic.md §2-§6
    WAY_TRAP = 0                # every access of the page exits and is emulated
    WAY_PATCH = 1               # and the instruction is replaced by a call, so that it exits no more
    WAY_FLEXPRIORITY = 2        # TPR shadow and APIC-access page
    WAY_APICV = 3               # and register virtualization, virtual-interrupt delivery, posted interrupts

cdef enum ThresholdRule:        # apic.md §5
    RULE_KVM = 0
    RULE_SLIDES = 1

cdef enum GuestHandler:         # what the guest does when an interrupt is delivered
    HANDLER_EOI = 0             # end of interrupt, nothing else
    HANDLER_IRQL = 1            # raises the TPR to the class of the vector, ends the interrupt, restores the TPR

cdef extern from *:
    """
    #define FM_APIC_BASE 0xFEE00000ULL
    """
    const uint64_t APIC_BASE "FM_APIC_BASE"     # guest-physical

cdef struct ApicCounters:       # Python name of each: apic_… in fastmmu.Result.counters
    uint64_t reads, writes      # of registers, by page, CR8 or MSR
    uint64_t tpr_reads, tpr_writes
    uint64_t requested          # interrupts that arrived
    uint64_t delivered          # handlers that the guest ran
    uint64_t posted             # that arrived without a VM exit
    uint64_t latency            # accesses of the trace between arrival and delivery, summed
    uint64_t latency_max
    uint64_t spurious           # TPR-below-threshold exits after which nothing could be injected
    uint64_t spurious_in_service    # of these: an interrupt in service blocked the one that waits
    uint64_t spurious_if        # of these: RFLAGS.IF was 0
    uint64_t emulated           # register accesses that the VMM emulated
    uint64_t patched, polls     # sites replaced, hypercalls of the replacements

cdef struct Delivery:
    uint32_t vector
    uint64_t at                 # accesses of the trace until then

cdef struct Interrupts:
    Vcpu *v
    Vapic virt                  # of the processor
    Apic apic                   # the registers: the VMM's model of the APIC; without a VMM the physical one
    Patch patch
    int way                     # TprWay
    int rule                    # ThresholdRule
    int handler                 # GuestHandler
    bint tpr_shadow             # the processor has one: CR8 and the MSR of the TPR need no exits
    uint64_t la                 # linear address at which the guest sees the page
    bint interrupts_on          # RFLAGS.IF
    bint x2apic                 # the guest's APIC is in x2APIC mode
    bint posting                # posted interrupts are on
    bint request_event          # KVM_REQ_EVENT: look for an interrupt to inject before the next VM entry
    bint below                  # the exit under way is one of TPR below threshold
    int inject                  # vector that the last VM entry injected, -1 none
    int arriving                # vector that arrives with the exit under way
    bint arriving_level
    uint16_t rtc_vector         # in the I/O APIC's entry of the real-time clock, whose EOI KVM always wants to see
    uint64_t descriptor[8]      # posted-interrupt descriptor
    uint64_t value              # read last
    uint64_t now                # accesses of the trace so far
    uint64_t arrival[256]       # [vector] when it arrived
    Delivery *log
    uint64_t log_n, log_room
    ApicCounters c
    uint8_t own_page[4096]      # registers, without a VMM

cdef void irq_init(Interrupts *irq, Vcpu *v, uint8_t *page) noexcept nogil
cdef void irq_free(Interrupts *irq) noexcept nogil
cdef int irq_mmio(Interrupts *irq, uint32_t offset, uint32_t size, bint write, uint64_t value) noexcept nogil
cdef int irq_cr8(Interrupts *irq, bint write, uint64_t value) noexcept nogil
cdef int irq_msr(Interrupts *irq, uint32_t msr, bint write, uint64_t value) noexcept nogil
cdef int irq_flag(Interrupts *irq, bint on) noexcept nogil
cdef int irq_arrive(Interrupts *irq, uint8_t vector, bint level, uint32_t reason) noexcept nogil
cdef int irq_event(Interrupts *irq, int op, uint64_t addr) noexcept nogil
cdef int irq_boundary(Interrupts *irq) noexcept nogil
cdef void irq_accept(Interrupts *irq, uint8_t vector, bint level) noexcept nogil
