# Pages of processes whose physical addresses a trace says (Op.PLACE).

from libc.stdint cimport uint32_t, uint64_t

cdef struct PlacedPages:        # open addressing; a key is process, page number and whether it is of 2 MB
    uint64_t *key               # 0: free
    uint64_t *frame
    uint64_t n, room
    uint64_t end                # of the highest page
    uint64_t pending            # linear address whose physical one comes next; all ones: none

# -1: no memory
cdef int placed_put(PlacedPages *p, uint64_t process, uint64_t la, bint large, uint64_t frame) noexcept nogil
# Physical address of the page of 4 KB, or of 2 MB where *large says so, that holds la; all ones: nothing says it.
cdef uint64_t placed_frame(const PlacedPages *p, uint64_t process, uint64_t la, bint *large) noexcept nogil
cdef void placed_free(PlacedPages *p) noexcept nogil
