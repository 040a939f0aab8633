# A virtual machine and its vCPUs in the hands of a VMM in Python.

from libc.stdint cimport uint32_t

from fastmmu.kvm.faults_port cimport Faults
from fastmmu.kvm.kvm cimport Kvm, KvmVcpu
from fastmmu.kvm.roots_port cimport Roots
from fastmmu.kvm.vcpu_port cimport VcpuPort
from fastmmu.kvm.vm_port cimport VmPort
from fastmmu.kvm.vpid_py cimport VpidAllocator
from fastmmu.mmu.port cimport Mmu
from fastmmu.threads.turns cimport Turns


cdef class VirtualMachine(VmPort):
    cdef Turns turns
    cdef readonly list vcpus    # VirtualCpu, by number
    cdef object policy          # the Kvm in whose hands it is
    cdef object made(self, kind)
    cdef object _within(self, method, str name, tuple arguments)
    cdef object ask(self, str name, int slot, found=*)
    cdef readonly Mmu mmu
    cdef object call(self, str name, KvmVcpu *vcpu, uint32_t cpu)
    cdef VirtualCpu of(self, KvmVcpu *vcpu)
    cdef _renew(self)
    cdef forget(self, KvmVcpu *vcpu)


cdef class VirtualCpu(VcpuPort):
    cdef readonly Roots roots
    cdef readonly Faults faults
    cdef readonly object apic   # Lapic, or None


cdef VirtualMachine vm_of(object board, Turns turns, Kvm *kvm, VpidAllocator vpids, object rules)
