"""gem5's packets to event columns, for Python; the messages: trace/gem5_parse.pyx."""

from libc.stdint cimport uint8_t

from fastmmu.trace.gem5_parse cimport Packets, parse_packets
from fastmmu.trace.parse_columns cimport _Columns, columns


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
        cdef _Columns c = columns("data", data, start, stop, op, size, addr, n)
        cdef const uint8_t *p = c.base + c.start
        cdef int fault = parse_packets(&p, c.base + c.stop, &self.file, c.op, c.size, c.addr, &c.row, c.room)
        return p - c.base, c.row, fault
