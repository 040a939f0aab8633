# Memory with holes: segments of physical addresses, each with the place where its bytes are.
#
# All addresses up to the last lie in one reserved range of the process, so that a walk reads at `base` + address as in
# memory without holes. What of it is memory is a sorted list of spans. How its bytes come there:
#
#   mapped    whole pages of a file, which lie in it as in memory modulo 4 KB: mapped at their place, never copied
#   copied    bytes at another place in a page of the file: when a page is asked for first
#   fetched   a page that a function of Python makes, of compressed files: likewise
#   zero      the range is zero as it is
#
# So images of any size take no more memory than the tables that were walked, and only those that are not mapped.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.types cimport Segments

cdef enum PieceKind:
    PIECE_ZERO = 0
    PIECE_DATA = 1
    PIECE_FETCHED = 2

cdef struct Piece:              # sorted, without overlap
    uint64_t start
    uint64_t end
    uint64_t offset             # in `data`
    uint64_t mapped             # pages mapped at their place: from this one
    uint64_t mapped_end         # to before this one
    int kind

cdef struct Span:               # pieces side by side, cut to whole words of 8 bytes
    uint64_t start
    uint64_t end

cdef struct Placed:
    Segments head
    uint8_t *base
    uint64_t *filled            # a bit a page: in place, and perhaps memory only in part
    Piece *piece
    uint64_t n_pieces
    Span *span
    uint64_t n_spans
    const uint8_t *data
    int (*fetch)(void *context, uint64_t at, uint8_t *to) noexcept nogil    # a page; nonzero: it could not be had
    void *context
    uint64_t copied             # pages
    uint64_t most               # that may be copied
    int full                    # one more was asked for
    int lock
    bint writable

cdef int placed_init(Placed *s) noexcept nogil              # spans, of base, piece and data; -1: no memory
cdef void placed_free(Placed *s) noexcept nogil
cdef bint placed_covers(const Placed *s, uint64_t pa, uint64_t n) noexcept nogil
# Bytes into `to`, without putting pages in place; how many: fewer than n where a hole begins or a page cannot be had.
cdef uint64_t placed_read(Placed *s, uint64_t pa, uint64_t n, uint8_t *to) noexcept nogil
