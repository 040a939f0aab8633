"""Records of a system trace, looked at one by one."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu._arguments cimport aligned, bytes_in
from fastmmu.errors import TraceError

FAULTS = {
    REC_BAD_OP: "operation {r[op]} does not exist",
    REC_BAD_CPL: "an access has privilege 0 or 3, not {r[cpl]}",
    REC_BAD_SIZE: "an access has 1 to 64 bytes, not {r[size]}",
    REC_BAD_PAGE: "{r[aux]} further elements of {r[size]} bytes from {r[lin]:#x} on leave the page",
    REC_BAD_DATA: "flags {r[flags]:#x}: only a single store of at most 8 bytes has a value",
    REC_BAD_TABLE: "{r[val]:#x} is no address of a page",
    REC_BAD_INVPCID: "INVPCID has a type of 0 to 3 and a PCID of 12 bits, not {r[size]} and {r[aux]:#x}",
    REC_BAD_PKRU: "PKRU has 32 bits, not {r[val]:#x}",
    REC_BAD_CR: "cr3={r[val]:#x} has reserved bits",
    REC_BAD_IPI: "an IPI to {r[aux]:#x} whose ICR, {r[val]:#x}, has another destination in bits 63:56",
    REC_BAD_WALK: "a walk is for an access of 0 to 3, not {r[size]}",
}
"""What is wrong with a record, by the code of :func:`scan`; `r` is the record."""


def scan(raw):
    """Look at records in the order of the trace.

    :param raw: their bytes, 24 each.
    :returns: (number of good ones at the start, why the next is none or 0, stores among them whose value is in wdata,
        TABLE records among them).
    :raises TraceError: no whole number of records.
    """
    cdef const uint8_t[::1] rows = bytes_in("records", raw, TraceError)
    cdef uint64_t n = rows.shape[0] // sizeof(Record), i = 0, data = 0, tables = 0
    cdef const Record *r
    cdef int fault = 0
    if rows.shape[0] % sizeof(Record):
        raise TraceError(f"{rows.shape[0]} bytes are no whole number of records of {sizeof(Record)}")
    if n == 0:
        return 0, 0, 0, 0
    aligned("records", &rows[0], TraceError)
    r = <const Record *> &rows[0]
    with nogil:
        while i < n:
            fault = record_fault(&r[i])
            if fault:
                break
            data += r[i].flags & REC_DATA
            tables += r[i].op == REC_TABLE
            i += 1
    return i, fault, data, tables
