# The event loop over a virtual CPU and its guest kernel; no Python object in it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Walk
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.machine.kernel_state cimport GuestCounters, GuestKernel

cdef struct Run:                # a vCPU, and what runs on it
    KvmVcpu vcpu                # first: see to_run
    GuestKernel *kernel         # NULL: a bare guest
    uint32_t process            # that the guest kernel runs on it
    uint64_t guest_base         # host-physical address of guest-physical 0
    uint64_t first              # number of the first event
    uint64_t exit_every         # accesses between periodic exits; 0: none
    uint64_t until_exit         # accesses until the next
    GuestCounters c
    uint64_t *clock             # accesses of earlier batches, of all vCPUs of the machine


cdef inline Run *to_run(Vcpu *v) noexcept nogil:
    # of the vCPU whose processor state this is
    return <Run *> v


cdef uint64_t run_events(Run *m, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n,
                         uint64_t *out) noexcept nogil
cdef int premap(Vcpu *v, uint64_t la, int fault, const Walk *w) noexcept nogil
cdef int exit_instruction(Run *m, uint64_t reason) noexcept nogil
