"""gem5's packets to event columns, for Python; the messages: trace/gem5_parse.pyx."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu._arguments cimport bytes_in, bytes_out, within, words_out
from fastmmu.trace.gem5_parse cimport Packets, parse_packets

from fastmmu.errors import TraceError


cdef class PacketStream:
    """Where a stream of packets is; `parse` goes on. ``others``: packets so far that are no read or write requests.

    Threads: each call is one step.
    """
    cdef Packets file

    @property
    def others(self):
        return self.file.others

    def parse(self, data, start, stop, op, size, addr, n):
        """Parse the messages of data[start:stop] into the columns from row n on.

        :returns: (where the next message starts, rows filled, fault): 0, or the negative kind of what is wrong there.
        """
        cdef const uint8_t[::1] read = bytes_in("data", data, TraceError)
        cdef uint8_t[::1] ops = bytes_out("op", op, TraceError), sizes = bytes_out("size", size, TraceError)
        cdef uint64_t[::1] addrs = words_out("addr", addr, TraceError)
        cdef Py_ssize_t room = addrs.shape[0], first, end, row
        cdef const uint8_t *p
        cdef const uint8_t *base
        cdef uint8_t nothing = 0
        cdef int fault
        end = within("stop", stop, 0, read.shape[0], TraceError)
        first = within("start", start, 0, end, TraceError)
        row = within("n", n, 0, room, TraceError)
        if ops.shape[0] != room or sizes.shape[0] != room:
            raise TraceError(f"op, size and addr have different lengths: {ops.shape[0]}, {sizes.shape[0]}, {room}")
        if row == room:
            return first, row, 0
        base = &read[0] if read.shape[0] else &nothing
        p = base + first
        fault = parse_packets(&p, base + end, &self.file, &ops[0], &sizes[0], &addrs[0], &row, room)
        return p - base, row, fault
