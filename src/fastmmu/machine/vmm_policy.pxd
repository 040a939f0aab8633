# What a machine's KVM does of its own choice (Mmu.policy and parts of Kvm), from the configuration.

from fastmmu.kvm.kvm cimport Kvm

cdef int policy_choose(Kvm *kvm, config, int maxphyaddr) except -1
