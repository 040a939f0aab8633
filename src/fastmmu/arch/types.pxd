# Structs that the kernels share. No state lives here; see ARCHITECTURE.md for who owns what.

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t

# ---- addresses ----------------------------------------------------------------------------------------------
# Guest-virtual (linear), guest-physical, host-physical; a guest frame number is a guest-physical address >> 12.

ctypedef uint64_t gva_t
ctypedef uint64_t gpa_t
ctypedef uint64_t hpa_t
ctypedef uint64_t gfn_t

# ---- accesses and outcomes --------------------------------------------------------------------------------

cdef enum Access:               # the order of fastmmu.ops.Op, so that an event's op is its access kind
    ACC_R = 0
    ACC_W = 1
    ACC_RW = 2                  # read-modify-write: checked as a write
    ACC_X = 3

cdef enum FaultCode:            # fastmmu.dtypes.Fault; 0 = translated
    FAULT_NONE = 0
    FAULT_PF = 1                # #PF: error_code, la
    FAULT_GP = 2                # non-canonical linear address
    FAULT_EPT_VIOLATION = 3     # exit 48: qual, gpa, la
    FAULT_EPT_MISCONFIG = 4     # exit 49: gpa
    FAULT_BUS = 5               # a table entry that lies outside the memory given: hpa
    FAULT_PML_FULL = 6          # exit 62
    FAULT_SPP = 7               # exit 66, SPP-related event: qual
    FAULT_APIC = 8              # exit 44, a paging structure of the guest on the APIC-access page: qual, gpa
    FAULT_NPF = 9               # AMD's #VMEXIT(NPF): qual is EXITINFO1, gpa EXITINFO2

cdef enum PagingMode:
    MODE_NONE = 0
    MODE_32 = 1
    MODE_PAE = 2
    MODE_4 = 3
    MODE_5 = 4

# ---- memory -----------------------------------------------------------------------------------------------

cdef struct Segments:           # of memory with holes (paging/segments.pxd)
    uint64_t *ready             # a bit a page: all of it is memory, and in place
    uint64_t pages              # how many bits
    bint (*hold)(Segments *s, uint64_t pa, uint64_t n) noexcept nogil   # asked where a bit does not say so

cdef struct Mem:                # host physical memory: what is at `base` + address
    uint8_t *base
    uint64_t nbytes             # a multiple of 8; 0: `segments` say what is memory
    Segments *segments          # NULL: nothing else

# ---- what the walkers need to know of the control registers and of the processor ---------------------------

cdef struct Paging:             # derived once from CR0, CR3, CR4, EFER, CPL, AC, PKRU (paging.md §1, §3.4)
    uint64_t root               # address of the top table; PAE: of the PDPTEs, which walks take from pdpte
    uint64_t frame              # bits M-1:12
    uint64_t rsvd[6][2]         # [level][PS]: bits that must be 0 in a present entry
    uint64_t pdpte[4]
    uint64_t cr3
    uint64_t pat                # IA32_PAT
    uint32_t pkr_user           # PKRU if CR4.PKE in long mode, else 0
    uint32_t pkr_super          # IA32_PKRS if CR4.PKS in long mode, else 0
    uint32_t pcid               # PCID in force
    uint8_t mode                # PagingMode
    uint8_t levels              # levels read from memory: 0, 2, 2, 4, 5
    uint8_t index_bits          # 10 for 32-bit paging, else 9
    uint8_t entry_shift         # log2 of the entry's size: 2 or 3
    uint8_t la_bits             # 32, 48 or 57
    uint8_t large_ok[6]         # [level]: bit 7 of an entry makes it a leaf
    uint8_t pse36_bits          # N of paging.md §3.1
    uint8_t user                # CPL = 3
    uint8_t implicit            # implicit supervisor access (descriptor tables) at any CPL
    uint8_t cd                  # CR0.CD: everything is uncacheable
    uint8_t wp, nxe, smep, smap, ac, pge, lma
    uint8_t pcid_on             # CR4.PCIDE
    uint8_t id_bit              # error code reports I/D for fetches
    uint8_t lazy_upper_a        # knob upper_a = lazy (paging.md §6)
    uint8_t write_ad            # 1: an access, sets A and D; 0: a query, memory stays as it is

cdef struct PmlQuery:           # what the access that a query stands for would have written until now (ept.md §7)
    uint32_t logged             # entries of the page-modification log
    uint32_t n                  # EPT entries whose flags it would have set:
    uint64_t hpa[40]
    uint64_t flags[40]

# Tables of the VMM: derived once from EPTP and the VMX capabilities (ept.md §1), or from AMD's nCR3 (npt.md §1).
cdef struct Ept:
    uint64_t root
    uint64_t frame
    uint64_t rsvd[6][2]         # [level][leaf]
    uint64_t present            # bits of which a present entry has one
    uint64_t flip               # bits that allow where they are 0; rights are ANDed with these flipped
    uint64_t accessed, dirty    # flags
    uint64_t pat                # of an NPT: the host's IA32_PAT
    uint64_t pml_base
    uint16_t *pml_index         # NULL: PML off
    PmlQuery *pml_query         # of a query with PML; else NULL
    uint64_t apic_access        # last byte of the APIC-access page; 0: APIC accesses are not virtualized
    uint8_t levels              # 4 or 5
    uint64_t spptp              # sub-page permission table
    uint8_t spp                 # sub-page write permissions are on
    uint8_t npt                 # entries have the format of guest paging, each access is by user mode (npt.md §2)
    uint8_t ad                  # EPTP[6]; of an NPT 1
    uint8_t mbec
    uint8_t xo                  # execute-only allowed
    uint8_t adv_info            # CAP.22: qualification bits 9..11
    uint8_t large_ok[6]
    uint8_t ad_before_final     # knob guest_ad_before_final_ept (ept.md §6)
    uint8_t ad_unchecked        # knob guest_ad_checked off: A and D of guest entries need no EPT W (ept.md §4)
    uint8_t write_ad

# ---- results ----------------------------------------------------------------------------------------------

cdef enum StepKind:
    STEP_GUEST = 0              # a guest paging-structure entry was read
    STEP_EPT = 1                # an EPT entry was read
    STEP_GUEST_AD = 2           # a guest entry was written (A or D)
    STEP_EPT_AD = 3             # an EPT entry was written (A or D)
    STEP_DATA = 4               # the final access
    STEP_SPP = 5                # a sub-page permission table was read

cdef struct Step:
    uint64_t hpa                # host physical address of the reference
    uint64_t gpa                # its guest-physical address (= hpa without EPT; of EPT entries: the gpa translated)
    uint64_t entry              # value read, or written
    uint8_t kind                # StepKind
    uint8_t level               # level of this entry, 5..1; 0 for data
    uint8_t guest_level         # of EPT references: guest level being served, 5..1; 0 = the data access
    uint8_t pad

cdef enum:
    MAX_STEPS = 96

cdef struct Steps:
    int n
    Step step[MAX_STEPS]

cdef struct Walk:
    uint64_t pa                 # all ones unless translated
    uint64_t gpa                # guest-physical address of the data, or of the failing reference
    uint64_t qual               # exit qualification; of FAULT_NPF EXITINFO1
    uint64_t leaf               # guest leaf entry
    uint64_t ept_entry          # EPT entry that decided: the leaf, or the one that was not present
    uint32_t error_code         # of FAULT_PF
    uint8_t fault               # FaultCode
    uint8_t guest_shift         # log2 of the guest page size; 0 with paging off
    uint8_t ept_shift           # log2 of the EPT page size; 0 without EPT
    uint8_t us, rw, xd          # rights of the linear address: AND, AND, OR over the levels
    uint8_t global_page
    uint8_t dirty               # guest leaf D (after this walk); 1 with paging off
    uint8_t pkey
    uint8_t pat                 # PAT index
    uint8_t ept_rights          # R=1 W=2 X=4 XU=8, ANDed over the EPT levels of the final translation
    uint8_t ept_dirty           # EPT leaf D, or 1 where EPT A/D flags are off
    uint8_t ept_mt              # EPT leaf memory type
    uint8_t ept_ipat
    uint16_t guest_refs, ept_refs
    uint16_t ad_writes

cdef struct GuestPath:          # the guest entries that a walk read, each at its level (KVM's guest_walker)
    int top                     # level of the first; 0: none was read
    int level                   # level of the last
    uint32_t updated            # bit [level]: A or D was set in memory
    uint64_t hpa[6]
    uint64_t gpa[6]             # without EPT the same; not known where a cached entry led to its table
    uint64_t entry[6]           # as it was read
    uint64_t ept[6]             # AND of the EPT entries that map its table; all ones without EPT
