"""Where in host memory the parts of a machine lie."""

from libc.stdint cimport uint64_t


cdef bint has_identity(config, bint guest_kernel):
    # the VMM needs an identity table where the guest may stop paging, and guest memory leaves it room
    return (config.mmu == "ept" and not config.unrestricted and not guest_kernel
            and config.memory_bytes <= config.identity_map)


cdef uint64_t host_bytes(config) except 0:
    # host memory that a machine takes: the guest's, and in front of it the VMM's tables
    cdef uint64_t guest_bytes = config.memory_bytes
    if config.mmu == "native":
        return guest_bytes
    return guest_bytes + (((guest_bytes >> 5) + (1 << 26)) & ~(<uint64_t> 0x1FFFFF))


cdef uint64_t machine_bytes(config, slots) except 0:
    # host memory of a host's machine: with its slots, each from the next 2 MB on, and behind them the pages of those of
    # its vCPUs, up to 255, that are not the first
    cdef uint64_t found = host_bytes(config)
    for slot in slots:
        found += (slot.gpa & 0x1FFFFF) + slot.size + 0x1FFFFF & ~0x1FFFFF
    return found + (1 << 21 if config.tpr is not None else 0)
