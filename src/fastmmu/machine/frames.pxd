# Which frames of guest memory programs get: the policies of the guest kernel beside "first touch".
#
#   guest memory:  2 MB unused | tables, in blocks of their own | frames 0..n-1 of programs

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.permutation cimport Permutation
from fastmmu.machine.buddy cimport Buddy
from fastmmu.paging.hash_table cimport HashTable

cdef enum FramePolicy:
    FRAMES_FIRST_TOUCH = 0      # in order, in blocks of 2 MB: kernel_memory.pyx alone
    FRAMES_SHUFFLED = 1
    FRAMES_BUDDY = 2
    FRAMES_RESERVE = 3          # PTEMagnet
    FRAMES_CONTIGUOUS = 4       # CA paging
    FRAMES_OF = 5               # the runs of a recorded guest

cdef enum:
    TRIES = 1024                # frames in shuffled order that are looked at for a free one
    MOST_RESERVED = 512         # pages of a reservation
    REGION_SHIFT = 18           # pages of a region of CA paging, 1 GB

cdef enum:                      # who has a frame in use, for compaction
    OWNER_FIXED = 0             # it cannot move: a page table, or of nobody that is known
    OWNER_NOBODY = 1            # nobody that is known, and it can
    OWNER_LARGE = 2             # a page of 2 MB, of its first frame
    OWNER_SMALL = 3             # a page; its linear page number << 2 stands beside it

cdef struct Reserved:           # a group's frames, or the target of a region
    uint64_t key                # 1 << 63 | process << 36 | number of its first page
    uint64_t first              # frame of that page; of a region modulo 2**64
    uint64_t born               # number of the reservation
    uint32_t n                  # pages; 0: there is none any more
    uint32_t held               # of these not given out

cdef struct Born:               # reservations by age
    uint64_t key, born

cdef struct LayoutRun:          # pages of a recorded guest, one after the other in linear and in physical addresses
    uint64_t page               # number of its first, of all that were recorded
    uint64_t frame              # where it lay

cdef struct Frames:
    int policy                  # FramePolicy
    uint64_t first              # guest-physical address of frame 0; with first touch the end of memory
    Buddy buddy
    Permutation order           # shuffled
    uint64_t cursor             # shuffled: next in that order; contiguous: the block to look at first
    uint32_t group              # reserve: log2 of the pages of a group
    HashTable groups
    uint64_t *holds             # [n / 64] frames that are reserved and not given out
    Born *age
    uint64_t ages, age_room, age_next, born
    LayoutRun *run              # of a recorded guest, in the order of linear addresses
    uint64_t runs, pages
    uint64_t *owner             # [n] of frames in use; NULL: nothing is compacted
    uint64_t migrate_next       # scanners of compaction: block; frame, behind the next one
    uint64_t free_next
    uint32_t deferred           # times that it was put off, of the next 1 << defer_shift
    uint32_t defer_shift

cdef int frames_init(Frames *f, int policy, uint64_t first, uint64_t nbytes, double unusable, uint64_t seed,
                     uint32_t group) noexcept nogil     # -1: no memory
cdef void frames_free(Frames *f) noexcept nogil
cdef int frames_watch(Frames *f, double unmovable, uint64_t seed) noexcept nogil     # for compaction; -1: no memory
cdef void frames_split(Frames *f, uint64_t gpa, uint64_t la) noexcept nogil         # a page of 2 MB is 512 pages now
cdef uint64_t frames_small(Frames *f, uint64_t process, uint64_t la) noexcept nogil     # its address; NO_FRAME
cdef uint64_t frames_large(Frames *f, uint64_t process, uint64_t la) noexcept nogil
cdef uint64_t frames_table(Frames *f) noexcept nogil
cdef void frames_give(Frames *f, uint64_t gpa, bint large) noexcept nogil
cdef int frames_remember(Frames *f, uint64_t key, uint64_t born) noexcept nogil


cdef inline bint held(const Frames *f, uint64_t frame) noexcept nogil:
    return f.holds[frame >> 6] >> (frame & 63) & 1
