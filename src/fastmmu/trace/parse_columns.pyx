"""Arguments of the parsers of traces, checked. Header: parse_columns.pxd."""

from libc.stdint cimport uint8_t

from fastmmu._arguments cimport bytes_in, bytes_out, within, words_out

from fastmmu.errors import TraceError

cdef uint8_t nothing = 0


cdef _Columns columns(str name, data, start, stop, op, size, addr, n):
    """data[start:stop] to read, and the columns to fill from row n on."""
    cdef _Columns c = _Columns.__new__(_Columns)
    c.data = bytes_in(name, data, TraceError)
    c.ops, c.sizes = bytes_out("op", op, TraceError), bytes_out("size", size, TraceError)
    c.addrs = words_out("addr", addr, TraceError)
    c.room = c.addrs.shape[0]
    c.stop = within("stop", stop, 0, c.data.shape[0], TraceError)
    c.start = within("start", start, 0, c.stop, TraceError)
    c.row = within("n", n, 0, c.room, TraceError)
    if c.ops.shape[0] != c.room or c.sizes.shape[0] != c.room:
        raise TraceError(f"op, size and addr have different lengths: {c.ops.shape[0]}, {c.sizes.shape[0]}, {c.room}")
    c.base = &c.data[0] if c.data.shape[0] else &nothing
    if c.room:
        c.op, c.size, c.addr = &c.ops[0], &c.sizes[0], &c.addrs[0]
    return c
