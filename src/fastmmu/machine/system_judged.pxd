# Records of a system trace of several CPUs, whose MayHold is Replay.h: as replay_records.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.machine.records cimport Record
from fastmmu.machine.system_loop cimport Replay

cdef uint64_t judged_records(Replay *p, uint64_t first, const Record *rows, uint64_t n, const uint64_t *data,
                             uint64_t n_data, const uint8_t *pages, uint64_t n_pages, int *stop) noexcept nogil
