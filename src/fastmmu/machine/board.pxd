# What a machine is made of: memory, physical CPU, VMM, vCPUs. Its parts (guest, VMM, APIC) hold the board, no machine.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.cache.hierarchy_py cimport CacheHierarchy
from fastmmu.cpu.missing_flushes cimport MissingFlushes
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.asid_py cimport AsidAllocator
from fastmmu.kvm.kvm cimport Kvm, KvmVcpu
from fastmmu.kvm.port cimport VirtualMachine
from fastmmu.kvm.vpid_py cimport VpidAllocator
from fastmmu.machine.events cimport Run
from fastmmu.machine.exit_ring cimport ExitRing
from fastmmu.machine.kernel_state cimport GuestKernel
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState
from fastmmu.tlb.lookup cimport TlbCounters
from fastmmu.tlb.tlb cimport TLB
from fastmmu.threads.turns cimport Turn, Turns


cdef class Board:
    cdef readonly object config
    cdef readonly PhysicalMemory memory
    cdef readonly TLB tlb
    cdef Turns turns            # of all that works on it; a host has one for all its machines and TLBs
    cdef uint64_t origin        # in host memory: the VMM's tables, then the guest's memory, its slots;
    cdef uint64_t behind        # pages of further vCPUs
    cdef readonly MissingFlushes missing_flushes    # or None
    cdef CacheHierarchy caches  # or None
    cdef Mem guest_mem          # guest-physical memory as a window of host memory
    cdef Kvm kvm                # and the vCPUs: each a Run, made and freed here
    cdef VpidAllocator vpids    # of its host
    cdef AsidAllocator asids
    cdef VirtualMachine vm      # and the VMM in Python that works on it; None: the kernels are the VMM
    cdef object python
    cdef Run *loop              # the vCPU that is loaded, as the rooms see it; never NULL
    cdef Run *first             # of a host's machine: what each vCPU begins as; else NULL
    cdef uint64_t rom_la, rom_hpa       # option ROM of a bare guest; 0: it has named none
    cdef bint vacant            # its last vCPU has ended, and stays loaded
    cdef KvmVcpu *vcpu
    cdef Vcpu *v
    cdef GuestKernel kernel
    cdef uint64_t clock         # accesses of earlier batches, of all vCPUs
    cdef tuple cpus             # a host's TLBs: keeps alive what its vCPUs point to
    cdef readonly object initial    # GuestState: registers at the start, and what of the processor never changes
    cdef bint pdptes_due        # its first instruction loads the PDPTE registers from memory
    cdef readonly object policy
    cdef tuple given            # what it was made with beside that: whether with the guest kernel, and slots
    cdef object handlers        # [exit reason]: bound method of the policy, or None
    cdef object machine         # weak reference to the Machine, which the handlers get
    cdef uint64_t handling      # thread in which a Python handler runs, and the guest stands still; 0: none does
    cdef readonly uint64_t events   # of traces, carried out
    cdef object raised          # exception of a Python handler
    cdef ExitRing exits         # the log of exits, or None
    cdef int unmade(self) except -1
    cdef int free_vpid(self, KvmVcpu *vcpu) except -1
    cdef _build(self, config, bint guest_kernel, GuestState state, slots, place)
    cdef _offered(self, GuestState state)
    cdef _boot(self)
    cdef int _load(self, Run *run) except -1
    cdef int _init_apic(self, Run *run) except -1
    cdef _add_slot(self, uint64_t gpa, uint64_t size, uint64_t hpa, host, bint readonly, bint private,
                   bint device, bint emulated)
    cdef void _take(self, Run *run)
    cdef _build_vmm(self, state, placed, uint64_t end)
    cdef Turn take(self)
    cdef Turn _guest_runs(self)
    cdef int _on_cpu(self) except -1
    cdef _ready(self)
    cdef int _resumed(self, uint64_t n) except -1
    cdef int made(self) except -1
    cdef uint64_t _events(self, op, size, addr, out, first) except? 0
    cdef _first_pdptes(self)
    cdef _raise(self, uint64_t n)
    cdef _counters(self, Run *run, TlbCounters *t)


cdef TLB tlb_of(config)
