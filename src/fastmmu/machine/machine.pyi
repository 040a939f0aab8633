from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.kvm.vmm import Vmm
from fastmmu.machine.config import Config
from fastmmu.machine.control_instructions import RegisterInstructions
from fastmmu.machine.policy import Action, Policy
from fastmmu.machine.slots import MemorySlot
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState
from fastmmu.tlb.tlb import TLB

class Machine(RegisterInstructions):
    policy: Policy | None
    def __init__(
        self,
        config: Config | None = None,
        *,
        policy: Policy | None = None,
        guest_kernel: bool = True,
        state: GuestState | None = None,
        slots: Sequence[MemorySlot] = (),
        place: tuple[PhysicalMemory, int, TLB, int] | None = None,
    ) -> None: ...
    def run(
        self,
        op: npt.NDArray[np.uint8],
        size: npt.NDArray[np.uint8],
        addr: npt.NDArray[np.uint64],
        out: npt.NDArray[np.uint64] | None = None,
        first: int = 0,
    ) -> int: ...
    def default(self) -> Action: ...
    def inject_page_fault(self, la: int, error_code: int) -> Action: ...
    @property
    def mmio(self) -> tuple[int, tuple[int, int] | None] | None: ...
    @property
    def vmcs(self) -> dict[str, Any]: ...
    @property
    def hw_cr3(self) -> int: ...
    @property
    def vmm(self) -> Vmm: ...
    @property
    def guest_memory(self) -> PhysicalMemory: ...
    def counters(self) -> dict[str, Any]: ...
