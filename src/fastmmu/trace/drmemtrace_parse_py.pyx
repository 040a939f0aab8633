"""drmemtrace records to event columns, for Python; the records: trace/drmemtrace_parse.pyx."""

from libc.stdint cimport uint8_t

from fastmmu._arguments cimport flag, within
from fastmmu.trace.drmemtrace_parse cimport Stream, parse_records
from fastmmu.trace.parse_columns cimport _Columns, columns

from fastmmu.errors import TraceError


cdef class Records:
    """Where a stream of records is; `parse` goes on.

    ``tid``, ``pid`` of the thread and process, ``time`` of the last time stamp in microseconds, ``page``: the virtual
    and the physical page that a pair of markers named last, ``ended``: the footer was read.

    Threads: each call is one step.
    """
    cdef Stream stream
    cdef int width

    def __init__(self, width, timed):
        """:param width: bytes of a record, 12 or 8. :param timed: a time stamp ends a call of `parse`."""
        self.width = 8 if within("width", width, 8, 12, TraceError) == 8 else 12
        self.stream.timed = flag("timed", timed)

    @property
    def tid(self):
        return self.stream.tid

    @property
    def pid(self):
        return self.stream.pid

    @property
    def time(self):
        return self.stream.time

    @property
    def page(self):
        return self.stream.virtual_page, self.stream.physical

    @property
    def ended(self):
        return bool(self.stream.ended)

    def seen(self):
        """The caller knows `tid` and `pid`: go on with their events."""
        self.stream.seen_tid, self.stream.seen_pid = self.stream.tid, self.stream.pid

    def forget(self):
        """Stop before the next event, whoever it is of."""
        self.stream.seen_tid = ~self.stream.tid

    def parse(self, data, start, stop, op, size, addr, n):
        """Parse data[start:stop] into the columns from row n on.

        :returns: (where the next record starts, rows filled, why it stopped): 0 for want of room or records, 1 at a
            time stamp, 2 before an event of another thread or process, 3 at a page; below 0 a bad record there.
        """
        cdef _Columns c = columns("data", data, start, stop, op, size, addr, n)
        cdef const uint8_t *p = c.base + c.start
        cdef int why = parse_records(
            &p, c.base + c.stop, self.width, &self.stream, c.op, c.size, c.addr, &c.row, c.room)
        return p - c.base, c.row, why
