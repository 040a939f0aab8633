# What the guest kernel keeps: frames, address spaces, vCPUs.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.machine.frames cimport Frames
from fastmmu.machine.placed cimport PlacedPages
from fastmmu.paging.hash_table cimport HashTable

cdef extern from *:
    """
    #define FM_DIRECT_MAP 0xFFFF888000000000ULL
    #define FM_NO_FRAME 0xFFFFFFFFFFFFFFFFULL
    #define FM_LARGE_FRAME 0x000FFFFFFFE00000ULL
    """
    const uint64_t DIRECT_MAP "FM_DIRECT_MAP"   # linear address at which the kernel sees guest-physical 0
    const uint64_t NO_FRAME "FM_NO_FRAME"
    const uint64_t LARGE_FRAME "FM_LARGE_FRAME"     # address of a 2 MB page in its entry

cdef enum:
    NO_PROCESS = 0xFFFFFFFF
    BLOCK = 1 << 21
    PCIDS = 4096

cdef enum PageSizes:
    PAGES_4K = 0
    PAGES_2M = 1                # whole, whatever becomes of a part of one
    PAGES_THP = 2               # collapsed when some number of small ones have been touched
    PAGES_POLICY = 3            # by Thp

cdef enum ThpMode:              # transparent_hugepage/enabled of Linux
    THP_NEVER = 0
    THP_MADVISE = 1
    THP_ALWAYS = 2

cdef enum Defrag:               # transparent_hugepage/defrag: who waits for a compaction
    DEFRAG_NEVER = 0
    DEFRAG_MADVISE = 1          # a first touch of an area that is advised, khugepaged
    DEFRAG_DEFER = 2            # khugepaged; behind a first touch that got no block it is done, too
    DEFRAG_ALWAYS = 3

cdef struct Advice:             # of an aligned area of 2 MB of a process: pages that are advised, by madvise
    uint64_t key                # 1 << 63 | process << 26 | number of the area
    uint64_t[8] huge            # a bit a page
    uint64_t[8] nohuge

cdef struct Thp:                # huge pages by policy: thp.pyx
    int mode                    # ThpMode
    int defrag                  # Defrag
    HashTable advice
    uint64_t scan_pages         # khugepaged looks at so many pages
    uint64_t scan_every         # after each so many accesses of the trace; 0: there is none
    uint64_t scan_left          # accesses until then
    uint32_t max_ptes_none      # of 512 pages that it makes one so many need not be there
    uint32_t scan_process       # where it goes on; NO_PROCESS: with the first process
    uint64_t scan_la

cdef struct FrameList:          # frames given back, as a stack
    uint64_t *frame
    uint32_t n, room

cdef struct GuestCounters:      # of a vCPU, what the guest did with it; names and meaning: fastmmu.counters
    uint64_t pages_touched
    uint64_t collapses
    uint64_t thp_fault_alloc            # 2 MB pages given at a first touch
    uint64_t thp_fault_fallback         # no 2 MB block was free: for a page, for a collapse
    uint64_t thp_collapse_alloc_failed
    uint64_t thp_split_pmd              # 2 MB pages that a page table maps now
    uint64_t khugepaged_pages_scanned   # in areas of 512 that it looked at; times that it has seen all processes
    uint64_t khugepaged_full_scans
    uint64_t compact_stall      # compactions that were waited for, with and without a block made
    uint64_t compact_success, compact_fail
    uint64_t pgmigrate_success  # pages moved
    uint64_t unmaps
    uint64_t exit_instructions
    uint64_t munmaps            # ranges of pages that went, or became read-only
    uint64_t protects
    uint64_t forks
    uint64_t cow_copies         # pages copied at a write, as others share them; given rights back, as none does
    uint64_t write_rights
    uint64_t cr3_flushes        # CR3 loaded again, for a flush of the address space
    uint64_t late_flushes       # that were due while it was in lazy mode, or had another address space
    uint64_t shootdowns         # flushes that other vCPUs had to make, too
    uint64_t shootdown_ipis
    uint64_t shootdown_preempted    # of these: to a vCPU that had no physical CPU
    uint64_t shootdown_marked   # vCPUs that the VMM flushes at their next VM entry
    uint64_t shootdown_lazy     # vCPUs in lazy mode, that were left alone
    uint64_t shootdown_interrupts   # that it took
    uint64_t invlpgbs, tlbsyncs

cdef enum Shootdown:            # how the other vCPUs come to flush
    SHOOT_IPI = 0
    SHOOT_PV = 1                # KVM_FEATURE_PV_TLB_FLUSH
    SHOOT_INVLPGB = 2           # AMD

cdef struct OwedFlush:          # what the handler of a shootdown's interrupt does
    uint64_t la
    uint32_t pages              # 0: all of the address space
    uint32_t shift              # of their size
    bint leave                  # it gives up an address space that it has in lazy mode: tables are freed

cdef struct GuestCpu:           # of a vCPU, what Linux has in cpu_tlbstate
    bint online                 # it has run
    bint lazy                   # it idles on the tables of the process that ran last
    uint32_t process            # whose tables are loaded; NO_PROCESS: the kernel's own
    uint64_t generation         # of its address space, up to which the TLB is flushed
    bint chosen                 # by the shootdown under way
    OwedFlush *owed             # before its next instruction
    uint32_t n, room
    bint overflow               # no memory for one of them: everything
    uint32_t *pcid_owner        # [PCID] process that used it last: PCIDs are fewer than processes; NULL: no PCIDs
    uint64_t *pcid_generation   # [PCID] as `generation`

cdef struct GuestKernel:
    Vcpu *v
    GuestCounters *c            # of this vCPU
    Mem guest                   # guest-physical memory, for what is done before the guest runs
    bint silent                 # write memory directly: what it does is set-up, not part of the run
    int pages                   # PageSizes
    uint32_t thp_threshold
    Thp thp
    bint pcid
    bint high                   # its own pages come from the end of memory, out of the way of those that are placed
    PlacedPages placed
    uint64_t next_block         # guest-physical memory is handed out in blocks of 2 MB, one kind of use in each
    uint64_t table_next, table_end      # unmovable: page tables
    uint64_t data_next, data_end        # movable: 4 KB pages of programs
    FrameList free_4k, free_2m, free_tables
    Frames frames               # of programs, but for those of first touch
    bint apic                   # map the local APIC, a page of its code and the option ROM, as 32-bit Windows has them
    uint64_t code_gpa, rom_gpa
    uint64_t kernel_pgd         # top table with the kernel half alone
    uint64_t *root              # [process] top table, 0 where there is none yet
    uint64_t *generation        # [process] flushes that its address space was due (mm->context.tlb_gen)
    uint32_t n_roots
    uint32_t *current           # process that runs on the vCPU `v`
    GuestCpu **cpu              # [n_cpus] by index of the vCPU
    uint32_t n_cpus
    GuestCpu *here              # of `v`
    int shootdown               # Shootdown
    bint shared                 # some pages may be read-only: of a fork, or protected
    bint lazy_tlb               # a vCPU that idles keeps the tables of the process that ran last
    uint32_t flush_ceiling      # more pages are flushed with all others (tlb_single_page_flush_ceiling)
    bint omit_shootdown         # to see what it is for
    uint16_t *count             # [gfn] of a page table: pages that it maps; of a program's 4 KB: who shares it, but one
