# Records of a system trace: what a whole machine did, access by access. The format: fastmmu.trace.system.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum RecordOp:             # fastmmu.ops.RecordOp
    REC_R = 0
    REC_W = 1
    REC_RMW = 2
    REC_X = 3
    REC_CR0 = 16
    REC_CR3 = 17
    REC_CR4 = 18
    REC_EFER = 19
    REC_INVLPG = 20
    REC_INVPCID = 21
    REC_EXCEPTION = 22
    REC_INTERRUPT = 23
    REC_FAR = 24
    REC_PKRU = 25
    REC_MARK = 30
    REC_TABLE = 32
    REC_CPU = 33                # whose the records behind it are
    REC_IPI = 34
    REC_WALK = 35               # a walk that set A and D, and no access

cdef enum:                      # flags
    REC_DATA = 1                # a store to a known table page: its value is in wdata
    REC_AC = 2                  # EFLAGS.AC
    REC_IMPLICIT = 4            # implicit supervisor access at CPL 3
    REC_WALKED = 8              # the recorder's TLB did not hold it
    REC_INITIAL = 16            # state at the start

cdef enum RecordFault:          # why a record is none; texts: machine/records.pyx
    REC_GOOD = 0
    REC_BAD_OP = 1
    REC_BAD_CPL = 2
    REC_BAD_SIZE = 3
    REC_BAD_PAGE = 4
    REC_BAD_DATA = 5
    REC_BAD_TABLE = 6
    REC_BAD_INVPCID = 7
    REC_BAD_PKRU = 8
    REC_BAD_CR = 9
    REC_BAD_IPI = 10
    REC_BAD_WALK = 11

cdef struct Record:             # 24 bytes, little endian
    uint8_t op
    uint8_t size                # of R, W, RMW: bytes; WALK: its access; INVPCID: type; EXCEPTION, INTERRUPT: vector
    uint8_t cpl                 # of R, W, RMW, X: privilege of the paging check, 0 or 3
    uint8_t flags
    uint32_t aux                # of R, W: further elements; X: instructions; INVPCID: PCID; EXCEPTION: error code;
    #                             CPU: its number; IPI: destination
    uint64_t lin                # linear address; EXCEPTION: CR2
    uint64_t val                # physical address; register: its value; EXCEPTION: RIP; TABLE: page; IPI: ICR


cdef inline int access_fault(const Record *r) noexcept nogil:
    # what can be said of an access by itself: op is at most REC_X
    if r.cpl != 0 and r.cpl != 3:
        return REC_BAD_CPL
    if r.op == REC_X:
        return REC_BAD_DATA if r.flags & REC_DATA else REC_GOOD
    if r.size == 0 or r.size > 64:
        return REC_BAD_SIZE
    if (r.lin & 0xFFF) + r.size * (<uint64_t> r.aux + 1) > 4096:
        return REC_BAD_PAGE
    if r.flags & REC_DATA and (r.op == REC_R or r.size > 8 or r.aux):
        return REC_BAD_DATA
    return REC_GOOD


cdef inline int record_fault(const Record *r) noexcept nogil:
    cdef uint32_t op = r.op
    if op <= REC_X:
        return access_fault(r)
    if r.flags & REC_DATA:
        return REC_BAD_DATA
    if op == REC_TABLE:
        return REC_BAD_TABLE if r.val & 0xFFF or r.val >> 52 else REC_GOOD
    if op == REC_INVPCID:
        return REC_BAD_INVPCID if r.size > 3 or r.aux > 0xFFF else REC_GOOD
    if op == REC_PKRU:
        return REC_BAD_PKRU if r.val >> 32 else REC_GOOD
    if op == REC_CR3:
        return REC_BAD_CR if r.val << 1 >> 53 else REC_GOOD
    if op == REC_IPI:
        return REC_BAD_IPI if r.aux != r.val >> 56 else REC_GOOD
    if op == REC_WALK:
        return REC_BAD_CPL if r.cpl != 0 and r.cpl != 3 else REC_BAD_WALK if r.size > REC_X else REC_GOOD
    if op == REC_CPU:
        return REC_GOOD
    if op >= REC_CR0 and op <= REC_FAR or op == REC_MARK:
        return REC_GOOD
    return REC_BAD_OP
