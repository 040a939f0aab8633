"""Where in host memory the parts of a machine lie."""

from libc.stdint cimport uint32_t, uint64_t


cdef bint has_identity(config, bint guest_kernel):
    # the VMM needs an identity table where the guest may stop paging, and guest memory leaves it room
    return (config.mmu == "ept" and not config.unrestricted and not guest_kernel
            and config.memory_bytes <= config.identity_map)


cdef uint64_t private_bytes(config, bint guest_kernel) except? 0:
    # host memory for the VMM's own slots behind those of the guest: APIC-access page, identity table, task state
    if config.mmu == "native":
        return 0
    return (1 << 21 if config.tpr is not None else 0) + (3 << 21 if has_identity(config, guest_kernel) else 0)


cdef uint64_t behind_bytes(config, bint guest_kernel, uint32_t vcpus) except? 0:
    # host memory behind that of a host's machine: these slots, and the pages of further vCPUs
    cdef uint64_t own = private_bytes(config, guest_kernel)
    if config.tpr is None or config.mmu == "native":
        return own
    return own + (1 << 21) + (<uint64_t> VCPU_BYTES * vcpus & ~(<uint64_t> 0x1FFFFF))


cdef uint64_t host_bytes(config) except 0:
    # host memory that a machine takes: the guest's, and in front of it the VMM's tables
    cdef uint64_t guest_bytes = config.memory_bytes
    if config.mmu == "native":
        return guest_bytes
    return guest_bytes + (((guest_bytes >> 5) + (1 << 26)) & ~(<uint64_t> 0x1FFFFF))


cdef uint64_t vcpu_page(config, bint guest_kernel, uint32_t number) except 0:
    # of a vCPU, from the machine's first page on: its virtual-APIC page, the posted-interrupt descriptor behind it
    if not number:
        return VIRTUAL_APIC
    return host_bytes(config) + private_bytes(config, guest_kernel) + <uint64_t> VCPU_BYTES * (number - 1)
