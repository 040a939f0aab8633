from collections.abc import Sequence

from fastmmu._apic_port import GuestApic
from fastmmu._memory import PhysicalMemory
from fastmmu._state import GuestState
from fastmmu._tlb_py import TLB
from fastmmu._watch import MissingFlushes
from fastmmu.machine.config import Config
from fastmmu.machine.slots import MemorySlot

class Assembly:
    config: Config
    memory: PhysicalMemory
    tlb: TLB
    @property
    def apic(self) -> GuestApic | None: ...
    missing_flushes: MissingFlushes | None
    initial: GuestState
    def __init__(
        self,
        config: Config,
        guest_kernel: bool,
        state: GuestState | None,
        slots: Sequence[MemorySlot],
        place: tuple[PhysicalMemory, int, TLB, int] | None,
    ) -> None: ...
    def may_run(self) -> None: ...
    @property
    def exiting(self) -> bool: ...
    def stopped(self) -> None: ...
