from typing import Literal

import numpy as np

from fastmmu._memory import PhysicalMemory
from fastmmu._state import Eptp, GuestState
from fastmmu.dtypes import Fault
from fastmmu.exits import Qualification

class WalkResult:
    la: int
    access: str
    @property
    def steps(self) -> np.recarray[tuple[int], np.dtype[np.void]]: ...
    @property
    def pa(self) -> int: ...
    @property
    def gpa(self) -> int: ...
    @property
    def fault(self) -> Fault: ...
    @property
    def error_code(self) -> int | None: ...
    @property
    def qualification(self) -> Qualification | None: ...
    @property
    def page_size(self) -> int | None: ...
    @property
    def ept_page_size(self) -> int | None: ...
    @property
    def guest_refs(self) -> int: ...
    @property
    def ept_refs(self) -> int: ...
    @property
    def rights(self) -> tuple[bool, bool, bool]: ...

def walk(
    mem: PhysicalMemory,
    state: GuestState,
    va: int,
    *,
    access: Literal["r", "w", "rw", "x"] | str = "r",
    eptp: int | Eptp | None = None,
    set_ad: bool = False,
) -> WalkResult: ...
