# The virtual CPU: TLB, walk, faults and VM exits of one access. What an exit means is decided by the function in
# `handler`. Counters are those of a whole machine: VMM and guest kernel count here, too.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.registers cimport Registers
from fastmmu.arch.types cimport ACC_R, ACC_X, Ept, Mem, Paging, Walk
from fastmmu.arch.vmx cimport N_REASONS, Vmcs
from fastmmu.cache.hierarchy cimport CAUSE_FETCH, CAUSE_KERNEL, CAUSE_READ, CAUSE_WRITE, Caches, caches_touch
from fastmmu.cache.sets cimport seldom
from fastmmu.cpu.exit_log cimport ExitLog
from fastmmu.cpu.stale cimport Detector
from fastmmu.cpu.vapic cimport Vapic
from fastmmu.paging.agile cimport Agile
from fastmmu.tlb.entries cimport asid_root
from fastmmu.tlb.lookup cimport NO_EPT, Tlb

cdef enum Outcome:              # of an access
    DONE_OK = 0                 # hpa holds the address
    DONE_EMULATED = 1           # the VMM completed it
    DONE_PF = 2                 # #PF for the guest: cr2, error_code
    DONE_GP = 3                 # non-canonical address; of a write to a register, or injected: Vcpu.rule
    DONE_ABORT = 4              # the simulation cannot go on: Vcpu.abort says why

cdef enum Action:               # what a handler tells the processor to do
    ACT_RETRY = 0               # run the instruction again
    ACT_EMULATED = 1            # the VMM did it
    ACT_INJECT_PF = 2           # deliver a #PF: cr2, error_code
    ACT_ABORT = 3
    ACT_INJECT_GP = 4           # deliver #GP(0)

cdef enum Who:                  # by whose rights an access is made; the value of `user` in calls
    BY_SUPERVISOR = 0           # RFLAGS.AC as it stands
    BY_USER = 1
    BY_SYSTEM = 2               # implicit supervisor access to a descriptor table, at any CPL

cdef enum:
    ACC_PDPTES = 4              # no access to data: the load of the PDPTE registers

cdef enum Abort:
    ABORT_NONE = 0
    ABORT_ROOT_OPERATION = 64   # none: the VMM is outside, the processor stays in VMX root operation until it enters
    ABORT_BUS = 1               # a table lies outside memory
    ABORT_NO_PROGRESS = 2       # the same access exits again and again
    ABORT_GUEST_MEMORY = 3      # guest memory used up
    ABORT_TABLES = 4            # the VMM's table pages used up
    ABORT_ADDRESS = 5           # not an address of the lower half
    ABORT_PYTHON = 6            # a Python handler raised
    ABORT_MISCONFIG = 7
    ABORT_GUEST_FAULT = 8       # a fault that the guest kernel has no answer to
    ABORT_OP = 9                # an event of an unknown operation
    ABORT_HOST_MEMORY = 10
    ABORT_ENTRY = 11            # VM entry failed: invalid control fields
    ABORT_PROCESS = 12          # a process number that is none
    ABORT_APIC = 13             # an APIC event of a guest without an APIC
    ABORT_AWAY = 14             # the host is taking the page away and has not ended
    ABORT_APIC_TABLE = 15       # a paging structure on the APIC-access page that the VMM would have to read
    ABORT_IDENTITY = 16         # the guest stops paging, and there is no identity table
    ABORT_ROOT = 17             # no memory behind the root of the guest's tables: KVM shuts the machine down
    ABORT_APIC_GP = 18          # an APIC event that ends in #GP: Interrupts.number
    ABORT_APIC_PF = 19          # in #PF: the guest does not map the page
    ABORT_VECTOR = 20           # an interrupt of the host whose vector is none
    ABORT_APIC_ADDR = 21        # an APIC event whose addr says nothing
    ABORT_INJECTED = 22         # a #GP that a handler injected, to which nothing in the guest kernel answers

cdef enum Privileged:           # instructions of CPL 0 that exit here, as the bytes at RIP would say
    INS_NONE = 0
    INS_MOV_TO_CR = 1
    INS_MOV_FROM_CR = 2
    INS_CLTS = 3
    INS_LMSW = 4
    INS_RDMSR = 5               # of EFER
    INS_WRMSR = 6
    INS_INVLPG = 7

cdef struct Counters:           # of the processor; names and meaning: fastmmu.counters
    uint64_t ops[4]             # accesses of the trace by operation
    uint64_t kernel_accesses
    uint64_t page_crossings
    uint64_t retries
    uint64_t tlb_misses
    uint64_t walks
    uint64_t guest_walk_refs
    uint64_t ept_walk_refs
    uint64_t ad_writes
    uint64_t guest_faults
    uint64_t vm_exits
    uint64_t cr3_switches
    uint64_t invlpgs
    uint64_t invpcids
    uint64_t interrupts
    uint64_t host_accesses      # of the host's own pages, at VM exits
    uint64_t host_misses        # of both levels
    uint64_t walks_nested[6]    # of agile paging, without a fault: by levels of the guest's own tables
    uint64_t exits[N_REASONS]

ctypedef int (*ExitHandler)(Vcpu *v) noexcept nogil
ctypedef int (*Premap)(Vcpu *v, uint64_t la, int fault, const Walk *w) noexcept nogil

cdef struct Vcpu:
    Mem *mem                    # host physical memory
    Tlb *tlb                    # of the physical CPU that it runs on
    Paging hw                   # what the processor walks by: the guest's registers, or the VMM's under shadow paging
    Registers r                 # the processor's registers, but CR3 and PDPTEs, which are in hw; of a guest as entered
    bint fresh                  # the VMM wrote guest state into the VMCS: the next VM entry loads it
    bint vm86                   # RFLAGS.VM: instructions of CPL 0 are #GP
    Ept ept
    Agile *agile                # of agile paging; NULL: walks are of one mode
    bint guest                  # in VMX non-root operation: exits exist
    bint outside                # a VM exit, and no VM entry since
    bint ept_on                 # EPT is in use: entered, and the control is 1
    bint vpid_on                # the control as of the last VM entry
    bint svm                    # of AMD: always on, and the VPID is an ASID
    uint32_t tlb_control        # of AMD: what VM entry flushes (TlbControl)
    Vapic *apic                 # what virtualizes the guest's APIC; NULL: nothing does
    bint below_threshold        # VM entry found the TPR below the threshold: exit 43 comes next
    uint64_t need[3][4]         # [Who][Access]: rights that an access needs of a TLB entry
    uint64_t cr2
    uint32_t error_code
    uint32_t abort              # Abort
    uint64_t abort_address
    uint32_t store_bytes        # of the store under way: 0 unknown, 4 or 8, 4096 a cleared page
    uint64_t store_value
    uint64_t store_high         # of a store of 16 bytes
    uint64_t access_la          # of the access that exited: what the VMM finds when it decodes the instruction
    int access                  # Access, or ACC_PDPTES
    uint32_t access_bytes       # 0: unknown
    uint64_t load_value, load_high      # what the VMM read for it, the low bytes first
    uint32_t loaded             # so many of them, up to 16; 0: nothing
    uint64_t emulated           # guest-physical address of the access that the VMM completed; all ones: not known
    bint event                  # the exit under way is an EXIT event: an instruction of which only the exit matters
    uint32_t instruction        # Privileged: the one under way, its control register, source, and what it gives
    uint32_t instruction_cr     # of INVPCID: the type
    uint32_t invpcid_pcid
    uint64_t source
    uint64_t result
    uint32_t rule               # RegisterRule of the last DONE_GP
    Vmcs vmcs
    ExitHandler handler
    uint32_t host_pages         # pages of its own that the host touches at each VM exit
    Premap premap               # not NULL: what is missing is mapped unseen, as if it had been there from the start
    Detector *detector          # the detector of missing flushes, or NULL
    ExitLog *log                # of the VM; NULL: none is kept
    Caches *caches              # under every reference; NULL: none are simulated
    Caches **vmm_caches         # where the VMM looks for them, while it handles an exit; NULL: there is none
    ExitHandler handled         # with caches: the handler, which `handler` calls; else NULL
    bint records                # there is a detector, or caches: walks are recorded
    uint32_t exit_touches       # at an exit memory of the host's own is touched: 1 + number of this vCPU; 0: none is
    uint64_t now                # number of the event under way, where it is on
    Counters c

cdef enum:
    MAX_RETRIES = 64

cdef enum:                      # lines that a VM exit touches: an estimate (docs/caches-in-runs.md)
    VMCS_LINES = 16             # of the VMCS, read and written by exit, VMREAD, VMWRITE and entry
    VCPU_LINES = 16             # of the VMM's structures of the vCPU: registers saved and loaded, requests


cdef inline int cause_of(int acc) noexcept nogil:
    # of an access of the trace; one that reads and writes is one reference, a write
    return CAUSE_READ if acc == ACC_R else CAUSE_FETCH if acc == ACC_X else CAUSE_WRITE


cdef inline void vcpu_touches(Vcpu *v, uint64_t hpa, uint32_t nbytes, int acc) noexcept nogil:
    # an access of the guest kernel's, translated, goes through the caches
    if seldom(v.caches != NULL):
        caches_touch(v.caches, hpa, nbytes, acc, CAUSE_KERNEL)


cdef inline void vcpu_set_handler(Vcpu *v, ExitHandler handler) noexcept nogil:
    if v.handled != NULL:
        v.handled = handler
    else:
        v.handler = handler


cdef inline uint32_t vcpu_vpid(const Vcpu *v) noexcept nogil:
    # in force, as is the next
    return v.vmcs.vpid if v.vpid_on else 0


cdef inline uint64_t vcpu_eptrta(const Vcpu *v) noexcept nogil:
    if not v.ept_on:
        return NO_EPT
    return asid_root(v.vmcs.vpid) if v.svm else v.vmcs.eptp & FRAME


cdef void vcpu_derive(Vcpu *v) noexcept nogil
cdef int vcpu_enter(Vcpu *v) noexcept nogil
cdef int vcpu_enter_again(Vcpu *v) noexcept nogil       # after a VM entry that failed; DONE_ABORT: so did this one
cdef void vcpu_entered(Vcpu *v) noexcept nogil          # VM entry behind its checks
cdef int vcpu_slow(Vcpu *v, uint64_t la, int acc, int user, uint64_t value, uint64_t *hpa) noexcept nogil
cdef int vcpu_access(Vcpu *v, uint64_t la, int acc, int user, uint64_t *hpa) noexcept nogil
cdef int vcpu_exit(Vcpu *v, uint32_t reason) noexcept nogil
cdef void vcpu_registers(Vcpu *v) noexcept nogil        # paging from Vcpu.r
cdef void vcpu_leave(Vcpu *v, uint32_t reason) noexcept nogil   # VM exit alone: no handler, no entry
cdef int vcpu_load(Vcpu *v, uint64_t la, uint64_t *value) noexcept nogil
cdef int vcpu_store(Vcpu *v, uint64_t la, uint64_t value, uint32_t nbytes, uint64_t *hpa) noexcept nogil
cdef void vcpu_use_caches(Vcpu *v, Caches *c, Caches **vmm) noexcept nogil      # once its handler is known
cdef int vcpu_interrupt(Vcpu *v) noexcept nogil
cdef void vcpu_set_ac(Vcpu *v, bint ac) noexcept nogil
cdef void vcpu_set_pkru(Vcpu *v, uint32_t pkru) noexcept nogil
cdef int vcpu_abort(Vcpu *v, int why, uint64_t address) noexcept nogil
