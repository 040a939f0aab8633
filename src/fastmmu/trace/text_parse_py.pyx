"""Text with columns to event columns, for Python; the lines: trace/text_parse.pyx."""

from libc.stdint cimport uint8_t

from fastmmu._arguments cimport bytes_in, flag, within
from fastmmu.trace.parse_columns cimport _Columns
from fastmmu.trace.parse_columns cimport columns as given
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
    cdef _Columns c = given("text", text, start, stop, op, size, addr, n)
    cdef const uint8_t[::1] kinds = bytes_in("columns", columns, TraceError)
    cdef Py_ssize_t lines = 0, i
    cdef const uint8_t *p = c.base + c.start
    cdef int error
    cdef bint final = flag("last", last)
    cdef Layout layout
    if not 1 <= kinds.shape[0] <= MOST_COLUMNS:
        raise TraceError(f"{kinds.shape[0]} columns; give 1 to {MOST_COLUMNS}")
    layout.columns = <int>kinds.shape[0]
    for i in range(layout.columns):
        if kinds[i] > REST:
            raise TraceError(f"column {kinds[i]} does not exist, only 0 to {<int>REST}")
        layout.column[i] = kinds[i]
    layout.separator = <uint8_t>within("separator", separator, 0, 255, TraceError)
    with nogil:
        error = parse_text(&p, c.base + c.stop, final, &layout, c.op, c.size, c.addr, &c.row, c.room, &lines)
    return p - c.base, c.row, lines, error
