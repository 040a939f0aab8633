# The VMM of a machine: its tables, the guest as it sees it, its other vCPUs. The other modules work on it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Paging
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.siblings cimport Sibling
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.modes cimport Modes
from fastmmu.mmu.pages cimport Mmu

ctypedef int (*Surface)(void *machine, Vcpu *v) noexcept nogil

cdef enum:                      # flushes that can be left out, to see what they are for
    LESS_MOVED = 1
    LESS_REMOTE = 2

cdef enum Forgone:              # flushes that a VMM leaves out, to see that they are missed
    FORGO_TABLES = 1            # after changes of shadow tables or the EPT
    FORGO_REGISTERS = 2         # after guest CR0, CR3, CR4 under shadow paging
    FORGO_INVLPG = 4            # INVVPID at guest INVLPG

cdef struct KvmStats:           # of KVM's statistics those that are no counters of the processor or the MMU (§12)
    uint64_t pf_taken, pf_fixed, pf_emulate
    uint64_t insn_emulation     # instructions that the VMM decodes; of AMD's without decode assists there are more
    uint64_t mmio_exits         # of them, those that user space carries out
    uint64_t tlb_flush          # flushes before VM entries
    uint64_t served             # Mmu.counters.flush_requests when it was counted last
    uint64_t early_tables       # made for a root that Linux makes at the next VM entry only
    uint32_t early_zaps         # of roots that went while in use, which Linux counts once more then
    bint owes_current           # a flush before the next VM entry: of linear mappings of this root, which a flush of
    bint owes_guest             # every vCPU includes; of the guest's own instruction, which nothing includes

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
    KvmStats stats
