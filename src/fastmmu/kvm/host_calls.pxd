# What the host and user space ask of the VMM of a machine: of the kernels, or, where `vm` is not None, of a class in
# Python, whose exceptions come out of the call.

from libc.stdint cimport uint32_t

from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.kvm.port cimport VirtualMachine
from fastmmu.kvm.vpid_py cimport VpidAllocator

cdef uint32_t call_allocate_vpid(VirtualMachine vm, KvmVcpu *vcpu, VpidAllocator host, bint enabled) except? 0xBAD
cdef int call_create_lapic(VirtualMachine vm, KvmVcpu *vcpu) except -1     # or the VMM of the kernels
cdef int call_free_vpid(VirtualMachine vm, KvmVcpu *vcpu, VpidAllocator host) except -1    # vcpu.vpid is 0 after it
cdef int call_reset(VirtualMachine vm, KvmVcpu *vcpu) except? -2           # -1: Vcpu.abort says why
cdef int call_pre_run(VirtualMachine vm, KvmVcpu *vcpu) except -1   # before the first VM entry
cdef int call_load_root(VirtualMachine vm, KvmVcpu *vcpu) except? -2       # -1: as before
cdef int call_put(VirtualMachine vm, KvmVcpu *vcpu) except -1
cdef int call_load(VirtualMachine vm, KvmVcpu *vcpu) except -1
cdef int call_enter(VirtualMachine vm, KvmVcpu *vcpu, uint32_t cpu) except? -2  # -1, or what irq_boundary says
cdef int call_enter_again(KvmVcpu *vcpu) except? -2     # -1, or what irq_boundary says
cdef int call_exit(VirtualMachine vm, KvmVcpu *vcpu, uint32_t cpu, bint halts) except -1
cdef int call_drain(VirtualMachine vm, KvmVcpu *vcpu) except -1
cdef int call_arm(VirtualMachine vm, KvmVcpu *vcpu) except -1
cdef int call_flush(VirtualMachine vm, KvmVcpu *vcpu) except -1
cdef int call_zap_all(VirtualMachine vm, KvmVcpu *vcpu) except? -2         # -1: no table page for a new root
