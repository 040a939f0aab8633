from typing import Literal

from fastmmu.ops import AccessName
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState

_Stands = Literal["now", "held", "neither"]

class SharedTables:
    def __init__(self, memory: PhysicalMemory) -> None: ...
    def store(self, address: int, value: int, size: int = 8) -> bool: ...

class MayHold:
    def __init__(self, tables: SharedTables, state: GuestState) -> None: ...
    def used(
        self,
        la: int,
        access: AccessName,
        pa: int,
        *,
        user: bool = False,
        ac: bool = False,
        implicit: bool = False,
    ) -> _Stands: ...
    def fault(
        self,
        la: int,
        access: AccessName,
        code: int,
        *,
        user: bool = False,
        ac: bool = False,
        implicit: bool = False,
    ) -> _Stands: ...
    def could(
        self,
        la: int,
        access: AccessName,
        pa: int,
        *,
        user: bool = False,
        ac: bool = False,
        implicit: bool = False,
    ) -> _Stands: ...
    def allows(
        self, la: int, access: AccessName, *, user: bool = False, ac: bool = False, implicit: bool = False
    ) -> bool: ...
    def flags(
        self, la: int, access: AccessName, *, user: bool = False, ac: bool = False, implicit: bool = False
    ) -> _Stands: ...
    def mov_cr3(self, value: int) -> None: ...
    def mov_cr4(self, value: int) -> None: ...
    def wrpkru(self, value: int) -> None: ...
    def invlpg(self, la: int) -> None: ...
    def invpcid(self, type: int, pcid: int = 0, la: int = 0) -> None: ...
    def page_fault(self, la: int, *, here: bool = True) -> None: ...
