# The VMCS of a machine's vCPU, field by field.

from libc.stdint cimport uint64_t

from fastmmu.kvm.kvm cimport KvmVcpu

cdef uint64_t vmcs_read(const KvmVcpu *vcpu, uint64_t encoding) except? 0xBAD
cdef int vmcs_write(KvmVcpu *vcpu, uint64_t encoding, uint64_t value) except -1
