# The vCPUs of one VM, as they see each other.

cdef struct Sibling:
    bint in_guest               # in guest mode on a physical CPU: an IPI makes it exit
    bint kicked                 # the IPI is on its way
    bint request                # it flushes before its next VM entry
