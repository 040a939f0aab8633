# Kernel only: nothing here is for Python. See tlb/lookup.pxd and _tlb_py.
