# A replacement policy by its name: one of this package, or one that another has registered (tlb/policy.pxd).

from fastmmu.tlb.policy cimport Replacer

cdef const Replacer *policy_of(str name) except NULL
