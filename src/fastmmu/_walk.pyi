import numpy as np

from fastmmu.arch.memtype_py import MemoryType
from fastmmu.dtypes import Fault
from fastmmu.exits import Qualification
from fastmmu.ops import AccessName
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState, SecondLevel
from fastmmu.tlb.tlb import TLB

class WalkResult:
    npt: bool
    la: int
    access: AccessName
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
    def exit_qualification(self) -> int | None: ...
    @property
    def cr2(self) -> int | None: ...
    @property
    def gla(self) -> int | None: ...
    @property
    def memory_type(self) -> MemoryType | None: ...
    @property
    def ept_memory_type(self) -> tuple[MemoryType, bool] | None: ...
    @property
    def suppress_ve(self) -> bool: ...
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
    access: AccessName = "r",
    eptp: int | SecondLevel | None = None,
    set_ad: bool = False,
    tlb: TLB | None = None,
) -> WalkResult: ...
def walk_switched(
    mem: PhysicalMemory,
    state: GuestState,
    va: int,
    *,
    shadow: GuestState | int,
    eptp: int | SecondLevel,
    access: AccessName = "r",
    set_ad: bool = False,
    tlb: TLB | None = None,
) -> tuple[WalkResult, int]: ...
def _walk_unrecorded(
    mem: PhysicalMemory, state: GuestState, va: int, access: AccessName, eptp: int | SecondLevel | None, tlb: TLB
) -> tuple[int, int, int, int | None, int | None, int, int]: ...
def walk_ept(
    mem: PhysicalMemory,
    eptp: int | SecondLevel,
    gpa: int,
    *,
    access: AccessName = "r",
    gla: int | None = None,
    paging_structure: bool = False,
    user: bool = True,
    writable: bool = True,
    nx: bool = False,
    state: GuestState | None = None,
    set_ad: bool = False,
) -> WalkResult: ...
def load_pdpte_registers(
    mem: PhysicalMemory, state: GuestState, *, eptp: int | SecondLevel | None = None, set_ad: bool = False
) -> GuestState | WalkResult: ...
