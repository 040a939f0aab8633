# A host: physical CPUs, each with its TLB, and virtual machines whose vCPUs run on them.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport Paging
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.siblings cimport Sibling
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.vpid cimport VpidMap
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.lookup cimport TlbCounters

cdef enum:
    NOWHERE = 0xFFFFFFFF

cdef struct Seat:               # a vCPU; while its machine holds another one, what the machine has to be given back
    Vcpu v
    Paging guest                # under shadow paging: the guest's own registers
    uint32_t process            # that the guest kernel runs on it
    uint64_t until_exit
    uint32_t vm, index          # which vCPU of which machine
    uint32_t cpu                # physical CPU that it ran on last
    bint ended                  # removed
    bint begun
    Interrupts *irq             # its local APIC, or NULL
    TlbCounters counted         # of the TLBs it ran on, its part

cdef class Host:
    cdef readonly PhysicalMemory memory
    cdef readonly tuple cpus, machines
    cdef Seat *seat
    cdef uint32_t n_seats
    cdef Sibling **sibling      # [machine]
    cdef Interrupts ***peer     # [machine] the APICs of its vCPUs
    cdef uint32_t *held         # [machine] seat that the machine holds
    cdef uint32_t *occupant     # [physical CPU] seat in guest mode there
    cdef uint32_t n_cpus, n_vms
    cdef VpidMap vpids
    cdef uint64_t migrations, switches
    cdef _seats(self, list vpids)
    cdef _apics(self, uint32_t vm, uint32_t first, uint32_t count)
    cdef uint32_t _number(self, vcpu) except? 0xFFFFFFFF
    cdef Seat *_alive(self, vcpu) except NULL
    cdef void _hold(self, Seat *s)
    cdef int _enter(self, Seat *s, uint32_t cpu)
    cdef void _leave(self, uint32_t cpu)
