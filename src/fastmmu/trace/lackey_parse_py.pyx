"""Lackey text to event columns and back, for Python; the lines: trace/lackey_parse.pyx."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu._arguments cimport bytes_in, flag, whole, within, words_in
from fastmmu.trace.lackey_parse cimport MAX_LINE, Lackey, parse_lines, print_lines
from fastmmu.trace.parse_columns cimport _Columns, columns

from fastmmu.errors import TraceError


def parse(text, start, stop, last, op, size, addr, n, pid=0, skip=False):
    """Parse the lines of text[start:stop] into the columns from row n on.

    Ends at the end of the columns, at a bad line, or at an incomplete line (which, with `last`, was cut short).

    :param pid: the process that Valgrind's lines have named so far, 0 for none.
    :param skip: lines of the program itself are skipped.
    :returns: (where the next line starts, rows filled, lines passed, error, pid, lines skipped): error is 0, or the
        negative kind of the bad line at the position returned.
    """
    cdef _Columns c = columns("text", text, start, stop, op, size, addr, n)
    cdef Py_ssize_t lines = 0
    cdef const uint8_t *p = c.base + c.start
    cdef int error
    cdef bint final = flag("last", last)
    cdef Lackey file
    file.pid = within("pid", pid, 0, 1 << 32, TraceError)
    file.skip = flag("skip", skip)
    file.skipped = 0
    with nogil:
        error = parse_lines(&p, c.base + c.stop, final, c.op, c.size, c.addr, &c.row, c.room, &lines, &file)
    return p - c.base, c.row, lines, error, file.pid, file.skipped


def format(op, size, addr, first=0, path=None):
    """The events as lackey prints them: bytes.

    :param first, path: number of the first event and file that they come from, for messages.
    :raises TraceError: an event that is no access of 1 to 255 bytes.
    """
    cdef const uint8_t[::1] ops = bytes_in("op", op, TraceError), sizes = bytes_in("size", size, TraceError)
    cdef const uint64_t[::1] addrs = words_in("addr", addr, TraceError)
    cdef Py_ssize_t n = addrs.shape[0], used
    cdef bytearray out
    cdef char *q
    if ops.shape[0] != n or sizes.shape[0] != n:
        raise TraceError(f"op, size and addr have different lengths: {ops.shape[0]}, {sizes.shape[0]}, {n}")
    if n == 0:
        return b""
    out = bytearray(n * MAX_LINE)
    q = out
    with nogil:
        used = print_lines(&ops[0], &sizes[0], &addrs[0], n, q)
    if used < 0:
        used = -1 - used
        first = whole("first", first)
        raise TraceError(f"lackey text cannot hold operation {ops[used]} with size {sizes[used]}; write .arrow or .npy",
                         path=path, where=f"event {first + used}")
    del out[used:]
    return out
