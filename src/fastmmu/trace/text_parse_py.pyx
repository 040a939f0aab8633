"""Text with columns to event columns, for Python; the lines: trace/text_parse.pyx."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu._arguments cimport bytes_in, bytes_out, flag, within, words_out
from fastmmu.trace.text_parse cimport MOST_COLUMNS, REST, Layout, parse_text

from fastmmu.errors import TraceError


def parse(text, start, stop, last, columns, separator, op, size, addr, n):
    """Parse the lines of text[start:stop] into the event columns from row n on.

    :param last: a line without a newline was cut short, else it waits for more.
    :param columns: a byte a column of the text, `Column` of trace/text_parse.pxd.
    :param separator: a character's code, 0: blanks.
    :returns: (where the next line starts, rows filled, lines passed, error): error is 0, or the negative kind of the
        bad line at the position returned.
    """
    cdef const uint8_t[::1] read = bytes_in("text", text, TraceError), kinds = bytes_in("columns", columns, TraceError)
    cdef uint8_t[::1] ops = bytes_out("op", op, TraceError), sizes = bytes_out("size", size, TraceError)
    cdef uint64_t[::1] addrs = words_out("addr", addr, TraceError)
    cdef Py_ssize_t room = addrs.shape[0], lines = 0, first, end, row, i
    cdef const uint8_t *p
    cdef const uint8_t *base
    cdef int error
    cdef bint final = flag("last", last)
    cdef Layout layout
    end = within("stop", stop, 0, read.shape[0], TraceError)
    first = within("start", start, 0, end, TraceError)
    row = within("n", n, 0, room, TraceError)
    if ops.shape[0] != room or sizes.shape[0] != room:
        raise TraceError(f"op, size and addr have different lengths: {ops.shape[0]}, {sizes.shape[0]}, {room}")
    if not 1 <= kinds.shape[0] <= MOST_COLUMNS:
        raise TraceError(f"{kinds.shape[0]} columns; give 1 to {MOST_COLUMNS}")
    layout.columns = <int>kinds.shape[0]
    for i in range(layout.columns):
        if kinds[i] > REST:
            raise TraceError(f"column {kinds[i]} does not exist, only 0 to {<int>REST}")
        layout.column[i] = kinds[i]
    layout.separator = <uint8_t>within("separator", separator, 0, 255, TraceError)
    if first == end or row == room:
        return first, row, 0, 0
    base = &read[0]
    p = base + first
    with nogil:
        error = parse_text(&p, base + end, final, &layout, &ops[0], &sizes[0], &addrs[0], &row, room, &lines)
    return p - base, row, lines, error
