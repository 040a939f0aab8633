from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmmu._apic_port import GuestApic
from fastmmu._memory import PhysicalMemory
from fastmmu._state import GuestState
from fastmmu._tlb_py import TLB
from fastmmu._vmm import Vmm
from fastmmu._watch import MissingFlushes
from fastmmu.machine.config import Config
from fastmmu.machine.policy import Action, Policy
from fastmmu.machine.slots import MemorySlot

class Access(NamedTuple):
    gpa: int | None
    error_code: int | None
    cr2: int | None

class Machine:
    config: Config
    memory: PhysicalMemory
    tlb: TLB
    policy: Policy | None
    apic: GuestApic | None
    missing_flushes: MissingFlushes | None
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
    def stopped(self) -> None: ...
    def inject_page_fault(self, la: int, error_code: int) -> Action: ...
    @property
    def mmio(self) -> tuple[int, tuple[int, int] | None] | None: ...
    @property
    def vmcs(self) -> dict[str, Any]: ...
    @property
    def hw_cr3(self) -> int: ...
    @property
    def guest_memory(self) -> PhysicalMemory: ...
    def access(self, la: int, access: str = "r", *, user: bool = False) -> Access: ...
    def store(self, la: int, value: int) -> Access: ...
    def mov_cr3(self, value: int) -> None: ...
    state: GuestState
    def mov_cr4(self, value: int) -> None: ...
    def mov_from_cr4(self) -> int: ...
    def exit_instruction(self, reason: int) -> None: ...
    @property
    def vmm(self) -> Vmm: ...
    def invlpg(self, la: int) -> None: ...
    def counters(self) -> dict[str, Any]: ...
