"""The ASIDs of a physical CPU; header: kvm/asid.pxd."""

from libc.stdint cimport uint32_t, uint64_t


cdef void asid_init(SvmCpu *sd, uint32_t asids, uint32_t min_asid) noexcept nogil:
    # CPUID says how many there are, the host's included; as Linux begins, the first one begins a generation
    sd.asid_generation = 1
    sd.max_asid = asids - 1
    sd.min_asid = min_asid
    sd.next_asid = sd.max_asid + 1


cdef bint asid_new(SvmCpu *sd, uint32_t *asid, uint64_t *generation) noexcept nogil:
    cdef bint begins = sd.next_asid > sd.max_asid
    if begins:
        sd.asid_generation += 1
        sd.next_asid = sd.min_asid
    generation[0] = sd.asid_generation
    asid[0] = sd.next_asid
    sd.next_asid += 1
    return begins
