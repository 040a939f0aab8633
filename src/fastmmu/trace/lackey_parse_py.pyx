"""Lackey text to event columns and back, for Python; the lines: trace/lackey_parse.pyx."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.trace.lackey_parse cimport MAX_LINE, parse_lines, print_lines


def parse(const uint8_t[::1] text, Py_ssize_t start, Py_ssize_t stop, bint last,
          uint8_t[::1] op, uint8_t[::1] size, uint64_t[::1] addr, Py_ssize_t n):
    """Parse the lines of text[start:stop] into the columns from row n on.

    Ends at the end of the columns, at a bad line, or at an incomplete line (which, with `last`, is a line).
    Returns (where the next line starts, rows filled, lines passed, error): error is 0, or the negative kind of
    the bad line at the position returned.
    """
    cdef Py_ssize_t room = addr.shape[0], lines = 0
    cdef const uint8_t *p
    cdef const uint8_t *base
    cdef int error
    if not 0 <= start <= stop <= text.shape[0]:
        raise ValueError(f"text[{start}:{stop}] lies outside a buffer of {text.shape[0]} bytes")
    if op.shape[0] != room or size.shape[0] != room or not 0 <= n <= room:
        raise ValueError("op, size and addr must be equally long, and n a row of them")
    if start == stop or n == room:
        return start, n, 0, 0
    base = &text[0]
    p = base + start
    with nogil:
        error = parse_lines(&p, base + stop, last, &op[0], &size[0], &addr[0], &n, room, &lines)
    return p - base, n, lines, error


def format(const uint8_t[::1] op, const uint8_t[::1] size, const uint64_t[::1] addr):
    """The events as lackey prints them: bytes. Raises IndexError(row) at one that is no access of 1 to 255 bytes."""
    cdef Py_ssize_t n = addr.shape[0], used
    cdef bytearray out
    cdef char *q
    if op.shape[0] != n or size.shape[0] != n:
        raise ValueError("op, size and addr must be equally long")
    if n == 0:
        return b""
    out = bytearray(n * MAX_LINE)
    q = out
    with nogil:
        used = print_lines(&op[0], &size[0], &addr[0], n, q)
    if used < 0:
        raise IndexError(-1 - used)
    del out[used:]
    return out
