# The ASIDs of a physical CPU in the hands of a VMM in Python.

from fastmmu.kvm.asid cimport SvmCpu
from fastmmu.kvm.vm_port cimport VmPort


cdef class SvmCpuData:
    cdef VmPort vm
    cdef SvmCpu *sd


cdef SvmCpuData svm_cpu_of(VmPort vm, SvmCpu *sd)
