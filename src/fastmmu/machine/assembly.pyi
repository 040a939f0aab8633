from collections.abc import Sequence

from fastmmu.cpu.missing_flushes import MissingFlushes
from fastmmu.machine.apic_port import GuestApic
from fastmmu.machine.config import Config
from fastmmu.machine.slots import MemorySlot
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState
from fastmmu.tlb.tlb import TLB

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
