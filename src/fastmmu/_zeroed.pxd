# Arrays of zeros of which little may be touched, an entry for each page of a large memory, each context of a TLB: what
# is not touched takes no memory of the host. calloc() alone does not promise that: once a block as large was freed,
# the next one comes from the heap, and all of it is written with zeros.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    #if defined(__linux__) || defined(__APPLE__)
    #include <sys/mman.h>
    #ifndef MAP_NORESERVE
    #define MAP_NORESERVE 0
    #endif
    #define FM_ZEROED_MAP (1u << 17)    /* bytes from which on the pages come from the kernel, which has zeros */
    #endif
    #if !defined(FM_ZEROED_MAP) || defined(__SANITIZE_ADDRESS__)    /* that watches the ends of the heap's blocks */
    #undef FM_ZEROED_MAP
    #define FM_ZEROED_MAP UINT64_MAX
    #endif
    #define FM_ZEROED_HEAD 64           /* its first 8 bytes: the length of the mapping, 0 of one on the heap */
    __attribute__((unused)) static void *fm_zeroed(uint64_t n, uint64_t size) {
        uint64_t bytes;
        char *p;
        if (__builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(bytes, FM_ZEROED_HEAD, &bytes))
            return NULL;
        if (bytes < FM_ZEROED_MAP) {
            p = (char *)calloc(1, bytes);
            return p == NULL ? NULL : p + FM_ZEROED_HEAD;
        }
    #if defined(__linux__) || defined(__APPLE__)
        p = (char *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == (char *)MAP_FAILED)
            return NULL;
    #ifdef MADV_NOHUGEPAGE
        (void)madvise(p, bytes, MADV_NOHUGEPAGE);       /* where the host gives huge pages unasked */
    #endif
        *(uint64_t *)p = bytes;
        return p + FM_ZEROED_HEAD;
    #else
        return NULL;
    #endif
    }
    __attribute__((unused)) static void fm_zeroed_free(void *array) {
        char *p;
        if (array == NULL)
            return;
        p = (char *)array - FM_ZEROED_HEAD;
    #if defined(__linux__) || defined(__APPLE__)
        if (*(uint64_t *)p) {
            (void)munmap(p, *(uint64_t *)p);
            return;
        }
    #endif
        free(p);
    }
    """
    # n entries of `size` bytes, at a multiple of 16; NULL: no memory
    void *zeroed "fm_zeroed"(uint64_t n, uint64_t size) noexcept nogil
    void zeroed_free "fm_zeroed_free"(void *array) noexcept nogil      # of zeroed(), or NULL
