# How the guest kernel makes other vCPUs flush what they have cached of an address space.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.machine.kernel_state cimport GuestCpu, GuestKernel

cdef int shoot_new_cpu(GuestKernel *k, uint32_t index) noexcept nogil      # -1: no memory
cdef void shoot_free(GuestKernel *k) noexcept nogil
# Pages of the current process went, or lost rights; pages: 0, or more than the ceiling: all of it is flushed. Here at
# once, on other vCPUs before their next instruction.
cdef int shoot_down(GuestKernel *k, uint32_t process, uint64_t la, uint64_t pages, uint32_t shift,
                    bint freed_tables) noexcept nogil
cdef void shoot_leave(GuestKernel *k, GuestCpu *cpu) noexcept nogil    # it has the kernel's own tables
cdef int shoot_serve(GuestKernel *k) noexcept nogil     # what is owed by the vCPU that runs
cdef int shoot_flush(GuestKernel *k) noexcept nogil     # all of the current process, here
# The process is loaded here: True where what is cached of it is still good
cdef bint shoot_loaded(GuestKernel *k, uint64_t process) noexcept nogil
