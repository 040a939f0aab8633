# A host: physical CPUs, each with its TLB, and virtual machines whose vCPUs run on them.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.kvm.vpid cimport VpidMap
from fastmmu.machine.events cimport Run
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.lookup cimport TlbCounters

cdef struct HostVcpu:           # a vCPU as the host sees it
    Run *run                    # its machine's
    uint32_t vm
    bint ended                  # removed
    bint begun
    TlbCounters counted         # of the TLBs it ran on, its part

cdef class Host:
    cdef readonly PhysicalMemory memory
    cdef readonly tuple cpus, machines
    cdef HostVcpu *vcpu
    cdef uint32_t n_vcpus
    cdef uint32_t *occupant     # [physical CPU] vCPU in guest mode there, or NOWHERE
    cdef uint32_t n_cpus
    cdef VpidMap vpids
    cdef uint64_t migrations, switches
    cdef _add_vcpus(self, list vpids)
    cdef uint32_t _number(self, vcpu) except? 0xFFFFFFFF
    cdef HostVcpu *_alive(self, vcpu) except NULL
    cdef int _enter(self, HostVcpu *s, uint32_t cpu)
    cdef void _leave(self, uint32_t cpu)
