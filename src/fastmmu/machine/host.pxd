# A host: physical CPUs, each with its TLB, and virtual machines whose vCPUs run on them.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.kvm.vpid cimport VpidMap
from fastmmu.machine.events cimport Run
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.lookup cimport TlbCounters
from fastmmu.threads.turns cimport Turns

cdef struct HostVcpu:           # a vCPU as the host sees it
    Run *run                    # its machine's
    uint32_t vm
    bint ended                  # removed
    bint begun
    TlbCounters counted         # of the TLBs it ran on, its part

cdef inline void count_since(TlbCounters *total, const TlbCounters *before, const TlbCounters *now) noexcept nogil:
    # all of its fields are 64-bit counts
    cdef uint64_t *to = <uint64_t *> total
    cdef const uint64_t *was = <const uint64_t *> before
    cdef const uint64_t *done = <const uint64_t *> now
    cdef size_t i
    for i in range(sizeof(TlbCounters) // 8):
        to[i] += done[i] - was[i]

cdef class Host:
    cdef readonly PhysicalMemory memory
    cdef readonly tuple cpus, machines
    cdef Turns turns            # of all of them: one physical CPU runs at a time
    cdef HostVcpu *vcpu
    cdef uint32_t n_vcpus
    cdef uint32_t *occupant     # [physical CPU] vCPU in guest mode there, or NOWHERE
    cdef uint32_t n_cpus
    cdef VpidMap vpids
    cdef uint64_t migrations, switches
    cdef _add_vcpus(self, list vpids)
    cdef uint32_t _number(self, vcpu) except? 0xFFFFFFFF
    cdef HostVcpu *_alive(self, vcpu) except NULL
    cdef _place(self, vcpu, cpu)
    cdef _run(self, vcpu, cpu, op, size, addr, out, first)
    cdef int _enter(self, HostVcpu *s, uint32_t cpu)
    cdef void _leave(self, uint32_t cpu)
