# The interrupt side of a vCPU: how the guest reaches its local APIC, and how interrupts reach the guest.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu.arch.vmx cimport PRIMARY_INTERRUPT_WINDOW
from fastmmu.cpu.apic cimport Apic, Ipi
from fastmmu.cpu.tpr_patch cimport Patch
from fastmmu.cpu.vapic cimport Vapic
from fastmmu.cpu.vcpu cimport Vcpu

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
    HANDLER_IRQL = 1            # raises the TPR to the class of the vector, STI; CLI, end of interrupt, the old TPR

cdef struct ApicCounters:       # names and meaning: fastmmu.counters
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
    uint64_t nested             # handlers that interrupted another one
    uint64_t timer              # times that its timer ran out
    uint64_t ipis               # interprocessor interrupts that it sent, to itself too
    uint64_t ipis_virtualized   # of these: to itself, without a VM exit
    uint64_t ipis_other         # of these: no vectors but SMI, NMI, INIT, start-up; not delivered
    uint64_t kicks              # vCPUs in guest mode that it made exit
    uint64_t notifications      # posted-interrupt notifications that it sent

cdef struct Delivery:
    uint32_t vector
    uint64_t at                 # accesses of the trace until then

cdef enum:
    NUMBER_CR8 = 0xFFFFFFFF     # Interrupts.number
    MAX_FRAMES = 64             # handlers under way: more is a storm

cdef struct Frame:              # of a handler that has not returned
    uint32_t vector
    uint32_t tpr                # that it found
    bint raised                 # and has to restore
    uint64_t left               # accesses of the trace until it returns

cdef struct Interrupts:
    Vcpu *v
    Vapic virt                  # of the processor
    Apic apic                   # the registers: the VMM's model of the APIC; without a VMM the physical one
    Patch patch
    int way                     # TprWay
    int rule                    # ThresholdRule
    int handler                 # GuestHandler
    bint svm                    # of AMD: CR8 is V_TPR of the VMCB, which has no threshold; no APIC-access page, no MSRs
    bint apic_page              # the APIC-access page is there
    bint tpr_shadow             # the processor has one: CR8 and the MSR of the TPR need no exits
    uint64_t la                 # linear address at which the guest sees the page
    bint interrupts_on          # RFLAGS.IF
    bint posting                # posted interrupts are on
    bint request_event          # KVM_REQ_EVENT: look for an interrupt to inject before the next VM entry
    bint below                  # the exit under way is one of TPR below threshold
    int inject                  # vector that the last VM entry injected, -1 none
    int arriving                # vector that arrives with the exit under way
    bint arriving_level
    uint64_t arrived            # when, where it is the timer's
    uint16_t rtc_vector         # in the I/O APIC's entry of the real-time clock, whose EOI KVM always wants to see
    uint64_t *descriptor        # posted-interrupt descriptor: 8 qwords
    bint notified               # the notification vector is on its way
    uint64_t value              # read last
    uint32_t number             # of the instruction under way: of the MSR; 0: neither an MSR nor CR8
    bint writes
    uint64_t now                # accesses of the trace so far: the bus clock, and the time-stamp counter
    uint64_t *clock             # the same for the VM, as of the last batch of events
    uint64_t timed              # up to when the timer has counted
    uint32_t timer_reason       # of the exit when it runs out
    uint32_t handler_length     # accesses of the trace that a handler lasts
    Frame frame[MAX_FRAMES]
    uint32_t n_frames
    uint64_t arrival[256]       # [vector] when it arrived
    Delivery *log
    uint64_t log_n, log_room
    ApicCounters c
    uint8_t own_page[4096]      # registers, without a VMM
    uint64_t own_descriptor[8]


cdef inline void irq_pass(Interrupts *irq, uint64_t accesses) noexcept nogil:
    # the vCPU made so many; no more than irq_left
    cdef Frame *top
    irq.now += accesses
    if irq.n_frames:
        top = &irq.frame[irq.n_frames - 1]
        top.left -= min(top.left, accesses)


cdef inline bint irq_waits(const Interrupts *irq) noexcept nogil:
    # after a VM entry: is there something for the next instruction boundary? The handler of an exit may have posted it.
    return irq.inject >= 0 or (irq.interrupts_on and (
        irq.virt.pending or irq.v.vmcs.primary & <uint32_t> PRIMARY_INTERRUPT_WINDOW != 0))


cdef inline uint64_t irq_left(const Interrupts *irq) noexcept nogil:
    # accesses until the timer runs out or a handler returns; 0: neither is ahead
    cdef uint64_t left = 0, gone = irq.now - irq.timed, handler
    if irq.apic.ticks_left:
        left = irq.apic.ticks_left - gone if gone < irq.apic.ticks_left else 1
    if irq.n_frames:
        handler = max(irq.frame[irq.n_frames - 1].left, <uint64_t> 1)
        left = min(left, handler) if left else handler
    return left


cdef void irq_init(Interrupts *irq, Vcpu *v, uint8_t *page, uint64_t *descriptor) noexcept nogil
cdef void irq_free(Interrupts *irq) noexcept nogil
cdef void irq_noted(Interrupts *irq, uint8_t vector) noexcept nogil
cdef void irq_sent(Interrupts *irq, const Ipi *ipi) noexcept nogil
cdef bint irq_elapse(Interrupts *irq) noexcept nogil
cdef bint irq_deadline(Interrupts *irq, uint64_t value) noexcept nogil
cdef void irq_accept(Interrupts *irq, uint8_t vector, bint level) noexcept nogil
