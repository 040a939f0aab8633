# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Lines of text with a description of their columns to event columns.

A line is words between blanks, or fields between one separator, blanks around them left out; a colon behind a word is
no part of it. Empty lines and those that begin with # are no events.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr

from fastmmu.arch.ops cimport OP_FETCH, OP_MODIFY, OP_READ, OP_WRITE
from fastmmu.trace.swar cimport hex_word, unlikely

cdef extern from *:
    """
    /* The operation that one letter stands for, and 1; 0: none. */
    static const uint8_t fm_letter[256] = {
        ['R'] = 1, ['r'] = 1, ['L'] = 1, ['l'] = 1, ['W'] = 2, ['w'] = 2, ['S'] = 2, ['s'] = 2, ['M'] = 3, ['m'] = 3,
        ['I'] = 4, ['i'] = 4, ['F'] = 4, ['f'] = 4, ['X'] = 4, ['x'] = 4};
    static const uint8_t fm_dinero[3] = {0, 1, 3};      /* read, write, fetch; no branch, which none predicts */
    """
    const uint8_t *LETTER "fm_letter"
    const uint8_t *DINERO_OP "fm_dinero"

cdef enum:
    FAST_BYTES = 96             # that fast_line wants to be there
    FAST_WORD = 32              # of them behind the begin of a word

cdef enum TextKind:             # errors are below 0; trace/text.py words them
    TEXT_EVENT = 0
    TEXT_SKIP = 1
    TEXT_SHORT = -1
    TEXT_LONG = -2
    TEXT_OPERATION = -3
    TEXT_ADDRESS = -4
    TEXT_BASE = -5
    TEXT_SIZE = -6
    TEXT_END = -7


cdef inline bint blank(uint8_t c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef inline int digit(uint8_t c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    c |= 0x20
    if 97 <= c <= 102:
        return c - 87
    return 16


cdef bint number(const uint8_t *p, const uint8_t *end, int base, uint64_t *found) noexcept nogil:
    """A number of 64 bits, all of the word."""
    cdef uint64_t value = 0
    cdef int d
    if p == end:
        return False
    while p < end:
        d = digit(p[0])
        if d >= base:
            return False
        if base == 16:
            if value >> 60:
                return False
            value = value << 4 | <uint64_t>d
        else:
            if value > (~<uint64_t>0 - <uint64_t>d) // 10:
                return False
            value = value * 10 + <uint64_t>d
        p += 1
    found[0] = value
    return True


cdef inline bint has_0x(const uint8_t *p, const uint8_t *end) noexcept nogil:
    return end - p > 2 and p[0] == c'0' and p[1] | 0x20 == c'x'


cdef bint is_word(const uint8_t *p, const uint8_t *end, const char *word) noexcept nogil:
    """Whether it is this word, in capitals or not."""
    cdef Py_ssize_t i = 0
    while p + i < end and word[i] != 0 and p[i] & 0xDF == <uint8_t>word[i]:
        i += 1
    return p + i == end and word[i] == 0


cdef int operation(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The operation that a word stands for; -1: none."""
    if is_word(p, end, b"R") or is_word(p, end, b"L") or is_word(p, end, b"LD"):
        return OP_READ
    if is_word(p, end, b"READ") or is_word(p, end, b"LOAD"):
        return OP_READ
    if is_word(p, end, b"W") or is_word(p, end, b"S") or is_word(p, end, b"ST"):
        return OP_WRITE
    if is_word(p, end, b"WRITE") or is_word(p, end, b"STORE"):
        return OP_WRITE
    if is_word(p, end, b"M") or is_word(p, end, b"RW") or is_word(p, end, b"RMW") or is_word(p, end, b"MODIFY"):
        return OP_MODIFY
    if is_word(p, end, b"I") or is_word(p, end, b"F") or is_word(p, end, b"X") or is_word(p, end, b"FETCH"):
        return OP_FETCH
    if is_word(p, end, b"IFETCH") or is_word(p, end, b"INST") or is_word(p, end, b"INSTR") or is_word(p, end, b"EXEC"):
        return OP_FETCH
    return -1


cdef bint is_time(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """12.345678: and the like; the colon is there."""
    cdef int points = 0
    if end - p < 4 or (end - 1)[0] != c':':
        return False
    end -= 1
    while p < end:
        if p[0] == c'.':
            points += 1
        elif not 48 <= p[0] <= 57:
            return False
        p += 1
    return points == 1


cdef bint says_store(const uint8_t *p, const uint8_t *end) noexcept nogil:
    while end - p >= 5:
        if is_word(p, p + 5, b"STORE"):
            return True
        p += 1
    return False


cdef int parse_line(const uint8_t *p, const uint8_t *end, const Layout *layout, uint8_t *op, uint8_t *size,
                    uint64_t *addr) noexcept nogil:
    """One line without its newline."""
    cdef const uint8_t *word
    cdef const uint8_t *after
    cdef const uint8_t *stop
    cdef uint64_t value = 0, ip = 0
    cdef int i = 0, found
    cdef bint has_ip = False
    cdef uint8_t kind
    op[0] = OP_READ
    size[0] = 1
    while end > p and (blank((end - 1)[0]) or (end - 1)[0] == c'\r'):
        end -= 1
    while p < end and blank(p[0]):
        p += 1
    if p == end or p[0] == c'#':
        return TEXT_SKIP
    while p <= end:
        # the next word: word to stop, the following one begins at after
        word = p
        if layout.separator == 0:
            if p == end:
                break
            while p < end and not blank(p[0]):
                p += 1
            stop = p
            while p < end and blank(p[0]):
                p += 1
            after = p
        else:
            stop = <const uint8_t *>memchr(p, layout.separator, end - p) if p < end else NULL
            after = stop + 1 if stop != NULL else end + 1
            if stop == NULL:
                stop = end
            while word < stop and blank(word[0]):
                word += 1
            while stop > word and blank((stop - 1)[0]):
                stop -= 1
            if stop - word >= 2 and word[0] == c'"' and (stop - 1)[0] == c'"':
                word += 1
                stop -= 1
        p = after
        if i == layout.columns:
            return TEXT_LONG
        kind = layout.column[i]
        if kind == UNTIL_TIME:
            i += is_time(word, stop)
            continue
        i += 1
        if kind == REST:
            i = layout.columns
            break
        if stop > word and (stop - 1)[0] == c':':
            stop -= 1
        if kind == OPERATION:
            found = operation(word, stop)
            if found < 0:
                return TEXT_OPERATION
            op[0] = <uint8_t>found
        elif kind == DINERO_OPERATION:
            if stop - word != 1 or not 48 <= word[0] <= 50:
                return TEXT_OPERATION
            op[0] = OP_FETCH if word[0] == 50 else <uint8_t>(word[0] - 48)
        elif kind == ADDR:
            if not has_0x(word, stop):
                return TEXT_BASE if number(word, stop, 16, &value) else TEXT_ADDRESS
            if not number(word + 2, stop, 16, addr):
                return TEXT_ADDRESS
        elif kind == ADDR_HEX:
            if not number(word + 2 if has_0x(word, stop) else word, stop, 16, addr):
                return TEXT_ADDRESS
        elif kind == ADDR_DEC:
            if not number(word, stop, 10, addr):
                return TEXT_ADDRESS
        elif kind == SIZE:
            if not (number(word + 2, stop, 16, &value) if has_0x(word, stop) else number(word, stop, 10, &value)):
                return TEXT_SIZE
            if value < 1 or value > 255:
                return TEXT_SIZE
            size[0] = <uint8_t>value
        elif kind == EVENT:
            op[0] = OP_WRITE if says_store(word, stop) else OP_READ
        elif kind == IP:
            if not number(word + 2 if has_0x(word, stop) else word, stop, 16, &ip):
                return TEXT_ADDRESS
            has_ip = True
    if has_ip and ip == addr[0]:
        op[0] = OP_FETCH
    if i < layout.columns and layout.column[i] == REST:
        i += 1
    return TEXT_EVENT if i == layout.columns else TEXT_SHORT


cdef inline const uint8_t *fast_line(const uint8_t *p, const uint8_t *end, const Layout *layout, uint8_t *op,
                                     uint8_t *size, uint64_t *addr) noexcept nogil:
    """The line at p where it is written plainly: the next line, and the event. NULL: something else, see parse_line.

    Plainly: an operation is a letter, a size decimal, words have one separator (or blanks) between them and neither
    quotes nor blanks around. FAST_BYTES must be readable at p.
    """
    cdef const uint8_t *limit = end - FAST_WORD
    cdef const uint8_t *word
    cdef uint64_t ip = 0
    cdef uint32_t value
    cdef int i, last = layout.columns - 1
    cdef bint has_ip = False
    cdef uint8_t kind, c
    op[0] = OP_READ
    size[0] = 1
    if p[0] == c'#' or blank(p[0]):
        return NULL
    for i in range(layout.columns):
        if unlikely(p > limit):
            return NULL
        kind = layout.column[i]
        if kind == ADDR_HEX or kind == ADDR or kind == IP:
            if has_0x(p, end):
                p += 2
            elif kind == ADDR:
                return NULL
            p = hex_word(p, &ip if kind == IP else addr)
            if unlikely(p == NULL):
                return NULL
            has_ip |= kind == IP
        elif kind == OPERATION:
            if unlikely(LETTER[p[0]] == 0):
                return NULL
            op[0] = LETTER[p[0]] - 1
            p += 1
        elif kind == DINERO_OPERATION:
            value = <uint32_t>p[0] - 48
            if unlikely(value > 2):
                return NULL
            op[0] = DINERO_OP[value]
            p += 1
        elif kind == SIZE:
            word = p
            value = 0
            while p < word + 3 and 48 <= p[0] <= 57:
                value = value * 10 + (p[0] - 48)
                p += 1
            if unlikely(value < 1 or value > 255):
                return NULL
            size[0] = <uint8_t>value
        elif kind == SKIP:
            word = p
            while p < limit and p[0] > 32 and p[0] != layout.separator:
                p += 1
            if unlikely(p == word and layout.separator == 0):
                return NULL
        elif kind == REST:
            p = <const uint8_t *>memchr(p, c'\n', end - p)
            if p == NULL:
                return NULL
            break
        else:
            return NULL
        p += p[0] == c':'
        c = p[0]
        if c == c'\n' or c == c'\r' and p[1] == c'\n':
            if unlikely(i != last and not (i == last - 1 and layout.column[last] == REST)):
                return NULL
            p += c == c'\r'
            break
        if unlikely(i == last):
            return NULL
        p += 1
        if layout.separator:
            if c != layout.separator:
                return NULL
        else:
            if not blank(c):
                return NULL
            while p < limit and blank(p[0]):
                p += 1
            if p[0] == c'\n' or p[0] == c'\r':
                return NULL
    if has_ip and ip == addr[0]:
        op[0] = OP_FETCH
    return p + 1


cdef int parse_text(const uint8_t **at, const uint8_t *end, bint last, const Layout *layout, uint8_t *op, uint8_t *size,
                    uint64_t *addr, Py_ssize_t *n, Py_ssize_t room, Py_ssize_t *lines) noexcept nogil:
    """Lines from *at until `room` events, an error or the last complete line; *at, *n, *lines move along.

    `last`: what stands at the end without a newline was cut short, unless it is empty or begins with #.
    """
    cdef const uint8_t *p = at[0]
    cdef const uint8_t *newline
    cdef const uint8_t *after
    cdef Py_ssize_t i = n[0], seen = lines[0]
    cdef int kind = TEXT_EVENT
    while i < room and p < end:
        after = fast_line(p, end, layout, op + i, size + i, addr + i) if end - p >= FAST_BYTES else NULL
        if after != NULL:
            p = after
            i += 1
            seen += 1
            continue
        newline = <const uint8_t *>memchr(p, c'\n', end - p)
        if newline == NULL and not last:
            break
        kind = parse_line(p, newline if newline != NULL else end, layout, op + i, size + i, addr + i)
        if newline == NULL and kind != TEXT_SKIP:
            kind = TEXT_END
        if kind < 0:
            break
        i += kind == TEXT_EVENT
        seen += 1
        p = newline + 1 if newline != NULL else end
    at[0] = p
    n[0] = i
    lines[0] = seen
    return kind if kind < 0 else 0
