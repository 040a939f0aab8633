# A host: physical CPUs, each with its TLB, and virtual machines whose vCPUs run on them.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.kvm.asid_py cimport AsidAllocator
from fastmmu.kvm.vpid_py cimport VpidAllocator
from fastmmu.machine.board cimport Board
from fastmmu.machine.events cimport Run
from fastmmu.machine.machine cimport Machine
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.lookup cimport TlbCounters
from fastmmu.tlb.tlb cimport TLB
from fastmmu.threads.turns cimport Turns

cdef inline void count_since(TlbCounters *total, const TlbCounters *before, const TlbCounters *now) noexcept nogil:
    # all of its fields are 64-bit counts
    cdef uint64_t *to = <uint64_t *> total
    cdef const uint64_t *was = <const uint64_t *> before
    cdef const uint64_t *done = <const uint64_t *> now
    cdef size_t i
    for i in range(sizeof(TlbCounters) // 8):
        to[i] += done[i] - was[i]


cdef class _Hosted:              # a machine of a host
    cdef Machine machine
    cdef Board board
    cdef uint64_t origin, nbytes    # of the host's memory
    cdef dict vcpus             # number of the vCPU -> _HostVcpu

cdef class _HostVcpu:            # a vCPU as the host sees it
    cdef Run *run               # its machine's
    cdef _Hosted vm
    cdef object number
    cdef int at                 # physical CPU whose occupant it is, whatever its VMM says of it; -1: none
    cdef bint begun
    cdef uint64_t logged        # exits of its machine before it came
    cdef TlbCounters counted    # of the TLBs it ran on, its part

cdef struct Past:               # of machines and vCPUs that have ended
    uint64_t remote_flushes, flush_requests, ipis
    uint64_t interprocessor, kicks, notifications

cdef inline void add_interrupts(Past *p, const Interrupts *irq) noexcept nogil:
    if irq != NULL:
        p.interprocessor += irq.c.ipis
        p.kicks += irq.c.kicks
        p.notifications += irq.c.notifications


cdef inline void add_flushes(Past *p, Board b):
    p.remote_flushes += b.kvm.remote_flushes
    p.flush_requests += b.kvm.flush_requests
    p.ipis += b.kvm.ipis


cdef class Host:
    cdef readonly PhysicalMemory memory
    cdef readonly tuple cpus
    cdef readonly tuple caches  # CacheHierarchy of each physical CPU, or ()
    cdef object first           # Config whose TLB and caches these are
    cdef Turns turns            # of all of them: one physical CPU runs at a time
    cdef object ranges          # of memory
    cdef list omit              # flushes that every VMM leaves out
    cdef TLB spare              # that machines are made with: making one flushes nothing of those that run
    cdef dict hosted            # Machine -> _Hosted, in the order in which they were made
    cdef dict vcpu              # number -> _HostVcpu of those that live
    cdef dict last              # number -> counters of those that ended last
    cdef uint64_t n_vcpus       # numbers given out
    cdef list occupant          # [physical CPU] _HostVcpu in guest mode there, or None
    cdef VpidAllocator vpids
    cdef readonly AsidAllocator asids   # of its CPUs, where these are AMD's
    cdef object vendor          # of them
    cdef uint64_t migrations, switches
    cdef Past past
    cdef Machine _add(self, config, uint32_t count, policy, bint kernel, state, list slots)
    cdef _HostVcpu _new_vcpu(self, _Hosted vm, Run *run)
    cdef int _made(self) except -1
    cdef _HostVcpu _one_more(self, _Hosted vm)
    cdef _HostVcpu _alive(self, vcpu)
    cdef _HostVcpu _asked(self, vcpu)
    cdef _Hosted _machine(self, machine)
    cdef object _place(self, vcpu, cpu)
    cdef object _run(self, vcpu, cpu, op, size, addr, out, first)
    cdef int _enter(self, _HostVcpu s, uint32_t cpu) except? -2
    cdef int _leave(self, uint32_t cpu, bint halts=*) except -1
    cdef int _leave_cpu(self, _HostVcpu s) except -1
    cdef int _vacate(self, _HostVcpu s) except -1
    cdef int _ended(self, _HostVcpu s) except -1
    cdef int _end_machine(self, _Hosted vm) except -1
