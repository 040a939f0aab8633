"""The log of exits of a machine, as arrays: the last ones, and those that a stream has not taken."""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu._arguments cimport counted, within
from fastmmu.cpu.exit_log cimport ExitRecord, exit_log_free, exit_log_init

from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.errors import OutOfMemoryError


cdef void log_runs(KvmVcpu *vcpu) noexcept nogil:
    # its exits come next: who it is, and what the others of its VM have done
    cdef const uint64_t *ops
    cdef ExitLog *log = vcpu.cpu.log
    cdef uint32_t i
    log.vcpu = vcpu.index
    log.others = vcpu.kvm.accesses_ended
    for i in range(vcpu.kvm.n_vcpus):
        if vcpu.kvm.vcpu[i] != vcpu:
            ops = vcpu.kvm.vcpu[i].cpu.c.ops
            log.others += ops[0] + ops[1] + ops[2] + ops[3]


cdef ExitRing ring_of(KvmVcpu *vcpu, uint64_t keep):
    # of all vCPUs of the VM, of which this one runs, from now on
    cdef uint32_t i
    cdef ExitRing ring = ExitRing.__new__(ExitRing)
    if exit_log_init(&ring.log, keep):
        raise OutOfMemoryError(f"no memory for a log of {counted(keep)} exits; give a smaller exit_log=")
    for i in range(vcpu.kvm.n_vcpus):
        vcpu.kvm.vcpu[i].cpu.log = &ring.log
    log_runs(vcpu)
    return ring


cdef class ExitRing:
    """Belongs to a :class:`fastmmu.Machine`."""

    def __dealloc__(self):
        exit_log_free(&self.log)

    cdef object copied(self, n):
        # the last n, oldest first
        cdef uint64_t many = n, start = (self.log.next + self.log.room - many) % self.log.room
        cdef uint64_t head = min(many, self.log.room - start)
        cdef uint8_t[::1] out
        found = np.empty(many, EXIT_DTYPE)
        if many:
            out = found.view(np.uint8)
            memcpy(&out[0], self.log.row + start, head * sizeof(ExitRecord))
            if many > head:
                memcpy(&out[head * sizeof(ExitRecord)], self.log.row, (many - head) * sizeof(ExitRecord))
        return found

    cdef object kept(self):
        return self.copied(min(self.log.total, self.log.keep))

    cdef object take(self, first):
        # those since the last time, at first those that are kept; or those from number `first` on, none is gone
        cdef uint64_t number
        if not self.log.streams:
            self.log.streams = True
            self.log.taken = self.log.total - min(self.log.total, self.log.keep)
        if self.log.dropped:
            raise OutOfMemoryError(f"no memory for {counted(self.log.dropped)} exits between two parts of the trace")
        if first is not None:
            number = within("first", first, self.log.taken, self.log.total)
            self.log.taken = number
            return self.copied(self.log.total - number)
        found = self.copied(self.log.total - self.log.taken)
        self.log.taken = self.log.total
        return found
