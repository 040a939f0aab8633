# A machine and what it consists of: memory, physical CPU, VMM, guest.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.stale cimport MissingFlushes
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport Kvm
from fastmmu.machine.events cimport Run
from fastmmu.machine.guest_kernel cimport GuestKernel
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.tlb cimport TLB


cdef class Assembly:
    cdef readonly object config
    cdef readonly PhysicalMemory memory
    cdef readonly TLB tlb
    cdef uint64_t origin        # in host memory: the VMM's tables, then the guest's memory
    cdef readonly MissingFlushes missing_flushes    # or None
    cdef Mem guest              # guest-physical memory as a window of host memory
    cdef Vcpu v
    cdef Kvm kvm
    cdef GuestKernel kernel
    cdef Run loop
    cdef Interrupts irq         # the interrupt side of the first vCPU, where Config.tpr asks for an APIC
    cdef readonly object initial    # GuestState: registers at the start, and what of the processor never changes
    cdef bint pdptes_due        # its first instruction loads the PDPTE registers from memory
    cdef bint handling          # a Python handler runs: the guest stands still
    cdef bint running           # run() is under way, without the GIL
    cdef object raised          # exception of a Python handler
    cdef _boot(self)
    cdef _init_apic(self, Interrupts *irq, uint32_t number)
    cdef void _attach_apic(self, Interrupts *irq)
    cdef _place(self, slots, end)
    cdef _add_slot(self, uint64_t gpa, uint64_t size, uint64_t hpa, host, bint readonly, bint private,
                   bint device)
    cdef _set_policy(self)
    cdef _build_vmm(self, uint32_t vpid, state, placed, uint64_t end)
    cdef _guest_runs(self)
    cdef _first_pdptes(self)
    cdef _raise(self, uint64_t n)


cdef uint64_t behind_bytes(config, bint guest_kernel, uint32_t vcpus) except? 0
cdef uint64_t host_bytes(config) except 0
cdef TLB tlb_of(config)
