# The error code of a #PF (paging.md §5).

cdef enum PageFaultError:
    PF_P = 1 << 0               # every entry was present: rights, keys or reserved bits
    PF_W = 1 << 1               # of a write
    PF_U = 1 << 2               # of an access by CPL 3
    PF_RSVD = 1 << 3            # a reserved bit is set
    PF_ID = 1 << 4              # of an instruction fetch
    PF_PK = 1 << 5              # protection keys forbid it
