# The VMCB of a machine's vCPU of AMD, field by field.

from libc.stdint cimport uint64_t

from fastmmu.kvm.kvm cimport KvmVcpu

cdef uint64_t vmcb_read(const KvmVcpu *vcpu, uint64_t offset) except? 0xBAD
cdef int vmcb_write(KvmVcpu *vcpu, uint64_t offset, uint64_t value) except -1
cdef dict vmcb_of(const KvmVcpu *vcpu)                  # field by name
