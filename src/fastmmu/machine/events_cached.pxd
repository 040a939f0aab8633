# run_held() of machine/events.pyx, with data caches under the accesses.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.cpu.vcpu cimport Vcpu

cdef uint64_t run_held_cached(Vcpu *v, const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t i,
                              uint64_t end, uint64_t *out, uint64_t guest_base, uint64_t *found) noexcept nogil
# One access of a program, or the part of it on one page, that was translated.
cdef void access_cached(Vcpu *v, uint64_t hpa, uint64_t la, uint32_t nbytes, int acc) noexcept nogil
