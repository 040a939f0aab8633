# The VMM of a machine: its tables, the guest as it sees it, its other vCPUs. What it does is in _kvm_*.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu._interrupts cimport Interrupts
from fastmmu._mmu cimport Mmu
from fastmmu._siblings cimport Sibling
from fastmmu._modes cimport Modes
from fastmmu._types cimport Paging
from fastmmu._vcpu cimport Vcpu

ctypedef int (*Surface)(void *machine, Vcpu *v) noexcept nogil

cdef enum:                      # flushes that can be left out, to see what they are for
    LESS_MOVED = 1
    LESS_REMOTE = 2

cdef enum Forgone:              # flushes that a VMM leaves out, to see that they are missed
    FORGO_TABLES = 1            # after changes of shadow tables or the EPT
    FORGO_REGISTERS = 2         # after guest CR0, CR3, CR4 under shadow paging
    FORGO_INVLPG = 4            # INVVPID at guest INVLPG

cdef struct Kvm:
    Mmu mmu
    bint shadow                 # shadow paging; else EPT
    Modes modes
    Paging guest                # the guest's own registers, under shadow paging
    uint32_t forgo              # Forgone: flushes that are left out, to see that they are missed
    uint8_t surfaced[80]        # [exit reason] a Python policy handles it
    Surface surface
    void *machine
    Interrupts *irq             # the guest's local APIC; NULL: it has none
    uint32_t less               # flushes left out
    Sibling *sibling            # [n_siblings]; NULL: the VM has one vCPU
    uint32_t n_siblings, running
    uint64_t remote_flushes     # changes that other vCPUs had to flush for
    uint64_t flush_requests     # to another vCPU
    uint64_t ipis
