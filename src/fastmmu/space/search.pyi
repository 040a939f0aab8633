import numpy as np

from fastmmu.paging.memory import PhysicalMemory

LONG: int
PAE: int
TWO: int
EPT: int

def root_rows(
    memory: PhysicalMemory, forms: int = 15, *, threads: int = 1, maxphyaddr: int = 52
) -> np.recarray[tuple[int], np.dtype[np.void]]: ...
