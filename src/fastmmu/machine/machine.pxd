# One machine: the parts of a board, which are what users hold.

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.vmm cimport Vmm
from fastmmu.machine.apic_port cimport GuestApic
from fastmmu.machine.board cimport Board
from fastmmu.machine.instructions cimport Guest
from fastmmu.threads.turns cimport Turn


cdef class Machine:
    cdef object __weakref__
    cdef Board board
    cdef readonly Guest guest
    cdef readonly GuestApic apic
    cdef Vmm _vmm
    cdef _adopt(self, Board board)
    cdef _ready_for(self, policy, bint kernel)
    cdef Turn _handler(self, str name)


# ---- for other packages (fastmmu/__init__.pxd) --------------------------------------------------------------

cdef inline Vcpu *machine_vcpu(Machine machine) except NULL:
    # the virtual CPU of a guest that may run now: no exit is being handled, no other thread runs it
    machine.board._guest_runs()
    return machine.board.v


cdef inline int machine_raise(Machine machine) except -1:
    # the exception that a DONE_ABORT stands for
    machine.board._raise(0)
    return -1
