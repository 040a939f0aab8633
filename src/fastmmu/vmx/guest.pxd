# The guest's operations, until the next VM exit, event, or their end.

from fastmmu.vmx.processor cimport Processor

cdef int guest_run(Processor *p) noexcept nogil         # RunEnd
