# Kernel only: nothing here is for Python. See _invalidate.pxd and _tlb_py.
