"""`VpidAllocator`: the VPIDs of one host, for Python."""

from libc.stdint cimport uint32_t

from fastmmu._arguments cimport counted, whole
from fastmmu.kvm.vpid cimport VPIDS, vpid_alloc, vpid_free, vpid_init

from fastmmu.errors import StateError


cdef class VpidAllocator:
    """The VPIDs of one host, as KVM gives them out: lowest free number first, 0 where none is left.

    A vCPU with VPID 0 runs with "enable VPID" off: every VM entry and exit flushes. Freeing flushes nothing; whoever
    gets the number next is flushed when it first runs (tlb.md §6).

    Threads: each call is one step; no VPID is given out twice.
    """

    def __cinit__(self):
        vpid_init(&self.map)

    def alloc(self):
        """The lowest VPID that nobody has, 1..65535; 0: all are taken."""
        return vpid_alloc(&self.map)

    def free(self, vpid):
        """Gives one back; 0, which stands for none, is ignored.

        :raises StateError: nobody has it.
        """
        number = whole("vpid", vpid)
        if number and (not 0 < number < VPIDS or not vpid_free(&self.map, <uint32_t> number)):
            raise StateError(f"VPID {counted(number)} is not given out; free what alloc() returned, once")

    def __len__(self):
        return self.map.used

    def __contains__(self, vpid):
        number = whole("vpid", vpid)
        if not 0 <= number < VPIDS:
            return False
        return not self.map.free[<uint32_t> number >> 6] >> (<uint32_t> number & 63) & 1
