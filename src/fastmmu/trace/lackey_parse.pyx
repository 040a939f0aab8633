# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Valgrind lackey text (--tool=lackey --trace-mem=yes) to event columns and back.

    I  04001000,3        FETCH         " L 1ffeffe8a0,16\\n"
     L 1ffeffe8a0,16     READ           --|--------|-|
     S 04a5c040,4        WRITE          |  |        | what lies between comma and newline, up to three digits
     M 0021f0c4,4        MODIFY         |  sixteen digits at once, shifted right by those past the comma
                                        compared as one word

A line that the fast path does not recognize whole goes to the slow path, which holds the grammar:

    spaces* [ILSM] spaces+ hex{1,16} "," decimal{1,3}=1..255 spaces* CR? LF

Empty lines and Valgrind's own lines (== -- **) are skipped; the process that they name, as in ==1234==, must stay the
same. With `Lackey.skip`, lines of the program itself are skipped, too, and counted.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy

from fastmmu.trace.swar cimport LANES, ctz64, hex8, load64, not_hex, unlikely, zero_byte

cdef extern from *:
    """
    /* The four legal beginnings, found by the low four bits of their letter: I=9 L=12 M=13 S=3. */
    #define FM_HEAD(a, b, c) ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16)
    static const uint32_t fm_head[16] = {
        [0] = 0xFFFFFFFFu, [9] = FM_HEAD('I', ' ', ' '), [12] = FM_HEAD(' ', 'L', ' '),
        [13] = FM_HEAD(' ', 'M', ' '), [3] = FM_HEAD(' ', 'S', ' ')};
    static const uint8_t fm_head_op[16] = {[9] = 3, [12] = 0, [13] = 2, [3] = 1};
    static const char fm_hex[17] = "0123456789abcdef";
    static const char fm_head_text[4][4] = {" L ", " S ", " M ", "I  "};
    """
    const uint32_t *HEAD "fm_head"
    const uint8_t *HEAD_OP "fm_head_op"
    const char *HEX "fm_hex"
    const char (*HEAD_TEXT "fm_head_text")[4]

cdef enum:
    FAST_BYTES = 19             # what fast_line reads

cdef enum LineKind:             # errors are below 0; trace/lackey.py words them
    LINE_EVENT = 0
    LINE_SKIP = 1
    BAD_LINE = -1
    BAD_ADDRESS = -2
    BAD_WIDTH = -3
    BAD_SIZE = -4
    BAD_PROCESS = -5
    BAD_END = -6                # the last line has no newline

cdef struct Event:
    uint64_t addr
    uint8_t op
    uint8_t size


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    c |= 0x20
    if 97 <= c <= 102:
        return c - 87
    return -1


cdef uint64_t process_of(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The process of a line of Valgrind's, as 1234 of ==1234==; 0: it names none."""
    cdef uint8_t mark = p[0]
    cdef uint64_t pid = 0
    p += 2
    while p < end and 48 <= p[0] <= 57 and pid < 100000000:
        pid = pid * 10 + (p[0] - 48)
        p += 1
    return pid if end - p >= 2 and p[0] == mark and p[1] == mark else 0


cdef int parse_line(const uint8_t *p, const uint8_t *end, Event *event, uint64_t *pid) noexcept nogil:
    """One line without its newline: the whole grammar. A process that it names must be *pid, or becomes it if 0."""
    cdef uint64_t addr = 0
    cdef uint32_t size = 0
    cdef int digits = 0, value
    cdef uint64_t process
    if end > p and (end - 1)[0] == c'\r':
        end -= 1
    if p == end:
        return LINE_SKIP
    if end - p >= 2 and p[0] == p[1] and (p[0] == c'=' or p[0] == c'-' or p[0] == c'*'):
        process = process_of(p, end)
        if process != 0 and pid[0] != 0 and process != pid[0]:
            return BAD_PROCESS
        if process != 0:
            pid[0] = process
        return LINE_SKIP
    while end > p and (end - 1)[0] == c' ':
        end -= 1
    while p < end and p[0] == c' ':
        p += 1
    if p == end:
        return BAD_LINE
    if p[0] == c'L':
        event.op = 0
    elif p[0] == c'S':
        event.op = 1
    elif p[0] == c'M':
        event.op = 2
    elif p[0] == c'I':
        event.op = 3
    else:
        return BAD_LINE
    p += 1
    if p == end or p[0] != c' ':
        return BAD_LINE
    while p < end and p[0] == c' ':
        p += 1
    while p < end and p[0] != c',':
        value = hex_digit(p[0])
        if value < 0:
            return BAD_ADDRESS
        addr = addr << 4 | <uint64_t>value
        digits += 1
        if digits > 16:
            return BAD_WIDTH
        p += 1
    if digits == 0:
        return BAD_ADDRESS
    if p == end or end - p < 2:
        return BAD_SIZE
    p += 1
    if end - p > 3:
        return BAD_SIZE
    while p < end:
        if p[0] < 48 or p[0] > 57:
            return BAD_SIZE
        size = size * 10 + (p[0] - 48)
        p += 1
    if size < 1 or size > 255:
        return BAD_SIZE
    event.addr = addr
    event.size = <uint8_t>size
    return LINE_EVENT


cdef inline const uint8_t *fast_line(const uint8_t *p, Event *event) noexcept nogil:
    """The line at p as Valgrind prints it: the event and the next line. NULL: something else, see parse_line.

    FAST_BYTES must be readable at p. Where the next line starts depends on one load only, so that the lines overlap
    in the processor.
    """
    cdef uint64_t upper = load64(p + 3), lower = load64(p + 11)
    cdef uint32_t head = <uint32_t>load64(p) & 0xFFFFFF
    cdef uint32_t letter = ((head >> 8) ^ head) & 0x0f
    cdef uint64_t comma = zero_byte(lower ^ LANES(c',')), newline = zero_byte(lower ^ LANES(c'\n'))
    cdef uint32_t digits, size
    cdef unsigned beyond, end, width
    # Addresses are padded to 8 digits, so comma and newline are in the second word unless there are more than 12.
    if unlikely(comma == 0 or newline == 0 or head != HEAD[letter]):
        return NULL
    beyond = ctz64(comma) - 7                           # 8 x (digits beyond the eighth)
    end = ctz64(newline) - 7
    width = end - beyond - 8                            # 8 x (digits of the size)
    if unlikely(width - 8 > 16 or (not_hex(upper) | not_hex(lower) & ((<uint64_t>1 << beyond) - 1)) != 0):
        return NULL
    digits = <uint32_t>(lower >> (beyond + 8)) << (32 - width) | <uint32_t>0x30303030 >> width
    digits ^= <uint32_t>0x30303030
    size = (digits >> 24) + (digits >> 16 & 0xff) * 10 + (digits >> 8 & 0xff) * 100
    if unlikely(((digits + <uint32_t>0x76767676 | digits) & <uint32_t>0x80808080) != 0 or size - 1 > 254):
        return NULL
    event.addr = (hex8(upper) << 32 | hex8(lower)) >> (32 - (beyond >> 1))
    event.op = HEAD_OP[letter]
    event.size = <uint8_t>size
    return p + 12 + (end >> 3)


cdef int parse_lines(const uint8_t **at, const uint8_t *end, bint last, uint8_t *op, uint8_t *size, uint64_t *addr,
                     Py_ssize_t *n, Py_ssize_t room, Py_ssize_t *lines, Lackey *file) noexcept nogil:
    """Lines from *at until `room` events, an error or the last complete line; *at, *n, *lines move along.

    `last`: what stands at the end without a newline was cut short, unless it is a line of Valgrind's.
    """
    cdef const uint8_t *p = at[0]
    cdef const uint8_t *after
    cdef const uint8_t *newline
    cdef Py_ssize_t i = n[0], seen = lines[0]
    cdef Event event
    cdef int kind = LINE_EVENT
    event.addr = 0
    event.op = event.size = 0
    while i < room and p < end:
        after = fast_line(p, &event) if end - p >= FAST_BYTES else NULL
        if unlikely(after == NULL):
            newline = <const uint8_t *>memchr(p, c'\n', end - p)
            if newline == NULL and not last:
                break
            kind = parse_line(p, newline if newline != NULL else end, &event, &file.pid)
            if newline == NULL and kind != LINE_SKIP and kind != BAD_PROCESS:
                kind = BAD_END
            if kind < 0 and (kind == BAD_PROCESS or not file.skip):
                break
            after = newline + 1 if newline != NULL else end
            if kind != LINE_EVENT:
                file.skipped += kind != LINE_SKIP
                kind = LINE_EVENT
                p = after
                seen += 1
                continue
        op[i] = event.op
        size[i] = event.size
        addr[i] = event.addr
        i += 1
        seen += 1
        p = after
    at[0] = p
    n[0] = i
    lines[0] = seen
    return kind if kind < 0 else 0


cdef Py_ssize_t print_lines(const uint8_t *op, const uint8_t *size, const uint64_t *addr, Py_ssize_t n,
                            char *out) noexcept nogil:
    cdef char *q = out
    cdef Py_ssize_t i
    cdef uint64_t value
    cdef int nibbles, shift, width
    for i in range(n):
        if op[i] > 3 or size[i] == 0:
            return -1 - i
        memcpy(q, HEAD_TEXT[op[i]], 3)
        q += 3
        value = addr[i]
        nibbles = 8
        while nibbles < 16 and value >> (4 * nibbles) != 0:
            nibbles += 1
        shift = 4 * nibbles
        while shift > 0:
            shift -= 4
            q[0] = HEX[value >> shift & 15]
            q += 1
        q[0] = c','
        q += 1
        width = 1 + (size[i] >= 10) + (size[i] >= 100)
        value = size[i]
        for shift in range(width - 1, -1, -1):
            q[shift] = <char>(48 + value % 10)
            value = value // 10
        q[width] = c'\n'
        q += width + 1
    return q - out
