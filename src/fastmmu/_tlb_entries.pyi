# Kernel only: nothing here is for Python. See _tlb_entries.pxd and _tlb_py.
