# The page tables of an enumeration (paging/leaves.pxd).

from fastmmu.paging.leaf_rows cimport Leaves

# On with the page table being read, until it ends or there is no more room. Under EPT only with rows wanted.
cdef void leaf_pages(Leaves *s) noexcept nogil
