# Kernel only: nothing here is for Python. See tlb/siblings.pxd and tlb/tlb.pyx.
