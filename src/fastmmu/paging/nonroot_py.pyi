from typing import NamedTuple

from fastmmu._walk import WalkResult
from fastmmu.exits import ExitReason
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import Eptp

class VmFunction(NamedTuple):
    eptp: Eptp
    eptp_index: int | None
    exit: ExitReason | None
    exception: int | None

def deliver_ve(
    mem: PhysicalMemory,
    violation: WalkResult,
    area: int,
    *,
    eptp_index: int = 0,
    pe: bool = True,
    delivering_event: bool = False,
) -> bool: ...
def vmfunc(
    mem: PhysicalMemory,
    eptp: int | Eptp,
    *,
    eax: int,
    ecx: int,
    eptp_list: int,
    functions: int = 1,
    enabled: bool = True,
    ad_supported: bool = True,
) -> VmFunction: ...
