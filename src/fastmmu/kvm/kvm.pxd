# The VMM of a machine, and its vCPUs. The other modules work on them.
#
#   Vcpu      the processor's state (cpu/)          first member of
#   KvmVcpu   what KVM keeps of a vCPU (this room)  first member of
#   Run       what runs on it (machine/)
#
# so that each room finds its own part of a vCPU by the pointer that it was given (`to_kvm_vcpu`), as container_of does.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.registers cimport Registers
from fastmmu.arch.types cimport Paging
from fastmmu.arch.vmx cimport N_REASONS
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.asid cimport SvmCpu
from fastmmu.mmu.agile cimport AgileMmu
from fastmmu.mmu.mmu cimport Mmu, MmuContext

ctypedef int (*Surface)(void *machine, Vcpu *v) noexcept nogil

cdef enum Omission:             # flushes that a VMM leaves out, to see that they are missed
    OMIT_TABLES = 1             # after changes of shadow tables or the EPT
    OMIT_REGISTERS = 2          # after guest CR0, CR3, CR4 under shadow paging
    OMIT_INVLPG = 4             # INVVPID, INVLPGA at guest INVLPG
    OMIT_MOVED = 8              # on a physical CPU that the vCPU is new on
    OMIT_REMOTE = 16            # of other vCPUs, whose rights went
    OMIT_ASIDS = 32             # of all ASIDs where they begin anew
    OMIT_PV = 64                # that the guest asked for while the vCPU had no physical CPU

cdef enum Request:              # what a vCPU does before its next VM entry (KVM_REQ_...)
    REQ_TLB_FLUSH = 1           # all that it may have cached: another vCPU took rights away
    REQ_TLB_FLUSH_CURRENT = 2   # linear mappings: of another root
    REQ_TLB_FLUSH_GUEST = 4     # linear mappings: the guest's own instruction asks for it
    REQ_STEAL_UPDATE = 8        # linear mappings: KVM_VCPU_FLUSH_TLB stands in its steal time

cdef enum FaultClass:           # what a fault needed the VMM for: fastmmu.exits.FaultClass
    CLASS_NONE = 0
    CLASS_BUILD = 1
    CLASS_DIRTY = 2
    CLASS_MMIO = 3
    CLASS_PROTECTED = 4
    CLASS_SWAPPED_IN = 5
    CLASS_SPURIOUS = 6
    CLASS_GUEST = 7

cdef struct KvmCounters:        # of a vCPU, what the VMM did at its exits; names and meaning: fastmmu.counters
    uint64_t pf_fixed
    uint64_t pf_guest
    uint64_t pf_emulate
    uint64_t pf_spurious
    uint64_t ept_build
    uint64_t ept_spurious
    uint64_t mmio
    uint64_t pf_fast
    uint64_t pf_retry
    uint64_t violations[7]      # EPT violations by FaultClass
    uint64_t invvpid
    uint64_t invept
    uint64_t asid_flushes
    uint64_t invlpga
    uint64_t asids
    uint64_t asid_generations
    uint64_t remote_sent        # remote flushes that it asked others for
    uint64_t remote_ipis        # IPIs that it sent for them, and waited for
    uint64_t remote_asked       # that it was asked for
    uint64_t remote_kicked      # of these: by an IPI, as it was in guest mode
    uint64_t remote_deferred    # and: it had no physical CPU, and flushes at its next VM entry

cdef struct KvmStats:           # of KVM's statistics those that are no counters of the processor or the MMU (§12)
    uint64_t pf_taken, pf_fixed, pf_emulate
    uint64_t insn_emulation     # instructions that the VMM decodes; of AMD's without decode assists there are more
    uint64_t mmio_exits         # of them, those that user space carries out
    uint64_t tlb_flush          # flushes before VM entries
    uint64_t served             # Mmu.counters.flush_requests when it was counted last
    uint32_t owed               # Request: the kinds that the next VM entry counts
    uint32_t roots_gone         # while in use: freed, and counted once more, at the next VM entry
    uint64_t tables_early       # made before the VM entry at which Linux makes them

cdef struct Modes:              # how a guest is run in each paging mode
    bint ept                    # else shadow paging
    bint amd                    # nested paging runs every mode, and CR0, CR4 are intercepted otherwise
    bint unrestricted           # the processor runs a guest without paging
    uint64_t identity           # guest-physical address of the identity table, which has its slot; 0: there is none
    bint keys                   # shadow tables carry the guest's protection keys
    bint pcid                   # translations of shadow tables are tagged by the guest's PCID

cdef enum Mode:                 # of a vCPU, as the others of its VM see it (vcpu->mode)
    OUTSIDE_GUEST_MODE = 0
    IN_GUEST_MODE = 1           # on a physical CPU: an IPI makes it exit
    EXITING_GUEST_MODE = 2      # the IPI is on its way

cdef enum:
    NOWHERE = 0xFFFFFFFF

cdef struct Kvm

cdef struct KvmVcpu:
    Vcpu cpu                    # first: see to_kvm_vcpu
    Kvm *kvm
    uint32_t vpid               # that the host gave it (vmx->vpid); 0: none
    uint32_t asid               # of AMD: that it has of its physical CPU, while the generation lasts (svm->asid)
    uint64_t asid_generation    # 0: it has none there
    uint32_t index              # number within the VM (vcpu_idx), of one that ended given out again
    Registers arch              # the guest's registers as the guest has them, as of the last VM exit
    Paging guest                # under shadow paging: what they make of the guest's tables
    MmuContext mmu              # its roots, its ring of written pages
    Interrupts *irq             # its local APIC; NULL: the guest has none
    int mode                    # Mode
    uint32_t pcpu               # physical CPU that it ran on last (vcpu->cpu), or NOWHERE
    uint32_t requests           # Request: what it does before its next VM entry
    int fault_class             # FaultClass of the exit under way
    uint64_t last_retry         # gpa of a load that runs once more before it is emulated (last_retry_addr); 0: none
    KvmCounters c

cdef struct Kvm:
    Mmu mmu
    bint shadow                 # shadow paging; else EPT
    AgileMmu *agile             # of agile paging, whose shadow tables are `mmu`: the EPT beside them; else NULL
    Modes modes
    SvmCpu *svm_cpu             # of AMD: [physical CPU], its host's
    bint flush_by_asid          # by TLB_CONTROL; else by a new ASID
    bint flush_by_address       # by INVLPGA; else the whole ASID
    uint64_t accesses_ended     # of the trace, of vCPUs that have ended
    bint ended                  # its machine is gone from its host: no call is taken any more
    KvmVcpu **vcpu              # [n_vcpus], by index
    uint32_t n_vcpus
    KvmVcpu *running            # loaded by kvm_vcpu_load: whose TLB a flush goes to at once; the others are requested
    uint32_t omit               # Omission
    uint8_t surfaced[N_REASONS]     # [exit reason] a Python policy handles it
    Surface surface
    void *machine
    uint64_t remote_flushes     # changes that other vCPUs had to flush for
    uint64_t flush_requests     # to another vCPU
    uint64_t ipis
    KvmStats stats


cdef inline Mmu *kvm_second(Kvm *kvm) noexcept nogil:
    # the tables of guest-physical addresses, where there are any
    return &kvm.mmu if kvm.agile == NULL else &kvm.agile.ept


cdef inline KvmVcpu *to_kvm_vcpu(Vcpu *v) noexcept nogil:
    # of the vCPU whose processor state this is
    return <KvmVcpu *> v
