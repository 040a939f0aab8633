# vCPUs of a host's machine that come and go.

from libc.stdint cimport uint64_t

from fastmmu.machine.board cimport Board
from fastmmu.machine.events cimport Run
from fastmmu.paging.state cimport GuestState

cdef int vcpus_begin(Board b) except -1
cdef int vcpus_with_pdptes(Board b, uint64_t count) except -1
cdef Run *vcpu_add(Board b) except NULL
cdef int vcpu_set_registers(Board b, Run *run, GuestState state) except -1
cdef int vcpu_remove(Board b, Run *run) except -1
cdef void vcpus_end(Board b)
