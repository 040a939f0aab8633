from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.ops import AccessName
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState, SecondLevel

CHUNK: int

class Translation:
    @property
    def pa(self) -> npt.NDArray[np.uint64]: ...
    @property
    def fault(self) -> npt.NDArray[np.uint8]: ...

def translate(
    mem: PhysicalMemory,
    state: GuestState,
    va: npt.ArrayLike,
    *,
    access: AccessName | None = "r",
    eptp: int | SecondLevel | None = None,
    out: npt.NDArray[Any] | Translation | None = None,
    threads: int = 1,
) -> Translation: ...
