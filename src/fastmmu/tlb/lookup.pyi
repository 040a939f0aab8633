# Kernel only: nothing here is for Python. See tlb/lookup.pxd and tlb/tlb.pyx.
