# Kernel only: nothing here is for Python. See tlb/invalidate.pxd and tlb/tlb.pyx.
