# Huge pages of the host behind simulated memory. A huge page has 512 small ones, resident as soon as one is touched: so
# they are asked for where pages lie dense, nowhere else, and simulated memory of which little is touched costs little.
#
#   tables that are allocated one after the other   huge_begun: a first block of 2 MB of which a quarter is in use
#                                                   huge_ahead: a block behind one that is full
#   an image whose pages are known beforehand       PhysicalMemory.advise_huge_pages
#   tables that many translations went through      walked_tables.pyx: what is dense already becomes a huge page
#
# Of help where tables of some MB are walked at random: there each reference misses the TLB of the host.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.types cimport Mem

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #define FM_HUGE_PAGE (1ULL << 21)
    #if defined(__linux__)
    #include <sys/mman.h>
    #ifndef MADV_HUGEPAGE
    #define MADV_HUGEPAGE 14
    #endif
    #ifndef MADV_COLLAPSE
    #define MADV_COLLAPSE 25            /* Linux 6.1 */
    #endif
    /* the next touch of each huge page in [at, at + n) gives all of it */
    __attribute__((unused)) static void fm_huge_ahead(uint8_t *at, uint64_t n) {
        (void)madvise(at, n, MADV_HUGEPAGE);
    }
    /* a huge page in place of small ones, if at least `least` of its 512 are resident; 1: it is one now */
    __attribute__((unused)) static int fm_huge_now(uint8_t *at, unsigned least) {
        unsigned char resident[512];
        unsigned n = 0, i;
        if (mincore(at, FM_HUGE_PAGE, (void *)resident) != 0)
            return 0;
        for (i = 0; i < 512; i++)
            n += resident[i] & 1;
        if (n < least)
            return 0;
        if (madvise(at, FM_HUGE_PAGE, MADV_COLLAPSE) != 0) {
            (void)madvise(at, FM_HUGE_PAGE, MADV_HUGEPAGE);  /* where huge pages are off; older kernels do it later */
            (void)madvise(at, FM_HUGE_PAGE, MADV_COLLAPSE);
        }
        return 1;
    }
    #else
    __attribute__((unused)) static void fm_huge_ahead(uint8_t *at, uint64_t n) { (void)at; (void)n; }
    __attribute__((unused)) static int fm_huge_now(uint8_t *at, unsigned least) { (void)at; (void)least; return 0; }
    #endif
    """
    const uint64_t HUGE_PAGE "FM_HUGE_PAGE"
    void fm_huge_ahead(uint8_t *at, uint64_t n) noexcept nogil
    bint fm_huge_now(uint8_t *at, unsigned int least) noexcept nogil

cdef enum:
    DENSE = 384                 # of 512 pages: they grow by a third at most
    BEGUN = 128                 # tables in use: for 4 KB pages, those of 256 MB


cdef inline void huge_ahead(Mem *m, uint64_t pa) noexcept nogil:
    # pa: a multiple of 2 MB, in memory that was made as PhysicalMemory makes it, at a multiple of 2 MB of the host
    if m.nbytes >= HUGE_PAGE and pa <= m.nbytes - HUGE_PAGE:
        fm_huge_ahead(m.base + pa, HUGE_PAGE)


cdef inline void huge_begun(Mem *m, uint64_t pa) noexcept nogil:
    # the block that holds pa, where BEGUN tables stand
    if m.nbytes >= HUGE_PAGE and pa <= m.nbytes - HUGE_PAGE:
        fm_huge_now(m.base + (pa & ~(HUGE_PAGE - 1)), BEGUN)
