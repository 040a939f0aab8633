# Kernel only: nothing here is for Python. See tlb/entries.pxd and tlb/tlb.pyx.
