# Kernel only: nothing here is for Python. See _tlb.pxd and _tlb_py.
