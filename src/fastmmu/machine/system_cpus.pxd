# The CPUs of a system trace. Natively each is a machine of its own, all on one memory; with a VMM they are the vCPUs of
# one machine, each on a physical CPU of its own.

from libc.stdint cimport uint32_t

from fastmmu.machine.board cimport Board
from fastmmu.machine.host cimport Host
from fastmmu.machine.machine cimport Machine


cdef class SystemCpus:
    cdef readonly tuple machines    # of each CPU
    cdef readonly tuple tlbs
    cdef readonly tuple states      # GuestState of each at the start
    cdef Host host                  # or None
    cdef Board turn_to(self, uint32_t cpu)
